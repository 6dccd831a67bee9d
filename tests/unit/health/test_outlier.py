from __future__ import annotations

import pytest

from datum_router.health.outlier import Detector, OutlierDetector
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import OutlierPolicy

OK, ERROR, GATEWAY = OutcomeClass.SUCCESS, OutcomeClass.SERVER_ERROR, OutcomeClass.GATEWAY_ERROR
KEYS = [EndpointKey(f"10.0.0.{n}:80") for n in range(10)]
A = KEYS[0]


def detector(policy: OutlierPolicy = OutlierPolicy(), endpoints: int = 10) -> OutlierDetector:
    found = OutlierDetector(policy)
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


def test_each_ejection_is_longer_up_to_the_maximum() -> None:
    found = detector(OutlierPolicy(base_ejection_time_s=30.0, max_ejection_time_s=75.0))
    now, times = 0.0, []
    for _ in range(4):
        found.record(A, [(GATEWAY, 5)], now=now)
        until = found.next_release()
        assert until is not None
        times.append(until - now)
        assert found.release_due(until - 0.001) == []
        assert found.release_due(until) == [A]
        now = until
    assert times == [30.0, 60.0, 75.0, 75.0]


def test_time_spent_in_makes_ejections_forgotten() -> None:
    found = detector(OutlierPolicy(base_ejection_time_s=30.0, interval_s=10.0))
    found.record(A, [(GATEWAY, 5)], now=0.0)
    found.release_due(30.0)
    found.record(A, [(GATEWAY, 5)], now=31.0)
    assert found.next_release() == 31.0 + 60.0
    found.release_due(91.0)
    found.record(A, [(GATEWAY, 5)], now=111.0)  # two intervals in
    assert found.next_release() == 111.0 + 30.0


def test_outcomes_of_an_ejected_endpoint_are_not_counted() -> None:
    found = detector()
    found.record(A, [(GATEWAY, 5), (GATEWAY, 500)], now=0.0)
    found.record(A, [(GATEWAY, 500)], now=1.0)
    found.release_due(30.0)
    assert found.record(A, [(GATEWAY, 4)], now=30.0) is None


@pytest.mark.parametrize(
    ("endpoints", "percent", "room"), [(10, 50, 5), (10, 100, 10), (3, 50, 1), (1, 50, 1), (10, 0, 1), (1, 10, 1)]
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
    found.release_due(30.0)
    assert found.record(KEYS[1], [(GATEWAY, 1)], now=30.0) is Detector.CONSECUTIVE_GATEWAY_ERRORS


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
    assert found.next_release() is None
