"""The order of events of one soak: load all the time, faults by plan, a quiet moment, SIGTERM under load."""

from __future__ import annotations

import random

import trio

from datum_soak import kinds, load
from datum_soak.drain import end_under_load
from datum_soak.edits import churn_forever, edit_checks, edit_forever
from datum_soak.faults import (
    EXHAUSTED,
    KILL,
    ROLLING,
    IdleUpstream,
    exhaust_descriptors,
    kill_worker,
    rolling_restart,
)
from datum_soak.quiet import check_memory, check_quiet, take_baseline
from datum_soak.schedule import STEADY_SHARE, Planned, plan
from datum_soak.slow import SLOW, slow_clients
from datum_soak.stage import Stage

BEFORE_DRAIN_S = 3.0
"""Load before SIGTERM, after the quiet moment."""
HOLD_SHARE = 0.05
MIN_HOLD_S = 12.0
"""The herd is held for longer than the gateway waits for a head (10 s), so that its members see their end."""


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
    seconds = stage.options.seconds
    planned = plan(seconds, stage.options.seed)
    for fault in planned:
        stage.note(f"planned for {fault.at_s:7.1f} s: {fault.name}")
    baseline = await take_baseline(stage)
    async with trio.open_nursery() as sampling:
        sampling.start_soon(stage.sample_forever)
        traffic = Traffic(stage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic.run)
            async with trio.open_nursery() as background:
                background.start_soon(edit_forever, stage)
                background.start_soon(churn_forever, stage)
                await act(stage, planned)
                # Faults that took long on a busy machine take nothing from the time in which memory is judged.
                end_s = max(seconds, _last_violent_end(stage) + (1 - STEADY_SHARE) * seconds)
                await trio.sleep(max(0.0, end_s - stage.clock()))
                background.cancel_scope.cancel()
            traffic.stop.set()
        check_memory(stage, max(STEADY_SHARE * seconds, _last_violent_end(stage)), stage.clock())
        await check_quiet(stage, baseline)
        sampling.cancel_scope.cancel()
    traffic = Traffic(stage)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(traffic.run)
        await trio.sleep(BEFORE_DRAIN_S)
        await end_under_load(stage, traffic.stop)
    edit_checks(stage)


def _last_violent_end(stage: Stage) -> float:
    violent = [window.end_s for window in stage.windows if window.name in (KILL, ROLLING, SLOW, EXHAUSTED)]
    return max(violent, default=0.0)


async def act(stage: Stage, planned: list[Planned]) -> None:
    """Do the faults one after another, each when it is due or as soon as the one before is over."""
    chooser = random.Random(stage.options.seed + 2)
    idle = IdleUpstream(stage)
    for fault in planned:
        await trio.sleep(max(0.0, fault.at_s - stage.clock()))
        if fault.name == KILL:
            await kill_worker(stage, chooser)
        elif fault.name == ROLLING:
            await rolling_restart(stage)
        elif fault.name == SLOW:
            await slow_clients(stage, hold_s=max(MIN_HOLD_S, HOLD_SHARE * stage.options.seconds))
        elif fault.name == EXHAUSTED:
            await exhaust_descriptors(stage)
        else:
            await idle.restart()
