"""Leases as the API writes them: coordination.k8s.io/v1 to `LeaseRecord` and back. Pure.

A lease is replaced by a JSON patch that names the version it replaces (409 if that is not there any more), and not by
PUT: the API makes an object anew from a PUT of one that was deleted in between, and a PUT takes away what a record does
not hold, such as finalizers.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import msgspec

from datum_router.manifests.lease import LeaseSpec
from datum_router.manifests.meta import ObjectMeta
from datum_router.plugins.cluster import LeaseRecord
from datum_router.reconcile.leases import record_of

API_VERSION = "coordination.k8s.io/v1"
JSON_PATCH = "application/json-patch+json"
PAGE = 500
"""How many leases one request lists."""


class _Lease(msgspec.Struct):
    metadata: ObjectMeta
    spec: LeaseSpec | None = None


class _Page(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    items: list[_Lease] | None = None
    metadata: _Page = msgspec.field(default_factory=_Page)


_ONE = msgspec.json.Decoder(_Lease)
_MANY = msgspec.json.Decoder(_List)


def micro_time(at: float) -> str:
    """Return Unix seconds as the API's MicroTime: RFC 3339, UTC, microseconds."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def encode_new(record: LeaseRecord) -> bytes:
    """Return the body that creates a lease."""
    return msgspec.json.encode(
        {
            "apiVersion": API_VERSION,
            "kind": "Lease",
            "metadata": {
                "name": record.name,
                "namespace": record.namespace,
                "labels": record.labels,
                "annotations": record.annotations,
                "ownerReferences": _owners_of(record),
            },
            "spec": _spec_of(record),
        }
    )


def encode_replacement(record: LeaseRecord) -> bytes:
    """Return the JSON patch (RFC 6902) that replaces the version of a lease that was read."""
    return msgspec.json.encode(
        [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": record.version},
            {"op": "add", "path": "/metadata/labels", "value": record.labels},
            {"op": "add", "path": "/metadata/annotations", "value": record.annotations},
            {"op": "add", "path": "/metadata/ownerReferences", "value": _owners_of(record)},
            {"op": "add", "path": "/spec", "value": _spec_of(record)},
        ]
    )


def encode_deletion(record: LeaseRecord) -> bytes:
    """Return the options that delete no other version than the one that was read."""
    return msgspec.json.encode(
        {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"resourceVersion": record.version}}
    )


def decode_lease(body: bytes) -> LeaseRecord:
    """Return the lease in an answer; what it leaves out is empty or 0.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    return _record(_ONE.decode(body))


def decode_page(body: bytes) -> tuple[list[LeaseRecord], str]:
    """Return the leases of one page of a list, and where the next one begins; empty if this was the last.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    found = _MANY.decode(body)
    return [_record(lease) for lease in found.items or ()], found.metadata.continue_


def list_query(labels: Mapping[str, str], page: str) -> dict[str, str]:
    """Return the query of a list, from the start or from where a page before ended."""
    query = {"limit": str(PAGE)}
    if labels:
        query["labelSelector"] = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
    if page:
        query["continue"] = page
    return query


def _owners_of(record: LeaseRecord) -> list[dict[str, object]]:
    """Return the owners without what they leave open."""
    return [
        {name: value for name, value in msgspec.to_builtins(owner).items() if value not in (None, "")}
        for owner in record.owners
    ]


def _spec_of(record: LeaseRecord) -> LeaseSpec:
    """Return the spec without what is empty: the API takes no duration of 0 for example."""
    return LeaseSpec(
        holder_identity=record.holder or None,
        lease_duration_seconds=record.duration_s or None,
        acquire_time=micro_time(record.acquired_at) if record.acquired_at else None,
        renew_time=micro_time(record.renewed_at) if record.renewed_at else None,
        lease_transitions=record.transitions or None,
    )


def _record(lease: _Lease) -> LeaseRecord:
    return record_of(lease.metadata, lease.spec or LeaseSpec())
