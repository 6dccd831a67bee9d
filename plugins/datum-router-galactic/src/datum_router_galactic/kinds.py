"""Galactic VPC kinds as published: `galactic.datumapis.com/v1alpha` VPC and VPCAttachment.

They are read, never written, and read tolerantly: fields that a newer generation adds are passed over.
"""

from __future__ import annotations

import msgspec

from datum_router.manifests.meta import ObjectMeta

GROUP = "galactic.datumapis.com"
VERSION = "v1alpha"


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of all parts."""


class ReadyStatus(_Part, frozen=True, kw_only=True):
    """`ready`: an identifier has been assigned; `identifier`: 12 (VPC) or 4 (attachment) lower-case hex digits."""

    ready: bool = False
    identifier: str = ""


class VPCSpec(_Part, frozen=True, kw_only=True):
    """`networks`: IPv4 or IPv6 networks of the VPC, in CIDR form."""

    networks: tuple[str, ...]


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
    addresses: tuple[str, ...]


class AttachmentRoute(_Part, frozen=True, kw_only=True):
    """An extra route; without `via` it is dropped by the operator."""

    destination: str
    via: str = ""


class VPCAttachmentSpec(_Part, frozen=True, kw_only=True):
    """One pod's attachment to a VPC."""

    vpc: VPCReference
    interface: Interface
    routes: tuple[AttachmentRoute, ...] = ()


class VPCAttachment(_Part, frozen=True, kw_only=True):
    """A Galactic VPC attachment."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: VPCAttachmentSpec
    status: ReadyStatus | None = None
