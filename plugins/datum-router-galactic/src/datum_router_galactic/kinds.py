"""Galactic VPC kinds as published: `galactic.datumapis.com/v1alpha` VPC and VPCAttachment.

They are read, never written, and read tolerantly: fields that a newer generation adds are passed over, and what is
wrong with a part costs that part alone. So every rule here gives a warning; what it costs a VPCService is said there.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from datum_router.manifests.indexes import full_name
from datum_router.manifests.location import LOCATION_ANNOTATION
from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.problem import Problem, shown
from datum_router.manifests.rules import warning
from datum_router_galactic.identifiers import ATTACHMENT_BITS, VPC_BITS, from_hex, to_base62

GROUP: Final = "galactic.datumapis.com"
VERSION: Final = "v1alpha"

MAX_NAME_CHARS: Final = 253
MAX_NAMESPACE_CHARS: Final = 63
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")  # DNS-1123 label
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")  # DNS-1123 subdomain, but for empty labels

BY_LABEL: Final = "label"
"""Index of VPCAttachment: `namespace` of all in it, and `namespace/key=value` of those with a label."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of all parts."""


class ReadyStatus(_Part, frozen=True, kw_only=True):
    """`ready`: an identifier has been assigned; `identifier`: 12 (VPC) or 4 (attachment) lower-case hex digits.

    An identifier without quotes may be a number to YAML. It is not guessed what the digits were.
    """

    ready: bool = False
    identifier: str | int | float = ""


class VPCSpec(_Part, frozen=True, kw_only=True):
    """`networks`: IPv4 or IPv6 networks of the VPC, in CIDR form."""

    networks: tuple[str, ...] = ()


class VPC(_Part, frozen=True, kw_only=True):
    """A Galactic VPC."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: VPCSpec
    status: ReadyStatus | None = None


class VPCReference(_Part, frozen=True, kw_only=True):
    """The VPC of an attachment; an omitted namespace is looked up as the empty one upstream, so it should be set."""

    name: str = ""
    namespace: str = ""


class Interface(_Part, frozen=True, kw_only=True):
    """`addresses` carry a prefix length (`10.1.1.1/24`); it must be stripped before they are dialled."""

    name: str = "galactic0"
    addresses: tuple[str, ...] = ()


class AttachmentRoute(_Part, frozen=True, kw_only=True):
    """An extra route; without `via` it is dropped by the operator."""

    destination: str
    via: str = ""


class VPCAttachmentSpec(_Part, frozen=True, kw_only=True):
    """One pod's attachment to a VPC."""

    vpc: VPCReference = VPCReference()
    interface: Interface = Interface()
    routes: tuple[AttachmentRoute, ...] = ()


class VPCAttachment(_Part, frozen=True, kw_only=True):
    """A Galactic VPC attachment."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: VPCAttachmentSpec
    status: ReadyStatus | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A route that Galactic installs.

    Attributes:
        is_termination: The destination is a subnet behind the pod of this very attachment, told to the whole VPC; else
            it is behind another member.
    """

    destination: str
    via: str
    is_termination: bool


def vpc_name(attachment: VPCAttachment) -> str:
    """Return `namespace/name` of the VPC; empty if the attachment names none that could be."""
    ref = attachment.spec.vpc
    if vpc_problem(attachment):
        return ""
    return full_name(ref.namespace or attachment.metadata.namespace, ref.name)


def vpc_problem(attachment: VPCAttachment) -> str:
    """Return why an attachment has no VPC, empty if it has one. The published schema takes any text for its name."""
    ref = attachment.spec.vpc
    if not ref.name:
        return "names no VPC"
    if len(ref.name) > MAX_NAME_CHARS or not _NAME.fullmatch(ref.name):
        return f"names the VPC {shown(ref.name)}, expected the name of an object"
    if ref.namespace and (len(ref.namespace) > MAX_NAMESPACE_CHARS or not _NAMESPACE.fullmatch(ref.namespace)):
        return f"names a VPC of namespace {shown(ref.namespace)}, expected the name of a namespace"
    return ""


def host_part(text: str) -> str | None:
    """Return the address of `address/prefix` in canonical text, or None if it is none. (One with a zone is none.)"""
    if "%" in text:
        return None
    try:
        return str(ipaddress.ip_interface(text).ip)
    except ValueError:
        return None


def routes_of(attachment: VPCAttachment) -> tuple[list[Route], list[tuple[int, str]]]:
    """Return the routes that are installed, and why each other one (by its index) is not."""
    own = {host_part(text) for text in attachment.spec.interface.addresses}
    found: list[Route] = []
    problems: list[tuple[int, str]] = []
    for index, item in enumerate(attachment.spec.routes):
        try:
            network = ipaddress.ip_network(item.destination, strict=False)
        except ValueError:
            problems.append((index, f"destination {shown(item.destination)} is no network"))
            continue
        if not item.via:
            problems.append((index, f"the route to {network} has no via: Galactic's operator drops it without a word"))
            continue
        via = host_part(item.via) if "/" not in item.via else None
        if via is None or ipaddress.ip_address(via).version != network.version:
            problems.append((index, f"via {shown(item.via)} is no IPv{network.version} address"))
            continue
        found.append(Route(destination=str(network), via=via, is_termination=via in own))
    return found, problems


def identifier_of(status: ReadyStatus | None, bits: int) -> tuple[int | None, str]:
    """Return the identifier, None if there is none, and what is wrong with it, empty if nothing is."""
    value = "" if status is None else status.identifier
    if value == "":
        return None, ""
    if not isinstance(value, str):
        return None, f"found number {value}, expected {bits // 4} hex digits in quotes"
    try:
        return from_hex(value, bits), ""
    except ValueError as error:
        return None, str(error)


def validate_vpc(vpc: VPC) -> Iterator[Problem]:
    """Yield warnings."""
    if not vpc.spec.networks:
        yield warning("spec.networks", "found no network, expected at least one")
    for index, text in enumerate(vpc.spec.networks):
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            yield warning(f"spec.networks[{index}]", f"found {shown(text)}, expected a network such as 10.40.0.0/16")
    yield from _identifier(vpc.status, VPC_BITS)


def validate_attachment(attachment: VPCAttachment) -> Iterator[Problem]:
    """Yield warnings."""
    spec = attachment.spec
    if problem := vpc_problem(attachment):
        yield warning("spec.vpc.name", f"the attachment {problem}", "name it, with its namespace")
    elif not spec.vpc.namespace:
        yield warning(
            "spec.vpc.namespace",
            f"no namespace is given, {attachment.metadata.namespace} is taken; Galactic's operator does not do so",
            f"write namespace: {attachment.metadata.namespace}",
        )
    if not spec.interface.addresses:
        yield warning("spec.interface.addresses", "found no address, expected at least one such as 10.1.1.1/24")
    for index, text in enumerate(spec.interface.addresses):
        where = f"spec.interface.addresses[{index}]"
        address = host_part(text)
        if address is None:
            yield warning(where, f"found {shown(text)}, expected an address such as 10.1.1.1/24")
        elif "/" not in text:
            yield warning(
                where,
                f"found {text} without a prefix length, which Galactic's operator refuses",
                f"write {address}/{'64' if ':' in address else '24'}, or whatever the network has",
            )
    for index, why in routes_of(attachment)[1]:
        yield warning(f"spec.routes[{index}]", why)
    yield from _identifier(attachment.status, ATTACHMENT_BITS)


def _identifier(status: ReadyStatus | None, bits: int) -> Iterator[Problem]:
    _, problem = identifier_of(status, bits)
    if problem:
        yield warning("status.identifier", problem)


def vpc_content(vpc: VPC) -> object:
    """Return what counts as a change."""
    return (vpc.spec, vpc.status)


def attachment_content(attachment: VPCAttachment) -> object:
    """Return what counts as a change: of the annotations, where it is."""
    return (attachment.spec, attachment.status, attachment.metadata.labels, location_of(attachment))


def location_of(attachment: VPCAttachment) -> str:
    """Return the name of the Location that an attachment is at, empty if it names none."""
    return (attachment.metadata.annotations or {}).get(LOCATION_ANNOTATION, "")


def vpc_ids(vpc: VPC) -> tuple[str, ...]:
    """Return the values of `BY_VPC_ID`."""
    number, _ = identifier_of(vpc.status, VPC_BITS)
    return () if number is None else (to_base62(number),)


def attachment_labels(attachment: VPCAttachment) -> tuple[str, ...]:
    """Return the values of `BY_LABEL`."""
    namespace, labels = attachment.metadata.namespace, attachment.metadata.labels or {}
    return (namespace, *(label_value(namespace, key, value) for key, value in labels.items()))


def label_value(namespace: str, key: str, value: str) -> str:
    """Return the value of `BY_LABEL` for a label."""
    return f"{namespace}/{key}={value}"
