from __future__ import annotations

import itertools
import random

import pytest

from datum_router.health.outlier import BreakerState, Detector, OutlierDetector, describe_outlier
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import OutlierPolicy
from datum_router.testing.factories import make_outlier_detector

OK, ERROR, GATEWAY = OutcomeClass.SUCCESS, OutcomeClass.SERVER_ERROR, OutcomeClass.GATEWAY_ERROR
KEYS = [EndpointKey(f"10.0.0.{n}:80") for n in range(10)]
A = KEYS[0]


def detector(policy: OutlierPolicy = OutlierPolicy(base_ejection_time_s=30.0), endpoints: int = 10) -> OutlierDetector:
    found = make_outlier_detector(policy)
    found.set_endpoints(KEYS[:endpoints])
    return found


@pytest.mark.parametrize(
    ("runs", "ejected_by"),
    [
        ([(ERROR, 4)], None),
        ([(ERROR, 5)], Detector.CONSECUTIVE_5XX),
        ([(ERROR, 3), (GATEWAY, 2)], Detector.CONSECUTIVE_5XX),
        ([(GATEWAY, 5)], Detector.CONSECUTIVE_GATEWAY_ERRORS),
        ([(GATEWAY, 10_000)], Detector.CONSECUTIVE_GATEWAY_ERRORS),
        ([(ERROR, 4), (OK, 1), (ERROR, 4)], None),
        ([(GATEWAY, 4), (OK, 1), (GATEWAY, 4)], None),
        ([(OK, 1000), (GATEWAY, 5), (OK, 1000)], Detector.CONSECUTIVE_GATEWAY_ERRORS),
        ([(ERROR, 0), (GATEWAY, 0)], None),
    ],
)
def test_failures_in_a_row_eject(runs: list[tuple[OutcomeClass, int]], ejected_by: Detector | None) -> None:
    found = detector()
    assert found.record(A, runs, now=0.0) is ejected_by
    assert found.is_ejected(A) is (ejected_by is not None)


def test_runs_are_joined_over_batches() -> None:
    found = detector()
    assert [found.record(A, [(GATEWAY, 2)], now=0.0) for _ in range(3)] == [
        None,
        None,
        Detector.CONSECUTIVE_GATEWAY_ERRORS,
    ]


def test_a_plain_server_error_ends_a_row_of_gateway_errors() -> None:
    found = detector(OutlierPolicy(consecutive_5xx=0))
    assert found.record(A, [(GATEWAY, 4), (ERROR, 1), (GATEWAY, 4)], now=0.0) is None


def test_zero_switches_a_detector_off() -> None:
    found = detector(OutlierPolicy(consecutive_5xx=0, consecutive_gateway_errors=0))
    assert found.record(A, [(GATEWAY, 1000), (ERROR, 1000)], now=0.0) is None


def trial(found: OutlierDetector, key: EndpointKey, now: float, *, is_ok: bool) -> None:
    state = found.state(key)
    assert state is not None
    assert found.half_open_due(now) == [key]
    assert state.breaker is BreakerState.HALF_OPEN
    assert found.record_trial(key, state.trial, is_ok=is_ok, now=now)


def test_a_breaker_opens_half_opens_and_closes() -> None:
    found = detector()
    state = found.state(A)
    assert state is not None
    assert state.breaker is BreakerState.CLOSED
    found.record(A, [(GATEWAY, 5)], now=0.0)
    assert (state.breaker, state.ejected_by, state.trial) == (
        BreakerState.OPEN,
        Detector.CONSECUTIVE_GATEWAY_ERRORS,
        0,
    )
    assert found.half_open_due(29.999) == []
    assert found.half_open_due(30.0) == [A]
    assert (state.breaker, state.trial, state.ejected_until) == (BreakerState.HALF_OPEN, 1, None)
    assert found.is_ejected(A)
    assert found.next_half_open() is None
    assert found.record_trial(A, 1, is_ok=True, now=31.0)
    assert (state.breaker, state.ejected_by, state.trial) == (BreakerState.CLOSED, None, 0)
    assert not found.is_ejected(A)


def test_each_failed_trial_opens_for_twice_as_long_up_to_the_maximum() -> None:
    found = detector(OutlierPolicy(base_ejection_time_s=10.0, max_ejection_time_s=75.0))
    found.record(A, [(GATEWAY, 5)], now=0.0)
    now, times = 0.0, []
    for _ in range(5):
        until = found.next_half_open()
        assert until is not None
        times.append(until - now)
        now = until + 100.0  # nobody asked for it for a while: that is no time spent in
        trial(found, A, now, is_ok=False)
    assert times == [10.0, 20.0, 40.0, 75.0, 75.0]


def test_ejections_are_up_to_a_tenth_shorter_by_chance() -> None:
    found = OutlierDetector(OutlierPolicy(base_ejection_time_s=30.0), rng=random.Random(7), numbers=itertools.count(1))
    found.set_endpoints(KEYS)
    for key in KEYS[:5]:
        found.record(key, [(GATEWAY, 5)], now=0.0)
    times = {state.ejected_until for key in KEYS[:5] if (state := found.state(key)) is not None}
    assert len(times) == 5
    assert all(time is not None and 27.0 < time <= 30.0 for time in times)


def test_only_the_first_verdict_of_the_trial_that_is_on_counts() -> None:
    found = detector()
    found.record(A, [(GATEWAY, 5)], now=0.0)
    assert not found.record_trial(A, 0, is_ok=True, now=1.0)
    found.half_open_due(30.0)
    assert not found.record_trial(A, 7, is_ok=True, now=31.0)
    assert not found.record_trial(KEYS[1], 1, is_ok=True, now=31.0)
    assert not found.record_trial(EndpointKey("192.0.2.9:1"), 1, is_ok=True, now=31.0)
    assert found.record_trial(A, 1, is_ok=False, now=31.0)
    assert not found.record_trial(A, 1, is_ok=True, now=31.5)
    assert found.next_half_open() == 31.0 + 60.0
    found.half_open_due(91.0)
    assert not found.record_trial(A, 1, is_ok=True, now=92.0)
    assert found.is_ejected(A)


def test_time_spent_in_makes_ejections_forgotten() -> None:
    found = detector(OutlierPolicy(base_ejection_time_s=30.0, interval_s=10.0))
    found.record(A, [(GATEWAY, 5)], now=0.0)
    trial(found, A, 30.0, is_ok=True)
    found.record(A, [(GATEWAY, 5)], now=31.0)
    assert found.next_half_open() == 31.0 + 60.0
    trial(found, A, 91.0, is_ok=True)
    found.record(A, [(GATEWAY, 5)], now=111.0)  # two intervals in
    assert found.next_half_open() == 111.0 + 30.0


def test_outcomes_of_an_ejected_endpoint_are_not_counted() -> None:
    found = detector()
    found.record(A, [(GATEWAY, 5), (GATEWAY, 500)], now=0.0)
    found.record(A, [(GATEWAY, 500)], now=1.0)
    found.half_open_due(30.0)
    assert found.record(A, [(GATEWAY, 500), (OK, 500)], now=30.0) is None
    found.record_trial(A, 1, is_ok=True, now=31.0)
    assert found.record(A, [(GATEWAY, 4)], now=32.0) is None


@pytest.mark.parametrize(
    ("endpoints", "percent", "room"), [(10, 50, 5), (10, 100, 10), (3, 50, 1), (1, 50, 1), (10, 0, 0), (1, 10, 1)]
)
def test_never_more_than_the_share_is_out_but_one_always_may_be(endpoints: int, percent: int, room: int) -> None:
    found = detector(OutlierPolicy(max_ejection_percent=percent), endpoints)
    for key in KEYS[:endpoints]:
        found.record(key, [(GATEWAY, 5)], now=0.0)
    assert found.ejected == found.capacity() == room


def test_one_that_found_no_room_is_ejected_by_its_next_failure_once_there_is() -> None:
    found = detector(endpoints=2)
    found.record(KEYS[0], [(GATEWAY, 5)], now=0.0)
    assert found.record(KEYS[1], [(GATEWAY, 5)], now=0.0) is None
    found.half_open_due(30.0)
    assert found.record(KEYS[1], [(GATEWAY, 1)], now=30.0) is None, "half-open is still out"
    found.record_trial(KEYS[0], 1, is_ok=True, now=31.0)
    assert found.record(KEYS[1], [(GATEWAY, 1)], now=31.0) is Detector.CONSECUTIVE_GATEWAY_ERRORS


def test_endpoints_that_left_are_forgotten_and_free_their_room() -> None:
    found = detector(endpoints=2)
    found.record(KEYS[0], [(GATEWAY, 5)], now=0.0)
    found.set_endpoints(KEYS[1:2])
    assert found.ejected == 0
    assert found.record(KEYS[0], [(GATEWAY, 5)], now=0.0) is None
    found.set_endpoints(KEYS[:2])
    assert not found.is_ejected(KEYS[0])


def test_early_release() -> None:
    found = detector()
    assert not found.release(A, now=0.0)
    found.record(A, [(GATEWAY, 5)], now=0.0)
    assert found.release(A, now=1.0)
    assert not found.is_ejected(A)
    assert found.next_half_open() is None


def test_a_half_open_breaker_is_released_early_too() -> None:
    found = detector()
    found.record(A, [(GATEWAY, 5)], now=0.0)
    found.half_open_due(30.0)
    assert found.release(A, now=31.0)
    assert not found.record_trial(A, 1, is_ok=False, now=32.0)
    assert not found.is_ejected(A)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (None, "ejection: none"),
        (OutlierPolicy(consecutive_5xx=0, consecutive_gateway_errors=0), "ejection: none"),
        (OutlierPolicy(max_ejection_percent=0), "ejection: none, since maxEjectionPercent is 0"),
        (
            OutlierPolicy(),
            "ejection: after 5 gateway errors or 5 answers with 5xx in a row for 10 s, twice as long each time, up to "
            "300 s; at most 50% of the endpoints at once, or one; back in by trials, 1 at once",
        ),
        (
            OutlierPolicy(
                consecutive_5xx=3,
                consecutive_gateway_errors=0,
                base_ejection_time_s=900.0,
                max_ejection_percent=10,
                half_open_requests=2,
            ),
            "ejection: after 3 answers with 5xx in a row for 900 s, twice as long each time, up to 900 s; at most 10% "
            "of the endpoints at once, or one; back in by trials, 2 at once",
        ),
    ],
)
def test_ejection_in_words(policy: OutlierPolicy | None, words: str) -> None:
    assert describe_outlier(policy) == words
