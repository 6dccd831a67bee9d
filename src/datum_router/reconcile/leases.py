"""Gateways' reports among the manifests of a view. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.manifests.lease import Lease, LeaseSpec, unix_time
from datum_router.manifests.meta import ObjectMeta
from datum_router.plugins.cluster import LeaseRecord
from datum_router.plugins.protocols import ManifestView
from datum_router.reconcile.reports import COMPONENT_GATEWAY, COMPONENT_LABEL

LEASE_KIND = "Lease"


def reports_in(view: ManifestView) -> Sequence[LeaseRecord]:
    """Return the records by which gateways report, in order of namespace and name."""
    return [
        record_of(lease.metadata, lease.spec)
        for lease in view.list(LEASE_KIND)
        if isinstance(lease, Lease) and (lease.metadata.labels or {}).get(COMPONENT_LABEL) == COMPONENT_GATEWAY
    ]


def record_of(metadata: ObjectMeta, spec: LeaseSpec) -> LeaseRecord:
    """Return a lease as a record; what it leaves out is empty or 0."""
    return LeaseRecord(
        namespace=metadata.namespace,
        name=metadata.name,
        holder=spec.holder_identity or "",
        duration_s=spec.lease_duration_seconds or 0,
        acquired_at=unix_time(spec.acquire_time),
        renewed_at=unix_time(spec.renew_time),
        transitions=spec.lease_transitions or 0,
        labels=metadata.labels or {},
        annotations=metadata.annotations or {},
        owners=metadata.owner_references,
        version=metadata.resource_version,
    )
