"""A cluster in memory: for tests of controllers and gateways, with failures and a log of what was written.

    cluster = FakeCluster()
    cluster.put({"apiVersion": ..., "kind": "VPCService", ...}, plural="vpcservices")
    cluster.fail("write_status", ClusterUnavailable("no answer"), times=2)
    ...
    assert [write.method for write in cluster.writes] == ["write_status"]

Its methods never wait unless `before` does, so that they run under any event loop, or under none (`run_now`).
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TypeVar

import msgspec

from datum_router.clock import ManualClock
from datum_router.compiler.diagnostics import Origin, Severity
from datum_router.errors import ClusterConflict, ClusterError, ClusterNotFound, ClusterRejected
from datum_router.manifests.decode import decode
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import GroupVersionKind, ObjectKey
from datum_router.manifests.table import KindTable
from datum_router.plugins.cluster import Applied, ClusterCounts, LeaseRecord, ObjectEvent, StatusWrite
from datum_router.reasons import Reason
from datum_router.testing.cluster import _fields
from datum_router.testing.cluster.conformance import SeenEvent

T = TypeVar("T")

ADMIN = "admin"
"""The field manager of what `FakeCluster.put` writes."""
START_AT = 1_700_000_000.0
"""What the clock of a cluster shows at first, in Unix seconds."""

_OWN = KindTable(OWN_KINDS)


def run_now(call: Coroutine[object, object, T]) -> T:
    """Run a coroutine that waits for nothing, without an event loop.

    Raises:
        AssertionError: It does wait.
    """
    try:
        call.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    call.close()
    raise AssertionError("the coroutine waits for something: run it with trio")


class FakeWrite(msgspec.Struct, frozen=True, kw_only=True):
    """One write that came to a fake cluster.

    Attributes:
        method: Name of the protocol's method.
        value: What was given to it: a StatusWrite, an ObjectEvent, a LeaseRecord or the raw object.
        is_changed: Something in the cluster is different since.
    """

    method: str
    value: StatusWrite | ObjectEvent | LeaseRecord | Mapping[str, object]
    is_changed: bool


class _Failure(msgspec.Struct):
    error: ClusterError
    times: int | None
    is_applied: bool


class _Stored(msgspec.Struct):
    raw: dict[str, object]
    owners: _fields.Owners


class FakeCluster:
    """A cluster in memory, which answers as a real one does; `datum_router.testing.cluster` says what it is for.

    Of our own kinds it refuses what `datum-router check` would, and statuses that do not fit; of others nothing.
    Lists are replaced as a whole by `apply`.

    Attributes:
        writes: Every write that was taken, in order, changes or not.
        watchers: Called with each object that was changed (a copy), and whether it is gone.
        clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        namespace: str = "default",
        namespaces: Sequence[str] | None = None,
        unserved: Sequence[str] = (),
        before: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        """Make an empty cluster.

        Args:
            namespaces: The only ones there are; None: any is there.
            unserved: Kinds that it does not have.
            before: Awaited at the start of each call with the name of the method, for example to wait there.
        """
        self.writes: list[FakeWrite] = []
        self.watchers: list[Callable[[Mapping[str, object], bool], None]] = []
        self.clock = ManualClock(START_AT)
        self._namespace = namespace
        self.namespaces = None if namespaces is None else set(namespaces)
        self._unserved = frozenset(unserved)
        self._before = before
        self._failures: dict[str, list[_Failure]] = {}
        self._objects: dict[tuple[str, ObjectKey], _Stored] = {}
        self._leases: dict[tuple[str, str], LeaseRecord] = {}
        self._events: dict[ObjectEvent, int] = {}
        self._version = 0
        self._made = 0

    # --- for tests -------------------------------------------------------------------------------------------------

    def put(self, raw: Mapping[str, object], *, plural: str) -> Mapping[str, object]:
        """Create or change an object as a user would, and return it; its status, if given, is taken as well."""
        run_now(self._apply(raw, plural=plural, manager=ADMIN, is_forced=True, is_dry_run=False))
        stored = self._objects[plural, _key_of(raw)]
        if "status" in raw:
            self._change(stored, {**stored.raw, "status": copy.deepcopy(raw["status"])})
        return copy.deepcopy(stored.raw)

    def remove(self, plural: str, key: ObjectKey) -> None:
        """Delete an object; KeyError if it is not there."""
        stored = self._objects.pop((plural, key))
        self._version += 1
        for watcher in self.watchers:
            watcher(copy.deepcopy(stored.raw), True)

    def objects(self, plural: str) -> list[Mapping[str, object]]:
        """Return copies of all objects of a kind, by namespace and name."""
        return [copy.deepcopy(one.raw) for (kind, _), one in sorted(self._objects.items()) if kind == plural]

    @property
    def leases(self) -> Mapping[tuple[str, str], LeaseRecord]:
        """Return all leases by namespace and name."""
        return dict(sorted(self._leases.items()))

    def status_of(self, plural: str, key: ObjectKey) -> Mapping[str, object]:
        """Return an object's status, empty if it has none; KeyError if it is not there."""
        status = self._objects[plural, key].raw.get("status", {})
        assert isinstance(status, Mapping)
        return status

    def seen_events(self, namespace: str) -> list[SeenEvent]:
        """Return the events about objects of a namespace, oldest first."""
        return [
            SeenEvent(name=event.key.name, type=event.type, reason=event.reason, note=event.note, count=count)
            for event, count in self._events.items()
            if event.key.namespace == namespace
        ]

    def fail(self, method: str, error: ClusterError, *, times: int | None = 1, is_applied: bool = False) -> None:
        """Make the next calls of a method raise an error.

        Args:
            method: Its name; `*` for all.
            times: How many calls, None until `heal`.
            is_applied: The call does its work before, as when only the answer is lost.
        """
        self._failures.setdefault(method, []).append(_Failure(error, times, is_applied))

    def heal(self) -> None:
        """Forget all failures that were still to come."""
        self._failures.clear()

    # --- the protocol ----------------------------------------------------------------------------------------------

    @property
    def namespace(self) -> str:
        """Return the namespace this process lives in."""
        return self._namespace

    def counts(self) -> ClusterCounts:
        """Return what was written so far; events are never dropped here, and each repeat is written."""
        return ClusterCounts(writes=len(self.writes))

    async def write_status(self, write: StatusWrite) -> None:
        """Replace a status."""
        lost = await self._enter("write_status")
        self._check_served(write.gvk)
        stored = self._objects.get((write.plural, write.key))
        if stored is None:
            raise ClusterNotFound(f"{write.key}: not found", status=404)
        metadata = _metadata(stored.raw)
        if metadata["uid"] != write.uid:
            raise ClusterConflict(f"{write.key}: found uid {metadata['uid']}, expected {write.uid}", status=409)
        self._check_status(write)
        status = copy.deepcopy(dict(write.status))
        is_changed = status != stored.raw.get("status", {})
        self.writes.append(FakeWrite(method="write_status", value=write, is_changed=is_changed))
        if is_changed:
            self._change(stored, {**stored.raw, "status": status})
        _leave(lost)

    async def publish(self, event: ObjectEvent) -> None:
        """Record an event, or count it if it is a repeat."""
        lost = await self._enter("publish")
        self._check_namespace(event.key.namespace)
        self._events[event] = self._events.get(event, 0) + 1
        self.writes.append(FakeWrite(method="publish", value=event, is_changed=True))
        _leave(lost)

    async def read_lease(self, namespace: str, name: str) -> LeaseRecord | None:
        """Return a lease."""
        lost = await self._enter("read_lease")
        _leave(lost)
        return self._leases.get((namespace, name))

    async def list_leases(self, namespace: str, *, labels: Mapping[str, str]) -> Sequence[LeaseRecord]:
        """Return the leases of a namespace that have these labels."""
        lost = await self._enter("list_leases")
        _leave(lost)
        return [
            lease
            for (there, _), lease in sorted(self._leases.items())
            if there == namespace and labels.items() <= lease.labels.items()
        ]

    async def write_lease(self, record: LeaseRecord) -> LeaseRecord:
        """Create or replace a lease."""
        lost = await self._enter("write_lease")
        self._check_namespace(record.namespace)
        here = (record.namespace, record.name)
        there = self._leases.get(here)
        if (there.version if there else "") != record.version:
            raise ClusterConflict(f"lease {record.namespace}/{record.name}: was written in between", status=409)
        self._version += 1
        written = msgspec.structs.replace(
            record,
            labels=dict(record.labels),
            annotations=dict(record.annotations),
            version=str(self._version),
        )
        self._leases[here] = written
        self.writes.append(FakeWrite(method="write_lease", value=record, is_changed=True))
        _leave(lost)
        return written

    async def delete_lease(self, record: LeaseRecord) -> None:
        """Delete a lease."""
        lost = await self._enter("delete_lease")
        here = (record.namespace, record.name)
        there = self._leases.get(here)
        if there is not None and there.version != record.version:
            raise ClusterConflict(f"lease {record.namespace}/{record.name}: was written in between", status=409)
        self._leases.pop(here, None)
        self.writes.append(FakeWrite(method="delete_lease", value=record, is_changed=there is not None))
        _leave(lost)

    async def get(self, gvk: GroupVersionKind, plural: str, key: ObjectKey) -> Mapping[str, object] | None:
        """Return a copy of an object."""
        lost = await self._enter("get")
        self._check_served(gvk)
        _leave(lost)
        stored = self._objects.get((plural, key))
        return None if stored is None else copy.deepcopy(stored.raw)

    async def apply(
        self, raw: Mapping[str, object], *, plural: str, manager: str, is_forced: bool, is_dry_run: bool = False
    ) -> Applied:
        """Apply an object."""
        lost = await self._enter("apply")
        applied = await self._apply(raw, plural=plural, manager=manager, is_forced=is_forced, is_dry_run=is_dry_run)
        if not is_dry_run:
            self.writes.append(FakeWrite(method="apply", value=copy.deepcopy(raw), is_changed=applied.is_changed))
        _leave(lost)
        return applied

    async def delete(self, gvk: GroupVersionKind, plural: str, key: ObjectKey) -> None:
        """Delete an object, if it is there."""
        lost = await self._enter("delete")
        self._check_served(gvk)
        is_there = (plural, key) in self._objects
        if is_there:
            self.remove(plural, key)
        self.writes.append(FakeWrite(method="delete", value={"kind": gvk.kind, "name": key.name}, is_changed=is_there))
        _leave(lost)

    # --- how -------------------------------------------------------------------------------------------------------

    async def _enter(self, method: str) -> ClusterError | None:
        """Wait and fail as the test asked for; return an error that is to come after the work."""
        if self._before is not None:
            await self._before(method)
        for name in (method, "*"):
            queue = self._failures.get(name, [])
            if queue:
                failure = queue[0]
                if failure.times is not None:
                    failure.times -= 1
                    if failure.times <= 0:
                        queue.pop(0)
                if failure.is_applied:
                    return failure.error
                raise failure.error
        return None

    async def _apply(
        self, raw: Mapping[str, object], *, plural: str, manager: str, is_forced: bool, is_dry_run: bool
    ) -> Applied:
        key = _key_of(raw)
        self._check_served(_gvk_of(raw))
        self._check_namespace(key.namespace)
        stored = self._objects.get((plural, key))
        wanted = _fields.applied_fields(raw)
        before: Mapping[str, object] = {"apiVersion": raw["apiVersion"], "kind": raw["kind"]}
        owners: _fields.Owners = {}
        if stored is not None:
            before, owners = stored.raw, stored.owners
        standing = _fields.conflicts(before, wanted, owners, manager)
        if standing and not is_forced:
            named = ", ".join(f"{path} of {other!r}" for other, path in ((m, _fields.dotted(p)) for m, p in standing))
            raise ClusterConflict(f"{key}: fields that other managers own: {named}", status=409)
        after, after_owners = _fields.merge(before, wanted, owners, manager)
        _check_content(after, key)
        is_changed = after != before or after_owners != owners
        if is_dry_run or not is_changed:
            metadata = _metadata(before)
            return Applied(
                key=key,
                uid=str(metadata.get("uid", "")),
                generation=int(str(metadata.get("generation", 1))),
                version=str(metadata.get("resourceVersion", "")),
                is_changed=is_changed,
            )
        if stored is None:
            self._made += 1
            stored = self._objects[plural, key] = _Stored({}, {})
            after["metadata"] = {
                **_metadata(after),
                "name": key.name,
                **({"namespace": key.namespace} if key.namespace else {}),
                "uid": f"uid-{self._made}",
                "generation": 1,
                "creationTimestamp": datetime.datetime.fromtimestamp(self.clock(), datetime.UTC).strftime(
                    "%Y-%m-%dT%H:%M:%SZ"
                ),
            }
        elif after.get("spec") != before.get("spec"):
            generation = int(str(_metadata(before)["generation"]))
            after["metadata"] = {**_metadata(after), "generation": generation + 1}
        stored.owners = after_owners
        self._change(stored, after)
        metadata = _metadata(stored.raw)
        return Applied(
            key=key,
            uid=str(metadata["uid"]),
            generation=int(str(metadata["generation"])),
            version=str(metadata["resourceVersion"]),
            is_changed=True,
        )

    def _change(self, stored: _Stored, raw: Mapping[str, object]) -> None:
        self._version += 1
        stored.raw = {**raw, "metadata": {**_metadata(raw), "resourceVersion": str(self._version)}}
        for watcher in self.watchers:
            watcher(copy.deepcopy(stored.raw), False)

    def _check_served(self, gvk: GroupVersionKind) -> None:
        if gvk.kind in self._unserved:
            raise ClusterNotFound(f"{gvk.api_version} {gvk.kind}: the cluster has no such kind", status=404)

    def _check_namespace(self, namespace: str) -> None:
        if namespace and self.namespaces is not None and namespace not in self.namespaces:
            raise ClusterNotFound(f"namespace {namespace}: not found", status=404)

    def _check_status(self, write: StatusWrite) -> None:
        kind = _OWN.get(write.gvk.api_version, write.gvk.kind)
        if kind is None:
            return
        field = next(field for field in msgspec.structs.fields(kind.struct) if field.name == "status")
        try:
            msgspec.convert(write.status, field.type, strict=True)
        except msgspec.ValidationError as error:
            raise ClusterRejected(
                f"{write.key}: the status is invalid: {error}", status=422, causes=(("status", str(error)),)
            ) from error


def _leave(lost: ClusterError | None) -> None:
    if lost is not None:
        raise lost


def _metadata(raw: Mapping[str, object]) -> Mapping[str, object]:
    metadata = raw.get("metadata", {})
    assert isinstance(metadata, Mapping)
    return metadata


def _gvk_of(raw: Mapping[str, object]) -> GroupVersionKind:
    group, _, version = str(raw["apiVersion"]).rpartition("/")
    return GroupVersionKind(group=group, version=version, kind=str(raw["kind"]))


def _key_of(raw: Mapping[str, object]) -> ObjectKey:
    metadata = _metadata(raw)
    return ObjectKey(kind=str(raw["kind"]), namespace=str(metadata.get("namespace", "")), name=str(metadata["name"]))


def _check_content(after: Mapping[str, object], key: ObjectKey) -> None:
    whole = {name: value for name, value in after.items() if name != "status"}
    metadata = {**_metadata(after), "name": key.name, "namespace": key.namespace}
    decoded = decode({**whole, "metadata": metadata}, Origin(source="fake"), _OWN)
    wrong = [
        found
        for found in decoded.diagnostics
        if found.severity is Severity.ERROR and found.reason is not Reason.NOT_SERVED
    ]
    if wrong:
        raise ClusterRejected(
            f"{key}: " + "; ".join(f"{found.path}: {found.message}" for found in wrong),
            status=422,
            causes=tuple((found.path, found.message) for found in wrong),
        )


class FakeStage:
    """What the conformance suite asks of the world around a fake cluster."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self._made = 0

    def new_namespace(self) -> str:
        """Return the name of a new, empty namespace."""
        self._made += 1
        name = f"made-{self._made}"
        if self._cluster.namespaces is not None:
            self._cluster.namespaces.add(name)
        return name

    def remove(self, gvk: GroupVersionKind, plural: str, key: ObjectKey) -> None:
        """Delete an object."""
        self._cluster.remove(plural, key)

    def events(self, namespace: str) -> Sequence[SeenEvent]:
        """Return the events of a namespace."""
        return self._cluster.seen_events(namespace)
