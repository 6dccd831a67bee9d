"""The `datum-router` command."""

from __future__ import annotations

from datum_router_cli.commands import cli


def main() -> None:
    """Run the command line; exit status 0: good, 2: bad input, 1: anything else."""
    cli(prog_name="datum-router")


if __name__ == "__main__":
    main()
