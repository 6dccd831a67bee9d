"""From one endpoint of a slice to the addresses that the router dials, and why there may be none. Pure, no I/O.

A Service's slices hold cluster addresses of pods, but the router must reach VPC addresses. With `addressSource:
Attachment` (the default) an endpoint that stands for a pod is therefore looked up:

1. The pod's annotation names a VPCAttachment: the attachment's addresses. One that is not ready gives its addresses,
   too, but they do not serve.
2. Galactic's second generation, without VPCAttachments, writes an EndpointSlice of the pod's own name with the label
   `galactic.datum.net/tenant-id`: the addresses that it lists.
3. The pod is annotated, but neither is there: no address. Its cluster address may belong to something else in the
   VPC, or be out of reach, so it is not a second best.
4. The pod is not annotated: it is in no VPC, and its cluster address is used.

A pod that no source tells of is left out as in 3: whether it has an attachment is not known. What stands for no pod of
the slice's namespace (endpoints written by hand) keeps the address that the slice states.
"""

from __future__ import annotations

import ipaddress

import msgspec

from datum_router.manifests.indexes import BY_VPC_ID, TENANT_LABEL, full_name, nameless_vpc
from datum_router.manifests.labels import selects
from datum_router.manifests.location import LOCATION_ANNOTATION
from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.rules import check_address
from datum_router.manifests.servicebinding import AddressFamily, AddressSource, ServiceBindingSpec
from datum_router.plugins.protocols import ManifestView
from datum_router.reasons import Reason
from datum_router_kubernetes.kinds import EndpointSlice, Pod, SliceEndpoint, attachment_name

MAX_NAMED_SHORTFALLS = 3
"""Endpoints that a message about missing ones describes; the others are counted."""


class Found(msgspec.Struct, frozen=True, gc=False):
    """Addresses of one endpoint.

    Attributes:
        addresses: Canonical.
        is_reachable: False while what leads to them is not ready.
        vpc: The VPC that they belong to (see `Endpoint.vpc`).
        namespace, location: The Location that they are at, as seen from a namespace; empty if none is named.
    """

    addresses: tuple[str, ...] = ()
    is_reachable: bool = True
    vpc: str = ""
    namespace: str = ""
    location: str = ""


NOTHING = Found()


class Shortfalls:
    """What is wrong with endpoints of one binding, by reason."""

    __slots__ = ("_by_reason",)

    def __init__(self) -> None:
        self._by_reason: dict[Reason, dict[str, None]] = {}

    def add(self, reason: Reason, text: str) -> None:
        """Take one; the same text counts once."""
        self._by_reason.setdefault(reason, {})[text] = None

    def messages(self) -> list[tuple[Reason, str]]:
        """Return one message a reason, of bounded length."""
        found = []
        for reason, texts in self._by_reason.items():
            named = list(texts)[:MAX_NAMED_SHORTFALLS]
            more = len(texts) - len(named)
            found.append((reason, "; ".join(named) + (f"; and {more} more" if more else "")))
        return found


class AddressFinder:
    """Find the addresses of endpoints as one binding wants them."""

    __slots__ = ("_family", "_pod_selector", "_source", "_view", "shortfalls")

    def __init__(self, spec: ServiceBindingSpec, view: ManifestView) -> None:
        self._source = spec.address_source
        self._family = spec.address_family
        self._pod_selector = spec.pod_selector
        self._view = view
        self.shortfalls = Shortfalls()

    def find(self, item: EndpointSlice, endpoint: SliceEndpoint) -> Found:
        """Return the addresses of one endpoint of `item`; none if it is not wanted or cannot be reached."""
        written = Found(self._usable(endpoint.addresses[:1], f"endpointslice {_name(item)}"))
        pod_name = _pod_name(item, endpoint)
        if pod_name is None:  # no pod, no labels: a selector of pods selects nothing of it
            return written if self._pod_selector is None else NOTHING
        is_attached = self._source is AddressSource.ATTACHMENT
        if self._pod_selector is None and not is_attached:
            return written
        namespace = item.metadata.namespace
        pod = self._view.get("Pod", namespace, pod_name)
        if not isinstance(pod, Pod):
            if endpoint.conditions.terminating is not True:  # a pod may go before the slice follows
                self._miss(f"pod {namespace}/{pod_name} is not there, so its attachment and labels are not known")
            return NOTHING
        if self._pod_selector is not None and not selects(self._pod_selector, pod.metadata.labels):
            return NOTHING
        return self._attached(pod, written) if is_attached else written

    def _attached(self, pod: Pod, written: Found) -> Found:
        namespace, name = pod.metadata.namespace, attachment_name(pod)
        attachment = self._view.get("VPCAttachment", namespace, name) if name else None
        if attachment is not None:
            where = f"vpcattachment {namespace}/{name}"
            is_ready = _is_ready(attachment)
            if not is_ready:
                self._miss(f"{where} of pod {pod.metadata.name} is not ready (status.ready is not true)")
            vpc = _vpc_of(attachment, namespace)
            if not vpc:
                is_ready = False
                self._miss(f"{where} of pod {pod.metadata.name} names no VPC")
            elif not self._is_vpc_ready(vpc):
                is_ready = False
            addresses = self._usable(_interface_addresses(attachment), where)
            return Found(addresses, is_ready, vpc, namespace, _location_of(attachment))
        own = self._view.get("EndpointSlice", namespace, pod.metadata.name)
        tenant = (own.metadata.labels or {}).get(TENANT_LABEL) if isinstance(own, EndpointSlice) else None
        if isinstance(own, EndpointSlice) and tenant:
            listed = tuple(
                text
                for one in own.endpoints or ()
                if _pod_name(own, one) == pod.metadata.name
                for text in one.addresses[:1]
            )
            where = f"endpointslice {_name(own)}"
            vpc = self._vpc_of_tenant(tenant)
            if not vpc:
                self._miss(f"{where} has the tenant id {tenant}, expected VPC and attachment in base62")
            is_ready = bool(vpc) and self._is_vpc_ready(vpc)
            return Found(self._usable(listed, where), is_ready, vpc)
        if name:
            self._miss(f"pod {namespace}/{pod.metadata.name} names vpcattachment {name}, which is not there")
            return NOTHING
        return written

    def _is_vpc_ready(self, name: str) -> bool:
        """Tell whether a VPC may be used; one that is not there is no obstacle."""
        namespace, _, bare = name.partition("/")
        vpc = self._view.get("VPC", namespace, bare) if namespace else None
        if vpc is None or _is_ready(vpc):
            return True
        self._miss(f"vpc {name} is not ready (status.ready is not true)")
        return False

    def _vpc_of_tenant(self, tenant: str) -> str:
        vpc_id, _, attachment = tenant.partition("-")
        if not (vpc_id.isascii() and vpc_id.isalnum() and attachment.isascii() and attachment.isalnum()):
            return ""
        for vpc in self._view.select("VPC", BY_VPC_ID, vpc_id):
            meta = getattr(vpc, "metadata", None)
            if isinstance(meta, ObjectMeta):
                return full_name(meta.namespace, meta.name)
        return nameless_vpc(vpc_id)

    def _miss(self, text: str) -> None:
        self.shortfalls.add(Reason.NO_VPC_ADDRESS, text)

    def _usable(self, texts: tuple[str, ...], where: str) -> tuple[str, ...]:
        """Return those that are addresses of the family that is wanted, in canonical text, without prefix length."""
        usable: list[str] = []
        for text in texts:
            if self._family is not AddressFamily.DUAL and (":" in text) != (self._family is AddressFamily.IPV6):
                continue
            bare = text.partition("/")[0]
            try:
                ipaddress.ip_interface(text)  # the prefix length, too
            except ValueError:
                bare = text
            for problem in check_address("", bare):
                self.shortfalls.add(Reason.INVALID_VALUE, f"{where}: {problem.message}")
                break
            else:
                usable.append(str(ipaddress.ip_address(bare)))
        return tuple(usable)


def _name(item: EndpointSlice) -> str:
    return f"{item.metadata.namespace}/{item.metadata.name}"


def _pod_name(item: EndpointSlice, endpoint: SliceEndpoint) -> str | None:
    """Return the pod that an endpoint stands for. One of another namespace is not believed: nobody there consented."""
    ref = endpoint.target_ref
    if ref is None or ref.kind != "Pod" or (ref.namespace or item.metadata.namespace) != item.metadata.namespace:
        return None
    return ref.name


def _is_ready(item: msgspec.Struct) -> bool:
    return getattr(getattr(item, "status", None), "ready", False) is True


def _vpc_of(attachment: msgspec.Struct, namespace: str) -> str:
    ref = getattr(getattr(attachment, "spec", None), "vpc", None)
    name, there = getattr(ref, "name", ""), getattr(ref, "namespace", "")
    return full_name(str(there or namespace), str(name)) if name else ""


def _location_of(attachment: msgspec.Struct) -> str:
    meta = getattr(attachment, "metadata", None)
    return (meta.annotations or {}).get(LOCATION_ANNOTATION, "") if isinstance(meta, ObjectMeta) else ""


def _interface_addresses(attachment: msgspec.Struct) -> tuple[str, ...]:
    # The attachment's type belongs to another plugin; its published shape is `spec.interface.addresses`.
    interface = getattr(getattr(attachment, "spec", None), "interface", None)
    return tuple(str(text) for text in getattr(interface, "addresses", ()))
