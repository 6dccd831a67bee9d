"""The probe plan: never twice at once, once per interval, bounded, and no memory of who left."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from datum_router.health.schedule import FIRST_PROBE_SPREAD_S, JITTER, ProbeSchedule, ProbeTarget
from datum_router.model.endpoint import EndpointKey, make_endpoint
from datum_router.model.policy import ActiveHealthPolicy
from datum_router.model.service import ServiceKey
from datum_router.testing.factories import make_service

ENDPOINTS = tuple(make_endpoint(f"10.0.0.{number}", 80) for number in range(6))
POLICIES = (ActiveHealthPolicy(interval_s=5.0), ActiveHealthPolicy(interval_s=0.5), ActiveHealthPolicy(http_path="/"))
SERVICE = ServiceKey("a/b")


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 6),
    interval_s=st.sampled_from((0.5, 1.0, 10.0, 60.0)),
    took=st.floats(0.0, 0.2),
    seed=st.integers(0, 2**32),
)
def test_every_target_is_probed_once_per_interval_within_the_jitter(
    count: int, interval_s: float, took: float, seed: int
) -> None:
    plan = ProbeSchedule(random.Random(seed))
    service = make_service("a/b", ENDPOINTS[:count], active=ActiveHealthPolicy(interval_s=interval_s))
    plan.set_services({service.key: service}, now=0.0)
    starts: dict[EndpointKey, list[float]] = {endpoint.key: [] for endpoint in service.endpoints}
    running: list[tuple[float, ProbeTarget]] = []
    now = 0.0
    while now < 6 * interval_s:
        due = plan.next_due()
        now = min([at for at in (due, *(end for end, _ in running)) if at is not None])
        for entry in [entry for entry in running if entry[0] <= now]:
            running.remove(entry)
            assert plan.finish(entry[1], now=now)
        for target in plan.take_due(now):
            starts[target.endpoint.key].append(now)
            running.append((now + took * interval_s, target))
    for moments in starts.values():
        assert moments[0] <= min(interval_s, FIRST_PROBE_SPREAD_S)
        for before, after in itertools.pairwise(moments):
            assert interval_s * (1 - JITTER) - 1e-9 <= after - before <= interval_s * (1 + JITTER) + 1e-9
        assert len(moments) >= 5


class Plan(RuleBasedStateMachine):
    """Services come, change and go while probes run."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.plan = ProbeSchedule(random.Random(1))
        self.limit = 1
        self.wanted: set[EndpointKey] = set()
        self.running: list[ProbeTarget] = []
        self.current: set[EndpointKey] = set()  # running, and there without a break since the start
        self.policy: ActiveHealthPolicy | None = None

    @initialize(limit=st.integers(1, 4), seed=st.integers(0, 2**16))
    def begin(self, limit: int, seed: int) -> None:
        self.limit = limit
        self.plan = ProbeSchedule(random.Random(seed), concurrency=limit)

    @rule(chosen=st.lists(st.sampled_from(ENDPOINTS), unique=True), policy=st.sampled_from((*POLICIES, None)))
    def services_change(self, chosen: list[object], policy: ActiveHealthPolicy | None) -> None:
        service = make_service(SERVICE, chosen, active=policy)  # type: ignore[arg-type]  # drawn above
        self.plan.set_services({SERVICE: service}, now=self.now)
        self.policy = policy
        self.wanted = {endpoint.key for endpoint in service.endpoints} if policy is not None else set()
        self.current &= self.wanted

    @rule(policy=st.sampled_from(POLICIES))
    def policy_changes_while_probes_run(self, policy: ActiveHealthPolicy) -> None:
        self.time_passes(20.0)
        chosen = [endpoint for endpoint in ENDPOINTS if endpoint.key in self.wanted] or list(ENDPOINTS[:2])
        self.services_change(list(chosen), policy)
        self.time_passes(1.0)

    @rule(seconds=st.sampled_from((0.0, 0.1, 0.6, 1.0, 5.0, 20.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        due_at = self.plan.next_due()
        taken = self.plan.take_due(self.now)
        assert bool(taken) == (due_at is not None and due_at <= self.now)
        for target in taken:
            assert target.endpoint.key in self.wanted, "who left is not probed"
            assert target.endpoint.key not in self.current, "a target is probed twice at once"
            assert target.policy == self.policy
            self.current.add(target.endpoint.key)
        self.running += taken

    @rule(data=st.data())
    def a_probe_ends(self, data: st.DataObject) -> None:
        if not self.running:
            return
        target = data.draw(st.sampled_from(self.running))
        newest = max(index for index, other in enumerate(self.running) if other.endpoint.key == target.endpoint.key)
        is_newest = self.running[newest] is target
        self.running = [other for other in self.running if other is not target]
        key = target.endpoint.key
        is_credited = self.plan.finish(target, now=self.now)
        assert is_credited == (key in self.current and is_newest and target.policy == self.policy)
        if is_newest:
            self.current.discard(key)
        assert not self.plan.finish(target, now=self.now), "a probe ends once"

    @invariant()
    def only_what_is_there_is_planned_and_no_more_run_than_may(self) -> None:
        assert len(self.plan) == len(self.wanted)
        assert self.plan.running == len(self.running) <= self.limit

    @invariant()
    def nobody_is_forgotten(self) -> None:
        if len(self.running) < self.limit and self.wanted - self.current:
            assert self.plan.next_due() is not None


TestPlan = Plan.TestCase
TestPlan.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
