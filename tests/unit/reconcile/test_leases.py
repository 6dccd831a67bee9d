from __future__ import annotations

import msgspec

from datum_router.manifests.lease import Lease, LeaseSpec, lease_content
from datum_router.manifests.meta import ObjectMeta
from datum_router.reconcile.leases import record_of, reports_in
from datum_router.reconcile.reports import GATEWAY_LABELS

TEXT = b"""{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "gateway-a",
"namespace": "datum-router", "resourceVersion": "7", "labels": {"router.datum.net/component": "gateway"},
"annotations": {"router.datum.net/report": "{}"}},
"spec": {"holderIdentity": "a", "leaseDurationSeconds": 300, "renewTime": "2023-11-14T22:13:20.500000Z",
"acquireTime": "2023-11-14T22:13:20.000000Z", "leaseTransitions": 2}}"""


class View:
    def __init__(self, *leases: Lease) -> None:
        self._leases = leases

    def get(self, kind: str, namespace: str, name: str) -> None:
        return None

    def list(self, kind: str) -> tuple[Lease, ...]:
        return self._leases if kind == "Lease" else ()


def lease(name: str, **labels: str) -> Lease:
    return Lease(
        api_version="coordination.k8s.io/v1", kind="Lease", metadata=ObjectMeta(name=name, labels=labels or None)
    )


def test_a_lease_of_the_api_is_a_record() -> None:
    read = msgspec.json.decode(TEXT, type=Lease)
    record = record_of(read.metadata, read.spec)
    assert (record.namespace, record.name, record.holder, record.version) == ("datum-router", "gateway-a", "a", "7")
    assert (record.duration_s, record.transitions) == (300, 2)
    assert (record.acquired_at, record.renewed_at) == (1_700_000_000.0, 1_700_000_000.5)
    assert record.annotations == {"router.datum.net/report": "{}"}


def test_what_a_lease_leaves_out_is_empty() -> None:
    bare = lease("a")
    record = record_of(bare.metadata, bare.spec)
    assert (record.holder, record.duration_s, record.renewed_at) == ("", 0, 0.0)
    odd = msgspec.structs.replace(
        lease("a"), spec=LeaseSpec(renew_time="yesterday", acquire_time="2023-11-14T22:13:20")
    )
    record = record_of(odd.metadata, odd.spec)
    assert (record.renewed_at, record.acquired_at) == (0.0, 0.0)


def test_only_gateways_report() -> None:
    found = reports_in(View(lease("a", **GATEWAY_LABELS), lease("router-controller"), lease("b", **GATEWAY_LABELS)))
    assert [record.name for record in found] == ["a", "b"]


def test_a_lease_that_changes_calls_for_no_compiling() -> None:
    assert lease_content(lease("a")) == lease_content(lease("a", **GATEWAY_LABELS))
