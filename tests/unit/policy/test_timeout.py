from __future__ import annotations

import pytest

from datum_router.model.policy import TimeoutPolicy
from datum_router.policy.timeout import (
    NO_DEADLINE,
    first_limit,
    has_try_limits,
    has_waited_for_client,
    is_clients_choice,
    remaining_s,
    request_deadline,
    try_deadline,
    upstream_grpc_timeout_s,
)
from datum_router.reasons import Reason


@pytest.mark.parametrize(
    ("route_s", "grpc_s", "expected"),
    [
        (30.0, None, 130.0),
        (30.0, 5.0, 105.0),
        (5.0, 30.0, 105.0),
        (0.0, 5.0, 105.0),
        (0.0, None, NO_DEADLINE),
        (30.0, 0.0, 100.0),
    ],
)
def test_the_earlier_of_route_and_client_decides(route_s: float, grpc_s: float | None, expected: float) -> None:
    assert request_deadline(TimeoutPolicy(request_s=route_s), now=100.0, client_timeout_s=grpc_s) == expected


def test_time_left_is_never_negative() -> None:
    assert [remaining_s(deadline, now=100.0) for deadline in (101.5, 100.0, 99.0)] == [1.5, 0.0, 0.0]
    assert remaining_s(NO_DEADLINE, now=100.0) == NO_DEADLINE


def test_the_upstream_is_told_the_time_left() -> None:
    assert upstream_grpc_timeout_s(110.0, now=104.0) == 6.0
    assert upstream_grpc_timeout_s(100.0, now=104.0) == 0.0
    assert upstream_grpc_timeout_s(NO_DEADLINE, now=104.0) is None


@pytest.mark.parametrize(
    ("per_try_s", "backend_s", "is_answered", "expected"),
    [
        (0.0, 0.0, False, NO_DEADLINE),
        (2.0, 0.0, False, 103.0),
        (2.0, 0.0, True, NO_DEADLINE),
        (0.0, 5.0, False, 106.0),
        (0.0, 5.0, True, 106.0),
        (2.0, 5.0, False, 103.0),
        (2.0, 5.0, True, 106.0),
        (5.0, 2.0, False, 103.0),
    ],
)
def test_an_attempt_has_one_limit_for_its_head_and_one_for_all_of_it(
    per_try_s: float, backend_s: float, is_answered: bool, expected: float
) -> None:
    policy = TimeoutPolicy(per_try_s=per_try_s, backend_request_s=backend_s)
    assert has_try_limits(policy) is (per_try_s + backend_s > 0)
    assert try_deadline(policy, begun_at=100.0, waited_s=1.0, is_answered=is_answered) == expected


@pytest.mark.parametrize(
    ("request_s", "per_try_s", "idle_s", "expected"),
    [
        (30.0, 0.0, None, (30.0, Reason.REQUEST_TIMEOUT)),
        (0.0, 0.0, None, (0.0, Reason.REQUEST_TIMEOUT)),
        (0.0, 0.0, 0.0, (0.0, Reason.REQUEST_TIMEOUT)),
        (30.0, 1.0, None, (1.0, Reason.PER_TRY_TIMEOUT)),
        (0.0, 1.0, None, (1.0, Reason.PER_TRY_TIMEOUT)),
        (1.0, 1.0, None, (1.0, Reason.REQUEST_TIMEOUT)),
        (1.0, 30.0, None, (1.0, Reason.REQUEST_TIMEOUT)),
        (30.0, 2.0, 1.0, (1.0, Reason.STREAM_IDLE_TIMEOUT)),
        (30.0, 1.0, 2.0, (1.0, Reason.PER_TRY_TIMEOUT)),
        (0.0, 0.0, 2.0, (2.0, Reason.STREAM_IDLE_TIMEOUT)),
    ],
)
def test_what_a_first_attempt_has_until_its_head(
    request_s: float, per_try_s: float, idle_s: float | None, expected: tuple[float, Reason]
) -> None:
    assert first_limit(TimeoutPolicy(request_s=request_s, per_try_s=per_try_s, stream_idle_s=idle_s)) == expected


@pytest.mark.parametrize(
    ("request_s", "asked_s", "is_gateway", "expected"),
    [
        (30.0, None, False, False),
        (30.0, 29.0, False, True),
        (30.0, 30.0, False, False),
        (0.0, 29.0, False, True),
        (30.0, 29.0, True, False),
        (30.0, 14.0, True, True),
        (0.0, 29.0, True, True),
    ],
)
def test_a_deadline_of_the_clients_own_says_nothing_of_the_endpoint(
    request_s: float, asked_s: float | None, is_gateway: bool, expected: bool
) -> None:
    assert is_clients_choice(TimeoutPolicy(request_s=request_s), asked_s, is_gateway=is_gateway) is expected


@pytest.mark.parametrize(
    ("request_s", "waited_s", "is_clients_turn", "expected"),
    [
        (30.0, 0.0, False, False),
        (30.0, 14.9, False, False),
        (30.0, 15.0, False, True),
        (30.0, 0.1, True, True),
        (0.0, 100.0, False, False),
        (0.0, 100.0, True, True),
    ],
)
def test_a_limit_that_was_spent_on_the_client_says_nothing_of_the_endpoint(
    request_s: float, waited_s: float, is_clients_turn: bool, expected: bool
) -> None:
    policy = TimeoutPolicy(request_s=request_s)
    assert has_waited_for_client(policy, waited_s, is_clients_turn=is_clients_turn) is expected
