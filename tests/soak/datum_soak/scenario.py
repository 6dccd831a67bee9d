"""The order of events of one soak."""

from __future__ import annotations

import trio

from datum_soak import kinds, load
from datum_soak.drain import end_under_load
from datum_soak.edits import churn_forever, edit_checks, edit_forever
from datum_soak.stage import Stage


class Traffic:
    """All load together: started, and ended with nothing left open."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.stop = trio.Event()

    async def run(self) -> None:
        """Send everything until `stop` is set; returns when every request has ended."""
        stage = self._stage
        gateway = stage.gateway.address
        async with trio.open_nursery() as readers:
            http2 = kinds.Http2Kinds(stage.load, gateway, readers)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.load.run, stage.options.rate, {**load.MIX, **kinds.MIX}, self.stop)
                nursery.start_soon(kinds.WebSockets(stage.load, gateway).run, self.stop)
                nursery.start_soon(kinds.Established(stage.load, "/est/body/1024").run, self.stop)
            http2.close()
        await stage.load.h1.aclose()


async def play(stage: Stage) -> None:
    """Run load and faults, then end the gateway under load."""
    traffic = Traffic(stage)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(traffic.run)
        async with trio.open_nursery() as background:
            background.start_soon(stage.sample_forever)
            background.start_soon(edit_forever, stage)
            background.start_soon(churn_forever, stage)
            await trio.sleep(stage.options.seconds)
            background.cancel_scope.cancel()
        await end_under_load(stage, traffic.stop)
    edit_checks(stage)
