"""Differences between snapshots: deltas for data planes, descriptions for people (`datum-router diff`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from datum_router.compiler.splice import differences, splice
from datum_router.errors import ConfigError
from datum_router.model.egress import EgressPolicy
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Locality
from datum_router.model.listener import Listener
from datum_router.model.route import Rule
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData, SnapshotDelta
from datum_router.reasons import Reason

PART_DIGEST_BYTES = 16
_MSGPACK = msgspec.msgpack.Encoder(order="deterministic")
SECRET_FIELDS = frozenset({"key_pem", "cert_pem", "ca_pem", "crl_pem"})


def digest_of(data: SnapshotData) -> str:
    """Return a hash of what `data` does: services, rules, listeners, place and egress policy, not the version."""
    return combine_digests(
        {key: part_digest(service) for key, service in data.services.items()},
        b"".join(map(part_digest, data.rules)),
        data.listeners,
        data.place,
        data.egress,
    )


def part_digest(part: Service | Rule) -> bytes:
    """Return the hash of one service or rule, `PART_DIGEST_BYTES` long."""
    return hashlib.blake2b(_encode(part), digest_size=PART_DIGEST_BYTES).digest()


def combine_digests(
    services: Mapping[ServiceKey, bytes],
    rules: bytes | bytearray,
    listeners: Sequence[Listener],
    place: Locality = UNKNOWN_LOCALITY,
    egress: EgressPolicy | None = None,
) -> str:
    """Return the digest of a snapshot out of those of its parts, so that one edit needs one part hashed anew.

    This is a tree of hashes with one level (as Merkle's): the parts' hashes stand side by side in order, all of equal
    length and with their number in front, so that two inputs are hashed alike only if they are alike or if blake2b
    has a collision. The order of rules counts, that of services does not.

    Args:
        rules: Hashes of all rules in order.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(len(services).to_bytes(8, "big"))
    for key in sorted(services):
        digest.update(services[key])  # a service holds its own key
    digest.update((len(rules) // PART_DIGEST_BYTES).to_bytes(8, "big"))
    digest.update(rules)
    digest.update(_encode((listeners, place)))
    if egress is not None:
        digest.update(_encode(egress))
    return digest.hexdigest()


def _encode(part: object) -> bytes:
    return _MSGPACK.encode(part)


def make_delta(old: SnapshotData, new: SnapshotData) -> SnapshotDelta:
    """Return what turns `old` into `new`. Cheap where parts are shared: they are compared by identity first."""
    services: dict[ServiceKey, Service] = {}
    removed: tuple[ServiceKey, ...] = ()
    if old.services is not new.services:
        services = {
            key: service
            for key, service in new.services.items()
            if (before := old.services.get(key)) is not service and before != service
        }
        removed = tuple(key for key in old.services if key not in new.services)
    gone, added = rule_differences(old.rules, new.rules)
    return SnapshotDelta(
        base=old.version,
        version=new.version,
        digest=new.digest,
        services=services,
        removed_services=removed,
        removed_rules=tuple(gone),
        rules=tuple(new.rules[position] for position in added),
        positions=tuple(added),
        listeners=None if old.listeners == new.listeners else new.listeners,
        place=None if old.place == new.place else new.place,
        has_egress=old.egress is not new.egress and old.egress != new.egress,
        egress=None if old.egress is new.egress or old.egress == new.egress else new.egress,
    )


def rule_differences(old: tuple[Rule, ...], new: tuple[Rule, ...]) -> tuple[list[int], list[int]]:
    """Return `differences` of rules; rules that are equal count as the same one."""
    gone, added = differences(old, new)
    table = {old[position].id: old[position] for position in gone}
    equals = {
        position: before
        for position in added
        if (before := table.get(new[position].id)) is not None and before == new[position]
    }
    if not equals:
        return gone, added
    return differences(old, tuple(equals.get(position, rule) for position, rule in enumerate(new)))


def apply_delta(old: SnapshotData, delta: SnapshotDelta) -> SnapshotData:
    """Return `old` with `delta` applied; unchanged parts are shared.

    Raises:
        ConfigError: The delta is for another version, or names places that are not there: ask for a full snapshot.
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
    rules = old.rules
    if delta.removed_rules or delta.rules:
        try:
            rules = splice(old.rules, delta.removed_rules, delta.positions, delta.rules)
        except ValueError as error:
            raise ConfigError(f"snapshot delta: {error}; a full snapshot is needed") from error
    return SnapshotData(
        version=delta.version,
        digest=delta.digest,
        services=services,
        rules=rules,
        listeners=old.listeners if delta.listeners is None else delta.listeners,
        place=old.place if delta.place is None else delta.place,
        egress=delta.egress if delta.has_egress else old.egress,
    )


class FieldChange(msgspec.Struct, frozen=True, kw_only=True):
    """One changed field; `old` and `new` are JSON-like values, secrets redacted."""

    path: str
    old: object = None
    new: object = None


ChangeKind = Literal["service", "rule", "listener", "place", "egress"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One object that was added, changed or removed between two snapshots."""

    kind: ChangeKind
    name: str
    action: Literal["added", "changed", "removed"]
    fields: tuple[FieldChange, ...] = ()


def describe_changes(old: SnapshotData, new: SnapshotData) -> list[Change]:
    """Return all changes, sorted by kind and name."""
    changes: list[Change] = []
    tables: Sequence[tuple[ChangeKind, Mapping[str, object], Mapping[str, object]]] = (
        ("egress", _named_egress(old), _named_egress(new)),
        ("listener", {item.name: item for item in old.listeners}, {item.name: item for item in new.listeners}),
        ("place", _named_place(old), _named_place(new)),
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


def _named_place(data: SnapshotData) -> dict[str, object]:
    return {} if data.place == UNKNOWN_LOCALITY else {"gateway": data.place}


def _named_egress(data: SnapshotData) -> dict[str, object]:
    return {} if data.egress is None else {rule.name: rule for rule in data.egress.rules}


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
    before, after = _keyed(old), _keyed(new)
    if before is not None and after is not None:
        found = []
        for key in sorted(before.keys() | after.keys()):
            found += _field_changes(f"{path}[{key}]", before.get(key), after.get(key))
        if found:
            return found
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        found = []
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            found += _field_changes(f"{path}[{index}]", a, b)
        return found
    if path.rsplit(".", 1)[-1] in SECRET_FIELDS:
        return [FieldChange(path=path, old="<redacted>", new="<redacted, changed>")]
    return [FieldChange(path=path, old=_redacted(old), new=_redacted(new))]


def _redacted(value: object) -> object:
    """Return a value without the secrets that stand anywhere in it."""
    if isinstance(value, dict):
        return {key: "<redacted>" if key in SECRET_FIELDS and item else _redacted(item) for key, item in value.items()}
    return [_redacted(item) for item in value] if isinstance(value, list | tuple) else value


def without_secrets(data: SnapshotData) -> SnapshotData:
    """Return a snapshot to be shown: nothing is in the place of PEM text. What has none is shared."""
    return msgspec.structs.replace(
        data,
        services={
            key: service if service.tls is None else msgspec.structs.replace(service, tls=_hidden(service.tls))
            for key, service in data.services.items()
        },
        listeners=tuple(msgspec.structs.replace(one, tls=tuple(map(_hidden, one.tls))) for one in data.listeners),
        egress=None if data.egress is None else _without_secrets_of_targets(data.egress),
    )


def _without_secrets_of_targets(policy: EgressPolicy) -> EgressPolicy:
    return msgspec.structs.replace(
        policy,
        rules=tuple(
            msgspec.structs.replace(rule, targets=tuple(map(_hidden, rule.targets))) if rule.targets else rule
            for rule in policy.rules
        ),
    )


S = TypeVar("S", bound=msgspec.Struct)


def _hidden(part: S) -> S:
    changes: dict[str, object] = {}
    for name in part.__struct_fields__:
        value = getattr(part, name)
        if name in SECRET_FIELDS and value:
            changes[name] = "<redacted>"
        elif isinstance(value, msgspec.Struct):
            changes[name] = _hidden(value)
    return msgspec.structs.replace(part, **changes)


def _keyed(value: object) -> dict[str, object] | None:
    """Return the items of a list by their `key`, as endpoints have one; None if it is something else."""
    if not isinstance(value, list | tuple):
        return None
    table: dict[str, object] = {}
    for item in value:
        key = item.get("key") if isinstance(item, dict) else None
        if not isinstance(key, str) or key in table:
            return None
        table[key] = item
    return table
