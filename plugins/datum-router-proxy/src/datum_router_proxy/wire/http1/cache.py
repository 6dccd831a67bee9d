"""A bounded cache of parsed heads, keyed by their exact bytes.

Real clients repeat themselves: the next request on a connection usually differs from the last one in nothing. Two
generations approximate least-recently-used at O(1): new entries go into the young one; when it is full it becomes
the old one and what was old is forgotten, unless it was asked for meanwhile.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from datum_router_proxy.wire.http1.events import InformationalReceived, RequestReceived, ResponseReceived

HeadEvent = RequestReceived | ResponseReceived | InformationalReceived
T = TypeVar("T")

MAX_CACHED_HEAD_BYTES: Final = 4 * 1024
"""Longer heads are parsed each time: they carry large cookies and seldom repeat."""


class BlockCache(Generic[T]):
    """Remember what was made of a block, by its exact bytes.

    Args:
        max_entries: Most heads held.
        max_bytes: Most block bytes held; the parsed heads take about six times as much again.
    """

    __slots__ = ("_half_bytes", "_half_entries", "_old", "_young", "_young_bytes")

    def __init__(self, *, max_entries: int = 1024, max_bytes: int = 512 * 1024) -> None:
        self._half_entries = max(1, max_entries // 2)
        self._half_bytes = max_bytes // 2
        self._young: dict[bytes, T] = {}
        self._old: dict[bytes, T] = {}
        self._young_bytes = 0

    def get(self, block: bytes) -> T | None:
        """Return what was made of exactly these bytes, or None."""
        event = self._young.get(block)
        if event is None:
            event = self._old.get(block)
            if event is not None:
                self.put(block, event)
        return event

    def put(self, block: bytes, event: T) -> None:
        """Remember `event` unless the block is longer than `MAX_CACHED_HEAD_BYTES`."""
        size = len(block)
        if size > MAX_CACHED_HEAD_BYTES or size > self._half_bytes or block in self._young:
            return
        if len(self._young) >= self._half_entries or self._young_bytes + size > self._half_bytes:
            self._old = self._young
            self._young = {}
            self._young_bytes = 0
        self._young[block] = event
        self._young_bytes += size

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    @property
    def block_bytes(self) -> int:
        """Return how many block bytes are held."""
        return sum(map(len, self._young.keys() | self._old.keys()))

    def clear(self) -> None:
        """Forget everything (memory pressure)."""
        self._young = {}
        self._old = {}
        self._young_bytes = 0


class HeadCache(BlockCache[HeadEvent]):
    """Head events. Share one per listener or upstream service and `Http1Limits`, never across roles."""

    __slots__ = ()
