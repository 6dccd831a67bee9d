"""Which Secrets and ConfigMaps are read: those that manifests name, up to a limit. Pure."""

from __future__ import annotations

import itertools
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

    Who comes first is served, as long as there is room. At the limit, namespaces share it: one that has fewer than
    another gets what it names in place of what the other one named last. So nobody who names hundreds of Secrets, be
    they there or not, takes those of other namespaces away. What is left out moves up when something else is named no
    more.
    """

    __slots__ = ("_by_referrer", "_counts", "_left", "_limit", "_read", "_watched")

    def __init__(self, limit: int = MAX_NAMED_WATCHES) -> None:
        self._limit = limit
        self._by_referrer: dict[ObjectKey, frozenset[ObjectKey]] = {}
        self._counts: dict[ObjectKey, int] = {}
        self._watched: set[ObjectKey] = set()
        # By namespace, in order of arrival; no namespace without any.
        self._read: dict[str, dict[ObjectKey, None]] = {}
        self._left: dict[str, dict[ObjectKey, None]] = {}

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
                if self._counts[one] == 1:
                    _into(self._left, one)
        watched = frozenset(self._watched)
        for one in sorted(before - now):
            self._counts[one] -= 1
            if not self._counts[one]:
                del self._counts[one]
                _out_of(self._read if one in self._watched else self._left, one)
                self._watched.discard(one)
        self._share()
        if self._watched == watched:
            return Change()
        return Change(tuple(sorted(self._watched - watched)), tuple(sorted(watched - self._watched)))

    def _share(self) -> None:
        """Move up what is left out, into free places first, then into those of namespaces that have more."""
        while self._left:
            poor = min(self._left, key=self._places)
            if len(self._watched) >= self._limit:
                rich = max(self._read, key=self._places)
                if self._places(rich) <= self._places(poor) + 1:
                    return
                last = next(reversed(self._read[rich]))
                _out_of(self._read, last)
                _into(self._left, last)
                self._watched.remove(last)
            first = next(iter(self._left[poor]))
            _out_of(self._left, first)
            _into(self._read, first)
            self._watched.add(first)

    def _places(self, namespace: str) -> int:
        return len(self._read.get(namespace, ()))

    def named_by(self, referrer: ObjectKey) -> frozenset[ObjectKey]:
        """Return what an object names."""
        return self._by_referrer.get(referrer, frozenset())

    def watched(self) -> frozenset[ObjectKey]:
        """Return what is to be watched."""
        return frozenset(self._watched)

    def left_out(self) -> str:
        """Return how many are beyond the limit, and some of them, in words; empty if none are."""
        count = len(self._counts) - len(self._watched)
        if not count:
            return ""
        some = itertools.islice(itertools.chain.from_iterable(self._left.values()), SHOWN)
        shown = ", ".join(str(one) for one in some) + (", ..." if count > SHOWN else "")
        return (
            f"{len(self._counts)} secrets and configmaps are named by manifests, {self._limit} at most are read; "
            f"left out are {count}: {shown}"
        )


def _into(places: dict[str, dict[ObjectKey, None]], one: ObjectKey) -> None:
    places.setdefault(one.namespace, {})[one] = None


def _out_of(places: dict[str, dict[ObjectKey, None]], one: ObjectKey) -> None:
    there = places[one.namespace]
    del there[one]
    if not there:
        del places[one.namespace]
