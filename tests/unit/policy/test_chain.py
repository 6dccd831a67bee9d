from __future__ import annotations

import itertools
import random

import pytest

from datum_router.health.circuit import ServiceLimits
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome
from datum_router.model.policy import ConnectionLimits, RetryPolicy
from datum_router.model.service import ServiceKey
from datum_router.policy.chain import OWN_FAULTS, attempt_number, is_settled_reply
from datum_router.policy.retry import decide
from datum_router.reasons import Reason


@pytest.mark.parametrize("reason", Reason)
def test_only_failures_that_are_not_our_own_are_settled(reason: Reason) -> None:
    assert is_settled_reply(503, reason) is (reason not in OWN_FAULTS)
    assert not is_settled_reply(404, reason)


def test_tries_are_counted_through_the_chain() -> None:
    assert [attempt_number(stated, made) for stated, made in ((1, 1), (1, 2), (2, 1), (3, 2))] == [1, 2, 2, 4]


class Gateway:
    """A gateway of a chain, by the policies alone: its next hop is another one, or a service that always fails."""

    def __init__(self, next_hop: Gateway | None, retries: int) -> None:
        self.next_hop = next_hop
        self.policy = RetryPolicy(max_retries=retries, retry_on_status=(503,), initial_backoff_s=0.0)
        self.limits = ServiceLimits(ConnectionLimits(max_parallel_requests=10**6))
        self.reached = 0

    def serve(self, stated: int, rng: random.Random) -> bool:
        """Serve a request, which is try number `stated`; tell whether the failure is settled."""
        for made in itertools.count(1):
            assert self.limits.acquire_request(is_retry=made > 1) is None
            is_settled = False
            if self.next_hop is None:
                self.reached += 1
            else:
                is_settled = self.next_hop.serve(attempt_number(stated, made), rng)
            outcome = Outcome(service=ServiceKey("a/b"), endpoint=EndpointKey("e"), status=503, is_sent=True)
            decision = decide(
                outcome,
                attempt=made,
                method="GET",
                policy=self.policy,
                is_body_replayable=True,
                is_response_started=False,
                remaining_s=30.0,
                budget_ok=self.limits.has_retry_budget(),
                rng=rng,
                is_settled=is_settled,
                is_retry=stated > 1,
            )
            self.limits.release_request(is_retry=made > 1)
            if not decision.retry:
                return is_settled_reply(503, Reason.ROUTED)
        raise AssertionError("no end of it")


@pytest.mark.parametrize("hops", [1, 2, 5, 8])
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_however_long_the_chain_only_its_last_gateway_retries(hops: int, retries: int) -> None:
    last = gateway = Gateway(None, retries)
    for _ in range(hops - 1):
        gateway = Gateway(gateway, retries)
    gateway.serve(1, random.Random(1))
    assert last.reached == 1 + retries
