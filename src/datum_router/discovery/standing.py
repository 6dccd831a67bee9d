"""How a remote cluster stands, and for how long what it exported last is kept. Pure.

What a cluster exported is marked as stale as soon as it is gone, and not any more when it is heard again. A cluster
that comes and goes would have all its slices written each time; so one that was gone more than once within
`FLAP_WINDOW_S` keeps its mark until it has been heard for a while, longer each time. What it exports is taken meanwhile
as ever.
"""

from __future__ import annotations

import datetime
import enum

import msgspec

from datum_router.reasons import Reason


class Phase(enum.StrEnum):
    """How a remote cluster stands."""

    CONNECTING = "Connecting"
    """Credentials are there, and not everything has been read yet."""
    READY = "Ready"
    UNREACHABLE = "Unreachable"
    INVALID = "Invalid"
    """Its Secret holds no usable kubeconfig, and never did since the daemon has started."""
    REFUSED = "Refused"
    """Its kubeconfig leads to the own cluster, or to one that another Secret leads to: nothing of it is published."""
    REMOVED = "Removed"
    """It has no Secret (any more)."""


GONE = frozenset({Phase.UNREACHABLE, Phase.INVALID, Phase.REMOVED})
"""Phases in which what was exported last grows stale."""

REASONS = {
    Phase.CONNECTING: Reason.PENDING,
    Phase.READY: Reason.READY,
    Phase.UNREACHABLE: Reason.CLUSTER_UNREACHABLE,
    Phase.INVALID: Reason.INVALID_KUBECONFIG,
    Phase.REFUSED: Reason.DUPLICATE_CLUSTER,
    Phase.REMOVED: Reason.CLUSTER_REMOVED,
}


FLAP_WINDOW_S = 600.0
"""Outages that begin within so long of each other (seconds) count together."""
FIRST_CALM_S = 20.0
"""For how long a cluster must be heard (seconds) before its mark goes, after its second outage; twice that after each
other one."""
MAX_CALM_S = 300.0


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """For how long (seconds) endpoints of a cluster that is gone are kept.

    Attributes:
        stale_s: Of one that cannot be reached, or whose credentials cannot be used; 0: for ever.
        removed_s: Of one whose Secret is gone; 0: not at all.
    """

    stale_s: float = 86_400.0
    removed_s: float = 300.0


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a cluster stands.

    Attributes:
        since_at: Unix seconds at which the phase began; for those in `GONE`, what staleness is counted from.
        message: Why, for people; holds no secrets.
        marked_at: Unix seconds that its slices are marked with; 0: they are not.
        calm_at: When the mark goes if the cluster is heard until then, Unix seconds; infinity: not by that alone.
        outages: How often it was gone lately.
        gone_at: When it was gone last.
    """

    phase: Phase = Phase.CONNECTING
    since_at: float = 0.0
    message: str = ""
    marked_at: float = 0.0
    calm_at: float = float("inf")
    outages: int = 0
    gone_at: float = float("-inf")

    @property
    def is_gone(self) -> bool:
        """Tell whether the cluster cannot be heard."""
        return self.phase in GONE

    def expires_at(self, patience: Patience) -> float:
        """Return when endpoints are not kept any longer, in Unix seconds; infinity: never."""
        if self.phase is Phase.REMOVED:
            return self.since_at + patience.removed_s
        if self.is_gone and patience.stale_s > 0:
            return self.since_at + patience.stale_s
        return float("inf")


def advance(current: Standing, phase: Phase, message: str, *, now: float, marked_at: float | None) -> Standing:
    """Return how a cluster stands after it was found in a phase.

    A cluster that is gone and stays so keeps its time, but for one that is removed after it could not be reached: from
    then on another patience counts, from its beginning. One that the daemon finds gone at its start has the time that
    its slices are marked with.

    Args:
        now: Unix seconds.
        marked_at: The earliest time that its slices are marked with, if they are.
    """
    if phase is current.phase:
        return msgspec.structs.replace(current, message=message)
    since_at = now
    if phase in GONE and (current.phase is Phase.CONNECTING or current.is_gone) and phase is not Phase.REMOVED:
        since_at = current.since_at if current.is_gone else now if marked_at is None else min(now, marked_at)
    after = msgspec.structs.replace(current, phase=phase, since_at=since_at, message=message)
    if phase in GONE:
        return _gone(after, current, now)
    if phase is Phase.CONNECTING:  # as before: by another kubeconfig
        return after
    wait_s = _calm_s(current.outages) if phase is Phase.READY and current.marked_at else 0.0
    if wait_s:
        return msgspec.structs.replace(after, calm_at=now + wait_s)
    return msgspec.structs.replace(after, marked_at=0.0, calm_at=float("inf"))


def calmed(current: Standing, *, now: float) -> Standing:
    """Return how a cluster stands as time passes: the same, or without its mark. Unix seconds."""
    if now < current.calm_at:
        return current
    return msgspec.structs.replace(current, marked_at=0.0, calm_at=float("inf"))


def _gone(after: Standing, before: Standing, now: float) -> Standing:
    outages, gone_at = before.outages, before.gone_at
    if not before.is_gone:
        outages, gone_at = (outages + 1 if now - gone_at < FLAP_WINDOW_S else 1), now
    # One that is removed is marked with that time: a daemon that starts then counts from it.
    is_kept = before.marked_at and after.phase is not Phase.REMOVED
    marked_at = before.marked_at if is_kept else after.since_at
    return msgspec.structs.replace(after, marked_at=marked_at, calm_at=float("inf"), outages=outages, gone_at=gone_at)


def _calm_s(outages: int) -> float:
    return min(FIRST_CALM_S * 2 ** min(outages - 2, 20), MAX_CALM_S) if outages > 1 else 0.0


def time_text(at: float) -> str:
    """Return Unix seconds as RFC 3339, whole seconds."""
    return datetime.datetime.fromtimestamp(int(at), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_of(text: str) -> float | None:
    """Return RFC 3339 text as Unix seconds; None if it is none."""
    try:
        found = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None
    return found.replace(tzinfo=datetime.UTC).timestamp()
