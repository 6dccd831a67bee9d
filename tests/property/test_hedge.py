"""Races: whatever happens in whatever order, one decides, and nobody is asked twice who must not be."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.model.policy import RetryPolicy
from datum_router.policy.hedge import RacerState, begins_at, is_hedged, leader, may_begin
from datum_router.policy.retry import IDEMPOTENT

W, R, OUT = RacerState.WAITING, RacerState.RACING, RacerState.OUT
WON, FAILED = RacerState.WON, RacerState.FAILED


@settings(max_examples=500, deadline=None)
@given(
    count=st.integers(2, 5),
    events=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(("due", "wins", "fails")), st.booleans()), max_size=30
    ),
    remaining_s=st.sampled_from((0.0, 5.0)),
)
def test_a_race_is_decided_once_by_a_winner_or_by_the_last_that_failed(
    count: int, events: list[tuple[int, str, bool]], remaining_s: float
) -> None:
    states = [R, *[W] * (count - 1)]
    ended: list[int] = []
    for index, what, has_budget in events:
        if index >= count:
            continue
        if leader(states, ended) is not None:
            break
        if what == "due" and states[index] is W:
            begins = may_begin(states, remaining_s=remaining_s, budget_ok=has_budget)
            assert begins is (has_budget and remaining_s > 0), "somebody is racing as long as it is not decided"
            states[index] = R if begins else OUT
        elif what in ("wins", "fails") and states[index] is R:
            states[index] = WON if what == "wins" else FAILED
            ended.append(index)
    decided = leader(states, ended)
    if WON in states:
        assert decided == states.index(WON)
        assert states.count(WON) == 1
    elif R in states:
        assert decided is None
    else:
        assert decided == ended[-1]
        assert states[decided] is FAILED


@given(
    method=st.sampled_from(("GET", "HEAD", "PUT", "DELETE", "POST", "PATCH", "get")),
    delay_s=st.sampled_from((0.0, 0.05)),
    attempts=st.integers(1, 5),
    body=st.booleans(),
    tunnel=st.booleans(),
    retry=st.booleans(),
    non_idempotent=st.booleans(),
)
def test_only_what_may_be_done_twice_is_hedged(
    method: str, delay_s: float, attempts: int, body: bool, tunnel: bool, retry: bool, non_idempotent: bool
) -> None:
    policy = RetryPolicy(hedge_delay_s=delay_s, hedge_attempts=attempts, retry_non_idempotent=non_idempotent)
    found = is_hedged(policy, method, has_body=body, is_tunnel=tunnel, is_retry=retry)
    assert found is (method in IDEMPOTENT and delay_s > 0 and attempts > 1 and not (body or tunnel or retry))


def test_each_further_attempt_is_due_one_delay_later() -> None:
    policy = RetryPolicy(hedge_delay_s=0.5, hedge_attempts=3)
    assert [begins_at(policy, number, begun_at=100.0) for number in (1, 2, 3)] == [100.0, 100.5, 101.0]
