"""Load shedding: who is let in while the process cannot keep up. Values in, verdict out.

Theory of operation. Where it is known how long a request has waited for its turn, those that have waited for too long
are not let in (`Patience`); where it is not, a share of them (`Shedder`).

`Patience` limits the age of the queue. While the queue is older than `target_s` only now and then, there is no limit: a
burst is served, however late. Once it has been older for `ONSET_S` without a break, whoever has waited for longer than
`SHORT` of the target is turned away, until `CALM_S` have passed in which nobody had to be. So who is let in has not
waited for long, and nobody is turned away whom there is time for: unlike a share, that needs no guess at what the
process can do.

`Shedder`: the sign of overload is the age of the queue: how long what has come waits for the event loop. Not
its length, which means nothing without the speed, and not the latency of upstreams, which routes have limits for. As in
CoDel (RFC 8289) the *least* age of an interval counts: a burst leaves moments without a queue, a standing queue none.

    least age of an interval     share of requests let in
    above `target_s`             falls by up to half, the more the older the queue is
    not above                    grows by up to `GROWTH` of itself, and `STEP`, up to all

So the share swings around what the process can do, and the queue stays about as old as the target: what is let in is
served soon, and what is not is refused before any work is done for it. Refusals are spread evenly, by carrying the rest
over from request to request, so that no luck is needed for a share of a half to mean every second one.
"""

from __future__ import annotations

import math
from typing import Final

TARGET_S: Final = 0.1
"""Age of the queue (seconds) that is put up with."""
INTERVAL_S: Final = 0.1
"""Time (seconds) after which the share is adjusted; an interval with too few samples goes on."""
ONSET_S: Final = 0.5
"""Time (seconds) for which the queue must have stood too old before anything is shed."""
LEAST_SHARE: Final = 0.02
"""Never less than this share is let in, so that the end of an overload is noticed by serving."""
DEEPEST_CUT: Final = 0.5
"""What the share is multiplied by at least when it falls."""
SLIGHTEST_CUT: Final = 0.9
GROWTH: Final = 0.15
"""How fast the share grows while there is no queue at all; slower the nearer the queue's age is to the target."""
STEP: Final = 0.01
SHORT: Final = 0.25
"""Part of `target_s` that a request may have waited for its turn during an overload."""
CALM_S: Final = 1.0
"""Time (seconds) without anybody to turn away after which an overload is over."""
SAMPLES: Final = 3
"""Samples that an interval has at least: one alone may be a moment in which the process was not run at all."""
STATUS: Final = 503
"""What those are answered with who are not let in."""
RETRY_AFTER_S: Final = 2
"""When (seconds) they may ask again."""


def describe_shedding(target_s: float) -> str:
    """Return in words what becomes of requests while the process cannot keep up, for `explain`.

    Args:
        target_s: As of `Patience` and `Shedder`; 0 = nothing is shed.
    """
    if not target_s:
        return "load shedding: off (shed_queue_age_s=0)"
    return (
        f"load shedding (shed_queue_age_s): after {ONSET_S:g} s of a queue older than {target_s:g} s, {STATUS} with "
        f"Retry-After: {RETRY_AFTER_S} to who has waited for more than {target_s * SHORT:g} s, or to a share"
    )


class Patience:
    """How long a request may have waited for its turn; see the module. Single-threaded; `now` is monotonic seconds."""

    __slots__ = ("_looked_at", "_old_since", "_over_at", "_short_s", "_target_s")

    def __init__(self, target_s: float = TARGET_S) -> None:
        """Begin without an overload; a `target_s` of 0 keeps it so."""
        self._target_s = target_s
        self._short_s = target_s * SHORT
        self._old_since = self._looked_at = self._over_at = -math.inf

    def is_overloaded(self, now: float) -> bool:
        """Tell whether there is a limit."""
        return now < self._over_at

    def limit_s(self, age_s: float, now: float) -> float:
        """Return for how long those may have waited who are let in now, seconds; infinite if that does not matter.

        Args:
            age_s: How long the oldest has waited, seconds. Nobody asks while there is no queue.
        """
        if not self._target_s:
            return math.inf
        if now < self._over_at:
            if age_s > self._short_s:
                self._over_at = now + CALM_S
            return self._short_s
        if age_s <= self._target_s or now - self._looked_at > self._target_s:
            self._old_since = now
        self._looked_at = now
        if now - self._old_since < ONSET_S:
            return math.inf
        self._over_at = now + CALM_S
        return self._short_s


class Shedder:
    """See the module. Single-threaded; `now` is monotonic seconds.

    Attributes:
        share: Share of requests that are let in.
        is_shedding: Whether that is less than all; who asks `admits` may look at this first.
    """

    __slots__ = ("_carried", "_ends_at", "_last_s", "_least_s", "_samples", "_target_s", "is_shedding", "share")

    def __init__(self, target_s: float = TARGET_S) -> None:
        """Begin with everything let in; a `target_s` of 0 keeps it so."""
        self._target_s = target_s
        self._least_s = math.inf
        self._last_s = 0.0
        self._ends_at = -math.inf
        self._carried = 0.0
        self._samples = 0
        self.share = 1.0
        self.is_shedding = False

    @property
    def is_alert(self) -> bool:
        """Tell whether the queue should be looked at often: requests are shed, or could be soon."""
        return self.is_shedding or self._last_s > self._target_s / 2

    def note(self, age_s: float, now: float) -> None:
        """Take how long something has waited in the queue, in seconds, now that its turn has come."""
        if not self._target_s:
            return
        if self._ends_at == -math.inf:
            self._ends_at = now + ONSET_S
        self._last_s = age_s
        self._least_s = min(self._least_s, age_s)
        self._samples += 1
        if now < self._ends_at or self._samples < SAMPLES:
            return
        if self._least_s > self._target_s:
            cut = min(SLIGHTEST_CUT, max(DEEPEST_CUT, self._target_s / self._least_s))
            self.share = max(LEAST_SHARE, self.share * cut)
        else:
            slack = 1.0 - self._least_s / self._target_s
            self.share = min(1.0, self.share * (1.0 + GROWTH * slack) + STEP)
        self.is_shedding = self.share < 1.0
        self._least_s = math.inf
        self._samples = 0
        # What is let in differently from now on shows when the queue of now is gone, not before.
        self._ends_at = now + max(INTERVAL_S if self.is_shedding else ONSET_S, age_s)

    def note_waiting(self, age_s: float, now: float) -> None:
        """Take how long something has waited whose turn has not come: the queue is as old as that at least."""
        if age_s > self._target_s:
            self.note(age_s, now)

    def admits(self) -> bool:
        """Tell whether the next request is let in."""
        self._carried += self.share
        if self._carried < 1.0:
            return False
        self._carried -= 1.0
        return True
