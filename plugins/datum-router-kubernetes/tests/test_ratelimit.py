"""The token bucket, and the settings that size it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.clock import ManualClock
from datum_router.errors import ConfigError
from datum_router_kubernetes.ratelimit import WRITE_BURST, WRITE_QPS, TokenBucket, WriteLimits, write_limits


def test_a_burst_goes_at_once_and_then_the_rate_counts() -> None:
    clock = ManualClock(7.0)
    bucket = TokenBucket(rate=2, burst=3, now=clock())
    assert [bucket.take(clock()) for _ in range(4)] == [0, 0, 0, 0.5]
    clock.advance(0.25)
    assert bucket.take(clock()) == pytest.approx(0.25)
    clock.advance(0.25)
    assert bucket.take(clock()) == 0
    assert bucket.take(clock()) > 0


def test_a_quiet_time_gives_no_more_than_the_burst() -> None:
    bucket = TokenBucket(rate=100, burst=2, now=0.0)
    assert [bucket.take(1e6) == 0 for _ in range(3)] == [True, True, False]


def test_a_clock_that_stands_still_or_begins_anew_gives_nothing_and_then_goes_on() -> None:
    bucket = TokenBucket(rate=1, burst=1, now=1000.0)
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
    bucket = TokenBucket(rate=rate, burst=burst, now=now)
    for taken, gap in enumerate(gaps, 1):
        now += gap
        wait_s = bucket.take(now)
        if wait_s > 0:
            now += wait_s
            assert bucket.take(now) == 0, "the wait that was asked for did not suffice"
        assert taken <= burst + rate * now + 1e-6


def test_settings_size_it() -> None:
    assert write_limits({}) == WriteLimits(qps=WRITE_QPS, burst=WRITE_BURST)
    assert write_limits({"writeQps": "0.5", "writeBurst": "7", "role": "x"}) == WriteLimits(qps=0.5, burst=7)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("writeQps", "fast", "a number from 0.01 to 100000"),
        ("writeQps", "0", "a number from 0.01 to 100000"),
        ("writeQps", "nan", "a number from 0.01 to 100000"),
        ("writeQps", "inf", "a number from 0.01 to 100000"),
        ("writeBurst", "1.5", "a whole number from 1 to 100000"),
        ("writeBurst", "0", "a whole number from 1 to 100000"),
        ("writeBurst", "1" * 5000, "a whole number from 1 to 100000"),
    ],
)
def test_a_setting_that_is_no_such_number_is_named(name: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^setting {name}: found '{text[:80]}', expected {expected}$"):
        write_limits({name: text})
