"""Gateways' reports among the manifests of a view. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from datum_router.manifests.lease import Lease
from datum_router.plugins.cluster import LeaseRecord
from datum_router.plugins.protocols import ManifestView
from datum_router.reconcile.reports import COMPONENT_GATEWAY, COMPONENT_LABEL

LEASE_KIND = "Lease"


def reports_in(view: ManifestView) -> Sequence[LeaseRecord]:
    """Return the records by which gateways report, in order of namespace and name."""
    return [
        record_of(lease)
        for lease in view.list(LEASE_KIND)
        if isinstance(lease, Lease) and (lease.metadata.labels or {}).get(COMPONENT_LABEL) == COMPONENT_GATEWAY
    ]


def record_of(lease: Lease) -> LeaseRecord:
    """Return a lease as a record; what it leaves out is empty or 0."""
    spec = lease.spec
    return LeaseRecord(
        namespace=lease.metadata.namespace,
        name=lease.metadata.name,
        holder=spec.holder_identity or "",
        duration_s=spec.lease_duration_seconds or 0,
        acquired_at=_unix_time(spec.acquire_time),
        renewed_at=_unix_time(spec.renew_time),
        transitions=spec.lease_transitions or 0,
        labels=lease.metadata.labels or {},
        annotations=lease.metadata.annotations or {},
        version=lease.metadata.resource_version,
    )


def _unix_time(text: str | None) -> float:
    if not text:
        return 0.0
    try:
        moment = datetime.datetime.fromisoformat(text)
        return moment.timestamp() if moment.tzinfo is not None else 0.0
    except (ValueError, OverflowError):
        return 0.0
