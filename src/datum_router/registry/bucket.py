"""The objects of one kind as views hold them: by name, in order, and by the values of the kind's indexes.

Theory of operation. A bucket that a view holds is never changed: `Bucket.fork` gives the next one, which shares the
entries and the sets of names. A set of names that is shared is copied when the first name goes in or out of it. So an
edit costs what the values of that one object hold, beside two flat copies of dictionaries, and building n objects
costs O(n) however many of them have a value in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from datum_router.compiler.diagnostics import Origin

Name = tuple[str, str]
"""Namespace and name."""
IndexValue = tuple[str, str]
"""Name of an index and a value in it."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An object in force: the latest version that has the content which `mark` stands for.

    Attributes:
        values: Under what its kind's indexes have it.
    """

    manifest: msgspec.Struct
    origin: Origin
    mark: object = None
    values: frozenset[IndexValue] = frozenset()


def is_same(one: Entry | None, other: Entry | None) -> bool:
    """Tell whether two versions of an object, or its absence, have the same content."""
    return one is other or (one is not None and other is not None and one.mark is other.mark)


def index_values(
    manifest: msgspec.Struct, indexes: Mapping[str, Callable[..., Iterable[str]]]
) -> frozenset[IndexValue]:
    """Return the values under which the indexes of its kind have a manifest."""
    if not indexes:
        return frozenset()
    return frozenset((index, value) for index, values in indexes.items() for value in values(manifest))


class Bucket:
    """The objects of one kind. Sorted at the first look after a change.

    Attributes:
        entries: The objects in force; read only for others.
        is_shared: A view holds it: `fork` it instead of changing it.
        base: The `mark` of the bucket that this one was forked from.
        touched: Objects that were put or taken out since then.
    """

    __slots__ = ("_indexes", "_own", "_selected", "_sorted", "base", "entries", "is_shared", "mark", "touched")

    def __init__(self, indexes: Iterable[str] = (), *, base: object = None) -> None:
        self.entries: dict[Name, Entry] = {}
        self.is_shared = False
        self.mark = object()
        self.base = base
        self.touched: set[Name] = set()
        self._indexes: dict[str, dict[str, set[Name]]] = {index: {} for index in indexes}
        self._own: set[IndexValue] = set()  # whose sets of names no other bucket has
        self._sorted: tuple[msgspec.Struct, ...] | None = None
        self._selected: dict[IndexValue, tuple[msgspec.Struct, ...]] = {}

    def fork(self) -> Bucket:
        """Return a bucket of the same objects that may be changed."""
        bucket = Bucket(base=self.mark)
        bucket.entries = dict(self.entries)
        bucket._indexes = {index: dict(names) for index, names in self._indexes.items()}
        return bucket

    def put(self, name: Name, entry: Entry | None) -> None:
        """Have `entry` under a name, or nothing if it is None."""
        assert not self.is_shared
        before = self.entries.get(name)
        self.touched.add(name)
        old = frozenset[IndexValue]() if before is None else before.values
        new = frozenset[IndexValue]() if entry is None else entry.values
        if entry is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = entry
        if old != new:
            for value in old - new:
                self._names(value).discard(name)
                self._drop_empty(value)
            for value in new - old:
                self._names(value).add(name)

    def manifests(self) -> tuple[msgspec.Struct, ...]:
        """Return the manifests in order of namespace and name."""
        if self._sorted is None:
            self._sorted = tuple(self.entries[name].manifest for name in sorted(self.entries))
        return self._sorted

    def select(self, index: str, value: str) -> tuple[msgspec.Struct, ...]:
        """Return the manifests that an index has under a value, in order of namespace and name.

        Raises:
            LookupError: The kind has no such index.
        """
        found = self._selected.get((index, value))
        if found is None:
            if index not in self._indexes:
                known = ", ".join(sorted(self._indexes)) or "none"
                raise LookupError(f"found index {index!r}, expected one of the kind's own ({known})")
            names = self._indexes[index].get(value, ())
            found = tuple(self.entries[name].manifest for name in sorted(names))
            if names and self.is_shared:
                self._selected[index, value] = found
        return found

    def _names(self, value: IndexValue) -> set[Name]:
        """Return the set of names under a value, which may be changed."""
        names = self._indexes[value[0]]
        if value not in self._own:
            names[value[1]] = set(names.get(value[1], ()))
            self._own.add(value)
        return names[value[1]]

    def _drop_empty(self, value: IndexValue) -> None:
        if not self._indexes[value[0]][value[1]]:
            del self._indexes[value[0]][value[1]]
            self._own.discard(value)
