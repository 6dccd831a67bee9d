"""What must be back where it was once the load has gone (connections, tasks, descriptors); memory flat meanwhile."""

from __future__ import annotations

import msgspec
import trio

from datum_soak.memory import slope_bound, slope_per_hour
from datum_soak.processes import sample_process
from datum_soak.stage import Stage

QUIET_WITHIN_S = 10.0
ENOUGH_SAMPLES = 10


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of an idle gateway: tasks of all workers, descriptors of one."""

    tasks: int
    descriptors: int


async def take_baseline(stage: Stage) -> Baseline:
    """Count before any load."""
    stats = await stage.gateway.stats()
    counts = [sample.descriptors for worker in stats.workers if (sample := sample_process(worker.pid, 0.0)) is not None]
    return Baseline(tasks=stats.gauges.get("tasks", 0), descriptors=max(counts))


async def check_quiet(stage: Stage, baseline: Baseline) -> None:
    """Wait until the gateway holds no more than before, and its pools of upstream connections."""
    excess = "nothing measured"
    with trio.move_on_after(QUIET_WITHIN_S):
        while excess:
            await trio.sleep(0.25)
            excess = await _excess(stage, baseline)
    stage.require("left over after the load", not excess, excess or "nothing", f"nothing, {QUIET_WITHIN_S:g} s later")


async def _excess(stage: Stage, baseline: Baseline) -> str:
    stats = await stage.gateway.stats()
    gauges = stats.gauges
    found = []
    for name in ("connections", "requests_in_flight"):
        if gauges.get(name, 0):
            found.append(f"{name} {gauges[name]}")
    pooled = gauges.get("upstream_connections", 0)
    if gauges.get("tasks", 0) > baseline.tasks + pooled:
        found.append(f"tasks {gauges['tasks']}, {baseline.tasks} before, {pooled} pooled upstream connections")
    for worker in stats.workers:
        sample = sample_process(worker.pid, 0.0)
        allowed = baseline.descriptors + worker.gauges.get("upstream_connections", 0)
        if sample is not None and sample.descriptors > allowed:
            found.append(f"worker {worker.index} has {sample.descriptors} descriptors, expected at most {allowed}")
    return "; ".join(found)


def check_memory(stage: Stage, from_s: float, to_s: float) -> None:
    """Enter the slope of every process that lived through the steady part."""
    for name, samples in stage.samples.items():
        steady = [(sample.at_s, sample.rss_mib) for sample in samples if from_s <= sample.at_s <= to_s]
        if len(steady) < ENOUGH_SAMPLES or steady[-1][0] - steady[0][0] < 0.8 * (to_s - from_s):
            continue
        slope = slope_per_hour(steady)
        bound = slope_bound(to_s - from_s)
        stage.require(
            f"memory of {name}",
            slope <= bound,
            f"{slope:+.2f} MiB/h, {steady[0][1]:.1f} to {steady[-1][1]:.1f} MiB",
            f"at most {bound:.2f} MiB/h in {to_s - from_s:.0f} s",
        )
    judged = sum(check.name.startswith("memory of worker") for check in stage.checks)
    stage.require("workers whose memory was judged", judged == stage.options.workers, judged, stage.options.workers)
