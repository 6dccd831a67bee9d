"""Differences between snapshots: deltas for data planes, descriptions for people (`datum-router diff`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from datum_router.errors import ConfigError
from datum_router.model.route import Rule
from datum_router.model.snapshot import SnapshotData, SnapshotDelta
from datum_router.reasons import Reason

SECRET_FIELDS = frozenset({"key_pem", "cert_pem", "ca_pem"})


def digest_of(data: SnapshotData) -> str:
    """Return a hash of what `data` does: services, rules and listeners, not the version."""
    digest = hashlib.blake2b(digest_size=16)
    encoder = msgspec.msgpack.Encoder(order="deterministic")
    digest.update(encoder.encode(data.services))
    for rule in data.rules:
        digest.update(encoder.encode(rule))
    digest.update(encoder.encode(data.listeners))
    return digest.hexdigest()


def make_delta(old: SnapshotData, new: SnapshotData) -> SnapshotDelta:
    """Return what turns `old` into `new`. Objects are compared by identity first: cheap where parts are shared."""
    services = {
        key: service
        for key, service in new.services.items()
        if (before := old.services.get(key)) is not service and before != service
    }
    old_rules = {rule.id: rule for rule in old.rules}
    rules = tuple(rule for rule in new.rules if (known := old_rules.get(rule.id)) is not rule and known != rule)
    same_order = len(old.rules) == len(new.rules) and all(
        a.id == b.id for a, b in zip(old.rules, new.rules, strict=True)
    )
    return SnapshotDelta(
        base=old.version,
        version=new.version,
        digest=new.digest,
        services=services,
        removed_services=tuple(key for key in old.services if key not in new.services),
        rules=rules,
        order=None if same_order else tuple(rule.id for rule in new.rules),
        listeners=None if old.listeners == new.listeners else new.listeners,
    )


def apply_delta(old: SnapshotData, delta: SnapshotDelta) -> SnapshotData:
    """Return `old` with `delta` applied; unchanged parts are shared.

    Raises:
        ConfigError: The delta is for another version, or names a rule that neither side has: ask for a full snapshot.
    """
    if delta.base != old.version:
        raise ConfigError(
            f"snapshot delta: found base version {delta.base}, expected {old.version}; a full snapshot is needed",
            reason=Reason.INTERNAL,
        )
    services = old.services
    if delta.services or delta.removed_services:
        gone = set(delta.removed_services)
        services = {key: service for key, service in old.services.items() if key not in gone} | dict(delta.services)
    rules: tuple[Rule, ...] = old.rules
    if delta.rules or delta.order is not None:
        table: dict[str, Rule] = {rule.id: rule for rule in old.rules}
        table.update((rule.id, rule) for rule in delta.rules)
        order: Sequence[str] = delta.order if delta.order is not None else tuple(rule.id for rule in old.rules)
        missing = next((name for name in order if name not in table), None)
        if missing is not None:
            raise ConfigError(f"snapshot delta: rule {missing} is unknown; a full snapshot is needed")
        rules = tuple(table[name] for name in order)
    return SnapshotData(
        version=delta.version,
        digest=delta.digest,
        services=services,
        rules=rules,
        listeners=old.listeners if delta.listeners is None else delta.listeners,
    )


class FieldChange(msgspec.Struct, frozen=True, kw_only=True):
    """One changed field; `old` and `new` are JSON-like values, secrets redacted."""

    path: str
    old: object = None
    new: object = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One object that was added, changed or removed between two snapshots."""

    kind: Literal["service", "rule", "listener"]
    name: str
    action: Literal["added", "changed", "removed"]
    fields: tuple[FieldChange, ...] = ()


def describe_changes(old: SnapshotData, new: SnapshotData) -> list[Change]:
    """Return all changes, sorted by kind and name."""
    changes: list[Change] = []
    tables: Sequence[tuple[Literal["service", "rule", "listener"], Mapping[str, object], Mapping[str, object]]] = (
        ("listener", {item.name: item for item in old.listeners}, {item.name: item for item in new.listeners}),
        ("rule", {item.id: item for item in old.rules}, {item.id: item for item in new.rules}),
        (
            "service",
            {str(key): item for key, item in old.services.items()},
            {str(key): item for key, item in new.services.items()},
        ),
    )
    for kind, before, after in tables:
        for name in sorted(before.keys() | after.keys()):
            if name not in before:
                changes.append(Change(kind=kind, name=name, action="added"))
            elif name not in after:
                changes.append(Change(kind=kind, name=name, action="removed"))
            elif before[name] != after[name]:
                fields = tuple(_field_changes("", _plain(before[name]), _plain(after[name])))
                changes.append(Change(kind=kind, name=name, action="changed", fields=fields))
    return changes


def _plain(value: object) -> object:
    return msgspec.to_builtins(value)


def _field_changes(path: str, old: object, new: object) -> list[FieldChange]:
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[FieldChange] = []
        for key in sorted(old.keys() | new.keys(), key=str):
            found += _field_changes(f"{path}.{key}" if path else str(key), old.get(key), new.get(key))
        return found
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        found = []
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            found += _field_changes(f"{path}[{index}]", a, b)
        return found
    if path.rsplit(".", 1)[-1] in SECRET_FIELDS:
        return [FieldChange(path=path, old="<redacted>", new="<redacted, changed>")]
    return [FieldChange(path=path, old=old, new=new)]
