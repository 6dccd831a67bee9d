"""Run measures: all proxies of a measure are up, and each round loads every one of them in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gatebench.checks import check_proxy
from gatebench.measures import TWO_WORKERS, Measure, Stage
from gatebench.processes import BenchError, cpu_seconds, memory_bytes
from gatebench.proxies import Proxy, start_proxy
from gatebench.samples import Sample, median

WARM_UP_S = 1.0
START_S = 2.5
BETWEEN_S = 0.6
OTHER_S = 4.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does: which measures on which proxies, how often and for how long each."""

    measures: Sequence[Measure]
    proxies: Sequence[str]
    rounds: int

    def takes_part(self, measure: Measure) -> list[str]:
        """Return the proxies of `measure` that were asked for; two workers of ours count as ours."""
        return [
            name
            for name in measure.proxies
            if name in self.proxies or (name == TWO_WORKERS and "datum" in self.proxies)
        ]

    def estimate_s(self, seconds: float) -> float:
        """Return about how long the measures take."""
        total = 0.0
        for measure in self.measures:
            each = seconds + WARM_UP_S + BETWEEN_S if measure.is_load else OTHER_S
            total += len(self.takes_part(measure)) * (START_S + self.rounds_of(measure) * each)
        return total

    def rounds_of(self, measure: Measure) -> int:
        return 1 if measure.is_once else self.rounds * measure.repeats


def run_measure(measure: Measure, plan: Plan, stage: Stage, told: Callable[[Sample], None]) -> list[Sample]:
    """Return the samples of one measure; a proxy that fails yields samples that say why, and the others go on."""
    samples: list[Sample] = []

    def add(sample: Sample) -> None:
        samples.append(sample)
        told(sample)

    with contextlib.ExitStack() as stack:
        running: dict[str, Proxy | str] = {}
        for name in plan.takes_part(measure):
            try:
                proxy = start_proxy(name, stage.site, routes=measure.routes)
                stack.callback(proxy.stop)
                check_proxy(measure.key, proxy, stage)
                running[name] = proxy
            except BenchError as error:
                running[name] = str(error)
        for number in range(1, plan.rounds_of(measure) + 1):
            for name, proxy_or_error in running.items():
                if isinstance(proxy_or_error, str):
                    add(Sample(measure=measure.key, proxy=name, round=number, error=proxy_or_error))
                else:
                    add(_take(measure, proxy_or_error, stage, number))
    return samples


def _take(measure: Measure, proxy: Proxy, stage: Stage, number: int) -> Sample:
    empty = Sample(measure=measure.key, proxy=proxy.name, round=number)
    try:
        if measure.is_load:
            measure.drive(stage, proxy, WARM_UP_S)
        pids = proxy.serving()
        before = cpu_seconds(pids)
        load = measure.drive(stage, proxy, stage.seconds)
        cpu_s = cpu_seconds(pids) - before
        rss, _ = memory_bytes(pids)
    except (BenchError, OSError) as error:
        return replace(empty, error=f"{error}; {proxy.child.log_tail(300)}")
    if measure.is_load and not load.requests and not load.body_bytes:
        return replace(empty, error="no request was answered", errors=load.errors)
    value = measure.value(load)
    if measure.is_per_cpu:
        value = load.requests / cpu_s if cpu_s else None
    return replace(
        empty,
        value=value,
        requests=load.requests,
        errors=load.errors,
        p50_us=load.p50_us,
        p99_us=load.p99_us,
        p999_us=load.p999_us,
        cpu_us=cpu_s / load.requests * 1e6 if load.requests and measure.is_load else None,
        rss_bytes=rss,
    )


def half_of_envoy(samples: Sequence[Sample]) -> int:
    """Return half of Envoy's median rate on HTTP/1.1 keep-alive, requests/s; 0 if there is none."""
    rates = [s.value for s in samples if s.measure == "h1" and s.proxy == "envoy" and s.is_good and s.value is not None]
    return int(median(rates) / 2) if rates else 0
