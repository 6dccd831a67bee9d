"""`python -m lab`: build the lab, show all of it, take it down.

With `--check` it also exits 0 where it cannot run, but in CI; it says what is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

from lab import cluster, network, outage, processes, shell, story
from lab.network import LabError
from lab.plan import draw_map
from lab.story import Lab, Say

ACCESS_LOGGER = "datum_router.access"
SHOWN_LOGS = ("gateway", "discovery", "controller")
SHOWN_LINES = 15
STEPS: tuple[tuple[str, Callable[[Lab, Say], list[str]]], ...] = (
    ("Three clusters: what GCP and on-prem export is reached by its name in AWS", story.join),
    ("An export is taken back, and given again", story.consent),
    ("A request enters in AWS and is answered in GCP", story.example),
    ("Two tenants with equal addresses", story.tenants),
    ("A cloud is cut off, and returns", outage.failover),
)


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def whole_lab() -> Iterator[Lab]:
    """Build everything, nothing applied yet but what a user installs; take it down at the end, whatever happens."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(network.home())
        stack.enter_context(network.built())
        clusters = stack.enter_context(cluster.running(home))
        yield Lab(clusters, stack.enter_context(processes.running(home, clusters)))


def show() -> list[str]:
    """Run the whole story; return what did not hold."""
    say(draw_map())
    wrong: list[str] = []
    began = time.monotonic()
    with whole_lab() as lab:
        took_s = time.monotonic() - began
        say(f"three clusters, gateway, controller, discovery and four backends run after {took_s:.1f} s")
        for number, (title, step) in enumerate(STEPS, 1):
            say(f"\n{number}. {title}")
            try:
                wrong += step(lab, say)
            except LabError as error:  # what comes next would have no ground to stand on
                wrong.append(str(error))
                break
        if wrong:
            for name in SHOWN_LOGS:
                lines = [line for line in lab.processes.log(name).read_text().splitlines() if ACCESS_LOGGER not in line]
                say(f"\nlast lines of {name}'s log:\n" + "\n".join(lines[-SHOWN_LINES:]))
    return wrong


def keep() -> None:
    """Build the lab and leave it to who is there, until interrupted."""
    with whole_lab() as lab:
        story.join(lab, lambda _: None)
        say(draw_map())
        found = lab.processes.home / "try.sh"
        found.write_text(shell.functions({name: one.kubectl_command() for name, one in lab.clusters.items()}))
        say(f"To try it, as root in another shell:\n\n  . {found}\n{shell.HELP}")
        say(f"Logs: {lab.processes.home}/*.log. Ctrl-C takes everything down.")
        signal.pause()


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 0 where the lab cannot run, unless CI is set")
    parser.add_argument("--keep", action="store_true", help="only build it, and leave it there until Ctrl-C")
    arguments = parser.parse_args()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]  # nothing in here is beyond a proxy
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    lacking = network.missing() or cluster.programs_missing()
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
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # everything is taken down now, and a second Ctrl-C does not stop that
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
