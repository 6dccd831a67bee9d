"""The state machine of the circuit breaker, against what its table says."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from datum_router.health.breaker import Breaker
from datum_router.health.outlier import BreakerState
from datum_router.model.limits import BreakerPolicy
from datum_router.model.outcome import OutcomeClass

POLICY = BreakerPolicy(failure_threshold=3, success_threshold=2, open_s=5.0)
KINDS = st.sampled_from([*OutcomeClass, None])


class BreakerMachine(RuleBasedStateMachine):
    """Requests begin and end in any order, and time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(POLICY)
        self.now = 0.0
        self.under_way: list[tuple[int, int]] = []  # turn, and which change of state it came after
        self.changes = 0
        self.state = BreakerState.CLOSED
        self.run: list[bool] = []  # verdicts since the last change, True for a success
        self.opened_at = 0.0
        self.last_asked = 0.0
        self.trial_until = 0.0  # of the trial that is under way; 0 without one

    def enter(self, state: BreakerState) -> None:
        self.state = state
        self.changes += 1
        self.run = []
        self.trial_until = 0.0
        if state is BreakerState.OPEN:
            self.opened_at = self.last_asked

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin(self) -> None:
        self.last_asked = self.now
        if self.state is BreakerState.OPEN and self.now >= self.opened_at + POLICY.open_s:
            self.enter(BreakerState.HALF_OPEN)
        is_trial = self.state is BreakerState.HALF_OPEN and self.now >= self.trial_until
        expected = self.state is BreakerState.CLOSED or is_trial
        turn = self.breaker.admit(self.now)
        assert (turn is not None) is expected
        if is_trial:  # it keeps others out for so long at most
            self.trial_until = self.now + POLICY.open_s
        if turn is not None:
            self.under_way.append((turn, self.changes))

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 50), kind=KINDS)
    def end(self, which: int, kind: OutcomeClass | None) -> None:
        turn, change = self.under_way.pop(which % len(self.under_way))
        self.breaker.settle(turn, kind)
        if change != self.changes:
            return
        if self.state is BreakerState.HALF_OPEN:
            self.trial_until = 0.0
        if kind is None:
            return
        self.run.append(kind is OutcomeClass.SUCCESS)
        if (self.state is BreakerState.CLOSED and self.run[-3:] == [False] * 3) or (
            self.state is BreakerState.HALF_OPEN and not self.run[-1]
        ):
            self.enter(BreakerState.OPEN)
        elif self.state is BreakerState.HALF_OPEN and self.run[-2:] == [True] * 2:
            self.enter(BreakerState.CLOSED)

    @invariant()
    def state_is_that_of_the_table(self) -> None:
        assert self.breaker.state is self.state

    @invariant()
    def who_waits_as_long_as_is_said_is_not_kept_out_by_time(self) -> None:
        if self.state is BreakerState.OPEN:
            assert self.breaker.retry_after_s(self.now) <= POLICY.open_s + 1e-9


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase
