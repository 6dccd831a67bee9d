"""What every entry point that takes everything from the environment does: its arguments, logs and exit status."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from datum_router.errors import DatumRouterError
from datum_router_runtime.logsetup import setup_logging
from datum_router_runtime.logtargets import warn_of_unknown_targets
from datum_router_runtime.variables import warn_of_unknown_variables


def run_program(
    name: str,
    arguments: Sequence[str] | None,
    run: Callable[[Mapping[str, str]], None],
    *,
    help_text: str,
    instead: str = "",
) -> int:
    """Run a program until it ends; return 0 after a clean end, 2 for arguments or settings that cannot work.

    Args:
        name: Of the program and its distribution.
        arguments: Those of the command line if None. None are taken but `--help` and `--version`.
        run: Runs it, given the environment.
        instead: Follows what is said of an argument: where it could be meant.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given in (["-h"], ["--help"]):
        sys.stdout.write(help_text)
        return 0
    if given == ["--version"]:
        sys.stdout.write(f"{name}, version {importlib.metadata.version(name)}\n")
        return 0
    if given:
        sys.stderr.write(
            f"{name}: found argument {given[0]!r}, expected none: settings come from DATUM_ROUTER_* variables "
            f"(see --help){instead}\n"
        )
        return 2
    try:
        setup_logging(os.environ)
        warn_of_unknown_targets(os.environ)
        warn_of_unknown_variables(os.environ)
        run(os.environ)
    except DatumRouterError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2
    return 0
