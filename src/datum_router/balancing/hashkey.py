"""The key that a consistent hash reads off a request."""

from __future__ import annotations

from urllib.parse import parse_qsl

from datum_router.balancing.hashing import hash_bytes
from datum_router.model.request import RequestHead
from datum_router.model.route import BalancingPolicy, HashOn

SOURCE_IP = "source-ip"
CONSISTENT = ("consistent-hash", "consistent-hash-ring", SOURCE_IP)
MAX_QUERY_FIELDS = 100


def uses_hash(policy: BalancingPolicy) -> bool:
    """Tell whether picks need a key. Balancers of plugins get one too: they may hash."""
    return policy.algorithm not in ("round-robin", "least-connections", "random")


def hash_key(policy: BalancingPolicy, head: RequestHead) -> int | None:
    """Return the 64-bit key of a request, None if the request lacks what is hashed (a random pick follows)."""
    data = _material(policy, head)
    return None if data is None else hash_bytes(data)


def _material(policy: BalancingPolicy, head: RequestHead) -> bytes | None:
    if policy.algorithm == SOURCE_IP or policy.hash_on is HashOn.SOURCE_IP:
        return head.client_ip.encode() or None
    if policy.hash_on is HashOn.PATH:
        return head.path.encode()
    if policy.hash_on is HashOn.HEADER:
        return head.headers.get(policy.hash_name.encode())
    if policy.hash_on is HashOn.COOKIE:
        return cookie(head.headers.get(b"cookie"), policy.hash_name.encode())
    return _query(head.query, policy.hash_name)


def cookie(header: bytes | None, name: bytes) -> bytes | None:
    """Return the first cookie of that name (RFC 6265 section 4.2.1), quotes and all."""
    if header is None:
        return None
    for part in header.replace(b",", b";").split(b";"):
        key, separator, value = part.partition(b"=")
        if separator and key.strip(b" \t") == name:
            return value.strip(b" \t")
    return None


def _query(query: str | None, name: str) -> bytes | None:
    if not query:
        return None
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        return None
    return next((value.encode() for key, value in pairs if key == name), None)
