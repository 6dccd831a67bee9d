"""What one API may make its reader hold and do: for clusters of somebody else. No I/O; thread-safe.

An API that is not ours may list without an end, or send events as fast as the wire takes them. So what all collections
of a source hold is bounded, and events beyond a rate are not read until there is time for them: TCP slows the API down.

A list may replace all that is known, which stays until the list is whole. So there are two bounds: what an API says
that it has (what of a list has come so far, else what is known) must be within the budget, and what is held within
twice that; then nobody whose objects fit is ever kept out by those that they replace. What a list brought that turns
out to be too long is let go of again.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from datum_router.errors import ClusterError

EVENTS_PER_S = 1000.0
"""Events of watches that are read of an API with a budget, in the long run."""
EVENTS_BURST = 20_000.0
"""So many may come at once."""


class OverBudget(ClusterError):
    """Report that an API has more objects than are held of it."""


class Size(NamedTuple):
    """Objects, and bytes of them as they came."""

    objects: int = 0
    bytes: int = 0

    def plus(self, other: Size) -> Size:
        """Return the sum."""
        return Size(self.objects + other.objects, self.bytes + other.bytes)

    def minus(self, other: Size) -> Size:
        """Return the difference."""
        return Size(self.objects - other.objects, self.bytes - other.bytes)


class Budget:
    """The budget of one source."""

    def __init__(self, *, max_objects: int, max_bytes: int) -> None:
        """Begin with nothing held."""
        self._most = Size(max_objects, max_bytes)
        self._lock = threading.Lock()
        self._said: dict[object, Size] = {}
        self._held: dict[object, Size] = {}
        self._said_sum = self._held_sum = Size()
        self._free_at = float("-inf")

    def take(self, collection: object, *, said: Size, held: Size) -> None:
        """Have a collection hold so much from now on.

        Args:
            said: What the API says of it.
            held: What is kept of it.

        Raises:
            OverBudget: All collections together would be beyond the budget; nothing has changed then.
        """
        with self._lock:
            said_sum = self._said_sum.minus(self._said.get(collection, Size())).plus(said)
            held_sum = self._held_sum.minus(self._held.get(collection, Size())).plus(held)
            self._check(said_sum, 1)
            self._check(held_sum, 2)
            self._put(collection, said, held)

    def give_back(self, collection: object, held: Size) -> None:
        """Have a collection hold less from now on, all of which the API says."""
        with self._lock:
            self._put(collection, held, held)

    def _put(self, collection: object, said: Size, held: Size) -> None:
        self._said_sum = self._said_sum.minus(self._said.get(collection, Size())).plus(said)
        self._held_sum = self._held_sum.minus(self._held.get(collection, Size())).plus(held)
        self._said[collection], self._held[collection] = said, held

    def _check(self, found: Size, times: int) -> None:
        for have, most, what in zip(found, self._most, ("objects", "bytes of objects"), strict=True):
            if have > most * times:
                raise OverBudget(f"the API has more than {most} {what}, which is all that is held of it")

    def pace(self, events: int, *, now: float) -> float:
        """Return how long (seconds) to wait before more is read, after so many events; now in monotonic seconds."""
        with self._lock:
            self._free_at = max(self._free_at, now - EVENTS_BURST / EVENTS_PER_S) + events / EVENTS_PER_S
            return max(0.0, self._free_at - now)


class Holding:
    """What one collection holds. For one thread."""

    __slots__ = ("_budget", "_collection", "_held", "_listed", "_sizes")

    def __init__(self, budget: Budget, collection: object) -> None:
        self._budget = budget
        self._collection = collection
        self._sizes: dict[tuple[str, str], int] = {}
        self._held = Size()
        self._listed = Size()

    def take_page(self, items: dict[tuple[str, str], int], *, is_first: bool) -> None:
        """Take the objects of a page of a list, and their sizes; raises `OverBudget`.

        An empty page counts as an object: a list of nothing else has an end, too.
        """
        listed = (Size() if is_first else self._listed).plus(Size(len(items) or 1, sum(items.values())))
        held = self._held.plus(self._growth(items))
        self._budget.take(self._collection, said=listed, held=held)
        self._listed, self._held = listed, held
        self._sizes.update(items)

    def take_event(self, name: tuple[str, str], size: int) -> None:
        """Take an object that came or changed; raises `OverBudget`."""
        held = self._held.plus(self._growth({name: size}))
        self._budget.take(self._collection, said=held, held=held)
        self._held = held
        self._sizes[name] = size

    def let_go(self, *names: tuple[str, str]) -> None:
        """Note that objects are gone."""
        for name in names:
            size = self._sizes.pop(name, None)
            if size is not None:
                self._held = self._held.minus(Size(1, size))
        self._budget.give_back(self._collection, self._held)

    def _growth(self, items: dict[tuple[str, str], int]) -> Size:
        there = [self._sizes[name] for name in items if name in self._sizes]
        return Size(len(items) - len(there), sum(items.values()) - sum(there))
