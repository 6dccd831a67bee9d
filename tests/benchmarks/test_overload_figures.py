"""What `benchmarks/bench_overload.py` makes of what it saw."""

from __future__ import annotations

import dataclasses

import pytest
from bench_overload import Load, Result, recovery, summed, verdict

GOOD = Load(offered=300.0, sent_share=1.0, served=90.0, refused=200.0, failed=10.0, p50_s=0.01, p99_s=0.05)
RESULT = Result(shedding=True, capacity=100.0, busy=0.99, before=GOOD, overload=GOOD, recovered_s=1.0)


def test_what_is_late_or_refused_is_not_served() -> None:
    outcomes = [(10.0, 200, 0.1), (10.5, 200, 1.5), (11.0, 503, 0.5), (11.5, 0, 1.0), (12.0, 200, 0.1)]
    load = summed(outcomes, 10.0, 12.0, 2.0, 4)
    assert (load.served, load.refused, load.failed, load.sent_share) == (0.5, 0.5, 1.0, 1.0)
    assert load.p99_s == 1.5, "answers that came too late are latencies all the same"


@pytest.mark.parametrize(
    ("bad_at", "expected"), [([], 0.0), ([9.9], 0.0), ([10.2, 12.5], 2.5), ([19.5], None), ([10.1, 20.5], 0.1)]
)
def test_it_is_over_when_a_second_without_failure_has_begun(bad_at: list[float], expected: float | None) -> None:
    outcomes = [(float(at) / 10, 200, 0.01) for at in range(90, 210)] + [(at, 503, 0.5) for at in bad_at]
    found = recovery(outcomes, 10.0, 20.0)
    assert found == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "reached"),
        ({"overload": dataclasses.replace(GOOD, served=79.0)}, "**not reached**"),
        ({"recovered_s": 5.1}, "**not reached**"),
        ({"recovered_s": None}, "**not reached**"),
        ({"busy": 0.5}, "**flawed**: the worker was busy for 50% of the time only: it was not the bottleneck"),
        (
            {"overload": dataclasses.replace(GOOD, sent_share=0.9)},
            "**flawed**: the generator sent 90% of what was due",
        ),
    ],
)
def test_the_verdict(changes: dict[str, object], expected: str) -> None:
    assert verdict(dataclasses.replace(RESULT, **changes)) == expected  # type: ignore[arg-type]
