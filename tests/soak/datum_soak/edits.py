"""Changes of configuration under load: an edit every second, endpoints that come and go."""

from __future__ import annotations

import random

import trio

from datum_soak import config
from datum_soak.load import EXTRA_PATH
from datum_soak.outcomes import Cause, Kind
from datum_soak.stage import Stage

EDIT_EVERY_S = 1.0
CHURN_EVERY_S = 5.0
SERVES_WITHIN_S = 5.0


async def edit_forever(stage: Stage) -> None:
    """Each second: another weight and header on one route; each third second a route that comes or goes."""
    chooser = random.Random(stage.options.seed + 1)
    due = trio.current_time()
    number = 0
    is_extra_there = False
    while True:
        due += EDIT_EVERY_S
        await trio.sleep_until(due)
        due = max(due, trio.current_time() - EDIT_EVERY_S)
        number += 1
        stage.generation += 1
        text = stage.flip_manifest(chooser.randint(1, 99))
        if number % 3 == 0:
            is_extra_there = not is_extra_there
        if is_extra_there:
            text += config.route("extra", f"exactPath: {EXTRA_PATH}", {"flip-a": 1})
        if await stage.editor.apply(stage.gateway, "flip", text, f"edit {stage.generation}"):
            stage.promises.generation = stage.generation
            if number % 3 == 0:
                # In force everywhere, so whichever worker is asked must know.
                stage.load.is_extra_there = is_extra_there
                await stage.load.send(Kind.H1_EXTRA)


async def churn_forever(stage: Stage) -> None:
    """Add an endpoint, see it serve; take the oldest out, and close it gracefully once that is in force."""
    number = len(stage.main)
    while True:
        await trio.sleep(CHURN_EVERY_S)
        number += 1
        name = f"e{number}"
        stage.main[name] = await stage.backends.open(name, f"127.0.1.{number % 250 + 1}")
        if await stage.editor.apply(stage.gateway, "main", stage.main_manifest(), f"endpoint {name} added"):
            with trio.move_on_after(SERVES_WITHIN_S):
                while not stage.promises.served.get(name):
                    await stage.load.send(Kind.H1_GET)
            if not stage.promises.served.get(name):
                stage.require(f"added endpoint {name} serves", False, "no answer", f"one in {SERVES_WITHIN_S:g} s")
        await trio.sleep(CHURN_EVERY_S)
        oldest = next(iter(stage.main))
        del stage.main[oldest]
        if await stage.editor.apply(stage.gateway, "main", stage.main_manifest(), f"endpoint {oldest} removed"):
            stage.promises.removed[oldest] = stage.clock()
            await trio.sleep(config.REMOVED_GRACE_S)
            await stage.backends.close(oldest)


def edit_checks(stage: Stage) -> None:
    """Enter the checks on edits and endpoints of the whole soak."""
    late = stage.editor.late
    stage.require(
        "edits not in force in time", not late, ", ".join(late) or "none", f"in {config.IN_FORCE_WITHIN_S:g} s"
    )
    removed = sum(record.cause is Cause.REMOVED_ENDPOINT for record in stage.ledger.failures)
    stage.require("requests served by removed endpoints", removed == 0, removed, 0)
