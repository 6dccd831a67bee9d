"""Writing to a cluster: status, events, leases, and objects that are applied. Reading is the source's business.

Theory of operation. Every call is one or two HTTP requests of `client.ApiClient`, each in a worker thread; what they
say and what their answers mean is pure and stands in `objects`, `events`, `leases` and `rejections`. Leases have
threads of their own and wait for no rate limit, so that neither a flood of statuses nor a server that does not answer
to them costs a leader its lease. Writes take turns at the rate limit in the order in which they came.

A cancelled call returns at once: its socket is shut down, so that its thread ends, too, but for a connection that is
being set up, which `client.CONNECT_TIMEOUT_S` bounds. The write may have happened or not.

A status is applied to one version of an object (`metadata.resourceVersion`), since that is the only thing that keeps it
from an object of the same name that was made anew: for the status subresource the API passes `metadata.uid` over. The
version is the one that the writer has seen; if that is an old one by now, the object is looked at again.
"""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec
import trio

from datum_router.errors import ClusterConflict, ClusterError, ClusterNotFound, ClusterUnavailable
from datum_router.manifests.meta import GROUP, GroupVersionKind, ObjectKey
from datum_router.plugins.cluster import Applied, ClusterCounts, LeaseRecord, ObjectEvent, StatusWrite
from datum_router.policy.bucket import TokenBucket
from datum_router_kubernetes import events, leases, objects
from datum_router_kubernetes.client import REQUEST_TIMEOUT_S, Hold, in_thread, make_client
from datum_router_kubernetes.ratelimit import WriteLimits, write_limits
from datum_router_kubernetes.rejections import rejection_of

T = TypeVar("T")

MAX_WRITE_THREADS = 8
"""How many requests run at a time, leases aside; others wait."""
MAX_LEASE_THREADS = 2
"""How many requests about leases run at a time."""
LEASE_TIMEOUT_S = 5.0
"""How long a request about a lease may take (seconds): a leader must know in time that it cannot renew."""
MAX_STATUS_TRIES = 4
"""How often a status is tried that always meets a newer version of its object; then it is a conflict."""


class Requests(Protocol):
    """What is asked of a client: see `client.ApiClient`."""

    @property
    def namespace(self) -> str:
        """Return the namespace of the pod, or of the kubeconfig."""
        ...

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        body: bytes | None,
        content_type: str,
        timeout_s: float,
        hold: Hold | None,
    ) -> bytes:
        """Send a request and return the body of its answer, or raise a ClusterError. Blocks."""
        ...


class KubernetesCluster:
    """A `datum_router.plugins.cluster.Cluster`. To be used by one trio run at a time.

    Methods raise `ConfigError` beside what the protocol says if the kubeconfig turns out to be unusable at first use.
    """

    def __init__(
        self,
        connect: Callable[[], Requests],
        *,
        role: str = "controller",
        instance: str = "",
        limits: WriteLimits = WriteLimits(),
        threads: int = MAX_WRITE_THREADS,
        clock: Callable[[], float] = trio.current_time,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a cluster; nothing is read or opened yet.

        Args:
            connect: Makes the client, at first use, in a worker thread.
            role: Who writes: the field manager is `router-<role>`.
            instance: Which one of them, for events; empty: the host's name.
            clock: Monotonic seconds of the event loop, for rates and intervals.
            wall_clock: Unix seconds, for what people read.
        """
        self._connect = connect
        self._client: Requests | None = None
        self._connecting = threading.Lock()
        self.manager = f"router-{role}"
        self._instance = instance
        self._limits = limits
        self._threads = threads
        self._clock = clock
        self._wall_clock = wall_clock
        self._book = events.EventBook(
            controller=f"router.datum.net/{self.manager}", instance=instance or socket.gethostname() or "unknown"
        )
        self._turn = trio.Lock()
        self._bucket: TokenBucket | None = None
        self._limiters: dict[str, trio.CapacityLimiter] = {}
        self._writes = self._delayed = self._folded = self._dropped = 0

    @property
    def namespace(self) -> str:
        """Return the namespace of the pod, or of the kubeconfig's context; `default` if there is none.

        Reads the configuration, and so blocks, if it is the first thing that is asked.
        """
        return self._connected().namespace

    @property
    def busy_threads(self) -> int:
        """Return how many requests run, those included whose call was cancelled."""
        return sum(limiter.borrowed_tokens for limiter in self._limiters.values())

    def counts(self) -> ClusterCounts:
        """Return what was written so far."""
        return ClusterCounts(
            writes=self._writes,
            writes_delayed=self._delayed,
            events_folded=self._folded,
            events_dropped=self._dropped,
        )

    # --- statuses --------------------------------------------------------------------------------------------------

    async def write_status(self, write: StatusWrite) -> None:
        """Apply a status."""
        version = write.version
        path = objects.object_path(write.gvk, write.plural, write.key, subresource="status")
        query = {"fieldManager": self.manager, "force": "true"}
        for attempt in range(MAX_STATUS_TRIES):
            if not version:
                version = await self._version_of(write)
            try:
                await self._write(
                    "PATCH",
                    path,
                    query=query,
                    body=objects.status_body(write, version),
                    content_type=objects.APPLY_PATCH,
                )
            except ClusterConflict:
                if attempt == MAX_STATUS_TRIES - 1:
                    raise
                version = ""
            except ClusterError as error:
                told = rejection_of(error)
                if told is error:
                    raise
                raise told from error
            else:
                return

    async def _version_of(self, write: StatusWrite) -> str:
        """Return the version of the object that a status is for, if it is still that object."""
        body = await self._send("GET", objects.object_path(write.gvk, write.plural, write.key))
        uid, version = _decoded(objects.identity_of, body, write.key)
        if uid != write.uid:
            raise ClusterConflict(
                f"{write.key}: found uid {uid}, expected {write.uid}: the object was made anew", status=409
            )
        return version

    # --- events ----------------------------------------------------------------------------------------------------

    async def publish(self, event: ObjectEvent) -> None:
        """Record an event."""
        decision = self._book.decide(event, now=self._clock(), at=self._wall_clock())
        if isinstance(decision, events.Folded):
            self._folded += 1
        elif isinstance(decision, events.Dropped):
            self._dropped += 1
        elif isinstance(decision, events.NewEvent):
            await self._create_event(event, decision)
        else:
            try:
                await self._write(
                    "PATCH",
                    _events_path(decision.namespace, decision.name),
                    body=decision.body,
                    content_type=events.MERGE_PATCH,
                )
            except ClusterNotFound:  # the API keeps events for an hour
                renewed = self._book.renew(event, now=self._clock(), at=self._wall_clock())
                await self._create_event(event, renewed)
            return
        await trio.lowlevel.checkpoint()

    async def _create_event(self, event: ObjectEvent, new: events.NewEvent) -> None:
        is_there = False
        try:
            await self._write("POST", _events_path(new.namespace), body=new.body)
            is_there = True
        finally:
            if not is_there:  # or not known to be: the next try is no repeat
                self._book.forget(event)

    # --- leases ----------------------------------------------------------------------------------------------------

    async def read_lease(self, namespace: str, name: str) -> LeaseRecord | None:
        """Return a lease, or None if it is not there."""
        key = _lease_key(namespace, name)
        try:
            body = await self._send("GET", _leases_path(namespace, name), is_lease=True)
        except ClusterNotFound as error:
            if objects.is_object_missing(error, key):
                return None
            raise
        return _decoded(leases.decode_lease, body, key)

    async def list_leases(self, namespace: str, *, labels: Mapping[str, str]) -> Sequence[LeaseRecord]:
        """Return the leases of a namespace that have these labels."""
        found: list[LeaseRecord] = []
        page = ""
        while True:
            query = leases.list_query(labels, page)
            body = await self._send("GET", _leases_path(namespace), query=query, is_lease=True)
            some, page = _decoded(leases.decode_page, body, _lease_key(namespace, ""))
            found += some
            if not page:
                return sorted(found, key=lambda lease: lease.name)

    async def write_lease(self, record: LeaseRecord) -> LeaseRecord:
        """Create a lease, or replace the version that was read."""
        key = _lease_key(record.namespace, record.name)
        self._writes += 1
        if not record.version:
            body = await self._send(
                "POST", _leases_path(record.namespace), body=leases.encode_new(record), is_lease=True
            )
            return _decoded(leases.decode_lease, body, key)
        try:
            body = await self._send(
                "PATCH",
                _leases_path(record.namespace, record.name),
                body=leases.encode_replacement(record),
                content_type=leases.JSON_PATCH,
                is_lease=True,
            )
        except ClusterNotFound as error:
            if objects.is_object_missing(error, key):
                raise ClusterConflict(f"{key}: it was deleted in between", status=404) from error
            raise
        return _decoded(leases.decode_lease, body, key)

    async def delete_lease(self, record: LeaseRecord) -> None:
        """Delete the version of a lease that was read."""
        self._writes += 1
        path = _leases_path(record.namespace, record.name)
        try:
            await self._send("DELETE", path, body=leases.encode_deletion(record), is_lease=True)
        except ClusterNotFound as error:
            if not objects.is_object_missing(error, _lease_key(record.namespace, record.name)):
                raise

    # --- objects ---------------------------------------------------------------------------------------------------

    async def get(self, gvk: GroupVersionKind, plural: str, key: ObjectKey) -> Mapping[str, object] | None:
        """Return an object as plain data."""
        try:
            body = await self._send("GET", objects.object_path(gvk, plural, key))
        except ClusterNotFound as error:
            if objects.is_object_missing(error, key):
                return None
            hint = " (kubectl apply -f manifests/crds/)" if gvk.group == GROUP else ""
            raise ClusterNotFound(
                f"the cluster does not know {plural} of {gvk.api_version}{hint}", status=404
            ) from error
        found: Mapping[str, object] = _decoded(msgspec.json.Decoder(dict[str, object]).decode, body, key)
        return found

    async def apply(
        self, raw: Mapping[str, object], *, plural: str, manager: str, is_forced: bool, is_dry_run: bool = False
    ) -> Applied:
        """Apply an object; looks at it before, to tell whether anything changed.

        A conflict about an object that is as it should be already is none: it is left as it is.
        """
        gvk, key = objects.identified(raw)
        before = await self.get(gvk, plural, key)
        query = {"fieldManager": manager, "force": "true" if is_forced else "false", "fieldValidation": "Strict"}
        if is_dry_run:
            query["dryRun"] = "All"
        try:
            body = await self._write(
                "PATCH",
                objects.object_path(gvk, plural, key),
                query=query,
                body=objects.encoded(raw, key),
                content_type=objects.APPLY_PATCH,
                is_dry_run=is_dry_run,
            )
        except ClusterConflict:
            # In a list that is owned as a whole, defaults that the API has filled in look like another value.
            if before is None or is_forced:
                raise
            tried = await self.apply(raw, plural=plural, manager=manager, is_forced=True, is_dry_run=True)
            if tried.is_changed:
                raise
            return tried
        except ClusterError as error:
            told = rejection_of(error)
            if told is error:
                raise
            raise told from error
        return _decoded(functools.partial(objects.applied_of, before=before, key=key), body, key)

    async def delete(self, gvk: GroupVersionKind, plural: str, key: ObjectKey) -> None:
        """Delete an object."""
        try:
            await self._write("DELETE", objects.object_path(gvk, plural, key), body=b"")
        except ClusterNotFound as error:
            if not objects.is_object_missing(error, key):
                raise

    # --- requests --------------------------------------------------------------------------------------------------

    async def _write(
        self,
        method: str,
        path: str,
        *,
        body: bytes,
        query: Mapping[str, str] = {},
        content_type: str = "application/json",
        is_dry_run: bool = False,
    ) -> bytes:
        """Wait until the rate limit allows it, and send a request that writes."""
        is_delayed = self._turn.locked()
        async with self._turn:  # first come, first served
            if self._bucket is None:
                self._bucket = TokenBucket(rate=self._limits.qps, burst=self._limits.burst)
            while (wait_s := self._bucket.take(self._clock())) > 0:
                is_delayed = True
                await trio.sleep(wait_s)
        self._delayed += is_delayed
        if not is_dry_run:
            self._writes += 1
        return await self._send(method, path, query=query, body=body, content_type=content_type)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] = {},
        body: bytes | None = None,
        content_type: str = "application/json",
        is_lease: bool = False,
    ) -> bytes:
        def send(hold: Hold) -> bytes:
            return self._connected().request(
                method,
                path,
                query=query,
                body=body,
                content_type=content_type,
                timeout_s=LEASE_TIMEOUT_S if is_lease else REQUEST_TIMEOUT_S,
                hold=hold,
            )

        return await in_thread(send, self._limiter(is_lease))

    def _limiter(self, is_lease: bool) -> trio.CapacityLimiter:
        name, size = ("leases", MAX_LEASE_THREADS) if is_lease else ("others", self._threads)
        if name not in self._limiters:  # not before trio runs
            self._limiters[name] = trio.CapacityLimiter(size)
        return self._limiters[name]

    def _connected(self) -> Requests:
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client


def _events_path(namespace: str, name: str = "") -> str:
    return objects.path_of("events.k8s.io", "v1", "events", namespace=namespace, name=name)


def _leases_path(namespace: str, name: str = "") -> str:
    return objects.path_of("coordination.k8s.io", "v1", "leases", namespace=namespace, name=name)


def _lease_key(namespace: str, name: str) -> ObjectKey:
    return ObjectKey(kind="Lease", namespace=namespace, name=name)


def _decoded(decode: Callable[[bytes], T], body: bytes, key: ObjectKey) -> T:
    """Return what an answer holds; one that is nothing of the kind came from no API server."""
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ClusterUnavailable(f"{key}: the answer is not what the API gives: {error}") from error


def make_cluster(settings: Mapping[str, str]) -> KubernetesCluster:
    """Make the cluster that settings describe: those of `client.make_client`, `writeQps` and `writeBurst`.

    Raises:
        ConfigError: One of the latter is no number of the right size. The kubeconfig is read at first use.
    """
    return KubernetesCluster(
        functools.partial(make_client, settings),
        role=settings.get("role", "") or "controller",
        limits=write_limits(settings),
    )
