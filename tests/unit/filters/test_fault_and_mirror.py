"""Faults on purpose and copies: who is chosen, and what is said."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.filters.fault import FaultFilter, FaultPlan, fault_problem
from datum_router.filters.mirror import MirrorFilter, copy_of, is_hit
from datum_router.model.filters import Fault, Mirror
from datum_router.model.service import ServiceKey
from datum_router.testing.factories import make_head

BOTH = Fault(delay_s=0.25, delay_percent=20, status=503, grpc_status=14, abort_percent=10)


@given(st.integers(1, 99), st.integers())
def test_a_share_is_kept_within_what_chance_allows(percent: int, seed: int) -> None:
    rng = random.Random(seed)
    hits = sum(is_hit(percent, rng) for _ in range(2000))
    assert abs(hits - 20 * percent) < 150, "more than six standard deviations away"


def test_all_and_nobody_need_no_luck() -> None:
    rng = random.Random(1)
    before = rng.getstate()
    assert (is_hit(100, rng), is_hit(0, rng)) == (True, False)
    assert rng.getstate() == before


def test_the_same_generator_injects_the_same_faults() -> None:
    plans = [[FaultFilter(BOTH).plan(rng, is_grpc=False) for _ in range(200)] for rng in map(random.Random, (7, 7))]
    assert plans[0] == plans[1]
    assert {plan.delay_s for plan in plans[0]} == {0.0, 0.25}
    replies = [plan.reply for plan in plans[0] if plan.reply is not None]
    assert {(reply.status, reply.grpc_status) for reply in replies} == {(503, 14)}


@given(delay=st.integers(0, 100), abort=st.integers(0, 100), seed=st.integers())
def test_delays_and_refusals_have_the_shares_that_are_asked_for_each_by_itself(
    delay: int, abort: int, seed: int
) -> None:
    rng, count = random.Random(seed), 2000
    made = FaultFilter(Fault(delay_s=1.0, delay_percent=delay, status=503, abort_percent=abort))
    plans = [made.plan(rng, is_grpc=False) for _ in range(count)]
    late = [plan for plan in plans if plan.delay_s]
    for found, share in (
        (len(late), delay / 100),
        (sum(plan.reply is not None for plan in plans), abort / 100),
        (sum(plan.reply is not None for plan in late), delay * abort / 10_000),
    ):
        deviation = (count * share * (1 - share)) ** 0.5
        assert abs(found - count * share) <= 6 * deviation + 3, "chance allows for less"


@pytest.mark.parametrize(("is_grpc", "is_refused"), [(True, True), (False, False)])
def test_a_grpc_status_alone_refuses_calls_alone(is_grpc: bool, is_refused: bool) -> None:
    plan = FaultFilter(Fault(grpc_status=8, abort_percent=100)).plan(random.Random(1), is_grpc=is_grpc)
    assert (plan.reply is not None) is is_refused


def test_a_fault_that_says_nothing_does_nothing() -> None:
    assert FaultFilter(Fault()).plan(random.Random(1), is_grpc=True) == FaultPlan()


def test_only_errors_can_be_injected() -> None:
    assert fault_problem(Fault(status=200)) == "status 200, expected 400 to 599"
    assert fault_problem(BOTH) == ""


def test_heads_pass_both_as_they_are() -> None:
    head = make_head("/x?y=1", headers={"a": "b"})
    for item in (FaultFilter(BOTH), MirrorFilter(Mirror(service=ServiceKey("default/copy")))):
        assert item.on_request(head) is head


@pytest.mark.parametrize(
    ("authority", "copied"),
    [
        ("shop.test", "shop.test-shadow"),
        ("shop.test:8080", "shop.test-shadow:8080"),
        ("[::1]:8080", "[::1]:8080"),
        ("[::1]", "[::1]"),
    ],
)
def test_the_host_of_a_copy_says_that_it_is_one(authority: str, copied: str) -> None:
    head = make_head("/x?y=1", authority=authority, headers={"a": "b"})
    made = copy_of(head)
    assert (made.authority, made.target, made.headers) == (copied, "/x?y=1", head.headers)
