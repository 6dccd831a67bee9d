import msgspec
import pytest

from datum_router.manifests.meta import ObjectMeta, ObjectRef
from datum_router.manifests.referencegrant import GrantFrom, GrantTo, ReferenceGrant, ReferenceGrantSpec
from datum_router.manifests.vpcservice import VPCService, VPCServiceSpec
from datum_router.plugins.builtin import datum_router_resource_kinds
from datum_router.reasons import Reason
from datum_router.testing.view import FixedView
from datum_router_galactic.kinds import (
    VPC,
    Interface,
    ReadyStatus,
    VPCAttachment,
    VPCAttachmentSpec,
    VPCReference,
    VPCSpec,
    validate_attachment,
)
from datum_router_galactic.resolver import AttachmentResolver, host_part


def service(attachment: str | None = "prod-vpc", **fields: object) -> VPCService:
    ref = ObjectRef(name=attachment) if attachment else None
    spec = msgspec.structs.replace(VPCServiceSpec(port=8080, vpc_attachment_ref=ref), **fields)
    metadata = ObjectMeta(name="backend-api", namespace="production")
    return VPCService(api_version="router.datum.net/v1alpha1", kind="VPCService", metadata=metadata, spec=spec)


def attachment(*addresses: str, ready: bool = True, namespace: str = "production") -> VPCAttachment:
    return VPCAttachment(
        api_version="galactic.datumapis.com/v1alpha",
        kind="VPCAttachment",
        metadata=ObjectMeta(name="prod-vpc", namespace=namespace),
        spec=VPCAttachmentSpec(
            vpc=VPCReference(name="shop", namespace="production"), interface=Interface(addresses=addresses)
        ),
        status=ReadyStatus(ready=ready, identifier="002a"),
    )


def vpc(*, ready: bool = True) -> VPC:
    return VPC(
        api_version="galactic.datumapis.com/v1alpha",
        kind="VPC",
        metadata=ObjectMeta(name="shop", namespace="production"),
        spec=VPCSpec(networks=("10.40.0.0/16",)),
        status=ReadyStatus(ready=ready),
    )


def test_endpoints_are_the_host_parts_of_the_addresses_at_the_target_port() -> None:
    view = FixedView(attachment("10.40.7.2/24", "fd40:10:0:7::2/64"), vpc())
    found = AttachmentResolver().resolve(service(target_port=9000), view)
    assert found is not None
    assert [item.key for item in found.endpoints] == [
        "10.40.7.2:9000@production/shop",
        "[fd40:10:0:7::2]:9000@production/shop",
    ]
    assert {item.vpc for item in found.endpoints} == {"production/shop"}
    assert all(item.is_serving and item.origin == "attachment" for item in found.endpoints)
    assert not found.problems


def test_a_service_without_attachment_is_none_of_its_business() -> None:
    assert AttachmentResolver().resolve(service(None), FixedView()) is None


def test_a_missing_attachment_is_a_reference_problem_that_says_what_is_missing() -> None:
    found = AttachmentResolver().resolve(service("prod-vcp"), FixedView(attachment("10.0.0.1/8")))
    assert found is not None
    assert not found.endpoints
    (problem,) = found.problems
    assert problem.reason is Reason.ATTACHMENT_NOT_FOUND
    assert problem.is_reference
    assert str(problem.missing) == "vpcattachment production/prod-vcp"


def test_the_default_namespace_is_the_services_own() -> None:
    found = AttachmentResolver().resolve(service(), FixedView(attachment("10.0.0.1/8", namespace="default")))
    assert found is not None
    assert found.problems[0].reason is Reason.ATTACHMENT_NOT_FOUND


def grant(*to: GrantTo, namespace: str = "network", source: str = "production") -> ReferenceGrant:
    grants = (GrantFrom(group="router.datum.net", kind="VPCService", namespace=source),)
    return ReferenceGrant(
        api_version="gateway.networking.k8s.io/v1",
        kind="ReferenceGrant",
        metadata=ObjectMeta(name="services", namespace=namespace),
        spec=ReferenceGrantSpec(froms=grants, to=to),
    )


ATTACHMENTS = GrantTo(group="galactic.datumapis.com", kind="VPCAttachment")


@pytest.mark.parametrize(
    ("grants", "is_permitted"),
    [
        ((), False),
        ((grant(ATTACHMENTS),), True),
        ((grant(ATTACHMENTS, namespace="production"),), False),
        ((grant(ATTACHMENTS, source="default"),), False),
        ((grant(GrantTo(kind="VPCAttachment")),), False),
    ],
    ids=["none", "all attachments", "of another namespace", "to another namespace", "of another group"],
)
def test_an_attachment_of_another_namespace_needs_its_consent(
    grants: tuple[ReferenceGrant, ...], is_permitted: bool
) -> None:
    there = attachment("10.0.0.1/8", namespace="network")
    view = FixedView(there, vpc(), *grants, kinds=datum_router_resource_kinds())
    ref = ObjectRef(name="prod-vpc", namespace="network")
    found = AttachmentResolver().resolve(service(vpc_attachment_ref=ref), view)
    assert found is not None
    assert [item.address for item in found.endpoints] == (["10.0.0.1"] if is_permitted else [])
    assert [item.reason for item in found.problems] == ([] if is_permitted else [Reason.REF_NOT_PERMITTED])
    if not is_permitted:
        assert not found.problems[0].is_reference
        assert "add a ReferenceGrant to namespace network" in found.problems[0].hint


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (FixedView(attachment("10.0.0.1/8", ready=False), vpc()), Reason.ATTACHMENT_NOT_READY),
        (FixedView(attachment("10.0.0.1/8"), vpc(ready=False)), Reason.VPC_NOT_READY),
    ],
    ids=["attachment", "vpc"],
)
def test_what_is_not_ready_gives_endpoints_that_do_not_serve(view: FixedView, reason: Reason) -> None:
    found = AttachmentResolver().resolve(service(), view)
    assert found is not None
    assert [item.is_serving for item in found.endpoints] == [False]
    assert [item.reason for item in found.problems] == [reason]


def test_a_bad_address_is_reported_and_the_others_are_used() -> None:
    found = AttachmentResolver().resolve(service(), FixedView(attachment("10.0.0.1/8", "nonsense"), vpc()))
    assert found is not None
    assert [item.address for item in found.endpoints] == ["10.0.0.1"]
    assert "nonsense" in found.problems[0].message


@pytest.mark.parametrize(
    ("text", "address"),
    [("10.1.1.1/24", "10.1.1.1"), ("fd40::0:1/64", "fd40::1"), ("10.1.1.1", "10.1.1.1"), ("10.1.1.1/33", None)],
)
def test_prefix_lengths_are_stripped(text: str, address: str | None) -> None:
    assert host_part(text) == address


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (VPCReference(), "names no VPC"),
        (VPCReference(name="shop/other", namespace="production"), "names the VPC 'shop/other'"),
        (VPCReference(name="v" * 254), "names the VPC 'vvv"),
        (VPCReference(name="a\nb"), "names the VPC 'a\\nb'"),
        (VPCReference(name="shop", namespace="a/b"), "names a VPC of namespace 'a/b'"),
    ],
)
def test_a_vpc_that_no_object_can_be_called_is_none(reference: VPCReference, said: str) -> None:
    """The published schema takes any text: it must neither stand for another VPC nor be carried on at any length."""
    named = attachment("10.40.7.2/24")
    named = msgspec.structs.replace(named, spec=msgspec.structs.replace(named.spec, vpc=reference))
    found = AttachmentResolver().resolve(service(), FixedView(named, vpc()))
    assert found is not None
    assert [(one.reason, said in one.message, len(one.message) < 400) for one in found.problems] == [
        (Reason.VPC_NOT_FOUND, True, True)
    ]
    assert [(one.vpc, one.is_serving) for one in found.endpoints] == [("", False)]
    assert said in next(one.message for one in validate_attachment(named) if one.path == "spec.vpc.name")
