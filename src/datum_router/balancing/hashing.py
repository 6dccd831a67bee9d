"""One stable 64-bit hash: equal on every worker, machine and restart (Python's `hash` is seeded per process).

It is not keyed: a client that may choose its key can aim at an endpoint of its choice, as with any consistent hash
whose table is public. What must not be aimed at needs another balancer.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from datum_router.model.endpoint import Endpoint


def hash64(data: bytes) -> int:
    """Return the first 64 bits of BLAKE2b (RFC 7693)."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def rendezvous(key: int, endpoints: Sequence[Endpoint]) -> Endpoint:
    """Return the endpoint that scores highest for `key` (highest random weight). O(n); not empty.

    The same endpoints give the same answer in any order: what hash balancers fall back on when nearly all are excluded.
    """
    prefix = key.to_bytes(8, "little")
    return max(endpoints, key=lambda endpoint: hash64(prefix + endpoint.key.encode()))
