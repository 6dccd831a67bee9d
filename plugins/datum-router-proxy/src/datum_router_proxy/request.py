"""From an engine's head to what the pipeline works on: normalised, with hop-by-hop fields gone and ours added.

Nearly everything about a request is the same for the next one on the same connection, since clients repeat themselves;
only the request id is new. A `Template` holds the constant part, so that a connection can keep the last one. If
only the target is another, `retarget` makes a template of the one before for a tenth of what a new one costs.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Final, cast

from datum_router.compiler.link import LinkedRule
from datum_router.errors import LocalProtocolError
from datum_router.filters.base import apply_request
from datum_router.model.request import FieldList, Headers, LocalReply, RequestHead
from datum_router.policy.timeout import NO_DEADLINE, request_deadline
from datum_router.reasons import Reason
from datum_router.routing.normalize import Authority, BadHost, BadPath, normalize_target, parse_authority
from datum_router_proxy.wire import chain, grammar, grpc, hygiene, websocket
from datum_router_proxy.wire.hpack_codec import NEVER_INDEXED, LineCache, encode_lines
from datum_router_proxy.wire.http1 import FRAMING_NONE, Framing, FramingKind, H1RequestHead, TargetForm, writer
from datum_router_proxy.wire.http2 import RequestReceived, check_outgoing

Field = tuple[bytes, bytes]
MAX_BODY_BYTES: Final = 16_384
"""A longer request body goes through the pipeline, which moves it as the upstream takes it."""

ID_BYTES: Final = 32
"""Length of the request ids that we make."""
_PLACEHOLDER = b"-"
_ID_NAME = b"x-request-id"
_NO_FIELDS: FieldList = ()
_NOT_KEPT: Final = NEVER_INDEXED | {b"content-length"}
_READ_FIELDS: Final = frozenset((b"content-type", b"grpc-timeout", b"via", chain.TIMEOUT, chain.ATTEMPT))


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


class RequestIds:
    """Make request ids: 32 random hex digits, many at a time, since one alone costs five times as much."""

    __slots__ = ("_at", "_digits", "_rng")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._digits = b""
        self._at = 0

    def make(self) -> bytes:
        """Return a new id."""
        at = self._at
        if at >= len(self._digits):
            self._digits = self._rng.randbytes(16 * 64).hex().encode("ascii")
            at = 0
        self._at = at + 32
        return self._digits[at : at + 32]


class RequestLines:
    """Encoded field lines of requests to HTTP/2 upstreams: what is known has been checked as well.

    Of a head that is new nearly all fields have been sent before; checking and encoding them again took 12 us.
    """

    __slots__ = ("_checked", "_pseudo")

    def __init__(self) -> None:
        self._pseudo = LineCache()
        self._checked = LineCache()

    def clear(self) -> None:
        """Forget everything (memory pressure)."""
        self._pseudo.lines.clear()
        self._checked.lines.clear()

    def pseudo(self, fields: FieldList) -> bytes:
        """Encode pseudo-header fields, whose values nobody needs to check."""
        return self._pseudo.encode(fields)

    def encode(self, fields: FieldList, at: int) -> tuple[bytes, bytes]:
        """Encode regular fields: those before `at`, and the others.

        Raises:
            LocalProtocolError: One must not be sent.
        """
        known = self._checked.lines
        lines = [known.get(field) for field in fields]
        if None in lines:
            new = [field for field, line in zip(fields, lines, strict=True) if line is None]
            check_outgoing(new, 0, "request")
            for index, line in enumerate(lines):
                if line is None:
                    field = fields[index]
                    lines[index] = line = encode_lines((field,))
                    # Two lengths are wrong, though each is fine; secrets are not kept.
                    if type(field) is tuple and field[0] not in _NOT_KEPT:
                        self._checked.add(field, line)
        known_lines = cast(list[bytes], lines)
        return b"".join(known_lines[:at]), b"".join(known_lines[at:])


class Template:
    """What requests with the same head have in common.

    Attributes:
        head: As `Request.head`, but with a placeholder where the request id will be.
        is_simple: Nothing about the request needs more than the express lane: no tunnel, no refusal, and a client that
            keeps its connection. Whether a body is simple shows when it is there.
        is_plain: Simple, not gRPC, and without body or with a short one whose length is stated: it can go to an
            HTTP/1 upstream.
        attempt: Which try of the request this is, by what a trusted peer says; 1 is the first.
        scheme, client_scheme: `http` or `https`: what the connection is, and how the client came, by what trusted
            proxies say; the latter is that of `head`.
        client_timeout_s: How long the client waits: `grpc-timeout`, or the time left that a trusted peer states.
        client_auth: What the client of the connection was held to.
        kept_id: The request id of a trusted peer; None: each request gets a new one.
        planned_for, rule: For the snapshot with that mark the express lane has found this rule, or None: it does not
            serve it.
        proxied_scheme: What the client says of the scheme, for proxies: that of a target in absolute-form, empty for
            one without; of HTTP/2 what :scheme says.
        sent: What the filters of `rule` make of `head`; the same object if there are none.
        h1_head: If it is plain, `sent` as the engine for HTTP/1 upstreams would write it: before and after the id.
    """

    __slots__ = (
        "_after", "_before", "_h1_around", "_h1_authority", "_h1_fields", "_h1_for", "_h1_tail", "_h2_fields",
        "_h2_head", "_varying", "attachment", "attempt", "authority", "client_auth", "client_ip", "client_scheme",
        "client_timeout_s", "content_length", "expects_continue", "h1_head", "has_body", "head", "host", "identity",
        "is_grpc", "is_options_star", "is_plain", "is_simple", "is_tunnel", "kept_id", "listener", "method", "path",
        "planned_for", "proxied_scheme", "query", "refusal", "rule", "scheme", "sent", "te_trailers", "via_hops",
        "websocket_key",
    )  # fmt: skip

    head: RequestHead
    sent: RequestHead

    def __init__(self, *, method: str, hop: hygiene.Hop, listener: str) -> None:
        self.method = method
        self.scheme = hop.scheme.decode("ascii")
        self.listener = listener
        self.attachment = hop.attachment
        self.identity = hop.identity
        self.client_auth = hop.client_auth
        self.client_ip = ""
        self.client_scheme = self.scheme
        self.authority = ""
        self.host = ""
        self.path = ""
        self.query: str | None = None
        self.has_body = False
        self.content_length: int | None = None
        self.expects_continue = False
        self.te_trailers = False
        self.is_grpc = False
        self.client_timeout_s: float | None = None
        self.is_tunnel = False
        self.is_options_star = False
        self.websocket_key: bytes | None = None
        self.via_hops = 0
        self.attempt = 1
        self.refusal: LocalReply | None = None
        self.is_plain = False
        self.is_simple = False
        self.planned_for: object = None
        self.proxied_scheme = ""
        self.rule: LinkedRule | None = None
        self.h1_head = (b"", b"")
        # What does not depend on the target, as bytes, and what it was made for: rules with filters may differ in it.
        self._h1_for: FieldList = ()
        self._h1_authority = ""
        self._h1_fields = b""
        self._h1_tail = b""
        # The field that had another value last time, its place among `_before`, and the bytes around its value.
        self._varying: tuple[bytes, int] | None = None
        self._h1_around: tuple[bytes, bytes, bytes] | None = None
        self._h2_head: tuple[LinkedRule, bytes, bytes, bytes] | None = None
        self._h2_fields: tuple[LinkedRule, bytes, bytes] | None = None
        self._before: FieldList = ()
        self._after: FieldList = ()
        self.kept_id: bytes | None = None

    def retarget(self, path_query: bytes) -> Template | None:
        """Return the template of a simple head that differs in its target alone; None if that must be looked at closer.

        Args:
            path_query: Origin-form, of bytes that a request line may hold and within the limit of its length.
        """
        target = normalize_target(path_query)
        if isinstance(target, BadPath) or target.path == "*" or not self.is_simple:
            return None
        new = self._copy()
        new.path = target.path
        new.query = target.query
        new._before = self._before
        new.head = new._head_of(self.head.headers)
        new._h1_for = self._h1_for
        new._h1_fields = self._h1_fields
        new._h1_around = self._h1_around
        new._h2_fields = self._h2_fields
        return new

    def with_value(self, name: bytes, before: bytes, value: bytes) -> Template | None:
        """Return the template of a simple head that differs in the value of one field alone.

        None if the field means anything to us, or is not there exactly once: that must be looked at closer.

        Args:
            name: Lower-case.
            before: The value that it has here.
            value: Of bytes that a value may hold.
        """
        fields = self._before
        if self._varying is not None and self._varying[0] == name:
            at = self._varying[1]
        else:
            names = [field[0] for field in fields]
            if name in hygiene.READ_FIELDS or name.startswith(b"x-forwarded-") or names.count(name) != 1:
                return None
            at = names.index(name)
        if not self.is_simple or fields[at][1] != before:
            return None  # the field was left out, or what is passed on is not what came
        new = self._copy()
        new.path = self.path
        new.query = self.query
        new._varying = (name, at)
        new._before = (*fields[:at], (name, value), *fields[at + 1 :])
        new.head = new._head_of(new._headers_with(self.kept_id or _PLACEHOLDER))
        new._h1_for = ()
        new._h1_fields = b""
        new._h1_around = None
        new._h2_fields = None
        if self._h1_for is self.head.headers.fields:  # no filter has touched them: the bytes of all other fields stay
            around = self._h1_around
            if around is None or around[0] != name:
                around = _around_value(self._h1_fields, name, before)
            if around is not None:
                new._h1_for = new.head.headers.fields
                new._h1_fields = around[1] + value + around[2]
                new._h1_around = around
        return new

    def _copy(self) -> Template:
        """Return a template with what depends on neither the target nor the fields; one assignment for each slot."""
        new = Template.__new__(Template)  # a loop over the slots costs three times as much
        new.method = self.method
        new.scheme = self.scheme
        new.listener = self.listener
        new.attachment = self.attachment
        new.identity = self.identity
        new.client_auth = self.client_auth
        new.client_ip = self.client_ip
        new.client_scheme = self.client_scheme
        new.authority = self.authority
        new.host = self.host
        new.has_body = self.has_body
        new.content_length = self.content_length
        new.expects_continue = False
        new.te_trailers = self.te_trailers
        new.is_grpc = self.is_grpc
        new.client_timeout_s = self.client_timeout_s
        new.is_tunnel = False
        new.is_options_star = False
        new.websocket_key = None
        new.via_hops = self.via_hops
        new.attempt = 1
        new.refusal = None
        new.is_plain = self.is_plain
        new.is_simple = True
        new.planned_for = None
        new.proxied_scheme = self.proxied_scheme
        new.rule = None
        new._after = self._after
        new._varying = self._varying
        new.kept_id = self.kept_id
        new._h1_authority = self._h1_authority
        new._h1_tail = self._h1_tail
        new._h2_head = None
        return new

    def prepare(self, rule: LinkedRule) -> bool:
        """Make what goes upstream by `rule`; False if that takes the pipeline.

        It does if a filter replies, has to run for each request, or makes what must not be sent.

        Args:
            rule: That `is_simple`.
        """
        head = self.head
        if rule.filters:
            filtered = apply_request(rule.filters, head) if rule.has_repeatable_filters else None
            if not isinstance(filtered, RequestHead):
                return False
            target, authority = (
                filtered.target.encode("latin-1", "replace"),
                filtered.authority.encode("latin-1", "replace"),
            )
            if not (grammar.is_valid_origin_form(target) and grammar.AUTHORITY.fullmatch(authority)):
                return False  # A25: what comes out of filters is checked before it leaves
            head = filtered
        self.sent = head
        if self.is_plain:
            fields = head.headers.fields
            if rule.states_timeout:
                fields = (*fields, chain.timeout_field(rule.timeouts.request_s))
            known = self._h1_for
            if (fields is not known and fields != known) or head.authority != self._h1_authority:
                try:
                    self._render_fields(fields, head.authority)
                except LocalProtocolError:
                    return False  # the pipeline says what is wrong with it
            # A target holds bytes of a request line only (A25), and the method went through the engine.
            line = f"{self.method} {head.target} HTTP/1.1\r\n".encode("ascii")
            self.h1_head = (line + self._h1_fields, self._h1_tail)
        return True

    def _render_fields(self, fields: FieldList, authority: str) -> None:
        before, after = _around_id(fields)
        framing = FRAMING_NONE if self.content_length is None else Framing(FramingKind.LENGTH, self.content_length)
        self._h1_fields, self._h1_tail = writer.encode_request_fields(
            authority.encode("ascii"), before, after, name=_ID_NAME, framing=framing
        )
        self._h1_for = fields
        self._h1_authority = authority

    def render_h2(self, rule: LinkedRule, sent: RequestHead, scheme: bytes, lines: RequestLines) -> tuple[bytes, bytes]:
        """Return the header block for an HTTP/2 upstream, before and after the line of the request id.

        Args:
            rule: Its timeouts say what `grpc-timeout` becomes: the whole of the time, since nothing of it has gone yet.
            sent: What `prepare` has made by this rule; by now another request may have been prepared for another rule.
            scheme: What :scheme says on the connection.
            lines: Where encoded lines are kept: of the fields of a new head, all but a few have been sent before.

        Raises:
            LocalProtocolError: It must not be sent.
        """
        made = self._h2_head
        if made is not None and made[0] is rule and made[1] == scheme:
            return made[2], made[3]
        fields = self._h2_fields
        if fields is None or fields[0] is not rule:
            fields = self._h2_fields = (rule, *self._encode_fields(rule, sent, lines))
        # Normalised and validated, as for HTTP/1; none of these can be wrong any more.
        head = (
            (b":method", self.method.encode("ascii")),
            (b":scheme", scheme),
            (b":path", sent.target.encode("ascii")),
            (b":authority", sent.authority.encode("ascii")),
        )
        before = lines.pseudo(head) + fields[1]
        self._h2_head = (rule, scheme, before, fields[2])
        return before, fields[2]

    def _encode_fields(self, rule: LinkedRule, sent: RequestHead, lines: RequestLines) -> tuple[bytes, bytes]:
        if sent is self.head:
            before, after = self._before, self._after
        else:
            before, after = _around_id(sent.headers.fields)
        deadline = request_deadline(rule.timeouts, now=0.0, client_timeout_s=self.client_timeout_s)
        if self.is_grpc and deadline != NO_DEADLINE:
            if self.client_timeout_s is not None or sent is not self.head:
                before = tuple(field for field in before if field[0] != b"grpc-timeout")
                after = tuple(field for field in after if field[0] != b"grpc-timeout")
            after = (*after, (b"grpc-timeout", grpc.encode_timeout(deadline)))
        elif self.tells_deadline(rule, deadline):
            after = (*after, chain.timeout_field(deadline))
        if self.content_length is not None:
            after = (*after, (b"content-length", b"%d" % self.content_length))
        return lines.encode((*before, *after), len(before))

    def tells_deadline(self, rule: LinkedRule, deadline: float) -> bool:
        """Tell whether an HTTP upstream is told of `deadline`: the route says so, or the chain has begun before us."""
        return deadline != NO_DEADLINE and (rule.timeouts.propagates or self.client_timeout_s is not None)

    def request(self, raw_id: bytes) -> Request:
        """Make a request of it; `raw_id` is `kept_id` or new."""
        return Request(self, self._head_of(self._headers_with(raw_id)), raw_id.decode("ascii"))

    def _headers_with(self, raw_id: bytes) -> Headers:
        return Headers((*self._before, (_ID_NAME, raw_id), *self._after))

    def _head_of(self, headers: Headers) -> RequestHead:
        return RequestHead(
            method=self.method,
            scheme=self.client_scheme,
            authority=self.authority,
            host=self.host,
            path=self.path,
            query=self.query,
            headers=headers,
            client_ip=self.client_ip,
            listener=self.listener,
            attachment=self.attachment,
        )

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
        proto: bytes | None = None
        if hop.trusted_hops > 0:
            proto = hygiene.forwarded_proto(fields, hop)
            self.client_scheme = hygiene.scheme_of(proto)
        parsed = _parse_authority(authority)
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
        left_s: float | None = None
        for name, value in fields:
            if name not in _READ_FIELDS:
                continue
            if name == b"content-type":
                self.is_grpc = grpc.is_grpc(value)
            elif name == chain.TIMEOUT:
                left_s = chain.timeout_s(value) if hop.trusted_hops > 0 else None
            elif name == chain.ATTEMPT:
                self.attempt = chain.attempt(value) if hop.trusted_hops > 0 else 1
            elif name == b"via":
                self.via_hops += hygiene.count_via_hops(value)
            elif name == b"grpc-timeout":
                self.client_timeout_s = grpc.parse_timeout(value)
                if self.client_timeout_s is None:
                    self._refuse(400, Reason.BAD_HEADER, "grpc-timeout is malformed")
        if not self.is_grpc:
            self.client_timeout_s = left_s
        self.kept_id = hygiene.request_id_from_peer(fields, trusted_hops=hop.trusted_hops)
        keep_te_trailers = self.te_trailers or self.is_grpc
        made = hygiene.request_fields_for_upstream(
            fields,
            hop,
            host=self.authority.encode("ascii") or b"-",
            request_id=_PLACEHOLDER,
            nominations=nominations,
            keep_te_trailers=keep_te_trailers,
            proto=proto,
        )
        at = len(made) - (2 if keep_te_trailers else 1)  # the id comes last, but for `te`
        self._before, self._after = tuple(made[:at]), tuple(made[at + 1 :])
        if self.method == "TRACE" or (self.method == "CONNECT" and not self.is_tunnel):
            self._refuse(405, Reason.METHOD_NOT_ALLOWED, "the method is not served here")
        self.is_options_star = self.path == "*"
        self.head = self._head_of(self._headers_with(self.kept_id or _PLACEHOLDER))
        self.is_simple = (
            self.refusal is None
            and not (self.is_tunnel or self.is_options_star or self.expects_continue)
            and self.method != "HEAD"
            and self.attempt == 1
            and self.client_timeout_s != 0
        )
        length = self.content_length
        has_plain_body = not self.has_body or (length is not None and length <= MAX_BODY_BYTES)
        self.is_plain = self.is_simple and has_plain_body and not self.is_grpc and self.client_timeout_s is None

    def _expect(self, fields: Sequence[Field]) -> None:
        for name, value in fields:
            if name == b"expect":
                if value.lower() == b"100-continue":
                    self.expects_continue = self.has_body
                else:
                    self._refuse(417, Reason.BAD_EXPECT, "only 100-continue can be expected")

    def _refuse(self, status: int, reason: Reason, detail: str) -> None:
        if self.refusal is None:
            self.refusal = LocalReply(status=status, reason=reason, detail=detail)


@functools.lru_cache(maxsize=512)
def _parse_authority(authority: bytes) -> Authority | BadHost:
    """Return what clients say again and again in canonical form; entries are at most a few hundred bytes long."""
    return parse_authority(authority)


def _around_id(fields: FieldList) -> tuple[FieldList, FieldList]:
    """Return what stands before and after our X-Request-Id: the first one, since a filter can only add behind it."""
    at = [name for name, _ in fields].index(_ID_NAME)
    return fields[:at], fields[at + 1 :]


def _around_value(lines: bytes, name: bytes, value: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return a name and the bytes before and after its value in field lines, if the line is there exactly once."""
    line = b"\r\n%b: %b\r\n" % (name, value)
    if lines.count(line) != 1:
        return None
    before, _, after = lines.partition(line)
    return name, before + line[: len(line) - len(value) - 2], b"\r\n" + after


def from_h1(head: H1RequestHead, hop: hygiene.Hop, listener: str) -> Template:
    """Make a template of an HTTP/1 head."""
    template = Template(method=head.method, hop=hop, listener=listener)
    if head.form is TargetForm.ABSOLUTE:
        template.proxied_scheme = head.target.partition(b":")[0].lower().decode("ascii")
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
    if not (head.keep_alive and head.minor_version and template.is_plain) or head.upgrade:
        template.is_simple = template.is_plain = False
    return template


def from_h2(event: RequestReceived, hop: hygiene.Hop, listener: str) -> Template:
    """Make a template of an HTTP/2 head. Extended CONNECT for WebSocket matches routes as GET, like its HTTP/1 form."""
    is_tunnel = event.protocol is not None and websocket.is_connect_handshake(
        event.method, event.protocol, event.fields
    )
    template = Template(method="GET" if is_tunnel else event.method.decode("ascii"), hop=hop, listener=listener)
    template.is_tunnel = is_tunnel
    template.proxied_scheme = event.scheme.decode("ascii")
    template.has_body = not event.end_stream and not is_tunnel
    template.content_length = event.content_length
    if grammar.METHOD.fullmatch(event.method) is None:
        template._refuse(400, Reason.BAD_METHOD, "the method holds lower-case letters")
    if event.protocol is not None and not is_tunnel:
        template._refuse(501, Reason.BAD_UPGRADE, "only websocket is served by extended CONNECT")
    names = [name for name, _ in event.fields]
    template.te_trailers = b"te" in names  # the engine lets nothing but "trailers" pass
    if b"expect" in names:
        template._expect(event.fields)
    template._fill(event.path, event.authority.lower(), event.fields, hop, frozenset())
    if template.method == "CONNECT" and grammar.AUTHORITY.fullmatch(event.authority) is None:
        template.authority = template.host = ""  # as over HTTP/1: a padded port is no port
    return template
