"""Server-side apply on plain data, as far as tests need it: who owns which field, and who stands in whose way.

Fields are the leaves of an object: scalars, lists (which are replaced as a whole, unlike the list maps of a real
schema) and empty objects.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

Path = tuple[str, ...]
Owners = dict[str, set[Path]]
"""The fields that each manager owns."""

_IDENTITY = frozenset(
    ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")
)


def applied_fields(raw: Mapping[str, object]) -> dict[Path, object]:
    """Return the fields that an apply of `raw` is about: neither what identifies it nor its status."""
    parts = {name: value for name, value in raw.items() if name not in ("apiVersion", "kind", "status")}
    metadata = parts.pop("metadata", None)
    if isinstance(metadata, Mapping):
        parts["metadata"] = {name: value for name, value in metadata.items() if name not in _IDENTITY}
    return {path: value for path, value in _leaves(parts, ()) if path != ("metadata",)}


def _leaves(value: Mapping[str, object], above: Path) -> Iterator[tuple[Path, object]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, (*above, name))
        else:
            yield (*above, name), inner


def dotted(path: Path) -> str:
    """Return a path as the API writes it: `.spec.port`."""
    return "".join(f".{name}" for name in path)


def value_at(raw: Mapping[str, object], path: Path) -> object:
    """Return what is at a path, None if nothing is."""
    found: object = raw
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def _overlaps(one: Path, other: Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def conflicts(
    raw: Mapping[str, object], wanted: Mapping[Path, object], owners: Owners, manager: str
) -> list[tuple[str, Path]]:
    """Return the other managers, and their fields, that an apply would change; in order."""
    return sorted(
        (other, path)
        for path, value in wanted.items()
        if value_at(raw, path) != value
        for other, fields in owners.items()
        if other != manager and any(_overlaps(path, field) for field in fields)
    )


def merge(
    raw: Mapping[str, object], wanted: Mapping[Path, object], owners: Owners, manager: str
) -> tuple[dict[str, object], Owners]:
    """Return the object, and who owns what, after a manager applied its fields, by force where it must be."""
    after: dict[str, object] = copy.deepcopy(dict(raw))
    mine = owners.get(manager, set())
    others = {name: set(fields) for name, fields in owners.items() if name != manager}
    kept = set().union(*others.values()) if others else set()
    for path in sorted(mine - wanted.keys() - kept):
        _remove(after, path)
    for path, value in wanted.items():
        if value_at(raw, path) != value:
            for fields in others.values():
                fields.difference_update([field for field in fields if _overlaps(path, field)])
        _set(after, path, copy.deepcopy(value))
    return after, {**others, manager: set(wanted)}


def _set(raw: dict[str, object], path: Path, value: object) -> None:
    for name in path[:-1]:
        inner = raw.get(name)
        if not isinstance(inner, dict):
            inner = raw[name] = {}
        raw = inner
    raw[path[-1]] = value


def _remove(raw: dict[str, object], path: Path) -> None:
    inner = raw.get(path[0])
    if len(path) == 1:
        raw.pop(path[0], None)
    elif isinstance(inner, dict):
        _remove(inner, path[1:])
        if not inner and path[0] not in ("spec", "metadata"):
            del raw[path[0]]
