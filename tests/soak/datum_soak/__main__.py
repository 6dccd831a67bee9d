"""`python -m datum_soak --seconds 600`: run, report, exit with 1 if the verdict is against the gateway."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import traceback
from pathlib import Path

import trio

from datum_soak.report import Result, make_result, print_result, progress_forever, write_files
from datum_soak.scenario import play
from datum_soak.stage import Options, Stage

EXTRA_S = 300.0
"""A soak that takes longer than twice its length and this is cut off, and has failed."""


def limit_s(options: Options) -> float:
    """Return the longest time that the soak may take, in seconds."""
    return 2 * options.seconds + EXTRA_S


async def soak(options: Options) -> Result:
    """Run one soak."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        stage = Stage(options, Path(directory))
        try:
            await stage.start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(progress_forever, stage)
                try:
                    with trio.move_on_after(limit_s(options)) as limit:
                        await play(stage)
                    if limit.cancelled_caught:
                        stage.require("the soak ended in time", False, "cut off", f"in {limit_s(options):g} s")
                except* (OSError, RuntimeError, ValueError) as broken:
                    # The gateway or a backend is gone: what was found until then is reported.
                    traceback.print_exception(broken)
                    stage.require("the soak ran to its end", False, repr(broken.exceptions), "no exception")
                nursery.cancel_scope.cancel()
        finally:
            stage.close()
    return make_result(stage)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second of the open loop")
    parser.add_argument("--slow-clients", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    given.out.mkdir(parents=True, exist_ok=True)
    options = Options(
        seconds=given.seconds,
        rate=given.rate,
        slow_clients=given.slow_clients,
        seed=given.seed,
        out=given.out,
    )
    result = trio.run(soak, options)
    write_files(result, options.out)
    print_result(result)
    return 0 if result.is_passed else 1


if __name__ == "__main__":
    sys.exit(main())
