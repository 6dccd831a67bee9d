"""Conditions of a status: which there are, how one is made, and how new ones take the place of old ones.

A condition's `lastTransitionTime` moves only when its status does (Kubernetes API conventions, "Typical status
properties"). Types that are none of ours may have been added by others and are never looked at.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable, Sequence

import msgspec

from datum_router.manifests.meta import MAX_CONDITION_MESSAGE_CHARS, Condition, StatusPart

MAX_MESSAGE_CHARS = MAX_CONDITION_MESSAGE_CHARS
"""Longest message of a condition; a longer one is cut, and says so."""

CUT = " ... (cut)"


class ConditionType(enum.StrEnum):
    """What a condition is about, in the order in which they are written."""

    ACCEPTED = "Accepted"
    RESOLVED_REFS = "ResolvedRefs"
    CONFLICTED = "Conflicted"
    ENDPOINTS_READY = "EndpointsReady"
    SYNCED = "Synced"
    CERTIFICATE_VALID = "CertificateValid"
    PROGRAMMED = "Programmed"
    READY = "Ready"


_ORDER = {str(kind): place for place, kind in enumerate(ConditionType)}


def condition(
    kind: ConditionType, status: bool | None, reason: str, message: str = "", *, generation: int
) -> Condition:
    """Return a condition without a transition time, which `merge` gives it.

    Args:
        status: None means Unknown.
        reason: CamelCase, a `Reason`.
        generation: The object's generation that this was found out about.
    """
    return Condition(
        type=str(kind),
        status="Unknown" if status is None else str(status),
        reason=str(reason),
        message=bounded(message),
        observed_generation=generation,
    )


def merge(old: Sequence[Condition], new: Iterable[Condition], *, now: str) -> tuple[Condition, ...]:
    """Return `new` in the order of `ConditionType`, each with the time at which its status last changed.

    Args:
        old: Those that the object has, in any order.
        now: RFC 3339, for conditions that are new or whose status differs from before.
    """
    before = {one.type: one for one in old}
    merged = []
    for one in sorted(new, key=lambda one: _ORDER.get(one.type, len(_ORDER))):
        was = before.get(one.type)
        is_kept = was is not None and was.status == one.status and was.last_transition_time
        merged.append(
            msgspec.structs.replace(
                one, last_transition_time=was.last_transition_time if was is not None and is_kept else now
            )
        )
    return tuple(merged)


def is_same(old: Sequence[Condition], new: Sequence[Condition]) -> bool:
    """Tell whether `old` says all that `new` does, and nothing more of what is ours to say; times do not count."""
    before = {one.type: _timeless(one) for one in old if one.type in _ORDER}
    return before == {one.type: _timeless(one) for one in new}


def conditions_of(status: StatusPart | None) -> tuple[Condition, ...]:
    """Return the conditions of a status as it was read, none if it has none."""
    found = getattr(status, "conditions", ())
    return found if isinstance(found, tuple) else ()


def find(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """Return the condition of a type, or None."""
    return next((one for one in conditions if one.type == kind), None)


def is_true(conditions: Iterable[Condition], *kinds: ConditionType) -> bool:
    """Tell whether conditions of all these types are there and True."""
    known = {one.type: one.status for one in conditions}
    return all(known.get(str(kind)) == "True" for kind in kinds)


def bounded(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """Return a text of at most `limit` characters; one that was cut ends by saying so."""
    return text if len(text) <= limit else text[: limit - len(CUT)] + CUT


def timestamp(at: float) -> str:
    """Return Unix seconds as RFC 3339, in UTC and whole seconds, as API servers write times."""
    return datetime.datetime.fromtimestamp(int(at), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _timeless(one: Condition) -> Condition:
    return msgspec.structs.replace(one, last_transition_time="") if one.last_transition_time else one
