"""Hop-by-hop rules and proxy fields, the same for HTTP/1 and HTTP/2, both directions (threats B1, B2, B5, B7).

Theory of operation: most fields of a message are of no interest here, and most of those have well-known names. One
comprehension keeps the fields whose name is in `PLAIN_FIELDS`; only if some are left over are those looked at one by
one. What depends on the connection alone (peer address, scheme) is rendered once into a `Hop`.

Trust is a number: `trusted_hops` proxies stand between the client and us, the nearest of them being our peer. With 0
everything a client says about addresses is replaced. With n the chain they wrote is kept and extended, and the client
is the address n places left of our peer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from datum_router.model.listener import ClientAuth
from datum_router_proxy.wire import chain, grammar

Field = tuple[bytes, bytes]

PSEUDONYM: Final = b"datum-router"
"""Our name in Via (RFC 9110 section 7.6.3)."""

MAX_VIA_HOPS: Final = 10
"""How often a request may have passed a router of ours; beyond it the answer is 508 (threat U11)."""

INTERNAL_PREFIX: Final = b"x-datum-"
"""Prefix of fields that only we may set; removed from whatever comes in, on both sides (threat B7)."""

CLIENT_CERT: Final = b"x-forwarded-client-cert"
"""What a service is told about the client's certificate; one that comes from outside goes like all `x-forwarded-`."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that end at the next hop (RFC 9110 section 7.6.1, RFC 9113 section 8.2.2); every `proxy-` name does too."""

CHAIN_FIELDS: Final = frozenset((chain.TIMEOUT, chain.ATTEMPT))
"""Fields that hold for one hop of a chain of gateways: the next one gets its own."""

_DROPPED_IN_REQUESTS: Final = HOP_BY_HOP | CHAIN_FIELDS | {b"content-length", b"expect", b"host"}
_DROPPED_IN_RESPONSES: Final = HOP_BY_HOP | {b"content-length"}

PROTECTED_NOMINATIONS: Final = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"content-length",
        b"content-type",
        b"cookie",
        b"forwarded",
        b"host",
        b"set-cookie",
        b"transfer-encoding",
        b"via",
        b"x-real-ip",
        b"x-request-id",
    }
)
"""Names that `Connection` cannot have removed, beside all `x-forwarded-` and `x-datum-` ones: otherwise a client could
hide from an upstream what we or it must see (threat B1)."""

PLAIN_FIELDS: Final = frozenset(
    b"""accept accept-charset accept-encoding accept-language accept-ranges access-control-allow-credentials
    access-control-allow-headers access-control-allow-methods access-control-allow-origin
    access-control-expose-headers access-control-max-age access-control-request-headers
    access-control-request-method age allow alt-svc authorization cache-control content-disposition content-encoding
    content-language content-location content-range content-security-policy content-type cookie date
    dnt etag expires grpc-accept-encoding grpc-encoding grpc-message grpc-status grpc-timeout if-match
    if-modified-since if-none-match if-range if-unmodified-since last-modified link location origin permissions-policy
    pragma priority range referer referrer-policy retry-after sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform
    sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user sec-websocket-accept sec-websocket-extensions
    sec-websocket-key sec-websocket-protocol sec-websocket-version server server-timing set-cookie
    strict-transport-security timing-allow-origin traceparent tracestate upgrade-insecure-requests user-agent vary
    warning www-authenticate x-amzn-trace-id x-api-key x-b3-sampled x-b3-spanid x-b3-traceid x-content-type-options
    x-csrf-token x-frame-options x-powered-by x-requested-with x-xss-protection""".split()
)
"""End-to-end names that no rule here touches; a quick way out, not a list of what is allowed."""

_OURS: Final = frozenset(
    {
        b"forwarded",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-real-ip",
        b"x-request-id",
    }
)

READ_FIELDS: Final = (
    HOP_BY_HOP | _OURS | CHAIN_FIELDS | {b"content-length", b"content-type", b"expect", b"grpc-timeout", b"host"}
)
"""Fields of requests that say something to us; what others say is for rules, filters and the upstream."""

_FORBIDDEN_TRAILERS: Final = HOP_BY_HOP | frozenset(
    b"""age authorization cache-control content-encoding content-length content-range content-type cookie date expect
    expires forwarded host if-match if-modified-since if-none-match if-range if-unmodified-since location max-forwards
    pragma range retry-after set-cookie trailer vary via warning www-authenticate x-real-ip x-request-id""".split()
)
_INBOUND_PREFIXES: Final = (b"proxy-", INTERNAL_PREFIX)
_UNTRUSTED_PREFIXES: Final = (*_INBOUND_PREFIXES, b"x-forwarded-")
_FORBIDDEN_TRAILER_PREFIXES: Final = (b"proxy-", b"x-forwarded-", b"sec-websocket-", INTERNAL_PREFIX)

FORWARDED_TRAILERS: Final = frozenset(
    {b"content-digest", b"grpc-message", b"grpc-status", b"grpc-status-details-bin", b"repr-digest", b"server-timing"}
)
"""Trailers that are forwarded for any message whose receiver said `TE: trailers` (threat A13)."""


def is_forbidden_trailer(name: bytes) -> bool:
    """Return whether lower-case `name` must not be taken from a trailer section (RFC 9110 section 6.5.1, threat A13).

    Framing, routing, authentication, request modifiers and content handling: a recipient that merges trailers into
    the head would be told those after the decision was made.
    """
    return name in _FORBIDDEN_TRAILERS or name.startswith(_FORBIDDEN_TRAILER_PREFIXES) or b"_" in name


def trailers_to_forward(trailers: Iterable[Field], *, te_trailers: bool, is_grpc: bool) -> list[Field]:
    """Return the trailers that go on to a receiver.

    gRPC puts arbitrary metadata into trailers, so for gRPC only forbidden names are left out. Otherwise the
    receiver must have said `TE: trailers` and the name must be in `FORWARDED_TRAILERS`.
    """
    if is_grpc:
        return [field for field in trailers if not is_forbidden_trailer(field[0])]
    if not te_trailers:
        return []
    return [field for field in trailers if field[0] in FORWARDED_TRAILERS]


class Hop:
    """What one downstream connection contributes to the fields of its requests, rendered once.

    Args:
        peer_ip: Text of the address the connection came from, without brackets or zone.
        scheme: `http` or `https`, what this connection is.
        trusted_hops: How many proxies in front of us are ours, the peer being the nearest.
        via_protocol: Version the peer spoke, `1.0`, `1.1` or `2`.
        attachment: VPCAttachment that the connection came in by, `namespace/name`; empty if by none.
        identity: Of the certificate that its TLS handshake was made with (`TlsBinding.identity`).
        client_auth: What the client was held to in the handshake; None = nothing.
        client_cert: Element of X-Forwarded-Client-Cert for the client's certificate; empty = nothing is to be said.
    """

    __slots__ = (
        "_host", "_host_fields", "attachment", "client_auth", "client_cert", "forwarded_for", "identity", "node",
        "peer_ip", "scheme", "trusted_hops", "via", "via_protocol",
    )  # fmt: skip

    def __init__(
        self,
        *,
        peer_ip: str,
        scheme: str = "http",
        trusted_hops: int = 0,
        via_protocol: bytes = b"1.1",
        attachment: str = "",
        identity: str = "",
        client_auth: ClientAuth | None = None,
        client_cert: bytes = b"",
    ) -> None:
        self.attachment = attachment
        self.identity = identity
        self.client_auth = client_auth
        self.client_cert = client_cert
        self.peer_ip = peer_ip.encode("ascii")
        self.scheme = scheme.encode("ascii")
        self.trusted_hops = trusted_hops
        self.via_protocol = via_protocol
        self.via = via_protocol + b" " + PSEUDONYM
        self.node = forwarded_node(self.peer_ip)
        self.forwarded_for: Field = (b"x-forwarded-for", self.peer_ip)
        self._host: bytes | None = None
        self._host_fields: tuple[Field, ...] = ()

    def host_fields(self, host: bytes) -> tuple[Field, ...]:
        """Return X-Forwarded-For, -Proto, -Host and Forwarded for a request whose peer is not trusted.

        And X-Forwarded-Client-Cert, if the client has shown a certificate and that is to be told.
        """
        if host != self._host:
            self._host = host
            self._host_fields = (
                self.forwarded_for,
                (b"x-forwarded-proto", self.scheme),
                (b"x-forwarded-host", host),
                (b"forwarded", self.forwarded_element(host)),
            )
            if self.client_cert:
                self._host_fields += ((CLIENT_CERT, self.client_cert),)
        return self._host_fields

    def forwarded_element(self, host: bytes) -> bytes:
        """Return our forwarded-element (RFC 7239 section 4)."""
        return b"for=" + self.node + b";host=" + quote_forwarded(host) + b";proto=" + self.scheme


def forwarded_node(address: bytes) -> bytes:
    """Return an address as RFC 7239 section 6 writes it: IPv6 in brackets and quotes, unknown as `unknown`."""
    if not address:
        return b"unknown"
    return b'"[' + address + b']"' if b":" in address else address


def quote_forwarded(value: bytes) -> bytes:
    """Return `value` as token or quoted-string (RFC 7239 section 4); validated values need no escapes beside these."""
    if grammar.TOKEN.fullmatch(value):
        return value
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def parse_forwarded_for(value: bytes) -> bytes | None:
    """Return the address in one element of X-Forwarded-For without brackets and port, None if it is no address."""
    match = grammar.FORWARDED_NODE.fullmatch(value.strip(b" \t"))
    return None if match is None else match[match.lastindex or 0]


def client_address(fields: Iterable[Field], *, peer_ip: str, trusted_hops: int) -> str:
    """Return the rightmost untrusted address: the peer, or what the `trusted_hops`-th proxy saw (threat B5).

    A chain shorter than the number of hops yields its leftmost address, a malformed element ends the chain.
    """
    if trusted_hops <= 0:
        return peer_ip
    elements: list[bytes] = []
    for name, value in fields:
        if name == b"x-forwarded-for":
            elements += value.split(b",")
    client = peer_ip
    for element in elements[: -trusted_hops - 1 : -1]:
        address = parse_forwarded_for(element)
        if address is None:
            break
        client = address.decode("ascii")
    return client


def forwarded_proto(fields: Iterable[Field], hop: Hop) -> bytes:
    """Return what upstreams are told in X-Forwarded-Proto: what trusted peers say, else what our own connection is.

    A proxy may end TLS in front of us. The last valid field counts; `ws` and `wss` are what some say of a WebSocket.
    """
    if hop.trusted_hops <= 0:
        return hop.scheme
    said = [value for name, value in fields if name == b"x-forwarded-proto" and grammar.SCHEME.fullmatch(value)]
    return said[-1] if said else hop.scheme


def scheme_of(proto: bytes) -> str:
    """Return `http` or `https`, as the client used it by a value of X-Forwarded-Proto."""
    return "https" if proto in (b"https", b"wss") else "http"


def request_id_from_peer(fields: Iterable[Field], *, trusted_hops: int) -> bytes | None:
    """Return the X-Request-Id to keep: only a trusted peer's, only if there is exactly one and it is valid."""
    if trusted_hops <= 0:
        return None
    values = [value for name, value in fields if name == b"x-request-id"]
    if len(values) == 1 and grammar.REQUEST_ID.fullmatch(values[0]):
        return values[0]
    return None


def count_via_hops(via: bytes) -> int:
    """Return how many routers of ours a value of Via names, by our pseudonym; above `MAX_VIA_HOPS` it is a loop."""
    return len(grammar.VIA_OURS.findall(via))


def request_fields_for_upstream(
    fields: Sequence[Field],
    hop: Hop,
    *,
    host: bytes,
    request_id: bytes,
    nominations: frozenset[bytes] = frozenset(),
    keep_te_trailers: bool = False,
    proto: bytes | None = None,
) -> list[Field]:
    """Return the end-to-end fields of a request plus what a proxy adds.

    Args:
        fields: Lower-case names; pseudo-header fields already taken out.
        hop: The downstream connection.
        host: Canonical authority of the request.
        request_id: What the upstream gets as X-Request-Id (see `request_id_from_peer`).
        nominations: Lower-case names that Connection listed.
        proto: What `forwarded_proto` has found, if it was asked already.
        keep_te_trailers: State `te: trailers` to the upstream (gRPC needs it, RFC 9110 section 10.1.4).

    Dropped as well: Content-Length (whoever sends the message states it from the framing), Host, Expect, and what holds
    for one hop of a chain only (`chain`). An untrusted peer's X-Forwarded-* go whatever their name. Added fields come
    last: X-Forwarded-For, -Proto, -Host, Forwarded, Via, X-Request-Id, in this order.
    """
    out = [field for field in fields if field[0] in PLAIN_FIELDS]
    trusted = hop.trusted_hops > 0
    vias: list[bytes] = []
    chain: list[bytes] = []
    forwarded: list[bytes] = []
    forwarded_host: bytes | None = None
    real_ip = False
    if len(out) != len(fields):
        for field in fields:
            name, value = field
            if name in PLAIN_FIELDS or name in _DROPPED_IN_REQUESTS:
                continue
            if name in _OURS:
                if name == b"via":
                    vias.append(value)
                elif name == b"x-real-ip":
                    real_ip = True
                elif not trusted:
                    continue
                elif name == b"x-forwarded-for":
                    chain.append(value)
                elif name == b"forwarded":
                    forwarded.append(value)
                elif name == b"x-forwarded-host" and grammar.AUTHORITY.fullmatch(value):
                    forwarded_host = value
            elif name.startswith(_INBOUND_PREFIXES if trusted else _UNTRUSTED_PREFIXES):
                continue
            else:
                out.append(field)
    if nominations:
        out = _without_nominated(out, nominations)
    if trusted:
        chain.append(hop.peer_ip)
        forwarded.append(hop.forwarded_element(host))
        out += (
            (b"x-forwarded-for", b", ".join(chain)),
            (b"x-forwarded-proto", proto or forwarded_proto(fields, hop)),
            (b"x-forwarded-host", forwarded_host or host),
            (b"forwarded", b", ".join(forwarded)),
        )
        if hop.client_cert:
            out = _with_client_cert(out, hop.client_cert)
    else:
        out += hop.host_fields(host)
    if real_ip:
        client = client_address(fields, peer_ip=hop.peer_ip.decode("ascii"), trusted_hops=hop.trusted_hops)
        out.append((b"x-real-ip", client.encode("ascii")))
    out.append((b"via", b", ".join((*vias, hop.via)) if vias else hop.via))
    out.append((b"x-request-id", request_id))
    if keep_te_trailers:
        out.append((b"te", b"trailers"))
    return out


def _with_client_cert(fields: list[Field], element: bytes) -> list[Field]:
    """Return the fields with our element behind those that trusted peers have written (Envoy's APPEND_FORWARD)."""
    chain = [value for name, value in fields if name == CLIENT_CERT]
    kept = [field for field in fields if field[0] != CLIENT_CERT]
    return [*kept, (CLIENT_CERT, b",".join((*chain, element)))]


def response_fields_for_downstream(
    fields: Sequence[Field], *, via_protocol: bytes = b"1.1", nominations: frozenset[bytes] = frozenset()
) -> list[Field]:
    """Return the end-to-end fields of a response plus our Via (RFC 9110 section 7.6.3).

    Args:
        via_protocol: Version the upstream spoke, `1.0`, `1.1` or `2`.
        nominations: Lower-case names that the upstream's Connection listed.

    Content-Length is dropped: whoever sends the message states it from the framing.
    """
    out = [field for field in fields if field[0] in PLAIN_FIELDS]
    vias: list[bytes] = []
    if len(out) != len(fields):
        for field in fields:
            name = field[0]
            if name in PLAIN_FIELDS or name in _DROPPED_IN_RESPONSES or name.startswith(_INBOUND_PREFIXES):
                continue
            if name == b"via":
                vias.append(field[1])
            else:
                out.append(field)
    if nominations:
        out = _without_nominated(out, nominations)
    vias.append(via_protocol + b" " + PSEUDONYM)
    out.append((b"via", b", ".join(vias)))
    return out


def _without_nominated(fields: list[Field], nominations: frozenset[bytes]) -> list[Field]:
    removable = {
        name
        for name in nominations - PROTECTED_NOMINATIONS - HOP_BY_HOP
        if not name.startswith((b"x-forwarded-", INTERNAL_PREFIX))
    }
    return [field for field in fields if field[0] not in removable] if removable else fields
