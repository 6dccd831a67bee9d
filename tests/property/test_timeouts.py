"""Deadlines: an attempt's clock stands for the client alone, and what the lanes use is what the pipeline finds."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.model.policy import TimeoutPolicy
from datum_router.policy.timeout import (
    NO_DEADLINE,
    first_limit,
    has_try_limits,
    is_clients_choice,
    request_deadline,
    try_deadline,
)
from datum_router.reasons import Reason

limits = st.sampled_from((0.0, 0.25, 1.0, 2.0, 30.0))
policies = st.builds(
    TimeoutPolicy,
    request_s=limits,
    per_try_s=limits,
    backend_request_s=limits,
    stream_idle_s=st.one_of(st.none(), limits),
)
waits = st.floats(0.0, 100.0)


@settings(max_examples=300, deadline=None)
@given(policy=policies, now=st.floats(0.0, 1e6), waited_s=waits, more_s=waits)
def test_an_attempts_clock_only_stands_for_the_client_and_never_runs_backwards(
    policy: TimeoutPolicy, now: float, waited_s: float, more_s: float
) -> None:
    unanswered = try_deadline(policy, begun_at=now, waited_s=waited_s, is_answered=False)
    answered = try_deadline(policy, begun_at=now, waited_s=waited_s, is_answered=True)
    assert unanswered <= answered, "a response head never takes time away"
    later = try_deadline(policy, begun_at=now, waited_s=waited_s + more_s, is_answered=False)
    assert later >= unanswered, "waiting for the client never takes time away"
    assert (unanswered < NO_DEADLINE) is has_try_limits(policy)
    if policy.per_try_s > 0:
        assert unanswered <= now + waited_s + policy.per_try_s


@settings(max_examples=300, deadline=None)
@given(policy=policies, now=st.sampled_from((0.0, 100.0)))
def test_the_limit_that_lanes_use_is_the_earliest_of_all(policy: TimeoutPolicy, now: float) -> None:
    limit_s, reason = first_limit(policy)
    found = {
        Reason.REQUEST_TIMEOUT: request_deadline(policy, now=now),
        Reason.PER_TRY_TIMEOUT: try_deadline(policy, begun_at=now, waited_s=0.0, is_answered=False),
        Reason.STREAM_IDLE_TIMEOUT: now + (policy.stream_idle_s or math.inf),
    }
    assert (now + limit_s if limit_s else NO_DEADLINE) == min(found.values())
    assert found[reason] == min(found.values())


@settings(max_examples=300, deadline=None)
@given(policy=policies, asked_s=st.floats(0.0, 100.0), now=st.floats(0.0, 1e6), is_gateway=st.booleans())
def test_a_client_can_shorten_the_time_but_never_prolong_it(
    policy: TimeoutPolicy, asked_s: float, now: float, is_gateway: bool
) -> None:
    own = request_deadline(policy, now=now)
    assert request_deadline(policy, now=now, client_timeout_s=asked_s) == min(own, now + asked_s)
    if is_clients_choice(policy, asked_s, is_gateway=is_gateway) and policy.request_s > 0:
        assert asked_s < policy.request_s
