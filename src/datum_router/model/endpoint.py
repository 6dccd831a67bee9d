"""Endpoints: one address and port each, where they are, and the set of one service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NewType

import msgspec

EndpointKey = NewType("EndpointKey", str)
"""`10.0.0.1:80` or `[fd00::1]:80`: identity of an endpoint within its service."""


def endpoint_key(address: str, port: int) -> EndpointKey:
    """Return the key of an IP literal (no brackets, no prefix length) and a port."""
    return EndpointKey(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")


class Locality(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where an endpoint or a gateway is: `topology` keys such as `topology.datum.net/city-code`, sorted pairs."""

    topology: tuple[tuple[str, str], ...] = ()

    def value(self, key: str) -> str:
        """Return the value of a topology key, empty if it is not known."""
        for name, value in self.topology:
            if name == key:
                return value
        return ""


UNKNOWN_LOCALITY = Locality()


def make_locality(topology: Mapping[str, str] | None) -> Locality:
    """Build a locality from topology keys in any order; None and empty mean that the place is unknown."""
    return Locality(topology=tuple(sorted(topology.items()))) if topology else UNKNOWN_LOCALITY


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One member of a service.

    Attributes:
        address: IP literal without brackets or prefix length.
        port: 1 to 65535.
        weight: Share among endpoints of the same level, 0 takes no traffic; relative, default 100.
        priority: 0 is used first; higher levels only as far as lower ones lack health.
        origin: Who named it first: `static`, `attachment` or `servicebinding:namespace/name`.
        is_serving: False while its source says that it is not ready or terminating.
    """

    key: EndpointKey
    address: str
    port: int
    weight: int = 100
    priority: int = 0
    locality: Locality = UNKNOWN_LOCALITY
    origin: str = "static"
    is_serving: bool = True


def make_endpoint(
    address: str,
    port: int,
    *,
    weight: int = 100,
    priority: int = 0,
    locality: Locality = UNKNOWN_LOCALITY,
    origin: str = "static",
    is_serving: bool = True,
) -> Endpoint:
    """Build an endpoint with its key."""
    return Endpoint(
        key=endpoint_key(address, port),
        address=address,
        port=port,
        weight=weight,
        priority=priority,
        locality=locality,
        origin=origin,
        is_serving=is_serving,
    )
