"""From what a VPCRoute says of retries and time limits to what is in force: every field, and what is not said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from datum_router.model.policy import RetryCondition, RetryPolicy, TimeoutPolicy

C = RetryCondition
ALL = tuple(C)
GATEWAY = (502, 503, 504)

RETRIES: list[tuple[dict[str, Any] | None, RetryPolicy]] = [
    (None, RetryPolicy()),
    ({}, RetryPolicy(max_retries=3, retry_on_status=GATEWAY)),
    ({"maxRetries": 0, "retryOnStatus": []}, RetryPolicy(max_retries=0)),
    ({"retryOn": ["reset"]}, RetryPolicy(max_retries=3, retry_on=(C.RESET,), retry_on_status=GATEWAY)),
    (
        {"retryOn": ["refused-stream", "connect-failure"], "retryOnStatus": [500]},
        RetryPolicy(max_retries=3, retry_on=(C.CONNECT_FAILURE, C.REFUSED_STREAM), retry_on_status=(500,)),
    ),
    (
        {"retryOn": ["gateway-error", "retriable-4xx"], "retryOnStatus": [429, 503]},
        RetryPolicy(max_retries=3, retry_on=(), retry_on_status=(409, 429, *GATEWAY)),
    ),
    (
        {"retryOn": ["unavailable", "cancelled", "reset"], "retryOnStatus": [], "retryNonIdempotent": True},
        RetryPolicy(max_retries=3, retry_on=(C.RESET,), retry_on_grpc=(1, 14), retry_non_idempotent=True),
    ),
    (
        {"budgetPercent": 0, "backoff": {"initialMs": 25, "maxMs": 250}},
        RetryPolicy(
            max_retries=3, retry_on_status=GATEWAY, budget_percent=0, initial_backoff_s=0.025, max_backoff_s=0.25
        ),
    ),
    (
        {"hedging": {"delay": "50ms", "maxAttempts": 3}},
        RetryPolicy(max_retries=3, retry_on_status=GATEWAY, hedge_delay_s=0.05, hedge_attempts=3),
    ),
]


@pytest.mark.parametrize(("said", "expected"), RETRIES)
def test_retries(said: dict[str, Any] | None, expected: RetryPolicy, bench: Callable[..., Any], kit: Any) -> None:
    route = kit.route() if said is None else kit.route(retries=said)
    (rule,) = bench().compile(kit.service(), route).data.rules
    assert rule.retry == expected


TIMEOUTS: list[tuple[dict[str, Any], TimeoutPolicy]] = [
    ({}, TimeoutPolicy()),
    ({"timeoutSeconds": 0}, TimeoutPolicy(request_s=0.0)),
    ({"timeoutSeconds": 5, "timeouts": {"request": "1m"}}, TimeoutPolicy(request_s=60.0)),
    ({"timeouts": {"backendRequest": "2s", "connect": "1s"}}, TimeoutPolicy(backend_request_s=2.0, connect_s=1.0)),
    ({"retries": {"perTryTimeout": "250ms"}}, TimeoutPolicy(per_try_s=0.25)),
    ({"timeouts": {"streamIdle": "0s"}}, TimeoutPolicy(stream_idle_s=0.0)),
    ({"timeouts": {"streamIdle": "5m", "propagate": True}}, TimeoutPolicy(stream_idle_s=300.0, propagates=True)),
]


@pytest.mark.parametrize(("said", "expected"), TIMEOUTS)
def test_timeouts(said: dict[str, Any], expected: TimeoutPolicy, bench: Callable[..., Any], kit: Any) -> None:
    (rule,) = bench().compile(kit.service(), kit.route(**said)).data.rules
    assert rule.timeouts == expected
