from __future__ import annotations

import random

import pytest

from datum_router.policy.backoff import ceiling, full_jitter


@pytest.mark.parametrize(
    ("attempt", "expected"), [(1, 0.1), (2, 0.2), (3, 0.4), (7, 6.4), (8, 10.0), (10_000, 10.0), (0, 0.1)]
)
def test_bound_doubles_up_to_the_maximum(attempt: int, expected: float) -> None:
    assert ceiling(attempt, initial_s=0.1, max_s=10.0) == pytest.approx(expected)


def test_jitter_fills_the_whole_interval_and_nothing_beyond() -> None:
    rng = random.Random(1)
    waits = [full_jitter(3, initial_s=0.1, max_s=10.0, rng=rng) for _ in range(2000)]
    assert 0.0 <= min(waits) < 0.01
    assert 0.39 < max(waits) < 0.4
    assert abs(sum(waits) / len(waits) - 0.2) < 3 * 0.4 / (12 * 2000) ** 0.5


def test_no_backoff_means_no_wait() -> None:
    assert full_jitter(5, initial_s=0.0, max_s=10.0, rng=random.Random(1)) == 0.0
    assert full_jitter(5, initial_s=0.1, max_s=0.0, rng=random.Random(1)) == 0.0
