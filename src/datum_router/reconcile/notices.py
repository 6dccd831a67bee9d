"""What a user must be told when a status changes: events beside the conditions. Pure.

A version that is refused is told each time that there is a new one; what stays as it was is not told again. Waiting for
gateways is no event, since every edit does; a gateway that refuses something is, and so is the end of that, unless
another condition says for the same reason that it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from datum_router.manifests.meta import Condition, StatusPart
from datum_router.reasons import Reason
from datum_router.reconcile.conditions import ConditionType, bounded, conditions_of, find

MAX_NOTE_CHARS = 1024
"""Longest note of an event, as the API has it."""

WAITING = frozenset({str(Reason.PENDING), str(Reason.NO_GATEWAY), str(Reason.INVALID)})
"""Reasons of `Programmed` that are nobody's failure, or are told by `Accepted`."""


class Notice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event without the object that it is about."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str


def notices(old: StatusPart | None, new: StatusPart) -> list[Notice]:
    """Return what is to be told when a status takes the place of another one, in the order of conditions."""
    before, now = conditions_of(old), conditions_of(new)
    found = [
        _told(before, now, ConditionType.ACCEPTED, "Accept", bad="False"),
        _told(before, now, ConditionType.RESOLVED_REFS, "ResolveRefs", bad="False"),
        _told(before, now, ConditionType.CONFLICTED, "Compare", bad="True"),
        _told(before, now, ConditionType.PROGRAMMED, "Program", bad="False"),
    ]
    return [one for one in found if one is not None]


def _told(
    before: Sequence[Condition], now: Sequence[Condition], kind: ConditionType, action: str, *, bad: str
) -> Notice | None:
    was, one = find(before, kind), find(now, kind)
    if one is None:
        return None
    was_bad = was is not None and was.status == bad and not _is_no_news(was, before)
    if one.status == bad and not _is_no_news(one, now):
        is_new = was is None or not was_bad or _gist(was, kind) != _gist(one, kind)
        return Notice(type="Warning", reason=one.reason, action=action, note=_note(one)) if is_new else None
    if was_bad and one.status != "Unknown" and one.status != bad:
        return Notice(type="Normal", reason=one.reason, action=action, note=_note(one))
    return None


def _is_no_news(one: Condition, conditions: Sequence[Condition]) -> bool:
    """Tell whether a failure is none, or whether `Programmed` only repeats what another condition says."""
    if one.type != ConditionType.PROGRAMMED:
        return one.reason in WAITING
    return one.reason in WAITING or any(
        other.reason == one.reason and other.type in (ConditionType.ACCEPTED, ConditionType.RESOLVED_REFS)
        for other in conditions
    )


def _gist(one: Condition, kind: ConditionType) -> tuple[str, str, int]:
    """Return what makes a failure a new one; of versions that are refused each is."""
    return (one.reason, one.message, one.observed_generation if kind is ConditionType.ACCEPTED else 0)


def _note(one: Condition) -> str:
    good = f"{one.type} is {one.status} again" + (
        f" (generation {one.observed_generation})" if one.observed_generation else ""
    )
    return bounded(one.message or good, MAX_NOTE_CHARS)
