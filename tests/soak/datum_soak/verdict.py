"""The verdict: which failures a fault excuses, and nothing else does.

Theory of operation: every failure is judged by itself. A rule excuses it only for a reason that ties *that* request
to a fault: it was marked to be cut by its upstream; its connection was held by the worker that was killed; it asked
for a new connection while there were no descriptors. A window of time alone excuses nothing. What no rule excuses
fails the soak, and so does a fault that did not show the effect it must have (a marked body that arrived whole).
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from datum_soak.outcomes import CUT_KINDS, Address, Cause, Kind, Record


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """When a fault was at work, in seconds since the soak began; `name` as in the report."""

    name: str
    start_s: float
    end_s: float

    def overlaps(self, record: Record) -> bool:
        """Tell whether the request was under way while the fault was."""
        return record.started_s <= self.end_s and record.ended_s >= self.start_s


class Excuse(enum.StrEnum):
    """Why a failure does not count against the gateway."""

    CUT_BY_UPSTREAM = "cut by its upstream, as marked"
    WORKER_KILLED = "on a connection of the killed worker"
    NO_DESCRIPTORS = "new connection while descriptors had run out"
    NO_UPSTREAM_DESCRIPTOR = "503 local_resources: no descriptor for an upstream connection"
    TUNNEL_CLOSED = "message crossed the close frame of a gateway going away"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the faults did, as far as failures are to be judged by it.

    Attributes:
        killed: Connections that the killed workers held, with the time of the kill.
        exhausted: When descriptors were short.
        going_away: When workers were told to end (rolling restart, SIGTERM).
    """

    killed: Mapping[Address, float] = {}
    exhausted: tuple[Window, ...] = ()
    going_away: tuple[Window, ...] = ()


_CUT_CAUSES = frozenset({Cause.CUT_BODY, Cause.STREAM_RESET})
_LOST_WITH_CONNECTION = frozenset({Cause.RESET, Cause.CLOSED, Cause.CUT_BODY})
_SHED = frozenset({Cause.RESET, Cause.CONNECT_RESET, Cause.CLOSED, Cause.CONNECT_TIMEOUT})


NOTICED_AFTER_S = 1.0
"""A request may still be sent on a dead connection until its end is noticed; later the port is another connection's."""


def excuse(record: Record, facts: Facts) -> Excuse | None:
    """Return why a failure is excused, or None."""
    if record.cause is Cause.ANSWERED:
        raise ValueError("only failures need an excuse")
    if record.kind in CUT_KINDS and record.cause in _CUT_CAUSES and record.has_answer_begun:
        return Excuse.CUT_BY_UPSTREAM
    if record.cause in _LOST_WITH_CONNECTION and record.local is not None:
        killed_at = facts.killed.get(record.local)
        if killed_at is not None and record.ended_s >= killed_at and record.started_s <= killed_at + NOTICED_AFTER_S:
            return Excuse.WORKER_KILLED
    if (
        record.cause in _SHED
        and not record.is_reused
        and not record.has_answer_begun
        and any(window.overlaps(record) for window in facts.exhausted)
    ):
        return Excuse.NO_DESCRIPTORS
    if (
        record.cause is Cause.STATUS
        and (record.status, record.reason) == (503, "local_resources")
        and any(window.overlaps(record) for window in facts.exhausted)
    ):
        return Excuse.NO_UPSTREAM_DESCRIPTOR
    if record.cause is Cause.GOING_AWAY and any(window.overlaps(record) for window in facts.going_away):
        return Excuse.TUNNEL_CLOSED
    return None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One requirement: what was demanded and what was found."""

    name: str
    is_met: bool
    found: str
    required: str


def judge_failures(failures: Sequence[Record], facts: Facts) -> tuple[dict[str, int], list[Record]]:
    """Return how many failures each excuse covers, and the ones that nothing excuses."""
    excused: collections.Counter[str] = collections.Counter()
    unexcused = []
    for record in failures:
        why = excuse(record, facts)
        if why is None:
            unexcused.append(record)
        else:
            excused[str(why)] += 1
    return dict(excused), unexcused


def by_window(records: Iterable[Record], windows: Sequence[Window]) -> dict[str, dict[str, int]]:
    """Count records by fault window and label; a record of several windows counts in each, of none under `quiet`."""
    table: dict[str, collections.Counter[str]] = {}
    for record in records:
        names = {window.name for window in windows if window.overlaps(record)} or {"quiet"}
        for name in names:
            table.setdefault(name, collections.Counter())[f"{record.kind}: {record.label}"] += 1
    return {name: dict(counts) for name, counts in table.items()}


def request_checks(
    *,
    sent: Mapping[Kind, int],
    answered: Mapping[Kind, int],
    failures: Sequence[Record],
    facts: Facts,
    pending: int,
    not_sent: int,
) -> list[Check]:
    """Return the checks on requests: all ended, all kinds served, nothing failed without excuse, the cut ones cut."""
    _, unexcused = judge_failures(failures, facts)
    whole = sum(answered.get(kind, 0) for kind in CUT_KINDS)
    silent = sorted(kind for kind in sent if kind not in CUT_KINDS and not answered.get(kind))
    not_found = sum(1 for record in failures if record.status == 404)
    return [
        Check(
            name="failures without excuse",
            is_met=not unexcused,
            found=f"{len(unexcused)} of {sum(sent.values())}",
            required="0",
        ),
        Check(name="404 flicker under edits", is_met=not not_found, found=str(not_found), required="0"),
        Check(name="marked bodies that arrived whole", is_met=whole == 0, found=str(whole), required="0"),
        Check(
            name="kinds of request never answered",
            is_met=bool(sent) and not silent,
            found=", ".join(silent) or "none",
            required="none",
        ),
        Check(name="requests without an end", is_met=pending == 0, found=str(pending), required="0"),
        Check(name="due requests not sent (generator behind)", is_met=not_sent == 0, found=str(not_sent), required="0"),
    ]
