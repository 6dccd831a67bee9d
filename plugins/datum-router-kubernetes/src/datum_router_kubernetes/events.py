"""Which events are written, and how: repeats become the count of one event, chatty objects are cut off. Pure.

An event that equals one of the last `SERIES_S` is not written again. It is counted, and the count is written at most
once in `UPDATE_S`, when the next repeat comes: nothing is written unless something happens. Counts of events that are
written elsewhere, or were forgotten, begin at 1.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from datum_router.manifests.meta import DEFAULT_NAMESPACE, MAX_NAME_CHARS
from datum_router.plugins.cluster import ObjectEvent
from datum_router.policy.bucket import TokenBucket
from datum_router_kubernetes.leases import micro_time

API_VERSION = "events.k8s.io/v1"
MERGE_PATCH = "application/merge-patch+json"

SERIES_S = 600.0
"""For how long after it was last seen an event is remembered (seconds); the next equal one is a new event."""
UPDATE_S = 60.0
"""How often the count of an event is written at most (seconds between)."""
MAX_REMEMBERED = 1000
"""How many events, and how many objects with their allowance, are remembered: those seen last."""
OBJECT_BURST = 25
"""How many writes the events of one object may cost at once."""
OBJECT_REFILL_S = 300.0
"""In how many seconds an object gets one such write back."""
MAX_NOTE_BYTES = 1024
"""What the API takes as a note; the rest is cut off."""
MAX_WORD_CHARS = 128
"""What the API takes as a reason, an action or a reporting instance."""


class NewEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event to be created."""

    namespace: str
    name: str
    body: bytes


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """A count to be written (a merge patch) to an event that was created before."""

    namespace: str
    name: str
    body: bytes


class Folded(msgspec.Struct, frozen=True):
    """Nothing to do: the event was counted."""


class Dropped(msgspec.Struct, frozen=True):
    """Nothing to do: its object has had too many events."""


class _Remembered(msgspec.Struct):
    namespace: str
    name: str
    count: int
    written_at: float
    seen_at: float


class EventBook:
    """Remember what was published. Times `now` are monotonic seconds, `at` is Unix seconds."""

    __slots__ = ("_allowances", "_controller", "_events", "_instance", "_made")

    def __init__(self, *, controller: str, instance: str) -> None:
        """Make an empty book.

        Args:
            controller: Who reports, such as `router.datum.net/router-controller`.
            instance: Which one of them.
        """
        self._controller = controller
        self._instance = instance[:MAX_WORD_CHARS]
        self._events: OrderedDict[ObjectEvent, _Remembered] = OrderedDict()
        self._allowances: OrderedDict[str, TokenBucket] = OrderedDict()
        self._made = 0

    def __len__(self) -> int:
        """Return how many events are remembered."""
        return len(self._events)

    def decide(self, event: ObjectEvent, *, now: float, at: float) -> NewEvent | Repeat | Folded | Dropped:
        """Say what is to be done about an event, and take it for done."""
        known = self._events.get(event)
        if known is not None and now - known.seen_at > SERIES_S:
            del self._events[event]
            known = None
        if known is None:
            return self._new(event, now=now, at=at) if self._is_allowed(event, now) else Dropped()
        known.count += 1
        known.seen_at = now
        self._events.move_to_end(event)
        if now - known.written_at < UPDATE_S:
            return Folded()
        if not self._is_allowed(event, now):
            return Dropped()
        known.written_at = now
        series = {"series": {"count": known.count, "lastObservedTime": micro_time(at)}}
        return Repeat(namespace=known.namespace, name=known.name, body=msgspec.json.encode(series))

    def forget(self, event: ObjectEvent) -> None:
        """Take an event for never published: it could not be created, or is gone from the cluster."""
        self._events.pop(event, None)

    def renew(self, event: ObjectEvent, *, now: float, at: float) -> NewEvent:
        """Say how an event is created whose repeat found it gone."""
        return self._new(event, now=now, at=at)

    def _is_allowed(self, event: ObjectEvent, now: float) -> bool:
        who = event.uid or str(event.key)
        bucket = self._allowances.get(who)
        if bucket is None:
            bucket = self._allowances[who] = TokenBucket(rate=1 / OBJECT_REFILL_S, burst=OBJECT_BURST)
            if len(self._allowances) > MAX_REMEMBERED:
                self._allowances.popitem(last=False)
        self._allowances.move_to_end(who)
        return bucket.take(now) == 0

    def _new(self, event: ObjectEvent, *, now: float, at: float) -> NewEvent:
        self._made += 1
        suffix = f".{int(at * 1e6):x}{self._made % 0x1000:03x}"
        name = event.key.name[: MAX_NAME_CHARS - len(suffix)].rstrip("-.") + suffix
        namespace = event.key.namespace or DEFAULT_NAMESPACE  # where the API wants those about objects in none
        self._events[event] = _Remembered(namespace=namespace, name=name, count=1, written_at=now, seen_at=now)
        self._events.move_to_end(event)
        if len(self._events) > MAX_REMEMBERED:
            self._events.popitem(last=False)
        regarding = {
            "apiVersion": event.gvk.api_version,
            "kind": event.gvk.kind,
            "name": event.key.name,
            "namespace": event.key.namespace,
            "uid": event.uid,
        }
        body = {
            "apiVersion": API_VERSION,
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": micro_time(at),
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "action": event.action[:MAX_WORD_CHARS],
            "reason": event.reason[:MAX_WORD_CHARS],
            "regarding": {field: value for field, value in regarding.items() if value},
            "note": _cut(event.note),
            "type": event.type,
        }
        return NewEvent(namespace=namespace, name=name, body=msgspec.json.encode(body))


def _cut(note: str) -> str:
    """Return a note of at most `MAX_NOTE_BYTES` in UTF-8, whole characters."""
    octets = note.encode(errors="replace")
    if len(octets) <= MAX_NOTE_BYTES:
        return octets.decode()
    return octets[: MAX_NOTE_BYTES - 3].decode(errors="ignore") + "…"
