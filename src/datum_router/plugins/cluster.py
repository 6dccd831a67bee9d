"""What a process asks of the cluster beside reading manifests: status, events, leases, and applying objects.

One protocol and not three, because all of it is one connection with one identity, one rate limit and one way to fail
(`docs/explanation/adr/0005-one-hook-for-the-cluster.md`). Reading is a `Source`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from datum_router.manifests.meta import GroupVersionKind, ObjectKey, OwnerReference


class StatusWrite(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The whole status that one controller wants an object to have.

    Attributes:
        uid: Of the object that was looked at; one of the same name made anew in between is left alone.
        status: Plain data, camelCase; everything that this writer owns, since what it leaves out is taken away.
        version: The API's version of the object that was looked at, if it is known: spares looking at it again. Older
            than what is there is no error.
    """

    gvk: GroupVersionKind
    plural: str
    key: ObjectKey
    uid: str
    status: Mapping[str, object]
    version: str = ""


class ObjectEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Something a user should see in `kubectl describe` and `kubectl get events`.

    Attributes:
        reason: CamelCase, a `Reason`.
        note: For people, at most 1024 characters; never holds secrets.
    """

    gvk: GroupVersionKind
    key: ObjectKey
    uid: str
    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A coordination.k8s.io/v1 Lease.

    Attributes:
        holder: Identity of who holds it; empty if nobody does.
        duration_s: For how long after a renewal it is held.
        acquired_at, renewed_at: Unix seconds by the holder's clock: for people. Whether a lease has run out is
            judged by when its record was last seen to change.
        transitions: How often it changed hands.
        owners: Objects that the lease is deleted with, such as its holder's Pod.
        version: The API's version of the record that was read; empty for one that is not there yet.
    """

    namespace: str
    name: str
    holder: str = ""
    duration_s: int = 15
    acquired_at: float = 0.0
    renewed_at: float = 0.0
    transitions: int = 0
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    owners: tuple[OwnerReference, ...] = ()
    version: str = ""


class Applied(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the API made of an object that was applied."""

    key: ObjectKey
    uid: str
    generation: int
    version: str
    is_changed: bool


class ClusterCounts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What was written since the cluster was made: for metrics and for tests of what is written at rest.

    Attributes:
        writes: Requests that write, dry runs aside, whether or not the API took them.
        writes_delayed: Those of them that had to wait for the rate limit.
        events_folded: Repeats that were only counted, since the event they repeat was written within the last minute.
        events_dropped: Events of objects that had too many.
    """

    writes: int = 0
    writes_delayed: int = 0
    events_folded: int = 0
    events_dropped: int = 0


class Cluster(Protocol):
    """The cluster, for those who write to it. Every method may be cancelled; a write may then have happened or not.

    Raises:
        ClusterError: For every call; see its subclasses. Nothing is retried in here but for a connection that was
            closed while it was idle, and nothing is written more often than the rate limit allows.
    """

    @property
    def namespace(self) -> str:
        """Return the namespace this process lives in, or the one its kubeconfig names; `default` if neither does."""
        ...

    def counts(self) -> ClusterCounts:
        """Return what was written so far."""
        ...

    async def write_status(self, write: StatusWrite) -> None:
        """Apply a status (server-side apply to the status subresource).

        Raises:
            ClusterNotFound: There is no such object.
            ClusterConflict: There is one, but not the one of `uid`.
            ClusterRejected: The kind's schema refuses the status.
        """
        ...

    async def publish(self, event: ObjectEvent) -> None:
        """Record an event; equal ones within some minutes are one event whose count grows.

        Beyond what one object may have, events are dropped without an error.
        """
        ...

    async def read_lease(self, namespace: str, name: str) -> LeaseRecord | None:
        """Return a lease, or None if it is not there."""
        ...

    async def list_leases(self, namespace: str, *, labels: Mapping[str, str]) -> Sequence[LeaseRecord]:
        """Return the leases of a namespace that have these labels, in order of their names."""
        ...

    async def write_lease(self, record: LeaseRecord) -> LeaseRecord:
        """Create a lease (`version` empty) or replace the very version that was read; return what is there now.

        Leases wait neither for the rate limit nor behind other writes: a leader that has much to write keeps leading.

        Raises:
            ClusterConflict: Somebody else wrote, created or deleted it in between.
        """
        ...

    async def delete_lease(self, record: LeaseRecord) -> None:
        """Delete the version that was read; one that is gone already is no error.

        Raises:
            ClusterConflict: Somebody else wrote it in between.
        """
        ...

    async def get(self, gvk: GroupVersionKind, plural: str, key: ObjectKey) -> Mapping[str, object] | None:
        """Return an object as plain data, or None if it is not there; an empty namespace means cluster-wide.

        Raises:
            ClusterNotFound: The cluster has no such kind.
        """
        ...

    async def apply(
        self, raw: Mapping[str, object], *, plural: str, manager: str, is_forced: bool, is_dry_run: bool = False
    ) -> Applied:
        """Apply an object (server-side apply, strict about unknown fields); its status is left as it is.

        Args:
            raw: With `apiVersion`, `kind` and `metadata.name`; no namespace means that the kind is cluster-wide.
            is_forced: Take fields over that other managers own, and that say something else.

        Raises:
            ClusterConflict: Another manager owns a field that is to change; the message names both.
            ClusterNotFound: The cluster has no such kind, or no such namespace.
            ClusterRejected: The API refused what the object says; `causes` names the fields.
        """
        ...

    async def delete(self, gvk: GroupVersionKind, plural: str, key: ObjectKey) -> None:
        """Delete an object; one that is gone already is no error.

        Raises:
            ClusterNotFound: The cluster has no such kind.
        """
        ...
