"""`python -m lab`: build the lab, show all of it, take it down.

With `--check` it also exits 0 where it cannot run, but in CI; it says what is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from lab import story
from lab.network import LabError, built, missing, namespace
from lab.plan import GATEWAY_PORT, GATEWAYS, PUBLIC_ADDRESS, VISITOR, draw_map
from lab.processes import running
from lab.traffic import wait_for

ACCESS_LOGGER = "datum_router.access"


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show() -> list[str]:
    """Run the whole story; return what did not hold."""
    say(draw_map())
    wrong: list[str] = []
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="datum-router-lab-")))
        stack.enter_context(built())
        stack.enter_context(running(logs))
        wait_for("every backend is probed healthy through its VPC", story.gateway_is_ready)
        say(f"built, and every backend healthy, in {time.monotonic() - began:.1f} s\n")
        say("1. A request enters in AWS and is answered in GCP")
        wrong += story.example(say)
        say("\n2. Two tenants with equal addresses")
        wrong += story.tenants(say)
        say("\n3. A cloud is cut off, and returns")
        wrong += story.failover(say, logs / "gateway.log")
        if wrong:
            log = [line for line in (logs / "gateway.log").read_text().splitlines() if ACCESS_LOGGER not in line]
            say("\nlast lines of the gateway's log:\n" + "\n".join(log[-15:]))
    return wrong


def keep() -> None:
    """Build the lab and leave it to who is there, until interrupted."""
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="datum-router-lab-")))
        stack.enter_context(built())
        stack.enter_context(running(logs))
        wait_for("every backend is probed healthy through its VPC", story.gateway_is_ready)
        say(draw_map())
        visitor = f"ip netns exec {namespace(VISITOR)} curl -g -H 'Host: blue.example.com'"
        say(f"Try:  {visitor} 'http://[{PUBLIC_ADDRESS}]:{GATEWAY_PORT}/api/v1/users'")
        say(f"      ip netns exec {namespace(GATEWAYS[0].host)} ip -6 rule")
        say(f"      ip -s -n {namespace('gcp')} -6 route   # packets that segments took out")
        say(f"Log:  {logs}/gateway.log. Ctrl-C takes everything down.")
        signal.pause()


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 0 where the lab cannot run, unless CI is set")
    parser.add_argument("--keep", action="store_true", help="only build it, and leave it there until Ctrl-C")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    lacking = missing()
    if lacking:
        say(f"the lab needs what is not here: {lacking}")
        return 1 if os.environ.get("CI") or not arguments.check else 0
    try:
        if arguments.keep:
            keep()
            return 0
        wrong = show()
    except LabError as error:
        wrong = [str(error)]
    except KeyboardInterrupt:
        say("interrupted; everything is taken down")
        return 130
    for sentence in wrong:
        say(f"NOT SO: {sentence}")
    say("\nthe lab holds" if not wrong else f"\n{len(wrong)} things did not hold")
    return 1 if wrong else 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
