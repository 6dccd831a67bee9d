"""What one run of one measure on one proxy gave, and the arithmetic on several of them: pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run. A figure that the measure does not have is None.

    Attributes:
        measure, proxy, round: Which; rounds count from 1.
        value: The figure that the measure is about, in its unit.
        requests, errors: Answers, and requests without a good (2xx) answer.
        error: Why the run failed as a whole; empty if it did not.
        cpu_us: CPU microseconds of the proxy's serving processes for each request.
        rss_bytes: Resident memory of the serving processes after the run.
    """

    measure: str
    proxy: str
    round: int
    value: float | None = None
    requests: int = 0
    errors: int = 0
    error: str = ""
    p50_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    cpu_us: float | None = None
    rss_bytes: int | None = None

    @property
    def is_good(self) -> bool:
        return not self.error and not self.errors and self.value is not None


FIGURES = tuple(field.name for field in fields(Sample) if str(field.type).endswith("| None"))


def median(values: Sequence[float]) -> float:
    """Return the middle value, the mean of the middle two for an even count.

    Raises:
        ValueError: There is none.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def spread(values: Sequence[float]) -> float:
    """Return (highest - lowest) / median: 0.1 says that rounds differ by 10 %."""
    middle = median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of ascending values: the least one that `percent` of them do not exceed."""
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Medians over the rounds of one proxy in one measure; `failure` is empty if every round was good."""

    measure: str
    proxy: str
    rounds: int
    value: float | None
    spread: float | None
    failure: str
    p50_us: float | None
    p99_us: float | None
    p999_us: float | None
    cpu_us: float | None
    rss_bytes: float | None


def summarise(samples: Sequence[Sample]) -> list[Summary]:
    """Return one summary for each measure and proxy, in order of appearance.

    One bad round makes the row a failed one: its medians are over the good rounds and are shown, but never count.
    """
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.measure, sample.proxy), []).append(sample)
    return [_summary(measure, proxy, group) for (measure, proxy), group in groups.items()]


def _summary(measure: str, proxy: str, group: Sequence[Sample]) -> Summary:
    good = [sample for sample in group if sample.is_good]
    bad = [sample for sample in group if not sample.is_good]

    def middle(name: str) -> float | None:
        values = [value for sample in good if (value := getattr(sample, name)) is not None]
        return median(values) if values else None

    values = [sample.value for sample in good if sample.value is not None]
    failure = ""
    if bad:
        errors = sum(sample.errors for sample in bad)
        why = next((sample.error for sample in bad if sample.error), f"{errors} requests without a 2xx answer")
        failure = f"{len(bad)} of {len(group)} rounds: {why}"
    return Summary(
        measure=measure,
        proxy=proxy,
        rounds=len(group),
        value=median(values) if values else None,
        spread=spread(values) if values else None,
        failure=failure,
        p50_us=middle("p50_us"),
        p99_us=middle("p99_us"),
        p999_us=middle("p999_us"),
        cpu_us=middle("cpu_us"),
        rss_bytes=middle("rss_bytes"),
    )
