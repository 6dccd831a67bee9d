"""From an engine's head to what the pipeline works on: normalised, with hop-by-hop fields gone and ours added.

Nearly everything about a request is the same for the next one on the same connection, since clients repeat themselves;
only the request id is new. A `Template` holds the constant part, so that a connection can keep the last one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from datum_router.model.request import FieldList, Headers, LocalReply, RequestHead
from datum_router.reasons import Reason
from datum_router.routing.normalize import BadHost, BadPath, normalize_target, parse_authority
from datum_router_proxy.wire import grammar, grpc, hygiene, websocket
from datum_router_proxy.wire.http1 import FramingKind, H1RequestHead, TargetForm
from datum_router_proxy.wire.http2 import RequestReceived

Field = tuple[bytes, bytes]
_PLACEHOLDER = b"-"
_NO_FIELDS: FieldList = ()


class Request:
    """One request, read-only once made.

    Attributes:
        content_length: None if unknown or no body follows.
        websocket_key: The client's Sec-WebSocket-Key (HTTP/1 only).
        is_tunnel: A valid WebSocket handshake.
        refusal: Set if it must be answered at once; `head` is then as good as could be made.
    """

    __slots__ = ("head", "request_id", "template")

    def __init__(self, template: Template, head: RequestHead, request_id: str) -> None:
        self.template = template
        self.head = head
        self.request_id = request_id


class Template:
    """What requests with the same head have in common."""

    __slots__ = (
        "_after", "_before", "_kept_id", "authority", "client_ip", "content_length", "expects_continue",
        "grpc_timeout_s", "has_body", "host", "is_grpc", "is_options_star", "is_tunnel", "listener", "method", "path",
        "query", "refusal", "scheme", "te_trailers", "via_hops", "websocket_key",
    )  # fmt: skip

    def __init__(self, *, method: str, hop: hygiene.Hop, listener: str) -> None:
        self.method = method
        self.scheme = hop.scheme.decode("ascii")
        self.listener = listener
        self.client_ip = ""
        self.authority = ""
        self.host = ""
        self.path = ""
        self.query: str | None = None
        self.has_body = False
        self.content_length: int | None = None
        self.expects_continue = False
        self.te_trailers = False
        self.is_grpc = False
        self.grpc_timeout_s: float | None = None
        self.is_tunnel = False
        self.is_options_star = False
        self.websocket_key: bytes | None = None
        self.via_hops = 0
        self.refusal: LocalReply | None = None
        self._before: FieldList = ()
        self._after: FieldList = ()
        self._kept_id: bytes | None = None

    def request(self, rng: random.Random) -> Request:
        """Make a request of it, with its own id."""
        raw_id = self._kept_id or b"%032x" % rng.getrandbits(128)
        head = RequestHead(
            method=self.method,
            scheme=self.scheme,
            authority=self.authority,
            host=self.host,
            path=self.path,
            query=self.query,
            headers=Headers((*self._before, (b"x-request-id", raw_id), *self._after)),
            client_ip=self.client_ip,
            listener=self.listener,
        )
        return Request(self, head, raw_id.decode("ascii"))

    def _fill(
        self,
        path_query: bytes,
        authority: bytes,
        fields: Sequence[Field],
        hop: hygiene.Hop,
        nominations: frozenset[bytes],
    ) -> None:
        self.client_ip = hygiene.client_address(
            fields, peer_ip=hop.peer_ip.decode("ascii"), trusted_hops=hop.trusted_hops
        )
        parsed = parse_authority(authority)
        if isinstance(parsed, BadHost):
            self._refuse(400, parsed.reason, parsed.detail)
        else:
            self.authority = parsed.text
            self.host = parsed.host
        target = normalize_target(path_query)
        if isinstance(target, BadPath):
            self._refuse(400, target.reason, target.detail)
        else:
            self.path = target.path
            self.query = target.query
        for name, value in fields:
            if name == b"content-type":
                self.is_grpc = grpc.is_grpc(value)
            elif name == b"grpc-timeout":
                self.grpc_timeout_s = grpc.parse_timeout(value)
                if self.grpc_timeout_s is None:
                    self._refuse(400, Reason.BAD_HEADER, "grpc-timeout is malformed")
        if not self.is_grpc:
            self.grpc_timeout_s = None
        self.via_hops = hygiene.count_via_hops(fields)
        self._kept_id = hygiene.request_id_from_peer(fields, trusted_hops=hop.trusted_hops)
        made = hygiene.request_fields_for_upstream(
            fields,
            hop,
            host=self.authority.encode("ascii") or b"-",
            request_id=_PLACEHOLDER,
            nominations=nominations,
            keep_te_trailers=self.te_trailers or self.is_grpc,
        )
        at = max(index for index, field in enumerate(made) if field[0] == b"x-request-id")
        self._before = tuple(made[:at])
        self._after = tuple(made[at + 1 :])
        if self.method == "TRACE" or (self.method == "CONNECT" and not self.is_tunnel):
            self._refuse(405, Reason.METHOD_NOT_ALLOWED, "the method is not served here")
        self.is_options_star = self.path == "*"

    def _refuse(self, status: int, reason: Reason, detail: str) -> None:
        if self.refusal is None:
            self.refusal = LocalReply(status=status, reason=reason, detail=detail)


def from_h1(head: H1RequestHead, hop: hygiene.Hop, listener: str) -> Template:
    """Make a template of an HTTP/1 head."""
    template = Template(method=head.method, hop=hop, listener=listener)
    framing = head.framing
    if framing.kind is FramingKind.LENGTH:
        template.content_length = framing.length
        template.has_body = framing.length > 0
    elif framing.kind is FramingKind.CHUNKED:
        template.has_body = True
    template.expects_continue = head.expect_continue and template.has_body
    template.te_trailers = head.te_trailers
    template.websocket_key = websocket.handshake_key(head) if head.upgrade else None
    template.is_tunnel = template.websocket_key is not None
    template._fill(
        b"*" if head.form is TargetForm.ASTERISK else head.path_query,
        head.authority,
        head.fields,
        hop,
        head.nominations,
    )
    return template


def from_h2(event: RequestReceived, hop: hygiene.Hop, listener: str) -> Template:
    """Make a template of an HTTP/2 head. Extended CONNECT for WebSocket matches routes as GET, like its HTTP/1 form."""
    is_tunnel = event.protocol is not None and websocket.is_connect_handshake(
        event.method, event.protocol, event.fields
    )
    template = Template(method="GET" if is_tunnel else event.method.decode("ascii"), hop=hop, listener=listener)
    template.is_tunnel = is_tunnel
    template.has_body = not event.end_stream and not is_tunnel
    template.content_length = event.content_length
    if grammar.METHOD.fullmatch(event.method) is None:
        template._refuse(400, Reason.BAD_METHOD, "the method holds lower-case letters")
    if event.protocol is not None and not is_tunnel:
        template._refuse(501, Reason.BAD_UPGRADE, "only websocket is served by extended CONNECT")
    for name, value in event.fields:
        if name == b"te":
            template.te_trailers = True  # the engine lets nothing but "trailers" pass
        elif name == b"expect":
            if value.lower() == b"100-continue":
                template.expects_continue = template.has_body
            else:
                template._refuse(417, Reason.BAD_EXPECT, "only 100-continue can be expected")
    template._fill(event.path, event.authority.lower(), event.fields, hop, frozenset())
    return template
