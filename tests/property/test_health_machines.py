"""Probe state and ejections as state machines against oracles that keep the whole history."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from datum_router.health.active import UNPROBED, HealthState, advance
from datum_router.health.outlier import Detector
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import ActiveHealthPolicy, OutlierPolicy
from datum_router.plugins.protocols import ProbeResult
from datum_router.testing.factories import make_outlier_detector

KEYS = tuple(EndpointKey(f"10.0.0.{number}:80") for number in range(6))


def slow_state(history: list[bool], healthy: int, unhealthy: int) -> tuple[HealthState, int]:
    """Derive state and index of the last flip from all results: the first decides, then whole runs of contrary ones."""
    if not history:
        return HealthState.UNKNOWN, -1
    is_up, begin, flipped = history[0], 1, 0
    for end in range(1, len(history) + 1):
        run = list(itertools.takewhile(is_up.__ne__, reversed(history[begin:end])))
        if len(run) >= (unhealthy if is_up else healthy):
            is_up, begin, flipped = not is_up, end, end - 1
    return HealthState.HEALTHY if is_up else HealthState.UNHEALTHY, flipped


class ActiveMachine(RuleBasedStateMachine):
    """Any results: the state is the oracle's, the moment of the flip too."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[bool] = []
        self.health = UNPROBED
        self.policy = ActiveHealthPolicy()

    @initialize(healthy=st.integers(1, 4), unhealthy=st.integers(1, 4))
    def begin(self, healthy: int, unhealthy: int) -> None:
        self.policy = ActiveHealthPolicy(healthy_threshold=healthy, unhealthy_threshold=unhealthy)

    @rule(results=st.lists(st.booleans(), min_size=1, max_size=6))
    def probe(self, results: list[bool]) -> None:
        for is_ok in results:
            self.health = advance(
                self.health,
                ProbeResult(is_ok=is_ok, detail=f"probe {len(self.history)}"),
                self.policy,
                now=float(len(self.history)),
            )
            self.history.append(is_ok)

    @invariant()
    def state_is_what_the_history_says(self) -> None:
        state, flipped = slow_state(self.history, self.policy.healthy_threshold, self.policy.unhealthy_threshold)
        assert self.health.state is state
        if state is not HealthState.UNKNOWN:
            assert self.health.changed_at == float(flipped)
            assert self.health.detail == f"probe {len(self.history) - 1}"


class OutlierMachine(RuleBasedStateMachine):
    """Any outcomes, endpoints and times: counts by single outcomes, ejection limits, lengths of ejections."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.policy = OutlierPolicy()
        self.detector = make_outlier_detector(self.policy)
        self.keys: list[EndpointKey] = []
        self.rows: dict[EndpointKey, list[OutcomeClass]] = {}
        self.out: dict[EndpointKey, float] = {}
        self.half: dict[EndpointKey, int] = {}
        self.numbers: set[int] = set()
        self.times: dict[EndpointKey, int] = {}
        self.back_at: dict[EndpointKey, float] = {}
        self.was_over = False

    def room(self) -> int:
        percent = self.policy.max_ejection_percent
        return max(1, len(self.keys) * percent // 100) if percent else 0

    @initialize(any_5xx=st.integers(0, 3), gateway=st.integers(0, 3), percent=st.sampled_from((0, 10, 34, 50, 100)))
    def begin(self, any_5xx: int, gateway: int, percent: int) -> None:
        self.policy = OutlierPolicy(
            consecutive_5xx=any_5xx,
            consecutive_gateway_errors=gateway,
            max_ejection_percent=percent,
            base_ejection_time_s=30.0,
            max_ejection_time_s=100.0,
            interval_s=10.0,
        )
        self.detector = make_outlier_detector(self.policy)
        self.keys = list(KEYS[:4])
        self.detector.set_endpoints(self.keys)

    @rule(
        key=st.sampled_from(KEYS),
        runs=st.lists(st.tuples(st.sampled_from(OutcomeClass), st.integers(0, 5)), max_size=4),
    )
    def outcomes(self, key: EndpointKey, runs: list[tuple[OutcomeClass, int]]) -> None:
        room = len(self.out) + len(self.half) < self.room()
        found = self.detector.record(key, runs, now=self.now)
        if key not in self.keys or key in self.out or key in self.half:
            assert found is None
            return
        row = self.rows.setdefault(key, [])
        expected: Detector | None = None
        for kind, count in runs:
            row += [kind] * count
            if count and kind is not OutcomeClass.SUCCESS and room and (expected := self.fired(row)) is not None:
                break
        assert found is expected
        if expected is not None:
            stayed = int((self.now - self.back_at.get(key, 0.0)) // self.policy.interval_s)
            self.times[key] = max(0, self.times.get(key, 0) - stayed) + 1
            self.opens(key)

    def opens(self, key: EndpointKey) -> None:
        self.out[key] = self.now + min(100.0, 30.0 * 2.0 ** (self.times[key] - 1))
        self.rows[key] = []

    def fired(self, row: list[OutcomeClass]) -> Detector | None:
        gateway = len(list(itertools.takewhile(lambda kind: kind is OutcomeClass.GATEWAY_ERROR, reversed(row))))
        failures = len(list(itertools.takewhile(lambda kind: kind is not OutcomeClass.SUCCESS, reversed(row))))
        if 0 < self.policy.consecutive_gateway_errors <= gateway:
            return Detector.CONSECUTIVE_GATEWAY_ERRORS
        return Detector.CONSECUTIVE_5XX if 0 < self.policy.consecutive_5xx <= failures else None

    @rule(seconds=st.sampled_from((0.0, 1.0, 9.0, 30.0, 31.0, 100.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        due = {key for key, until in self.out.items() if until <= self.now}
        assert set(self.detector.half_open_due(self.now)) == due
        for key in due:
            del self.out[key]
            state = self.detector.state(key)
            assert state is not None
            assert state.trial not in self.numbers, "each trial has a number of its own"
            self.half[key] = state.trial
            self.numbers.add(state.trial)

    @rule(key=st.sampled_from(KEYS), is_ok=st.booleans(), behind=st.sampled_from((0, 0, 0, 1)))
    def trial_ends(self, key: EndpointKey, is_ok: bool, behind: int) -> None:
        number = self.half.get(key, 0) - behind
        counts = self.detector.record_trial(key, number, is_ok=is_ok, now=self.now)
        assert counts is (key in self.half and behind == 0)
        if not counts:
            return
        del self.half[key]
        if is_ok:
            self.back_at[key] = self.now
        else:
            self.times[key] += 1
            self.opens(key)

    @rule(keys=st.lists(st.sampled_from(KEYS), unique=True, max_size=6))
    def endpoints_change(self, keys: list[EndpointKey]) -> None:
        self.keys = keys
        self.detector.set_endpoints(keys)
        for table in (self.rows, self.out, self.half, self.times, self.back_at):
            for key in [key for key in table if key not in keys]:
                del table[key]
        # Running ejections are not ended early for a smaller set: only new ones respect the new share.
        self.was_over = len(self.out) + len(self.half) > self.detector.capacity()

    @rule(key=st.sampled_from(KEYS[:2]), seconds=st.sampled_from((0.0, 9.0, 25.0)), kind=st.sampled_from(OutcomeClass))
    def fails_return_and_fail_again(self, key: EndpointKey, seconds: float, kind: OutcomeClass) -> None:
        for _ in range(3):
            self.outcomes(key, [(OutcomeClass.GATEWAY_ERROR, 1), (kind, 1), (OutcomeClass.SERVER_ERROR, 4)])
            self.who_is_out_and_until_when()
            self.let_back_in(key)
            self.time_passes(seconds)

    @rule(key=st.sampled_from(KEYS))
    def let_back_in(self, key: EndpointKey) -> None:
        is_out = key in self.out or key in self.half
        assert self.detector.release(key, now=self.now) is is_out
        self.out.pop(key, None)
        self.half.pop(key, None)
        if is_out:
            self.back_at[key] = self.now

    @invariant()
    def who_is_out_and_until_when(self) -> None:
        assert {key for key in KEYS if self.detector.is_ejected(key)} == set(self.out) | set(self.half)
        assert self.detector.ejected == len(self.out) + len(self.half)
        assert self.detector.next_half_open() == min(self.out.values(), default=None)

    @invariant()
    def never_more_than_the_share_but_one_always_may_be(self) -> None:
        room = self.room()
        assert self.detector.capacity() == room
        out = len(self.out) + len(self.half)
        self.was_over = self.was_over and out > room
        assert out <= room or self.was_over


SETTINGS = settings(max_examples=50, stateful_step_count=25, deadline=None)
TestActive = ActiveMachine.TestCase
TestActive.settings = SETTINGS
TestOutlier = OutlierMachine.TestCase
TestOutlier.settings = SETTINGS
