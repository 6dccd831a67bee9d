"""Which Secrets and ConfigMaps are read: those that manifests name, up to a limit. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from datum_router.manifests.meta import ObjectKey

MAX_NAMED_WATCHES = 256
"""Secrets and ConfigMaps that are watched, each by a connection and a thread; others are not read, and reported."""
SHOWN = 5
"""How many of those are named."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """What is to be watched from now on, and what not any more."""

    added: tuple[ObjectKey, ...] = ()
    removed: tuple[ObjectKey, ...] = ()


class Wanted:
    """Who names what. Not thread-safe.

    Who comes first is served: what is beyond the limit is watched when something else is named no more.
    """

    __slots__ = ("_by_referrer", "_counts", "_limit", "_watched")

    def __init__(self, limit: int = MAX_NAMED_WATCHES) -> None:
        self._limit = limit
        self._by_referrer: dict[ObjectKey, frozenset[ObjectKey]] = {}
        self._counts: dict[ObjectKey, int] = {}  # in order of arrival
        self._watched: set[ObjectKey] = set()

    def put(self, referrer: ObjectKey, named: Iterable[ObjectKey]) -> Change:
        """Note all that an object names now; nothing: it names nothing, or is gone."""
        order = tuple(dict.fromkeys(named))
        now = frozenset(order)
        before = self._by_referrer.get(referrer, frozenset())
        if now == before:
            return Change()
        if now:
            self._by_referrer[referrer] = now
        else:
            del self._by_referrer[referrer]
        for one in order:
            if one not in before:
                self._counts[one] = self._counts.get(one, 0) + 1
        removed = []
        for one in sorted(before - now):
            self._counts[one] -= 1
            if not self._counts[one]:
                del self._counts[one]
                if one in self._watched:
                    self._watched.remove(one)
                    removed.append(one)
        added = []
        if len(self._watched) < min(self._limit, len(self._counts)):
            for one in self._counts:
                if one not in self._watched:
                    self._watched.add(one)
                    added.append(one)
                    if len(self._watched) >= self._limit:
                        break
        return Change(tuple(added), tuple(removed))

    def named_by(self, referrer: ObjectKey) -> frozenset[ObjectKey]:
        """Return what an object names."""
        return self._by_referrer.get(referrer, frozenset())

    def watched(self) -> frozenset[ObjectKey]:
        """Return what is to be watched."""
        return frozenset(self._watched)

    def left_out(self) -> str:
        """Return how many are beyond the limit, and some of them, in words; empty if none are."""
        out = sorted(self._counts.keys() - self._watched)
        if not out:
            return ""
        shown = ", ".join(str(one) for one in out[:SHOWN]) + (", ..." if len(out) > SHOWN else "")
        return (
            f"{len(self._counts)} secrets and configmaps are named by manifests, {self._limit} at most are read; "
            f"left out are {len(out)}: {shown}"
        )
