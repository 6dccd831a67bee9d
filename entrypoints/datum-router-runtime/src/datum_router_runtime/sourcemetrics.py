"""What sources count of their dealings with an API, as metrics and as shares of a start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from datum_router.observe import names
from datum_router.observe.cells import CellKey
from datum_router.observe.names import Metric
from datum_router.plugins.protocols import CountingSource, Source
from datum_router_runtime.feed import Feed

_BY_KIND: Mapping[str, Metric] = {
    "lists": names.SOURCE_LISTS,
    "list_seconds": names.SOURCE_LIST_SECONDS,
    "relists": names.SOURCE_RELISTS,
    "watches": names.SOURCE_WATCHES,
    "watch_restarts": names.SOURCE_WATCH_RESTARTS,
    "events": names.SOURCE_EVENTS,
    "errors": names.SOURCE_ERRORS,
    "silent_seconds": names.SOURCE_SILENT,
}
"""What `CountingSource.stats` calls it, and the metric."""


def stats_of(sources: Iterable[Source]) -> Mapping[str, float]:
    """Return what sources count; nothing of those that do not."""
    found: dict[str, float] = {}
    for source in sources:
        if isinstance(source, CountingSource):
            found.update(source.stats())
    return found


def source_values(feed: Feed) -> Iterable[tuple[CellKey, float]]:
    """Yield every value that there is to show of the sources of a feed; names that nobody knows are passed over."""
    yield (names.DECODE_SECONDS.name, ()), round(feed.decode_s, 6)
    for name, value in stats_of(feed.sources).items():
        what, _, kind = name.partition("/")
        if name == "stale_seconds":
            yield (names.SOURCE_STALE.name, ()), round(value, 3)
        elif kind and what in _BY_KIND:
            yield (_BY_KIND[what].name, (kind,)), round(value, 6)


def start_shares(feed: Feed) -> Mapping[str, float]:
    """Return how long the start of a process took, in seconds from its feed's start, and what of."""
    found = stats_of(feed.sources)
    waits = [value for name, value in found.items() if name.startswith("list_seconds/")]
    return {
        "until everything was known": round(feed.synced_after_s, 3),
        "API's answers to lists, the slowest kind": round(max(waits, default=0.0), 3),
        "API's answers to lists, all kinds together": round(sum(waits), 3),
        "decoding": round(feed.first_decode_s, 3),
        "first compilation": round(feed.first_s, 3),
    }
