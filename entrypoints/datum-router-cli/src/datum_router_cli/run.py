"""`datum-router run`: serve the manifests of a directory."""

from __future__ import annotations

import os

import click
import msgspec

from datum_router_cli.failure import RouterCommand, require
from datum_router_cli.output import printable
from datum_router_runtime.admin import PAGES
from datum_router_runtime.app import Announce, run_gateway
from datum_router_runtime.settings import (
    MAX_WORKERS,
    Address,
    GatewaySettings,
    parse_address,
    parse_admin_address,
    settings_from_environment,
)
from datum_router_runtime.sockets import ListenerGroup


@click.command(cls=RouterCommand, short_help="Serve the manifests in DIR, and changes to them.")
@click.argument("directory", metavar="DIR")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Serve all routes on one plain HTTP/1.1 and h2c listener, in place of what VPCIngresses ask for. "
    "Default: the listeners of the VPCIngresses in DIR, or 127.0.0.1:8080 if it has none.",
)
@click.option(
    "--workers",
    metavar="N",
    type=int,
    help=f"Worker processes, 1 to {MAX_WORKERS}; about one for each core. Default: DATUM_ROUTER_WORKERS, or 1.",
)
@click.option(
    "--admin",
    metavar="HOST:PORT",
    help=f"Loopback address for {', '.join(PAGES[:-1])} and {PAGES[-1]}. Default: none.",
)
@click.option(
    "--egress",
    metavar="HOST:PORT",
    help="Forward proxy for outbound traffic, as VPCEgresses allow. Default: DATUM_ROUTER_EGRESS_LISTEN, or none.",
)
@click.option(
    "--egress-source",
    metavar="NAMESPACE/NAME",
    help="The VPCAttachment whose traffic that is, or NAMESPACE/ for all of a namespace, if neither interface nor "
    "address says so. Default: DATUM_ROUTER_EGRESS_SOURCE, or nobody's: nothing passes.",
)
def run(
    directory: str,
    listen: str | None,
    workers: int | None,
    admin: str | None,
    egress: str | None,
    egress_source: str | None,
) -> None:
    """Serve the manifests in DIR; changes to them are in force within a second.

    Ends after SIGTERM or SIGINT when requests in flight are done; a second signal ends it at once. SIGHUP replaces the
    workers one after another. Exit status 2: a setting cannot be used. Broken manifests do not keep it from starting:
    they are logged, and the rest is served.
    Prints `listening on SCHEME://HOST:PORT` for each listener, then `ready`.

    \b
    Examples:
      datum-router run ./manifests
      datum-router run ./manifests --listen '[::]:8080' --workers 4 --admin 127.0.0.1:9901
    """
    settings = gateway_settings(
        directory, listen=listen, workers=workers, admin=admin, egress=egress, egress_source=egress_source
    )
    run_gateway(settings, announce=Printer())


class Printer(Announce):
    """Print on standard output where the gateway listens, and when it is ready; a script can wait for these lines.

    `listening on SCHEME://HOST:PORT` comes for each listener as it is bound, also later; `admin on http://HOST:PORT`
    and `ready` follow once.
    """

    def __init__(self) -> None:
        self._admin: Address | None = None
        self._has_listened = False

    def listening(self, group: ListenerGroup) -> None:
        """Print a listener's address."""
        self._has_listened = True
        host, port = group.address
        click.echo(f"listening on {group.scheme}://{Address(host=host, port=port)} ({printable(group.name)})")

    def admin(self, address: Address) -> None:
        """Keep the admin address until the gateway is ready."""
        self._admin = address

    def ready(self) -> None:
        """Print that the gateway serves, and on standard error if nothing can reach it as yet."""
        if self._admin is not None:
            click.echo(f"admin on http://{self._admin}")
        click.echo("ready")
        if not self._has_listened:
            click.echo(
                "no listener is open: see `datum-router check`, and gatewaySelector and listeners of the VPCIngresses; "
                "--listen HOST:PORT serves all routes on one",
                err=True,
            )


def gateway_settings(
    directory: str,
    *,
    listen: str | None = None,
    workers: int | None = None,
    admin: str | None = None,
    egress: str | None = None,
    egress_source: str | None = None,
) -> GatewaySettings:
    """Return the settings that these arguments and the environment give; arguments go before the environment.

    Raises:
        ConfigError: An argument is out of range; names the option and what would be right.
    """
    require(
        os.path.exists(directory),
        f"DIR: found {directory!r}, which does not exist; create the directory and put manifests there as *.yaml files",
    )
    require(workers is None or 1 <= workers <= MAX_WORKERS, f"--workers: found {workers}, expected 1 to {MAX_WORKERS}")
    settings = GatewaySettings(
        source="files",
        source_config={"path": directory},
        listen=parse_address(listen, name="--listen") if listen is not None else None,
        admin=parse_admin_address(admin, name="--admin") if admin is not None else None,
    )
    settings = msgspec.structs.replace(settings, **settings_from_environment(os.environ))
    # What is asked for here and now goes before what stands in the environment.
    asked: dict[str, object] = {}
    if workers is not None:
        asked["workers"] = workers
    if egress is not None:
        asked["egress_listen"] = parse_address(egress, name="--egress")
    if egress_source is not None:
        asked["egress_source"] = egress_source
    return msgspec.structs.replace(settings, **asked) if asked else settings
