"""The command group: what all commands share, and the list of them."""

from __future__ import annotations

import importlib.metadata
import os

import click

from datum_router_cli.apply import apply
from datum_router_cli.certs import certs
from datum_router_cli.check import check
from datum_router_cli.diff import diff
from datum_router_cli.explain import explain
from datum_router_cli.failure import RouterGroup
from datum_router_cli.get import get
from datum_router_cli.plugins import plugins
from datum_router_cli.run import run
from datum_router_cli.schema import schema
from datum_router_cli.sim import sim
from datum_router_runtime.logsetup import setup_logging
from datum_router_runtime.logtargets import warn_of_unknown_targets
from datum_router_runtime.variables import warn_of_unknown_variables

EPILOG = """\b
Environment:
  DATUM_ROUTER_LOG              log filters, such as info or router=debug,datum_router_proxy=trace,warn
                                (takes the place of RUST_LOG, which is not read)
  DATUM_ROUTER_LOG_FORMAT       text or json
  DATUM_ROUTER_DISABLE_PLUGINS  names of plugins that are not loaded, separated by commas
  NO_COLOR                      set: no colours

\b
Exit status: 0 good, 2 bad input, 1 anything else.
"""


@click.group(cls=RouterGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("datum-router"), prog_name="datum-router")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="Lines on standard error for people or for machines. Default: DATUM_ROUTER_LOG_FORMAT, or text.",
)
@click.pass_context
def cli(ctx: click.Context, log_format: str | None) -> None:
    """Datum Router: a layer 7 application router above Galactic VPC.

    \b
    Try:
      datum-router check ./manifests
      datum-router explain ./manifests GET http://localhost/api/v1/users
      datum-router run ./manifests --listen 127.0.0.1:8080
      datum-router apply -f ./manifests --wait
      datum-router get clusters
    """
    if log_format is not None:
        os.environ["DATUM_ROUTER_LOG_FORMAT"] = log_format  # worker processes read it there
    # Commands that end at once print what they have to say; only a gateway that runs tells what it does.
    setup_logging(os.environ, default="info" if ctx.invoked_subcommand == "run" else "warn")
    warn_of_unknown_targets(os.environ)
    warn_of_unknown_variables(os.environ)


for command in (check, explain, diff, run, apply, get, plugins, schema, sim, certs):
    cli.add_command(command)
