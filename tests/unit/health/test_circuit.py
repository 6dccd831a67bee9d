from __future__ import annotations

import pytest

from datum_router.health.circuit import ServiceLimits
from datum_router.model.policy import RETRY_BUDGET_PERCENT, ConnectionLimits
from datum_router.reasons import Reason


def test_requests_beyond_the_limit_are_refused_until_one_ends() -> None:
    limits = ServiceLimits(ConnectionLimits(max_parallel_requests=2))
    assert [limits.acquire_request() for _ in range(3)] == [None, None, Reason.CIRCUIT_OPEN]
    assert limits.refused == 1
    limits.release_request()
    assert limits.acquire_request() is None


def test_pending_requests_and_connections_have_limits_of_their_own() -> None:
    limits = ServiceLimits(ConnectionLimits(max_pending_requests=1, max_connections=1))
    assert [limits.acquire_pending(), limits.acquire_pending()] == [None, Reason.POOL_OVERFLOW]
    assert [limits.acquire_connection(), limits.acquire_connection()] == [None, Reason.POOL_OVERFLOW]
    limits.release_pending()
    limits.release_connection()
    assert [limits.acquire_pending(), limits.acquire_connection()] == [None, None]


def test_defaults_are_those_of_the_policy() -> None:
    limits = ServiceLimits()
    assert all(limits.acquire_request() is None for _ in range(1024))
    assert limits.acquire_request() is Reason.CIRCUIT_OPEN


def test_three_retries_may_always_run_and_then_a_fifth_of_the_requests() -> None:
    limits = ServiceLimits()
    assert RETRY_BUDGET_PERCENT == 20
    assert [limits.acquire_request(is_retry=True) for _ in range(4)] == [None, None, None, Reason.CIRCUIT_OPEN]
    for _ in range(97):
        limits.acquire_request()
    granted = 0
    while limits.acquire_request(is_retry=True) is None:
        granted += 1
    # Of first tries: an upstream where everything fails gets at most 1.2 times the requests that came.
    assert limits.retries == 3 + granted == 19
    assert limits.requests - limits.retries == 97


@pytest.mark.parametrize(("percent", "expected"), [(0, 3), (2, 3), (10, 10), (20, 20), (100, 100)])
def test_a_route_sets_the_share_but_not_the_least(percent: int, expected: int) -> None:
    limits = ServiceLimits()
    for _ in range(100):
        limits.acquire_request()
    while limits.acquire_request(is_retry=True, budget_percent=percent) is None:
        pass
    assert limits.retries == expected
    assert not limits.has_retry_budget(percent)


def test_no_parallel_retries_means_none() -> None:
    limits = ServiceLimits(ConnectionLimits(max_parallel_retries=0))
    for _ in range(100):
        limits.acquire_request()
    assert not limits.has_retry_budget()
    assert limits.acquire_request(is_retry=True) is Reason.CIRCUIT_OPEN


def test_a_retry_that_waits_for_its_turn_has_its_place_in_the_budget() -> None:
    limits = ServiceLimits()
    for _ in range(3):
        assert limits.has_retry_budget()
        limits.hold_retry()
    assert not limits.has_retry_budget()
    assert limits.acquire_request(is_retry=True) is Reason.CIRCUIT_OPEN
    limits.begin_retry()
    assert limits.acquire_request(is_retry=True) is None
    assert limits.acquire_request(is_retry=True) is Reason.CIRCUIT_OPEN, "of the others, who wait on"
    assert not limits.has_retry_budget()
    assert (limits.waiting_retries, limits.retries) == (2, 1)


def test_it_has_its_place_though_what_made_room_for_it_has_ended_but_no_other_has_it() -> None:
    limits = ServiceLimits(ConnectionLimits(max_parallel_retries=1))
    for _ in range(10):
        limits.acquire_request()
    for _ in range(2):
        assert limits.has_retry_budget()
        limits.hold_retry()
    for _ in range(10):
        limits.release_request()
    assert not limits.has_retry_budget()
    limits.begin_retry()
    assert limits.acquire_request(is_retry=True) is None
    limits.end_turn()
    limits.begin_retry()
    limits.end_turn()  # it goes elsewhere
    assert limits.acquire_request(is_retry=True) is Reason.CIRCUIT_OPEN
    assert (limits.waiting_retries, limits.due_retries, limits.retries) == (0, 0, 1)


def test_released_retries_give_their_budget_back() -> None:
    limits = ServiceLimits()
    for _ in range(3):
        limits.acquire_request(is_retry=True)
    assert not limits.has_retry_budget()
    limits.release_request(is_retry=True)
    assert limits.has_retry_budget()
    assert (limits.requests, limits.retries) == (2, 2)


def test_lower_limits_leave_what_is_under_way() -> None:
    limits = ServiceLimits()
    for _ in range(10):
        limits.acquire_request()
    limits.update(ConnectionLimits(max_parallel_requests=5))
    assert limits.requests == 10
    for _ in range(6):
        assert limits.acquire_request() is Reason.CIRCUIT_OPEN
        limits.release_request()
    assert limits.acquire_request() is None


@pytest.mark.parametrize("release", ["release_request", "release_pending", "release_connection", "let_go_retry"])
def test_releasing_what_was_not_acquired_is_a_broken_invariant(release: str) -> None:
    with pytest.raises(AssertionError, match=r"that was not (acquired|held)"):
        getattr(ServiceLimits(), release)()


def test_upstream_load_stays_within_a_fifth_when_every_request_fails() -> None:
    limits = ServiceLimits(ConnectionLimits(max_parallel_requests=10_000))
    firsts = retries = 0
    for _ in range(1000):
        assert limits.acquire_request() is None
        firsts += 1
    for _ in range(1000):  # each fails and asks for a retry while all others are still there
        if limits.acquire_request(is_retry=True) is None:
            retries += 1
    assert retries == firsts * 0.2
