"""Writes the slices that a book asks for, some at a time; what failed is tried again, later each time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import trio

from datum_router.discovery.book import Book, Part
from datum_router.discovery.plan import Change, Put
from datum_router.discovery.slices import SLICE, SLICES, raw_of
from datum_router.errors import ClusterError
from datum_router.manifests.meta import ObjectKey
from datum_router.plugins.cluster import Cluster

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
MANAGER = "router-discovery"
"""Field manager of what is applied."""


class SliceWriter:
    """Bring the cluster in line with a book.

    Attributes:
        writes: Slices that were written and removed, by `put` and `remove`.
        errors: Writes that failed, by the error's class.
        failing: Parts whose last write failed, and when (trio seconds) they are tried again.
    """

    def __init__(
        self,
        cluster: Cluster,
        book: Book,
        *,
        is_leading: Callable[[], bool],
        concurrency: int,
        max_backoff_s: float,
        writes: Counter[str],
        errors: Counter[str],
    ) -> None:
        """Take what is counted in, so that counts outlive a term."""
        self._cluster = cluster
        self._book = book
        self._is_leading = is_leading
        self._concurrency = concurrency
        self._max_backoff_s = max_backoff_s
        self.writes = writes
        self.errors = errors
        self._tries: Counter[Part] = Counter()
        self.failing: dict[Part, float] = {}

    def wake_at(self) -> float:
        """Return when something that failed is to be tried again, in trio seconds; infinity: nothing is."""
        return min(self.failing.values(), default=float("inf"))

    async def write(self) -> None:
        """Write all that the book asks for now.

        Cancelled half-way, some of it is written; the book takes up what became of it when it reads it back.
        """
        now = trio.current_time()
        for part in [part for part, at in self.failing.items() if at <= now]:
            del self.failing[part]
            self._book.touch(part)
        while not self._book.is_settled and self._is_leading():
            batch = iter(self._book.take())
            async with trio.open_nursery() as nursery:
                for _ in range(self._concurrency):
                    nursery.start_soon(self._work, batch)
            await trio.lowlevel.checkpoint()

    async def _work(self, batch: Iterator[tuple[Part, list[Change]]]) -> None:
        for part, changes in batch:
            if part in self.failing:
                continue  # its time has not come
            await self._write_part(part, changes)

    async def _write_part(self, part: Part, changes: Sequence[Change]) -> None:
        for change in changes:
            if not self._is_leading():
                return
            try:
                await self._write_one(change)
            except ClusterError as error:
                self._failed(part, error)
                return
        if self._tries.pop(part, 0):
            log.info("slices can be written again", extra=_where(part))

    async def _write_one(self, change: Change) -> None:
        if isinstance(change, Put):
            one = change.slice
            applied = await self._cluster.apply(raw_of(one), plural=SLICES, manager=MANAGER, is_forced=True)
            self._book.written(one, applied.version)
            self.writes["put"] += 1
        else:
            key = ObjectKey(kind=SLICE.kind, namespace=change.namespace, name=change.name)
            await self._cluster.delete(SLICE, SLICES, key)
            self._book.removed(change.namespace, change.name)
            self.writes["remove"] += 1

    def _failed(self, part: Part, error: ClusterError) -> None:
        self.errors[type(error).__name__] += 1
        count = self._tries[part]
        self._tries[part] += 1
        wait_s = max(min(FIRST_BACKOFF_S * 2 ** min(count, 20), self._max_backoff_s), error.retry_after_s)
        self.failing[part] = trio.current_time() + wait_s
        if not count:
            log.warning("slices cannot be written, will retry", extra={**_where(part), "error": str(error)})


def _where(part: Part) -> Mapping[str, object]:
    (namespace, name), cluster = part
    return {"service": f"{namespace}/{name}", "cluster": cluster}
