"""When a part of a plugin is asked no more: after five failures in a row within a minute, until a trial goes well.

Theory of operation. A *part* is what one rule got from a plugin: its balancer for one service, one of its filters. Each
has a guard of its own, so that a part that cannot serve one route costs no other route its traffic. A call fails if it
raises, returns something else than it promises, or takes longer than `SLOW_CALL_S`: it runs on the event loop, and
everybody waits (the result of a slow call is used all the same). Failures count in a row: a plugin that is at odds
with some requests only must not be taken from all others by whoever sends five of those.

What is disabled is not asked: its requests are answered with 500 `plugin_disabled`, since every hook there is decides
where a request may go or what it carries, and none may be passed over. After `PAUSE_S` one call is let through as a
trial: a plugin may fail for a reason that passes, and nobody need be awake to notice. If that fails, too, the next
pause begins. A restart, and a change of what made the part (the route's balancing, its filters), begin anew.

Not known here: what a log or a metric is. `PluginEvent`s tell whoever does.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable

import msgspec

from datum_router.clock import Clock, ManualClock
from datum_router.errors import PluginContractError, PluginDisabled
from datum_router.reasons import Reason

MAX_FAILURES = 5
"""Failures in a row, within `FAILURE_WINDOW_S`, that disable a part (threat P1)."""

FAILURE_WINDOW_S = 60.0
"""Seconds that those failures may be spread over."""

PAUSE_S = 60.0
"""Seconds for which a disabled part is not asked."""

SLOW_CALL_S = 0.1
"""A call that takes longer (seconds) is a failure."""

PLUGIN_ERRORS = (Exception, SystemExit, BaseExceptionGroup)
"""What a synchronous call of a plugin can raise without it being the end of the process."""


class PluginHook(enum.StrEnum):
    """What a part is for: the hook that offered it."""

    BALANCER = "balancer"
    FILTER = "filter"


class PluginPart(msgspec.Struct, frozen=True, kw_only=True):
    """Who is being watched: `plugin` is the entry point, `name` what a manifest says, `route` the route that does."""

    plugin: str
    hook: PluginHook
    name: str
    route: str

    def __str__(self) -> str:
        return f"{self.hook} {self.name} of {self.route}"


class PluginEventKind(enum.StrEnum):
    """What has happened to a part."""

    FAILED = "failed"
    SLOW = "slow"
    DISABLED = "disabled"
    ENABLED = "enabled"


class PluginEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that whoever runs a plugin should know.

    Attributes:
        seconds: What a slow call took, or for how long the part is disabled; else 0.
    """

    kind: PluginEventKind
    part: PluginPart
    seconds: float = 0.0


class PluginGuard:
    """Watches one part. Single-threaded; costs a good call two looks at the clock.

    A call is `begin`, the plugin, and then `end` with what `begin` gave, or `failure`.
    """

    __slots__ = ("_clock", "_disabled_until", "_failed_at", "_part", "_tell")

    def __init__(self, part: PluginPart, clock: Clock, tell: Callable[[PluginEvent], None]) -> None:
        self._part = part
        self._clock = clock
        self._tell = tell
        self._failed_at: deque[float] = deque(maxlen=MAX_FAILURES)
        self._disabled_until = 0.0  # set: disabled, or on trial since then

    def begin(self) -> float:
        """Return the moment; PluginDisabled if the part is not to be asked."""
        now = self._clock()
        if now < self._disabled_until:
            raise PluginDisabled(f"{self._part}: disabled, it has failed {MAX_FAILURES} times in a row")
        return now

    def end(self, began_at: float) -> None:
        """Take a call that returned what it promises."""
        took_s = self._clock() - began_at
        if took_s > SLOW_CALL_S:
            self._failed(PluginEventKind.SLOW, took_s)
        elif self._failed_at:
            self._failed_at.clear()
            if self._disabled_until:
                self._disabled_until = 0.0
                self._tell(PluginEvent(kind=PluginEventKind.ENABLED, part=self._part))

    def suspend(self, began_at: float) -> None:
        """Take a step of a call that goes on later: it tells nothing yet, unless it was slow."""
        took_s = self._clock() - began_at
        if took_s > SLOW_CALL_S:
            self._failed(PluginEventKind.SLOW, took_s)

    def failure(self, said: str, *, reason: Reason = Reason.INTERNAL) -> PluginContractError:
        """Take a call that failed; return what to raise. `said` is as in `raised ValueError: oops`."""
        self._failed(PluginEventKind.FAILED, 0.0)
        return PluginContractError(f"{self._part}: {said}", reason=reason)

    def raised(self, error: BaseException) -> PluginContractError:
        """Do as `failure` does for one of `PLUGIN_ERRORS`."""
        return self.failure(f"raised {type(error).__name__}: {error}")

    def _failed(self, kind: PluginEventKind, seconds: float) -> None:
        now = self._clock()
        times = self._failed_at
        times.append(now)
        self._tell(PluginEvent(kind=kind, part=self._part, seconds=seconds))
        if self._disabled_until or (len(times) == MAX_FAILURES and now - times[0] <= FAILURE_WINDOW_S):
            self._disabled_until = now + PAUSE_S
            self._tell(PluginEvent(kind=PluginEventKind.DISABLED, part=self._part, seconds=PAUSE_S))


def _ignore(_event: PluginEvent) -> None:
    pass


class PluginWatch:
    """Makes guards that share a clock and a listener. One per process.

    Args:
        clock: Default: one that stands still, for where nothing is served.
        tell: Takes what happens to the parts; must not raise.
    """

    __slots__ = ("_clock", "_tell")

    def __init__(self, clock: Clock | None = None, tell: Callable[[PluginEvent], None] = _ignore) -> None:
        self._clock = clock or ManualClock()
        self._tell = tell

    def guard(self, part: PluginPart) -> PluginGuard:
        """Return a new guard."""
        return PluginGuard(part, self._clock, self._tell)
