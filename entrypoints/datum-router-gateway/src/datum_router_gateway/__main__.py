"""Entry point of `datum-router-gateway`: everything comes from the environment, see README.md."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from datum_router.errors import DatumRouterError
from datum_router_runtime.app import run_gateway
from datum_router_runtime.logsetup import setup_logging
from datum_router_runtime.logtargets import warn_of_unknown_targets
from datum_router_runtime.settings import GatewaySettings, parse_address, settings_from_environment


def settings(environ: Mapping[str, str]) -> GatewaySettings:
    """Return the settings that `DATUM_ROUTER_*` variables ask for.

    Raises:
        ConfigError: A variable that is missing or cannot be read; names it.
    """
    found = settings_from_environment(environ)
    found["source"] = environ.get("DATUM_ROUTER_SOURCE", "files")
    found["source_config"] = {"path": environ.get("DATUM_ROUTER_DIR", "/etc/datum-router")}
    if listen := environ.get("DATUM_ROUTER_LISTEN"):
        found["listen"] = parse_address(listen, name="DATUM_ROUTER_LISTEN")
    if admin := environ.get("DATUM_ROUTER_ADMIN"):
        found["admin"] = parse_address(admin, name="DATUM_ROUTER_ADMIN")
    return GatewaySettings.from_mapping(found)


def main() -> int:
    """Serve until told to stop; 0 after a clean drain, 2 for settings that cannot work, 1 for anything else."""
    try:
        setup_logging(os.environ)
        warn_of_unknown_targets(os.environ)
        run_gateway(settings(os.environ))
    except DatumRouterError as error:
        sys.stderr.write(f"datum-router-gateway: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
