"""Session affinity (GEP-1619): requests of one session go to one endpoint, and no gateway remembers anything.

Theory of operation. The client keeps the session, in a cookie or a header, as a token of ours: when it began and was
last seen, a *tag* that stands for the endpoint, and a seal. Tag and seal are keyed hashes, so a token tells nothing
about addresses and cannot be made or changed by anybody without the key; it is good at every gateway that has the same.
Which endpoint a tag means is found by making the tags of the service's endpoints, once for each version of them.

A token that is broken, sealed with another key or for another route, or too old, is as good as none: the balancer
chooses, and a new session begins. So it does when the endpoint has left or takes no requests. A client can lose its
session that way, but never be refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import struct
from typing import Final

import msgspec

from datum_router.balancing.hashkey import cookie_value
from datum_router.model.affinity import AffinityKind, AffinityPolicy, SetCookie
from datum_router.model.endpoint import Endpoint, EndpointKey
from datum_router.model.request import RequestHead
from datum_router.model.service import Service, ServiceKey

KEY_BYTES: Final = 32
TAG_BYTES: Final = 8
SEAL_BYTES: Final = 8
SKEW_S: Final = 300
"""How far (seconds) the clocks of two gateways may be apart: a session from further in the future is none."""
REFRESH_SHARE: Final = 4
"""A session that may be idle for so long is noted as seen anew after this part (1/4) of it: not with every answer."""

Field = tuple[bytes, bytes]
_BODY: Final = struct.Struct(f">BII{TAG_BYTES}s")
_VERSION: Final = 1
_TOKEN_BYTES: Final = _BODY.size + SEAL_BYTES


class Session(msgspec.Struct, frozen=True, gc=False):
    """What a valid token says.

    Attributes:
        tag: Stands for the endpoint.
        began_at, seen_at: Unix seconds.
    """

    tag: bytes
    began_at: int
    seen_at: int


class Affinity:
    """The sessions of one route. Single-threaded; `at` is Unix seconds."""

    __slots__ = ("_key", "_name", "_route", "_tables", "policy")

    def __init__(self, policy: AffinityPolicy, *, route: str, key: bytes) -> None:
        """Take a policy.

        Args:
            route: `namespace/name`: tokens of one route are worth nothing at another.
            key: `KEY_BYTES` bytes that nobody else knows.
        """
        self.policy = policy
        self._route = route.encode("utf-8")
        self._key = key
        self._name = policy.name.encode("ascii")
        self._tables: dict[ServiceKey, tuple[Service, dict[bytes, Endpoint]]] = {}

    def read(self, head: RequestHead, *, at: float) -> Session | None:
        """Return the session of a request, None if there is none that is valid now."""
        text = (
            cookie_value(head, self._name) if self.policy.kind is AffinityKind.COOKIE else head.headers.get(self._name)
        )
        session = None if text is None else self._open(text)
        if session is None or max(session.began_at, session.seen_at) > at + SKEW_S:
            return None
        policy = self.policy
        if policy.absolute_s is not None and at >= session.began_at + policy.absolute_s:
            return None
        if policy.idle_s is not None and at >= session.seen_at + policy.idle_s:
            return None
        return session

    def endpoint(self, service: Service, tag: bytes) -> Endpoint | None:
        """Return the endpoint of a service that a tag stands for; O(1) but for the first time after a change of it."""
        known = self._tables.get(service.key)
        if known is None or known[0] is not service:
            table = {self.tag(service.key, endpoint.key): endpoint for endpoint in service.endpoints}
            known = self._tables[service.key] = (service, table)
        return known[1].get(tag)

    def tag(self, service: ServiceKey, endpoint: EndpointKey) -> bytes:
        """Return what stands for an endpoint in tokens."""
        text = f"{service}\0{endpoint}".encode()
        return hashlib.blake2b(text, digest_size=TAG_BYTES, key=self._key, person=b"tag").digest()

    def fields(
        self, session: Session | None, service: ServiceKey, endpoint: EndpointKey, *, at: float, is_secure: bool
    ) -> tuple[Field, ...]:
        """Return what the response is to tell the client: nothing if it knows already.

        Args:
            session: That of the request.
            service, endpoint: Who has answered.
            is_secure: The client has come by TLS.
        """
        policy = self.policy
        tag = self.tag(service, endpoint)
        now = math.floor(at)
        if session is not None and session.tag == tag:
            if policy.idle_s is None or at < session.seen_at + policy.idle_s / REFRESH_SHARE:
                return ()
            began_at = session.began_at
        else:
            began_at = now
        token = self._seal(Session(tag, began_at, now))
        if policy.kind is AffinityKind.HEADER:
            return ((self._name, token),)
        life_s = None
        if policy.is_permanent and policy.absolute_s is not None:
            life_s = max(1, math.floor(began_at + policy.absolute_s - at))
        return ((b"set-cookie", set_cookie(self._name, token, life_s=life_s, path="/", is_secure=is_secure)),)

    def _seal(self, session: Session) -> bytes:
        body = _BODY.pack(_VERSION, session.began_at, session.seen_at, session.tag)
        return base64.urlsafe_b64encode(body + self._seal_of(body)).rstrip(b"=")

    def _open(self, text: bytes) -> Session | None:
        try:
            token = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            return None
        body, seal = token[: _BODY.size], token[_BODY.size :]
        if len(token) != _TOKEN_BYTES or not hmac.compare_digest(seal, self._seal_of(body)):
            return None
        version, began_at, seen_at, tag = _BODY.unpack(body)
        return Session(tag, began_at, seen_at) if version == _VERSION else None

    def _seal_of(self, body: bytes) -> bytes:
        return hashlib.blake2b(body + self._route, digest_size=SEAL_BYTES, key=self._key, person=b"seal").digest()


def set_cookie(name: bytes, value: bytes, *, life_s: int | None, path: str, is_secure: bool) -> bytes:
    """Return the value of Set-Cookie (RFC 6265 section 4.1). No script sees it, and other sites' forms do not send it.

    Args:
        life_s: None: until the browser is closed.
    """
    parts = [b"%b=%b" % (name, value), b"Path=" + path.encode("ascii")]
    if life_s is not None:
        parts.append(b"Max-Age=%d" % life_s)
    parts += [b"HttpOnly", b"SameSite=Lax"]
    if is_secure:
        parts.append(b"Secure")
    return b"; ".join(parts)


def hash_cookie_field(cookie: SetCookie, name: str, value: bytes, *, is_secure: bool) -> Field:
    """Return the field that gives a client the cookie that a consistent hash reads."""
    made = set_cookie(name.encode("ascii"), value, life_s=cookie.ttl_s or None, path=cookie.path, is_secure=is_secure)
    return (b"set-cookie", made)


def describe_affinity(policy: AffinityPolicy) -> str:
    """Return where sessions are kept and for how long, in words, for `explain`."""
    ends = [f"{policy.absolute_s:g} s after it began"] if policy.absolute_s is not None else []
    ends += [f"after {policy.idle_s:g} s without a request"] if policy.idle_s is not None else []
    if policy.kind is AffinityKind.COOKIE and not policy.is_permanent:
        ends.append("with the browser")
    where = f"{policy.kind.value.lower()} {policy.name}"
    return f"session affinity by {where}; a session ends {' or '.join(ends) or 'when its endpoint does'}"
