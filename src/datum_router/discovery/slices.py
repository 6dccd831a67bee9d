"""EndpointSlices that hold the endpoints of one service in one remote cluster: as data, written and read back. Pure.

What is written and what is read back of it are equal, so that slices can be compared with what they ought to be.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec

from datum_router.discovery import marks
from datum_router.manifests.meta import API_VERSION, GroupVersionKind, ObjectMeta, OwnerReference
from datum_router.model.endpoint import Endpoint, Locality, make_endpoint, make_locality

SLICE = GroupVersionKind(group="discovery.k8s.io", version="v1", kind="EndpointSlice")
SLICES = "endpointslices"
NOTICE_PORT = 0
"""Port of the group of a slice without endpoints, which only says what is left out."""


class Group(msgspec.Struct, frozen=True, kw_only=True, order=True, gc=False):
    """What all endpoints of one slice have in common.

    Attributes:
        family: `IPv4` or `IPv6`.
        vpc: `namespace/name` of the VPC that the addresses belong to; empty: of none.
        health: Where the remote cluster knows from whether an endpoint is ready: `attachment`, `kubernetes` or `none`.
    """

    family: str = "IPv4"
    port: int = NOTICE_PORT
    vpc: str = ""
    topology: tuple[tuple[str, str], ...] = ()
    location: str = ""
    coordinates: str = ""
    weight: int = 100
    priority: int = 0
    health: str = ""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """One EndpointSlice.

    Attributes:
        service: Name of the VPCService, in the slice's namespace.
        owner_uid: Of that VPCService.
        members: Addresses, and whether they serve, in the order in which they came.
        stale_since: RFC 3339; empty while the cluster can be heard.
        conflict: What is left out of the export.
    """

    namespace: str
    name: str
    service: str
    cluster: str
    owner_uid: str
    group: Group
    members: tuple[tuple[str, bool], ...] = ()
    stale_since: str = ""
    conflict: str = ""


class SliceConditions(msgspec.Struct, frozen=True, kw_only=True):
    """State of one endpoint of a slice."""

    ready: bool | None = None


class SliceEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint of a slice that discovery wrote."""

    addresses: tuple[str, ...] = ()
    conditions: SliceConditions = SliceConditions()


class SlicePort(msgspec.Struct, frozen=True, kw_only=True):
    """The port of a slice."""

    port: int | None = None


class PublishedSlice(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An EndpointSlice as it is read back by the daemon that wrote it."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] | None = ()
    ports: tuple[SlicePort, ...] | None = ()


def group_of(endpoint: Endpoint) -> Group:
    """Return the group that an endpoint of an export belongs to."""
    where = endpoint.locality
    has_place = where.latitude is not None and where.longitude is not None
    return Group(
        family="IPv6" if ":" in endpoint.address else "IPv4",
        port=endpoint.port,
        vpc=endpoint.vpc,
        topology=_fitting(where.topology),
        location=where.location if len(where.location) <= marks.MAX_LOCATION_CHARS else "",
        coordinates=f"{where.latitude!r},{where.longitude!r}" if has_place else "",
        weight=endpoint.weight,
        priority=endpoint.priority,
        health=health_source(endpoint.origin),
    )


def _fitting(topology: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return the topology keys that an annotation has room for: the first ones, of those that have a name."""
    room = marks.MAX_TOPOLOGY_CHARS
    kept = []
    for key, value in topology:
        room -= len(_escaped(key)) + len(_escaped(value)) + len("=,")
        if room < 0:
            break
        if key:
            kept.append((key, value))
    return tuple(kept)


def health_source(origin: str) -> str:
    """Return who decides about the readiness of an endpoint of this origin."""
    if origin.startswith("servicebinding:"):
        return "kubernetes"
    return "attachment" if origin == "attachment" else "none"


def refusal(address: str) -> str:
    """Return why an address cannot stand in an EndpointSlice, as the API decides; empty if it can."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "is no IP address"
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return "is an IPv4 address written as IPv6"
    for is_so, what in (
        (found.is_unspecified, "unspecified"),
        (found.is_loopback, "a loopback address"),
        (found.is_link_local, "a link-local address"),
        (found.is_multicast, "a multicast address"),
    ):
        if is_so:
            return f"is {what}"
    return ""


# --- as objects of the API -----------------------------------------------------------------------------------------


def raw_of(one: Slice) -> dict[str, object]:
    """Return a slice as it is applied."""
    group = one.group
    notes = {
        marks.SERVICE_ANNOTATION: one.service,
        marks.VPC_ANNOTATION: group.vpc,
        marks.LOCATION_ANNOTATION: group.location,
        marks.TOPOLOGY_ANNOTATION: ",".join(f"{_escaped(key)}={_escaped(value)}" for key, value in group.topology),
        marks.COORDINATES_ANNOTATION: group.coordinates,
        marks.WEIGHT_ANNOTATION: "" if group.weight == Group().weight else str(group.weight),
        marks.PRIORITY_ANNOTATION: str(group.priority or ""),
        marks.HEALTH_ANNOTATION: group.health,
        marks.STALE_ANNOTATION: one.stale_since,
        marks.CONFLICT_ANNOTATION: one.conflict,
    }
    owner = {
        "apiVersion": API_VERSION,
        "kind": "VPCService",
        "name": one.service,
        "uid": one.owner_uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "apiVersion": SLICE.api_version,
        "kind": SLICE.kind,
        "metadata": {
            "name": one.name,
            "namespace": one.namespace,
            "labels": {marks.MANAGED_BY_LABEL: marks.MANAGER, marks.CLUSTER_LABEL: one.cluster},
            "annotations": {key: value for key, value in notes.items() if value},
            "ownerReferences": [owner],
        },
        "addressType": group.family,
        "ports": [{"name": "", "port": group.port, "protocol": "TCP"}] if group.port else [],
        "endpoints": [{"addresses": [address], "conditions": {"ready": ready}} for address, ready in one.members],
    }


def slice_of(
    metadata: ObjectMeta, family: str, ports: Iterable[int | None], members: Iterable[tuple[str, bool]]
) -> Slice | None:
    """Return the slice that an EndpointSlice is; None if discovery did not write it.

    What stands in its annotations and cannot be read is taken as not there, so that such a slice is not what it ought
    to be and is written again.
    """
    labels, notes = metadata.labels or {}, metadata.annotations or {}
    if labels.get(marks.MANAGED_BY_LABEL) != marks.MANAGER:
        return None
    service = notes.get(marks.SERVICE_ANNOTATION, "")
    pairs = (part.partition("=") for part in notes.get(marks.TOPOLOGY_ANNOTATION, "").split(","))
    group = Group(
        family=family,
        port=next((port for port in ports if port is not None), NOTICE_PORT),
        vpc=notes.get(marks.VPC_ANNOTATION, ""),
        topology=tuple((_unescaped(key), _unescaped(value)) for key, _, value in pairs if key),
        location=notes.get(marks.LOCATION_ANNOTATION, ""),
        coordinates=notes.get(marks.COORDINATES_ANNOTATION, ""),
        weight=_number(notes.get(marks.WEIGHT_ANNOTATION, ""), Group().weight),
        priority=_number(notes.get(marks.PRIORITY_ANNOTATION, ""), 0),
        health=notes.get(marks.HEALTH_ANNOTATION, ""),
    )
    return Slice(
        namespace=metadata.namespace,
        name=metadata.name,
        service=service,
        cluster=labels.get(marks.CLUSTER_LABEL, ""),
        owner_uid=_owner_uid(metadata.owner_references, service),
        group=group,
        members=tuple(members),
        stale_since=notes.get(marks.STALE_ANNOTATION, ""),
        conflict=notes.get(marks.CONFLICT_ANNOTATION, ""),
    )


def published(manifest: PublishedSlice) -> Slice | None:
    """Return the slice that an EndpointSlice is, as `slice_of`."""
    return slice_of(
        manifest.metadata,
        manifest.address_type,
        [port.port for port in manifest.ports or ()],
        [(one.addresses[0], one.conditions.ready is not False) for one in manifest.endpoints or () if one.addresses],
    )


def endpoints_of(one: Slice) -> tuple[Endpoint, ...]:
    """Return the endpoints of a slice as gateways use them. A stale cluster's are used as they were."""
    group = one.group
    if not 1 <= group.port <= 65535:
        return ()
    locality = locality_of(group)
    return tuple(
        make_endpoint(
            address,
            group.port,
            weight=group.weight,
            priority=group.priority,
            locality=locality,
            origin=f"cluster:{one.cluster}",
            is_serving=ready,
            vpc=group.vpc,
            cluster=one.cluster,
        )
        for address, ready in one.members
    )


def locality_of(group: Group) -> Locality:
    """Return where the endpoints of a group are."""
    latitude, _, longitude = group.coordinates.partition(",")
    return make_locality(
        dict(group.topology),
        location=group.location,
        latitude=_degrees(latitude, 90.0),
        longitude=_degrees(longitude, 180.0),
    )


def _escaped(text: str) -> str:
    """Return a text that can stand between `=` and `,`; others than these and `%` stay as they are."""
    return text.replace("%", "%25").replace(",", "%2C").replace("=", "%3D")


def _unescaped(text: str) -> str:
    return text.replace("%3D", "=").replace("%2C", ",").replace("%25", "%") if "%" in text else text


def _owner_uid(owners: Iterable[OwnerReference], service: str) -> str:
    return next((one.uid for one in owners if one.kind == "VPCService" and one.name == service), "")


def _number(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 7 else default


def _degrees(text: str, most: float) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if -most <= found <= most else None
