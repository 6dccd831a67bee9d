"""A queue of keys to look at: each once at a time, those that failed later and later. Pure; clocks are arguments.

Theory of operation. A key is waiting (due at some moment), running, or neither. To add one that waits changes nothing
but that it may come earlier; to add one that runs makes it wait again once it is done, since what it looked at may have
been old. So any number of events about an object lead to one look at it, at what it is then.

A key that failed waits for a random part of a time that doubles with each failure in a row (`policy.backoff`); adding
it meanwhile does not make it come earlier. If what failed would fail for every key, `hold` stops them all for such a
time instead: keys keep their turn, and one try, not thousands, finds out that things work again.

Keys that are added as urgent come before others that are due.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Hashable
from typing import Generic, TypeVar

from datum_router.policy.backoff import full_jitter

K = TypeVar("K", bound=Hashable)

FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 300.0
FIRST_HOLD_S = 0.5
MAX_HOLD_S = 10.0
"""Longest stop of the whole queue (seconds): so soon after its end an outage is noticed to be over."""

_STALE_ENTRIES = 1000
"""Entries of keys that have moved on, beyond as many as keys wait, that make a heap be built anew."""


class WorkQueue(Generic[K]):
    """Keys and when they are due. Not thread-safe. `now` is monotonic seconds."""

    __slots__ = ("_again", "_due", "_failures", "_heaps", "_held_until", "_holds", "_number", "_rng", "_running")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._due: dict[K, tuple[float, bool, int]] = {}  # due at, urgent, number of its entry
        self._heaps: tuple[list[tuple[float, int, K]], list[tuple[float, int, K]]] = ([], [])
        self._running: dict[K, bool] = {}  # urgent
        self._again: dict[K, tuple[float, bool]] = {}
        self._failures: dict[K, int] = {}
        self._held_until = float("-inf")
        self._holds = 0
        self._number = 0

    def __len__(self) -> int:
        """Return how many keys wait or run."""
        return len(self._due) + len(self._running)

    @property
    def failing(self) -> int:
        """Return how many keys have failed and not succeeded since."""
        return len(self._failures)

    def add(self, key: K, *, now: float, after_s: float = 0.0, is_urgent: bool = True) -> None:
        """Have a key looked at, `after_s` seconds from now at the earliest.

        The time runs from the first of several calls. A key in backoff keeps its time.
        """
        due_at = now + after_s
        if key in self._running:
            before = self._again.get(key)
            if before is not None:
                due_at, is_urgent = min(due_at, before[0]), is_urgent or before[1]
            self._again[key] = (due_at, is_urgent)
            return
        waits = self._due.get(key)
        if waits is not None:
            if key in self._failures:
                due_at = waits[0]
            due_at, is_urgent = min(due_at, waits[0]), is_urgent or waits[1]
            if (due_at, is_urgent) == waits[:2]:
                return
        self._put(key, due_at, is_urgent)

    def take(self, now: float) -> K | None:
        """Return a key that is due, which runs from now on until `done`, `failed` or `gave_up`; None if none is."""
        if now < self._held_until:
            return None
        for heap in self._heaps:
            self._drop_stale(heap)
            if heap and heap[0][0] <= now:
                key = heapq.heappop(heap)[2]
                self._running[key] = self._due.pop(key)[1]
                return key
        return None

    def next_at(self) -> float:
        """Return when `take` will give a key at the earliest, infinity if none waits; may lie in the past."""
        for heap in self._heaps:
            self._drop_stale(heap)
        due_at = min((heap[0][0] for heap in self._heaps if heap), default=float("inf"))
        return max(due_at, self._held_until)

    def done(self, key: K) -> None:
        """End a look that succeeded, or that found nothing to do."""
        self._failures.pop(key, None)
        self._holds = 0
        self._leave(key)

    def failed(self, key: K, *, now: float, at_least_s: float = 0.0) -> float:
        """End a look that failed; the key comes again by itself unless it was forgotten. Return after how many seconds.

        Args:
            at_least_s: For example what the other side asked for.
        """
        if key not in self._running:
            return 0.0
        self._failures[key] = count = self._failures.get(key, 0) + 1
        wait_s = full_jitter(count, initial_s=FIRST_BACKOFF_S, max_s=MAX_BACKOFF_S, rng=self._rng)
        wait_s = max(wait_s, at_least_s)
        self._come_back(key, now + wait_s)
        return wait_s

    def gave_up(self, key: K) -> None:
        """End a look whose failure would be the same next time: the key comes only if it is added again."""
        self._failures.pop(key, None)
        self._leave(key)

    def hold(self, key: K, *, now: float, at_least_s: float = 0.0) -> float:
        """End a look that failed as every other one would: all keys wait. Return for how many seconds.

        Only the first of several that fail at once makes the time longer.
        """
        if now >= self._held_until:
            self._holds += 1
            wait_s = full_jitter(self._holds, initial_s=FIRST_HOLD_S, max_s=MAX_HOLD_S, rng=self._rng)
            self._held_until = now + max(wait_s, at_least_s)
        self._come_back(key, now)
        return self._held_until - now

    def is_held(self, now: float) -> bool:
        """Tell whether all keys wait."""
        return now < self._held_until

    def discard(self, key: K) -> None:
        """Forget a key; if it runs, what comes of it makes no difference any more."""
        self._due.pop(key, None)
        self._running.pop(key, None)
        self._again.pop(key, None)
        self._failures.pop(key, None)

    def clear(self) -> None:
        """Forget all keys, also those that run: nobody will tell how they ended."""
        self._due.clear()
        self._running.clear()
        self._again.clear()
        self._failures.clear()
        for heap in self._heaps:
            heap.clear()
        self._held_until, self._holds = float("-inf"), 0

    def _leave(self, key: K) -> None:
        self._running.pop(key, None)
        again = self._again.pop(key, None)
        if again is not None:
            self._put(key, *again)

    def _come_back(self, key: K, due_at: float) -> None:
        if key in self._running:
            again = self._again.pop(key, None)
            self._put(key, due_at, self._running.pop(key) or (again is not None and again[1]))

    def _put(self, key: K, due_at: float, is_urgent: bool) -> None:
        self._number += 1
        self._due[key] = (due_at, is_urgent, self._number)
        heap = self._heaps[0 if is_urgent else 1]
        heapq.heappush(heap, (due_at, self._number, key))
        if len(heap) > 2 * len(self._due) + _STALE_ENTRIES:
            heap[:] = [entry for entry in heap if self._is_current(entry)]
            heapq.heapify(heap)

    def _drop_stale(self, heap: list[tuple[float, int, K]]) -> None:
        while heap and not self._is_current(heap[0]):
            heapq.heappop(heap)

    def _is_current(self, entry: tuple[float, int, K]) -> bool:
        waits = self._due.get(entry[2])
        return waits is not None and waits[2] == entry[1]
