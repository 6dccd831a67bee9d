from __future__ import annotations

import pytest

from datum_router.clock import ManualClock
from datum_router.errors import PluginContractError, PluginDisabled
from datum_router.policy.plugin_guard import (
    FAILURE_WINDOW_S,
    MAX_FAILURES,
    PAUSE_S,
    SLOW_CALL_S,
    PluginEvent,
    PluginEventKind,
    PluginGuard,
    PluginHook,
    PluginPart,
    PluginWatch,
)
from datum_router.reasons import Reason

PART = PluginPart(plugin="p", hook=PluginHook.BALANCER, name="first-healthy", route="default/r")


class Watched:
    """A part, its clock, and what was told of it."""

    def __init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.events: list[PluginEvent] = []
        self.watch = PluginWatch(self.clock, self.events.append)
        self.guard = self.watch.guard(PART)

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]

    def is_asked(self, guard: PluginGuard | None = None) -> bool:
        try:
            (guard or self.guard).begin()
        except PluginDisabled:
            return False
        return True

    def fail(self, times: int = 1, *, every_s: float = 0.0) -> None:
        for _ in range(times):
            self.guard.begin()
            self.guard.failure("raised ValueError: oops")
            self.clock.advance(every_s)

    def succeed(self, seconds: float = 0.0) -> None:
        began_at = self.guard.begin()
        self.clock.advance(seconds)
        self.guard.end(began_at)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_the_fifth_failure_in_a_minute_disables_a_part_for_a_minute(watched: Watched) -> None:
    watched.fail(MAX_FAILURES - 1)
    assert watched.is_asked()
    watched.fail()
    with pytest.raises(PluginDisabled, match=r"^balancer first-healthy of default/r: disabled, ") as refused:
        watched.guard.begin()
    assert refused.value.reason is Reason.PLUGIN_DISABLED
    watched.clock.advance(PAUSE_S - 0.001)
    assert not watched.is_asked()
    assert watched.kinds == ["failed"] * 5 + ["disabled"]
    assert watched.events[-1] == PluginEvent(kind=PluginEventKind.DISABLED, part=PART, seconds=PAUSE_S)


@pytest.mark.parametrize(("between_s", "is_asked"), [(FAILURE_WINDOW_S / 4, False), (FAILURE_WINDOW_S / 4 + 0.1, True)])
def test_only_failures_within_a_minute_count_together(watched: Watched, between_s: float, is_asked: bool) -> None:
    watched.fail(MAX_FAILURES - 1, every_s=between_s)
    watched.fail()
    assert watched.is_asked() == is_asked


def test_a_part_that_is_at_odds_with_some_requests_only_stays(watched: Watched) -> None:
    for _ in range(10):
        watched.fail(MAX_FAILURES - 1)
        watched.succeed()
    assert watched.is_asked()
    assert watched.kinds == ["failed"] * 40


def test_a_trial_that_goes_well_enables_it_again(watched: Watched) -> None:
    watched.fail(MAX_FAILURES)
    watched.clock.advance(PAUSE_S)
    watched.succeed()
    assert watched.kinds[-1] == "enabled"
    watched.fail(MAX_FAILURES - 1)
    assert watched.is_asked()


def test_a_trial_that_fails_begins_another_pause(watched: Watched) -> None:
    watched.fail(MAX_FAILURES)
    watched.clock.advance(PAUSE_S)
    watched.fail()
    assert not watched.is_asked()
    assert watched.kinds[-2:] == ["failed", "disabled"]
    watched.clock.advance(PAUSE_S)
    assert watched.is_asked()


def test_a_call_that_blocks_is_told_with_its_name_and_counts_as_a_failure(watched: Watched) -> None:
    watched.succeed(SLOW_CALL_S * 0.99)
    assert watched.events == []
    for _ in range(MAX_FAILURES):
        watched.succeed(0.25)
    assert watched.events[0] == PluginEvent(kind=PluginEventKind.SLOW, part=PART, seconds=0.25)
    assert watched.kinds == ["slow"] * 5 + ["disabled"]
    assert not watched.is_asked()


def test_one_part_costs_no_other_its_traffic(watched: Watched) -> None:
    other = watched.watch.guard(PART)
    watched.fail(MAX_FAILURES)
    assert not watched.is_asked()
    assert watched.is_asked(other)


def test_a_failure_says_whose_it_is(watched: Watched) -> None:
    error = watched.guard.raised(ValueError("oops"))
    assert isinstance(error, PluginContractError)
    assert str(error) == "balancer first-healthy of default/r: raised ValueError: oops"
    assert error.reason is Reason.INTERNAL
    assert watched.guard.failure("returned x", reason=Reason.BAD_FILTER_OUTPUT).reason is Reason.BAD_FILTER_OUTPUT
