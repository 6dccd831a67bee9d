"""Entry point of `datum-router-discovery`: everything comes from the environment, see README.md."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence

from datum_router.errors import DatumRouterError
from datum_router_discovery.settings import HELP, settings
from datum_router_runtime.discovery import run_discovery
from datum_router_runtime.logsetup import setup_logging
from datum_router_runtime.logtargets import warn_of_unknown_targets
from datum_router_runtime.variables import warn_of_unknown_discovery_variables, warn_of_unknown_variables

NAME = "datum-router-discovery"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; 0 after a clean end, 2 for settings that cannot work, 1 for anything else.

    Args:
        arguments: Those of the command line if None. None are taken but `--help` and `--version`.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given in (["-h"], ["--help"]):
        sys.stdout.write(HELP)
        return 0
    if given == ["--version"]:
        sys.stdout.write(f"{NAME}, version {importlib.metadata.version(NAME)}\n")
        return 0
    if given:
        sys.stderr.write(
            f"{NAME}: found argument {given[0]!r}, expected none: settings come from DATUM_ROUTER_* and DISCOVERY_* "
            "variables (see --help)\n"
        )
        return 2
    try:
        setup_logging(os.environ)
        warn_of_unknown_targets(os.environ)
        warn_of_unknown_variables(os.environ)
        warn_of_unknown_discovery_variables(os.environ)
        run_discovery(settings(os.environ))
    except DatumRouterError as error:
        sys.stderr.write(f"{NAME}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
