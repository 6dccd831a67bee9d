"""`datum-router plugins`: what is installed, and what each plugin offers."""

from __future__ import annotations

import os

import click

from datum_router.plugins.manager import PluginSet, load_plugins
from datum_router_cli.failure import RouterCommand
from datum_router_cli.output import make_console, output_option, print_json, print_table
from datum_router_runtime.settings import settings_from_environment
from datum_router_runtime.variables import is_tracing


def installed_plugins() -> PluginSet:
    """Load the plugins that are installed and not disabled by the environment; tell each hook call if that asks for it.

    Raises:
        ConfigError: An environment variable cannot be used.
        PluginLoadError: A plugin cannot be loaded.
    """
    disabled = settings_from_environment(os.environ).get("disabled_plugins", ())
    assert isinstance(disabled, tuple)
    return load_plugins(disabled=frozenset(disabled), trace=_tell if is_tracing(os.environ) else None)


def _tell(line: str) -> None:
    click.echo(line, err=True)


@click.command(cls=RouterCommand, short_help="List the plugins that are loaded.")
@output_option
def plugins(output: str) -> None:
    """List the plugins that are loaded: version, hooks, stability, and what traffic they may meet.

    Posture: untrusted-downstream (may face the internet), trusted-peers-only, no-traffic.

    \b
    Example:
      DATUM_ROUTER_DISABLE_PLUGINS=kubernetes datum-router plugins
    """
    loaded = installed_plugins()
    if output == "json":
        print_json(
            {
                "plugins": [
                    {
                        "name": plugin.info.name,
                        "entry_point": plugin.entry_point,
                        "distribution": plugin.distribution,
                        "version": plugin.info.version,
                        "api": plugin.info.api,
                        "stability": plugin.info.stability,
                        "posture": plugin.info.posture,
                        "hooks": plugin.hooks,
                    }
                    for plugin in loaded.plugins
                ]
            }
        )
        return
    print_table(
        make_console(),
        ["PLUGIN", "VERSION", "STABILITY", "POSTURE", "HOOKS"],
        [
            [
                plugin.entry_point,
                plugin.info.version,
                plugin.info.stability,
                plugin.info.posture,
                ", ".join(
                    hook.removeprefix("datum_router_") for hook in plugin.hooks if hook != "datum_router_plugin_info"
                ),
            ]
            for plugin in loaded.plugins
        ],
    )
