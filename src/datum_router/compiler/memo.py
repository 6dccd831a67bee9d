"""Results that are kept as long as nothing changes that they were made from.

Theory of operation. Whoever compiles an object looks at others through a `RecordingView`, which notes what was asked
for: one object (also one that is not there), what an index has under one value, or all objects of a kind. A result is
made anew when its own object changed or something it asked for did. So dependencies need not be declared, by plugins'
resolvers either, and cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

import msgspec

from datum_router.compiler.refs import Finding
from datum_router.plugins.protocols import ManifestView

T = TypeVar("T")

Name = tuple[str, str]
"""Namespace and name."""
Look = tuple[str, ...]
"""What was looked at: (kind, namespace, name), (kind,) for all objects of a kind, or what `value_look` returns."""


def value_look(kind: str, index: str, value: str) -> Look:
    """Return the look at what an index has under one value. Four parts, so that it is no look at an object."""
    return (kind, "#", index, value)


class RecordingView:
    """A view that notes what it is asked for."""

    __slots__ = ("_view", "looks")

    def __init__(self, view: ManifestView) -> None:
        self._view = view
        self.looks: set[Look] = set()

    def get(self, kind: str, namespace: str, name: str) -> msgspec.Struct | None:
        """Return the manifest in force, or None."""
        self.looks.add((kind, namespace, name))
        return self._view.get(kind, namespace, name)

    def list(self, kind: str) -> Sequence[msgspec.Struct]:
        """Return all manifests of a kind, sorted by namespace and name."""
        self.looks.add((kind,))
        return self._view.list(kind)

    def select(self, kind: str, index: str, value: str) -> Sequence[msgspec.Struct]:
        """Return the manifests that an index of their kind has under a value, sorted by namespace and name."""
        self.looks.add(value_look(kind, index, value))
        return self._view.select(kind, index, value)


class Changes:
    """What differs between two views, by kind, and as the looks that would see it.

    Args:
        by_kind: As `StoreView.changes` returns it: of each object the index values of its old and of its new version.
    """

    __slots__ = ("_by_kind", "looks")

    def __init__(self, by_kind: Mapping[str, Mapping[Name, AbstractSet[tuple[str, str]]]]) -> None:
        self._by_kind = by_kind
        self.looks: set[Look] = set()
        for kind, objects in by_kind.items():
            if objects:
                self.looks.add((kind,))
            for name, values in objects.items():
                self.looks.add((kind, *name))
                self.looks.update(value_look(kind, *value) for value in values)

    def of(self, kind: str) -> AbstractSet[Name]:
        """Return the objects of a kind that came, went or changed."""
        objects = self._by_kind.get(kind)
        return frozenset() if objects is None else objects.keys()


class Made(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """A result, what was found wrong on the way, and what it was made from."""

    result: T
    findings: tuple[Finding, ...]
    looks: tuple[Look, ...]


class Memo(Generic[T]):
    """The results of all objects of one kind."""

    __slots__ = ("_kind", "_looks", "_made", "_reported", "_seen")

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._made: dict[Name, Made[T]] = {}
        self._reported: dict[Name, tuple[Finding, ...]] = {}
        self._looks: dict[tuple[Look, ...], tuple[Look, ...]] = {}  # most objects share theirs with others
        self._seen: set[str] = set()  # kinds that any result was made from

    def update(
        self,
        view: ManifestView,
        changes: Changes,
        make: Callable[[msgspec.Struct, RecordingView], tuple[T, Sequence[Finding]] | None],
    ) -> Iterator[tuple[Name, T | None, T | None]]:
        """Make anew what changed and yield (name, old, new) for each; None: there was none, or is none any more.

        Args:
            make: Returns None for what is not of the type that the kind ought to have.
        """
        for name in sorted(self._outdated(changes)):
            before = self._made.pop(name, None)
            self._reported.pop(name, None)
            manifest = view.get(self._kind, *name)
            recording = RecordingView(view)
            found = None if manifest is None else make(manifest, recording)
            if found is not None:
                looks = tuple(sorted(recording.looks))
                shared = self._looks.get(looks)
                if shared is None:
                    shared = self._looks[looks] = looks
                    self._seen.update(_kinds(looks))
                made = Made(found[0], tuple(found[1]), shared)
                self._made[name] = made
                if made.findings:
                    self._reported[name] = made.findings
            yield name, None if before is None else before.result, None if found is None else found[0]
        if len(self._looks) > 2 * len(self._made) + 1000:
            self._looks.clear()

    def replace(self, name: Name, result: T) -> None:
        """Keep `result`, an equal one, in place of the one that was made."""
        self._made[name] = msgspec.structs.replace(self._made[name], result=result)

    def results(self) -> Iterator[tuple[Name, T]]:
        """Yield all results in order of namespace and name."""
        for name in sorted(self._made):
            yield name, self._made[name].result

    def findings(self) -> Iterator[Finding]:
        """Yield what was found wrong, in order of namespace and name."""
        for name in sorted(self._reported):
            yield from self._reported[name]

    def _outdated(self, changes: Changes) -> set[Name]:
        outdated = set(changes.of(self._kind))
        if not self._seen.isdisjoint(_kinds(changes.looks)):
            looks = changes.looks
            outdated.update(name for name, made in self._made.items() if not looks.isdisjoint(made.looks))
        return outdated


def _kinds(looks: Iterable[Look]) -> set[str]:
    return {look[0] for look in looks}
