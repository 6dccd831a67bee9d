"""Leases (coordination.k8s.io/v1), as far as the router reads them as manifests: gateways report by them."""

from __future__ import annotations

import datetime

from msgspec import Struct

from datum_router.manifests.meta import ObjectMeta


class LeaseSpec(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, gc=False):
    """Who holds a lease, and for how long; times are RFC 3339 by the holder's clock."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(Struct, frozen=True, kw_only=True, rename="camel"):
    """A lease."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: LeaseSpec = LeaseSpec()


def unix_time(text: str | None) -> float:
    """Return an RFC 3339 time as Unix seconds; 0 for none and for what is no time."""
    if not text:
        return 0.0
    try:
        found = datetime.datetime.fromisoformat(text)
        return found.timestamp() if found.tzinfo is not None else 0.0
    except (ValueError, OverflowError):
        return 0.0


def lease_content(_manifest: Lease) -> object:
    """Return what of a lease calls for compiling when it changes: nothing, though views give the newest one."""
    return None
