"""Rate limits: which bucket a request takes from, and what is said when it is empty. Values in, verdict out.

Several limits may hold for a request (of its VPCIngress, of its route, of the route's filters): it is let through if
all of them let it. What it took from some is put back if another refuses it. That can be done with the buckets of the
gateway alone; a store that several gateways share keeps what was taken.

The fields are those of draft-ietf-httpapi-ratelimit-headers-11: `RateLimit-Policy` names each policy with its quota `q`
and window `w` in seconds, `RateLimit` what remains (`r`) and the seconds `t` until there is more, or all if there is
some. 429 comes with Retry-After (RFC 9110 section 10.2.3), too.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from datum_router.model.limits import RateLimitPolicy
from datum_router.model.request import LocalReply, RequestHead
from datum_router.policy.buckets import KEY_BYTES, BucketTable, Draw
from datum_router.reasons import Reason

if TYPE_CHECKING:
    from datum_router.plugins.protocols import RateLimitStore

IPV6_PREFIX_BITS: Final = 64
"""Clients of one IPv6 network of this size count as one: it is what a single customer gets at least (RFC 6177)."""

Field = tuple[bytes, bytes]
_UNITS: Final = {1: "second", 60: "minute", 3600: "hour"}
_NETWORKS: Final = 4096
"""Client addresses whose network is remembered; finding it takes 3 us."""


class RateVerdict(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is to become of a request.

    Attributes:
        refused_by: The first limit that refuses it; None: it is let through.
        fields: For the response, whoever gives it.
        reply: What to say if it is refused; holds `fields`.
    """

    refused_by: RateLimitPolicy | None = None
    fields: tuple[Field, ...] = ()
    reply: LocalReply | None = None


class RateLimiter:
    """The limits that hold for the same requests. State is in the table alone.

    Attributes:
        store: Is to be asked in place of the table, by whoever can wait.
    """

    __slots__ = ("_announced", "_hashes", "_table", "policies", "store")

    def __init__(
        self, policies: Sequence[RateLimitPolicy], table: BucketTable, store: RateLimitStore | None = None
    ) -> None:
        self.policies = tuple(policies)
        self.store = store
        self._table = table
        # Whatever a policy says is part of its keys: a limit that is changed begins anew.
        self._hashes = tuple(
            hashlib.blake2b(identity(policy), digest_size=KEY_BYTES, key=table.secret) for policy in self.policies
        )
        self._announced = ", ".join(_announce(policy) for policy in self.policies).encode("ascii")

    def decide(self, head: RequestHead, *, now: float) -> RateVerdict:
        """Count a request and say whether it is let through.

        Args:
            now: Monotonic seconds.
        """
        draws: list[Draw] = []
        keys: list[bytes] = []
        for policy, base in zip(self.policies, self._hashes, strict=True):
            keyed = base.copy()
            keyed.update(key_of(policy, head))
            key = keyed.digest()
            drawn = self._table.draw(key, burst=policy.burst, period_s=policy.period_s, now=now)
            draws.append(drawn)
            if drawn.wait_s:
                for before, taken in zip(self.policies, keys, strict=False):
                    self._table.give_back(taken, period_s=before.period_s)
                break
            keys.append(key)
        return self.verdict(draws)

    def verdict(self, draws: Sequence[Draw]) -> RateVerdict:
        """Return what follows from the draws of the first policies; only the last draw may be one in vain."""
        shown = ", ".join(
            f'"{policy.label}";r={drawn.left};t={math.ceil(drawn.wait_s or drawn.full_s)}'
            for policy, drawn in zip(self.policies, draws, strict=False)
        )
        fields: tuple[Field, ...] = (
            (b"ratelimit-policy", self._announced),
            (b"ratelimit", shown.encode("ascii")),
        )
        wait_s = draws[-1].wait_s
        if not wait_s:
            return RateVerdict(fields=fields)
        policy = self.policies[len(draws) - 1]
        return RateVerdict(
            refused_by=policy,
            fields=fields,
            reply=LocalReply(
                status=429,
                reason=Reason.RATE_LIMITED,
                detail="too many requests",
                headers=(*fields, (b"retry-after", b"%d" % max(1, math.ceil(wait_s)))),
            ),
        )

    def store_keys(self, head: RequestHead) -> list[str]:
        """Return the keys of a request for a store outside, one for each policy: they hold nothing of the client's."""
        return [
            f"{policy.scope}:{policy.owner}:{policy.index}:"
            + hashlib.blake2b(identity(policy) + key_of(policy, head), digest_size=KEY_BYTES).hexdigest()
            for policy in self.policies
        ]


def identity(policy: RateLimitPolicy) -> bytes:
    """Return bytes that no other policy has."""
    return msgspec.json.encode(policy)


def key_of(policy: RateLimitPolicy, head: RequestHead) -> bytes:
    """Return what tells the buckets of a policy apart. No two different lists of values give the same bytes.

    Requests without a header share the bucket of those that lack it: leaving it out must not be a way round the limit.
    So do those that have it more than once, whatever it says: the service may read any of them, and a made-up value
    beside the one that it reads must not be a way round, either. Cookies alone may come in pieces, which are put
    together (RFC 9113 section 8.2.3).
    An address means something within its VPC alone: equal ones that came in by two attachments are two clients.
    """
    parts: list[bytes] = []
    if policy.by_source:
        parts.append(source_network(head.client_ip))
        if head.attachment:
            parts.append(head.attachment.encode("utf-8"))
    for name in policy.by_headers:
        values = head.headers.get_all(name.encode("ascii"))
        if len(values) > 1 and name != "cookie":
            parts.append(b"*")
        else:
            parts.append(b"+" + b"; ".join(values) if values else b"-")
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)


@functools.lru_cache(maxsize=_NETWORKS)
def source_network(client_ip: str) -> bytes:
    """Return what stands for a client: its IPv4 address, or its IPv6 network of `IPV6_PREFIX_BITS`."""
    try:
        address = ipaddress.ip_address(client_ip)
    except ValueError:
        return client_ip.encode("utf-8", "replace")  # unknown: all of these together
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped.packed
        return address.packed[: IPV6_PREFIX_BITS // 8]
    return address.packed


def _announce(policy: RateLimitPolicy) -> str:
    return f'"{policy.label}";q={policy.requests};w={policy.window_s}'


def describe_rate(policy: RateLimitPolicy) -> str:
    """Return a limit in words, for `explain`."""
    each = [*(["client address"] if policy.by_source else []), *(f"value of {name}" for name in policy.by_headers)]
    whom = f"for each {' and '.join(each)}" if each else "for all requests together"
    return (
        f"rate limit of the {policy.scope}: {policy.requests} a {_UNITS.get(policy.window_s, f'{policy.window_s} s')} "
        f"{whom}, {policy.burst} at once; else 429"
    )
