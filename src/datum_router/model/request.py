"""Request and response heads as the core sees them: validated, canonical, protocol-neutral."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

FieldList = tuple[tuple[bytes, bytes], ...]

REQUEST_ID = "x-request-id"
"""The field whose value is new for each request, unless a trusted peer has set it."""


class Headers:
    """An ordered, immutable, multi-value list of header fields with lower-case names.

    Names and values are bytes that a wire engine has validated. Look-ups are O(1) after the first one.
    """

    __slots__ = ("_index", "fields")

    def __init__(self, fields: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.fields: FieldList = tuple(fields)
        self._index: dict[bytes, bytes] | None = None

    def get(self, name: bytes) -> bytes | None:
        """Return the value of lower-case `name`; several are joined by `, ` (RFC 9110 section 5.3)."""
        index = self._index
        if index is None:
            index = {}
            for key, value in self.fields:
                before = index.get(key)
                index[key] = value if before is None else before + b", " + value
            self._index = index
        return index.get(name)

    def get_all(self, name: bytes) -> list[bytes]:
        """Return every value of lower-case `name` in order."""
        return [value for key, value in self.fields if key == name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, bytes) and self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self.fields == other.fields

    def __hash__(self) -> int:
        return hash(self.fields)

    def __repr__(self) -> str:
        return f"Headers({list(self.fields)!r})"


class RequestHead(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request head after `routing.normalize`: what matching, filters and balancers read.

    Attributes:
        method: Upper-case token.
        scheme: `http` or `https`, as the client used it; behind trusted proxies, as they say.
        authority: What goes upstream as Host or :authority: lower-case host, port if the client gave one.
        host: For matching: lower-case, without port, without trailing dot, IPv6 in brackets.
        path: Normalised (`routing.normalize`): this very text is matched and forwarded.
        query: Text after `?`, None if there was no `?`.
        headers: Every end-to-end field, lower-case names, without Host.
        client_ip: Address of the client after trusted hops, as text without brackets; empty if unknown.
        listener: Name of the listener that took the request.
        attachment: VPCAttachment of the gateway, `namespace/name`, that it came in by; empty if by none.
    """

    method: str
    scheme: str = "http"
    authority: str
    host: str
    path: str
    query: str | None = None
    headers: Headers = Headers()
    client_ip: str = ""
    listener: str = ""
    attachment: str = ""

    @property
    def target(self) -> str:
        """Return the origin-form target: path and query."""
        return self.path if self.query is None else f"{self.path}?{self.query}"


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A final response head. `headers` holds end-to-end fields only."""

    status: int
    headers: Headers = Headers()


class LocalReply(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A response the router gives by itself: a redirect, a 404, a 503.

    Attributes:
        reason: Token for the access log and metrics.
        detail: One sentence for people, becomes the body.
        body, content_type: In place of the text that is made of `detail`.
        grpc_status: What gRPC clients are told; None: what stands for `status`.
    """

    status: int
    reason: str
    detail: str = ""
    headers: FieldList = ()
    grpc_status: int | None = None
    body: bytes | None = None
    content_type: bytes = b"text/plain; charset=utf-8"
