"""Endpoints: one address and port each, where they are, and the set of one service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NewType

import msgspec

EndpointKey = NewType("EndpointKey", str)
"""`10.0.0.1:80` or `[fd00::1]:80`: identity of an endpoint within its service."""


def endpoint_key(address: str, port: int, vpc: str = "") -> EndpointKey:
    """Return the key of an IP literal (no brackets, no prefix length) and a port, as seen from within a VPC.

    Addresses mean something within their VPC alone: the key of an endpoint in one ends in `@namespace/name`, so that
    what is known of two VPCs with equal addresses (pools, health, breakers) never mixes.
    """
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return EndpointKey(f"{where}@{vpc}" if vpc else where)


class Locality(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where an endpoint or a gateway is: `topology` keys such as `topology.datum.net/city-code`, sorted pairs.

    Attributes:
        location: Name of the Location it is at, if one names it.
        latitude, longitude: Degrees (WGS 84); None if they are not known.
    """

    topology: tuple[tuple[str, str], ...] = ()
    location: str = ""
    latitude: float | None = None
    longitude: float | None = None

    def value(self, key: str) -> str:
        """Return the value of a topology key, empty if it is not known."""
        for name, value in self.topology:
            if name == key:
                return value
        return ""


UNKNOWN_LOCALITY = Locality()


def make_locality(
    topology: Mapping[str, str] | None,
    *,
    location: str = "",
    latitude: float | None = None,
    longitude: float | None = None,
) -> Locality:
    """Build a locality from topology keys in any order; None and empty mean that the place is unknown."""
    if not topology and not location and latitude is None and longitude is None:
        return UNKNOWN_LOCALITY
    pairs = tuple(sorted(topology.items())) if topology else ()
    return Locality(topology=pairs, location=location, latitude=latitude, longitude=longitude)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One member of a service.

    Attributes:
        address: IP literal without brackets or prefix length.
        port: 1 to 65535.
        weight: Share among endpoints of the same level, 0 takes no traffic; relative, default 100.
        priority: 0 is used first; higher levels only as far as lower ones lack health.
        origin: Who named it first: `static`, `attachment` or `servicebinding:namespace/name`.
        is_serving: False while its source says that it is not ready or terminating.
        vpc: `namespace/name` of the VPC that its address belongs to; empty for the network that the gateway is in.
        cluster: Name of the remote cluster that it came from; empty for the gateway's own.
    """

    key: EndpointKey
    address: str
    port: int
    weight: int = 100
    priority: int = 0
    locality: Locality = UNKNOWN_LOCALITY
    origin: str = "static"
    is_serving: bool = True
    vpc: str = ""
    cluster: str = ""


def make_endpoint(
    address: str,
    port: int,
    *,
    weight: int = 100,
    priority: int = 0,
    locality: Locality = UNKNOWN_LOCALITY,
    origin: str = "static",
    is_serving: bool = True,
    vpc: str = "",
    cluster: str = "",
) -> Endpoint:
    """Build an endpoint with its key."""
    return Endpoint(
        key=endpoint_key(address, port, vpc),
        address=address,
        port=port,
        weight=weight,
        priority=priority,
        locality=locality,
        origin=origin,
        is_serving=is_serving,
        vpc=vpc,
        cluster=cluster,
    )
