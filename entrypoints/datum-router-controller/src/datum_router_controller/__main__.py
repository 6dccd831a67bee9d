"""Entry point of `datum-router-controller`: everything comes from the environment, see README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from datum_router_controller.settings import HELP, settings
from datum_router_runtime.controller import run_controller
from datum_router_runtime.mainprogram import run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; 0 after a clean end, 2 for settings that cannot work, 1 for anything else.

    Args:
        arguments: Those of the command line if None. None are taken but `--help` and `--version`.
    """
    return run_program(
        "datum-router-controller", arguments, lambda environ: run_controller(settings(environ)), help_text=HELP
    )


if __name__ == "__main__":
    sys.exit(main())
