"""The sum of what all workers have ever counted, with a bound on how many series that can be.

Theory of operation. Workers report what has grown, the ledger adds it up; nothing in it belongs to one worker, so a
worker that is replaced takes nothing back. Names of objects are the only labels without a closed set. Each kind of
object has a budget, in objects and in bytes of exposition; who comes first has series of its own until the budget is
used up, everybody later is counted as `other`. An object that left the configuration keeps its series for
`IDLE_S` after it was last counted (so that a scraper sees the end), then makes room. The sum over all series is
exact in any case, but for series that were dropped.

The ledger knows no clock, no process and no text format.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from datum_router.observe import names
from datum_router.observe.cells import Cell, CellKey
from datum_router.observe.meter import CODE_SLOTS, DURATION_BOUNDS_S, MeterDelta

MAX_OWN = 1000
"""Pairs of route and service, services, and listeners that have series of their own (threat K15)."""

ROUTE_BYTES = 3 * 1024 * 1024
SERVICE_BYTES = 1536 * 1024
LISTENER_BYTES = 128 * 1024
EGRESS_BYTES = 128 * 1024
ROUTE_CIRCUIT_BYTES = 128 * 1024
"""Exposition that each kind of object may fill; with everything else it stays below 5 MiB (threat K15)."""

IDLE_S = 600.0
"""How long series of an object that is gone are kept after they have last changed."""

SERIES_BYTES = 85
"""Bytes of a route's line beside its names; buckets are the longest."""

ROUTE_SERIES = len(DURATION_BOUNDS_S) + 1 + 2 + 2 + len(names.CODE_CLASS.values)
"""Lines of one pair at most: buckets, sum and count, two of bytes, code classes."""

WITHOUT_DURATION = frozenset({"ws"})
"""Protocols whose requests last as long as people like: they would drown the latencies."""

RoutePair = tuple[str, str]
_NOBODY: RoutePair = (names.NONE, names.NONE)
_OTHERS: RoutePair = (names.OTHER, names.OTHER)


class RouteTotals:
    """All requests of one route to one service; `codes` by first digit, `buckets` not cumulative."""

    __slots__ = ("buckets", "bytes_in", "bytes_out", "codes", "duration_s", "seen_at")

    def __init__(self) -> None:
        self.codes = [0] * CODE_SLOTS
        self.buckets = [0] * (len(DURATION_BOUNDS_S) + 1)
        self.duration_s = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.seen_at = 0.0

    def add(self, delta: MeterDelta) -> None:
        """Add what one worker reports."""
        self.codes = [mine + more for mine, more in zip(self.codes, delta.codes, strict=True)]
        self.bytes_in += delta.bytes_in
        self.bytes_out += delta.bytes_out
        if delta.protocol not in WITHOUT_DURATION:
            self.buckets = [mine + more for mine, more in zip(self.buckets, delta.buckets, strict=True)]
            self.duration_s += delta.duration_s


class _Own:
    """An object that has series of its own."""

    __slots__ = ("cost", "keys", "seen_at")

    def __init__(self) -> None:
        self.keys: set[CellKey] = set()
        self.cost = 0
        self.seen_at = 0.0


class _Objects:
    """Who of one kind has series of its own; each new series is paid from the budget."""

    __slots__ = ("_bytes", "_most_bytes", "folded", "owners")

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self.owners: dict[str, _Own] = {}
        self.folded: set[str] = set()

    def admits(self, name: str, key: CellKey, now: float) -> bool:
        """Tell whether this series is the object's own, and note that it was seen."""
        own = self.owners.get(name)
        if own is not None and key in own.keys:
            own.seen_at = now
            return True
        metric, labels = key
        # name="value", for each label; the number and the line's end are 20 characters at most.
        cost = len(metric) + sum(len(value) for value in labels) + 12 * len(labels) + 20
        if self._bytes + cost > self._most_bytes or (own is None and len(self.owners) >= MAX_OWN):
            if len(self.folded) < MAX_OWN:
                self.folded.add(name)
            return False
        if own is None:
            own = self.owners[name] = _Own()
        own.keys.add(key)
        own.cost += cost
        own.seen_at = now
        self._bytes += cost
        return True

    def expire(self, living: Collection[str], now: float) -> list[CellKey]:
        """Forget who is gone and quiet; return the keys of their series."""
        self.folded &= set(living)
        keys: list[CellKey] = []
        for name in [name for name, own in self.owners.items() if name not in living and now - own.seen_at >= IDLE_S]:
            own = self.owners.pop(name)
            self._bytes -= own.cost
            keys += own.keys
        return keys


_POSITIONS: Mapping[str, tuple[int, str]] = {
    metric.name: (position, label.name)
    for metric in names.METRICS.values()
    for position, label in enumerate(metric.labels)
    if label.name in (names.SERVICE.name, names.LISTENER.name, names.EGRESS.name)
    or (metric is names.ROUTE_CIRCUIT and label is names.ROUTE)
}
"""Where a metric carries the name of a service, listener or egress."""
"""Where a metric that comes as a cell carries the name of an object."""


class Ledger:
    """See the module. `now` is monotonic seconds."""

    __slots__ = ("_counters", "_folded_pairs", "_objects", "_pair_bytes", "_pairs")

    def __init__(self) -> None:
        self._counters: dict[CellKey, float] = {}
        self._pairs: dict[RoutePair, RouteTotals] = {}
        self._pair_bytes = 0
        self._folded_pairs: set[str] = set()
        self._objects = {
            names.SERVICE.name: _Objects(SERVICE_BYTES),
            names.LISTENER.name: _Objects(LISTENER_BYTES),
            names.EGRESS.name: _Objects(EGRESS_BYTES),
            names.ROUTE.name: _Objects(ROUTE_CIRCUIT_BYTES),
        }

    def add(self, metric: names.Metric, value: float = 1, *labels: str) -> None:
        """Count something whose labels are closed sets."""
        key = (metric.name, labels)
        self._counters[key] = self._counters.get(key, 0) + value

    def take(self, meters: Iterable[MeterDelta], counters: Iterable[Cell], *, now: float) -> None:
        """Add what one worker reports; what the reference does not list is left out."""
        for delta in meters:
            pair = (delta.route or names.NONE, delta.service or names.NONE)
            totals = self._pairs.get(pair) or self._open(pair)
            totals.add(delta)
            totals.seen_at = now
            for slot, count in enumerate(delta.codes):
                if count:
                    self.add(names.PROTOCOL_REQUESTS, count, delta.protocol, names.CODE_CLASSES[slot])
        for cell in counters:
            key = self.fold(cell.key, now=now)
            if key is not None:
                self._counters[key] = self._counters.get(key, 0) + cell.value

    def fold(self, key: CellKey, *, now: float) -> CellKey | None:
        """Return under which labels a worker's cell is shown; None if there is no such metric."""
        name, labels = key
        metric = names.METRICS.get(name)
        if metric is None or len(metric.labels) != len(labels):
            return None
        for label, value in zip(metric.labels, labels, strict=True):
            if label.values and value not in label.values:
                return None
        place = _POSITIONS.get(name)
        if place is None:
            return key
        position, kind = place
        if self._objects[kind].admits(labels[position], key, now):
            return key
        return (name, (*labels[:position], names.OTHER, *labels[position + 1 :]))

    def expire(
        self,
        *,
        routes: Collection[str],
        services: Collection[str],
        listeners: Collection[str],
        egresses: Collection[str] = (),
        now: float,
    ) -> None:
        """Drop series of objects that are not there any more and have not been counted for `IDLE_S`. O(series)."""
        for pair in [
            pair
            for pair, totals in self._pairs.items()
            if now - totals.seen_at >= IDLE_S and not (_is_there(pair[0], routes) and _is_there(pair[1], services))
        ]:
            del self._pairs[pair]
            self._pair_bytes -= _pair_cost(pair)
        self._folded_pairs &= set(routes)
        for kind, living in (
            (names.SERVICE.name, services),
            (names.LISTENER.name, listeners),
            (names.ROUTE.name, routes),
            (names.EGRESS.name, egresses),
        ):
            for key in self._objects[kind].expire(living, now):
                self._counters.pop(key, None)

    @property
    def folded(self) -> int:
        """Return how many objects are counted as `other` (those of one kind are counted up to `MAX_OWN`)."""
        return len(self._folded_pairs) + sum(len(objects.folded) for objects in self._objects.values())

    def counters(self) -> Mapping[CellKey, float]:
        """Return all counters but those of requests, not to be changed."""
        return self._counters

    def routes(self) -> Iterator[tuple[RoutePair, RouteTotals]]:
        """Return what is known of requests, by route and service."""
        return iter(self._pairs.items())

    def _open(self, pair: RoutePair) -> RouteTotals:
        is_closed = pair in (_NOBODY, _OTHERS)
        cost = 0 if is_closed else _pair_cost(pair)
        if not is_closed and (len(self._pairs) >= MAX_OWN or self._pair_bytes + cost > ROUTE_BYTES):
            if len(self._folded_pairs) < MAX_OWN:
                self._folded_pairs.add(pair[0])
            pair = _OTHERS
            cost = 0
        totals = self._pairs.get(pair)
        if totals is None:
            totals = self._pairs[pair] = RouteTotals()
            self._pair_bytes += cost
        return totals


def _is_there(name: str, living: Collection[str]) -> bool:
    return name in living or name in (names.NONE, names.OTHER)


def _pair_cost(pair: RoutePair) -> int:
    return ROUTE_SERIES * (SERIES_BYTES + len(pair[0]) + len(pair[1]))
