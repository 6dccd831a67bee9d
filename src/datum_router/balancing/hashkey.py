"""The key that consistent hashing reads from a request."""

from __future__ import annotations

from datum_router.balancing.hashing import hash64
from datum_router.model.request import RequestHead
from datum_router.model.route import BalancingPolicy, HashOn
from datum_router.routing.query import parse_query

HASHING = frozenset({"source-ip", "consistent-hash", "consistent-hash-ring"})
NOT_HASHING = frozenset({"round-robin", "least-connections", "random"})


def uses_hash(policy: BalancingPolicy) -> bool:
    """Tell whether picks need a key. A plugin's balancer is always given one: we cannot know what it reads."""
    return policy.algorithm not in NOT_HASHING


def is_sticky(policy: BalancingPolicy) -> bool:
    """Tell whether one key is to stay at one endpoint, so that weights must not be changed by slow start."""
    return policy.algorithm in HASHING


def hash_key(policy: BalancingPolicy, head: RequestHead) -> int | None:
    """Return the 64-bit hash of what the policy names, None if the request does not have it.

    None makes a hash balancer pick at random by weight: requests without the header, cookie or parameter are spread
    instead of all meeting at one endpoint. An empty value counts as not there. `source-ip` reads the client address
    whatever `hash_on` says.
    """
    data = _client(head) if policy.algorithm == "source-ip" else _key_bytes(policy, head)
    return hash64(data) if data else None


def _key_bytes(policy: BalancingPolicy, head: RequestHead) -> bytes | None:
    match policy.hash_on:
        case HashOn.SOURCE_IP:
            return _client(head)
        case HashOn.HEADER:
            return head.headers.get(policy.hash_name.lower().encode("utf-8", "replace"))
        case HashOn.COOKIE:
            return cookie_value(head, policy.hash_name.encode("utf-8", "replace"))
        case HashOn.QUERY:
            params = parse_query(head.query)
            return None if params is None else params.get(policy.hash_name.encode("utf-8", "replace"))
        case HashOn.PATH:
            return head.path.encode("utf-8", "replace")


def _client(head: RequestHead) -> bytes:
    return head.client_ip.encode("utf-8", "replace")


def cookie_value(head: RequestHead, name: bytes) -> bytes | None:
    """Return the first cookie of that name (RFC 6265 section 4.2.1); HTTP/2 may split the field (RFC 9113 8.2.3)."""
    for field in head.headers.get_all(b"cookie"):
        for pair in field.split(b";"):
            key, mark, value = pair.partition(b"=")
            if mark and key.strip(b" \t") == name:
                return value.strip(b" \t")
    return None
