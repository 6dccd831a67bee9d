"""The order of events of one soak."""

from __future__ import annotations

import trio

from datum_soak.drain import end_under_load
from datum_soak.edits import churn_forever, edit_checks, edit_forever
from datum_soak.load import MIX
from datum_soak.stage import Stage


async def play(stage: Stage) -> None:
    """Run load and faults, then end the gateway under load."""
    stop = trio.Event()
    async with trio.open_nursery() as load:
        load.start_soon(stage.load.run, stage.options.rate, MIX, stop)
        async with trio.open_nursery() as background:
            background.start_soon(stage.sample_forever)
            background.start_soon(edit_forever, stage)
            background.start_soon(churn_forever, stage)
            await trio.sleep(stage.options.seconds)
            background.cancel_scope.cancel()
        await end_under_load(stage, stop)
    edit_checks(stage)
