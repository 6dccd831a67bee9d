"""The token bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.clock import ManualClock
from datum_router.policy.bucket import TokenBucket, draw, tokens_left


def test_a_burst_goes_at_once_and_then_the_rate_counts() -> None:
    clock = ManualClock(7.0)
    bucket = TokenBucket(rate=2, burst=3)
    assert [bucket.take(clock()) for _ in range(4)] == [0, 0, 0, 0.5]
    clock.advance(0.25)
    assert bucket.take(clock()) == pytest.approx(0.25)
    clock.advance(0.25)
    assert bucket.take(clock()) == 0
    assert bucket.take(clock()) > 0


def test_a_quiet_time_gives_no_more_than_the_burst() -> None:
    bucket = TokenBucket(rate=100, burst=2)
    assert [bucket.take(1e6) == 0 for _ in range(3)] == [True, True, False]


def test_a_clock_that_stands_still_or_begins_anew_gives_nothing_and_then_goes_on() -> None:
    bucket = TokenBucket(rate=1, burst=1)
    assert bucket.take(1000.0) == 0
    assert bucket.take(1000.0) == 1
    assert bucket.take(3.0) == 1
    assert bucket.take(3.5) == pytest.approx(0.5)
    assert bucket.take(4.0) == 0


@given(
    rate=st.floats(0.01, 1000),
    burst=st.integers(1, 50),
    gaps=st.lists(st.floats(0, 5), max_size=60),
)
def test_never_more_than_the_burst_and_the_rate_and_each_wait_suffices(
    rate: float, burst: int, gaps: list[float]
) -> None:
    now = 0.0
    bucket = TokenBucket(rate=rate, burst=burst)
    for taken, gap in enumerate(gaps, 1):
        now += gap
        wait_s = bucket.take(now)
        if wait_s > 0:
            now += wait_s
            assert bucket.take(now) == 0, "the wait that was asked for did not suffice"
        assert taken <= burst + rate * now + 1e-6


def test_a_token_that_is_given_back_can_be_taken_again_and_one_too_many_is_lost() -> None:
    bucket = TokenBucket(rate=1, burst=2)
    bucket.give_back()
    assert [bucket.take(0.0) for _ in range(3)] == [0, 0, 1]
    bucket.give_back()
    assert [bucket.take(0.0) for _ in range(2)] == [0, 1]


@given(burst=st.integers(1, 40), period_s=st.floats(0.001, 60), taken=st.integers(0, 60), gap=st.floats(0, 30))
def test_what_is_said_to_be_left_can_be_taken_and_no_more(burst: int, period_s: float, taken: int, gap: float) -> None:
    debt_s = 0.0
    for _ in range(taken):
        debt_s, _ = draw(debt_s, burst=burst, period_s=period_s)
    debt_s = max(0.0, debt_s - gap)
    left = tokens_left(debt_s, burst=burst, period_s=period_s)
    assert 0 <= left <= burst
    for _ in range(left):
        debt_s, wait_s = draw(debt_s, burst=burst, period_s=period_s)
        assert wait_s == 0
    assert draw(debt_s, burst=burst, period_s=period_s)[1] > 0
