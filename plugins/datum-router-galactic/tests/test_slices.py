"""The second generation's EndpointSlices, by their published shape: these tests need no plugin that knows the kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from datum_router.manifests.indexes import BY_TENANT, TENANT_LABEL, full_name
from datum_router.manifests.meta import ObjectMeta, ObjectRef
from datum_router.manifests.parts import LabelSelector
from datum_router.manifests.table import ResourceKind
from datum_router.manifests.vpcservice import VPCService, VPCServiceSpec
from datum_router.plugins.builtin import datum_router_resource_kinds as builtin_kinds
from datum_router.plugins.protocols import Resolution
from datum_router.reasons import Reason
from datum_router.testing.view import FixedView
from datum_router_galactic.kinds import VPC, ReadyStatus, VPCSpec
from datum_router_galactic.plugin import datum_router_resource_kinds
from datum_router_galactic.resolver import AttachmentResolver


class Shape(msgspec.Struct, kw_only=True):
    ready: bool | None = None
    kind: str = ""
    name: str = ""
    namespace: str = ""
    addresses: tuple[str, ...] = ()
    conditions: Any = None
    target_ref: Any = None


class Item(msgspec.Struct, kw_only=True):
    kind: str
    metadata: ObjectMeta
    endpoints: tuple[Shape, ...] | None = None


def tenants(item: Item) -> Sequence[str]:
    tenant = (item.metadata.labels or {}).get(TENANT_LABEL)
    there = item.metadata.namespace
    return (full_name(there, ""), full_name(there, tenant)) if tenant else ()


KINDS = [
    *datum_router_resource_kinds(),
    *builtin_kinds(),
    ResourceKind(
        group="discovery.k8s.io",
        version="v1",
        kind="EndpointSlice",
        plural="endpointslices",
        struct=Item,
        indexes={BY_TENANT: tenants},
    ),
]


def pod_slice(name: str, *addresses: str, tenant: str = "jU-G", ready: bool | None = True, **pod: str) -> Item:
    ref = Shape(kind="Pod", name=name, namespace=pod.get("namespace", "prod"))
    found = tuple(Shape(addresses=(one,), conditions=Shape(ready=ready), target_ref=ref) for one in addresses)
    labels = {TENANT_LABEL: tenant} if tenant else {}
    return Item(kind="EndpointSlice", metadata=ObjectMeta(name=name, namespace="prod", labels=labels), endpoints=found)


def vpc(ready: bool = True, identifier: str = "0000000004d2") -> VPC:
    return VPC(
        api_version="galactic.datumapis.com/v1alpha",
        kind="VPC",
        metadata=ObjectMeta(name="shop", namespace="network"),
        spec=VPCSpec(networks=("fd40::/16",)),
        status=ReadyStatus(ready=ready, identifier=identifier),
    )


def resolve(*items: msgspec.Struct, name: str = "", selector: dict[str, str] | None = None) -> Resolution:
    spec = VPCServiceSpec(
        port=80,
        target_port=8080,
        vpc_attachment_ref=ObjectRef(name=name) if name else None,
        vpc_attachment_selector=None if selector is None else LabelSelector(match_labels=selector),
    )
    metadata = ObjectMeta(name="api", namespace="prod")
    service = VPCService(api_version="router.datum.net/v1alpha1", kind="VPCService", metadata=metadata, spec=spec)
    found = AttachmentResolver().resolve(service, FixedView(*items, kinds=KINDS))
    assert found is not None
    return found


def keys(found: Resolution) -> list[str]:
    return [str(one.key) for one in found.endpoints if one.is_serving]


def test_the_name_of_a_pod_or_of_a_tenant_leads_to_its_address_at_the_services_port() -> None:
    items = (pod_slice("backend", "fd40::2"), pod_slice("other", "fd40::3", tenant="jU-H"))
    assert keys(resolve(*items, name="backend")) == ["[fd40::2]:8080@/jU"]
    assert keys(resolve(*items, name="4d2-2a")) == ["[fd40::2]:8080@/jU"]
    assert keys(resolve(*items, name="4d2-2b")) == ["[fd40::3]:8080@/jU"]


@pytest.mark.parametrize("name", ["4d2-2c", "nobody", "untold"])
def test_a_name_that_no_slice_has_is_not_found(name: str) -> None:
    found = resolve(pod_slice("backend", "fd40::2"), pod_slice("untold", "fd40::4", tenant=""), name=name)
    assert [one.reason for one in found.problems] == [Reason.ATTACHMENT_NOT_FOUND]


def test_the_vpc_of_the_identifier_is_the_endpoints_vpc() -> None:
    assert keys(resolve(pod_slice("backend", "fd40::2"), vpc(), name="backend")) == ["[fd40::2]:8080@network/shop"]
    another = vpc(identifier="0000000004d3")
    assert keys(resolve(pod_slice("backend", "fd40::2"), another, name="backend")) == ["[fd40::2]:8080@/jU"]
    late = resolve(pod_slice("backend", "fd40::2"), vpc(ready=False), name="backend")
    assert keys(late) == []
    assert [one.reason for one in late.problems] == [Reason.VPC_NOT_READY]


def test_a_selector_sees_labels_of_slices_and_of_their_pods() -> None:
    pods = [
        Item(kind="Pod", metadata=ObjectMeta(name=name, namespace="prod", labels={"app": app}))
        for name, app in (("a", "api"), ("b", "web"))
    ]
    items = (*pods, pod_slice("a", "fd40::1"), pod_slice("b", "fd40::2", tenant="jU-H"), pod_slice("c", "fd40::3"))
    assert keys(resolve(*items, selector={"app": "api"})) == ["[fd40::1]:8080@/jU"]
    assert keys(resolve(*items, selector={TENANT_LABEL: "jU-H"})) == ["[fd40::2]:8080@/jU"]
    assert keys(resolve(*items, selector={TENANT_LABEL: "ju-h"})) == []
    assert len(resolve(*items, selector={}).endpoints) == 3


@pytest.mark.parametrize("tenant", ["jU", "-G", "0-G", "jU-h31", "j.U-G"])
def test_a_tenant_id_that_is_none_gives_nothing_and_is_reported(tenant: str) -> None:
    found = resolve(pod_slice("backend", "fd40::2", tenant=tenant), name="backend")
    assert not found.endpoints
    assert [one.reason for one in found.problems] == [Reason.INVALID_IDENTIFIER]


def test_not_ready_null_and_another_namespaces_pod() -> None:
    assert keys(resolve(pod_slice("backend", "fd40::2", ready=False), name="backend")) == []
    assert keys(resolve(pod_slice("backend", "fd40::2", ready=None), name="backend")) == ["[fd40::2]:8080@/jU"]
    foreign = resolve(pod_slice("backend", "fd40::2", namespace="dev"), name="backend")
    assert not foreign.endpoints
    assert [one.reason for one in foreign.problems] == [Reason.NO_VPC_ADDRESS]


def test_bad_addresses_are_left_out() -> None:
    found = resolve(pod_slice("backend", "fd40::2", "fd40::3/64", "nonsense"), name="backend")
    assert keys(found) == ["[fd40::2]:8080@/jU"]
    assert [one.reason for one in found.problems] == [Reason.INVALID_ADDRESS] * 2
