"""Active probes: HTTP, TCP and gRPC health checks on trio, for the supervisor process.

The client is httpcore, not our own engine: a fault of the data plane's parser must not hide in its probes. Every probe
uses a fresh connection, follows no redirect, reads at most `READ_BYTES`, and ends within the policy's timeout, connect
and handshake included. A probe never raises but for cancellation; `detail` says in a few words what was seen, never
anything the endpoint wrote.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

import httpcore
import trio

from datum_router.errors import UpstreamError
from datum_router.model.endpoint import Endpoint
from datum_router.model.policy import ActiveHealthPolicy, ProbeType
from datum_router.model.service import UpstreamTls
from datum_router.plugins.protocols import Prober, ProbeResult
from datum_router_proxy.upstream.trust import client_context
from datum_router_proxy.vpc import VpcInterfaces

READ_BYTES = 65_536
"""Most of a response, head included, that a probe reads."""

_USER_AGENT = (b"user-agent", b"datum-router-probe")
_GRPC_PATH = "/grpc.health.v1.Health/Check"
_SERVING_NAMES = {0: "unknown", 1: "serving", 2: "not serving", 3: "service unknown"}
_SERVING = 1


class _Prober:
    __slots__ = ("_vpcs",)

    def __init__(self, vpcs: VpcInterfaces | None = None) -> None:
        self._vpcs = vpcs or VpcInterfaces()


class HttpProber(_Prober):
    """Send one request and compare the status with the policy's expected ranges; https if `tls` is given."""

    __slots__ = ()

    async def probe(self, endpoint: Endpoint, policy: ActiveHealthPolicy, tls: UpstreamTls | None) -> ProbeResult:
        """Return the result within `policy.timeout_s`; never raises but for cancellation."""
        return await _within(policy.timeout_s, self._ask, endpoint, policy, tls)

    async def _ask(self, endpoint: Endpoint, policy: ActiveHealthPolicy, tls: UpstreamTls | None) -> ProbeResult:
        headers = [
            (b"host", (policy.host or _authority(endpoint, policy)).encode("ascii")),
            _USER_AGENT,
            (b"accept", b"*/*"),
            (b"connection", b"close"),
        ]
        headers += [(name.encode("ascii"), value.encode("latin-1")) for name, value in policy.headers]
        status, _, _ = await _exchange(
            endpoint,
            policy,
            tls,
            self._vpcs.device(endpoint.vpc),
            method=policy.method,
            path=policy.http_path,
            headers=headers,
            is_http2=False,
        )
        is_ok = any(low <= status <= high for low, high in policy.expected_statuses)
        return ProbeResult(is_ok=is_ok, detail=f"status {status}")


class TcpProber(_Prober):
    """Open a connection and close it; `tls` is ignored."""

    __slots__ = ()

    async def probe(self, endpoint: Endpoint, policy: ActiveHealthPolicy, tls: UpstreamTls | None) -> ProbeResult:
        """Return the result within `policy.timeout_s`; never raises but for cancellation."""
        return await _within(policy.timeout_s, self._ask, endpoint, policy, tls)

    async def _ask(self, endpoint: Endpoint, policy: ActiveHealthPolicy, _tls: UpstreamTls | None) -> ProbeResult:
        family = trio.socket.AF_INET6 if ":" in endpoint.address else trio.socket.AF_INET
        device = self._vpcs.device(endpoint.vpc)
        with trio.socket.socket(family, trio.socket.SOCK_STREAM) as sock:
            if device:
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_BINDTODEVICE, device.encode())
            await sock.connect((endpoint.address, policy.port or endpoint.port))
        return ProbeResult(is_ok=True, detail="connected")


class GrpcProber(_Prober):
    """Call `grpc.health.v1.Health/Check` (gRPC health checking protocol); only SERVING is healthy.

    Plain endpoints get HTTP/2 by prior knowledge, others by ALPN.
    """

    __slots__ = ()

    async def probe(self, endpoint: Endpoint, policy: ActiveHealthPolicy, tls: UpstreamTls | None) -> ProbeResult:
        """Return the result within `policy.timeout_s`; never raises but for cancellation."""
        return await _within(policy.timeout_s, self._ask, endpoint, policy, tls)

    async def _ask(self, endpoint: Endpoint, policy: ActiveHealthPolicy, tls: UpstreamTls | None) -> ProbeResult:
        headers = [
            (b"host", (policy.host or _authority(endpoint, policy)).encode("ascii")),
            _USER_AGENT,
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ]
        headers += [(name.encode("ascii"), value.encode("latin-1")) for name, value in policy.headers]
        body = encode_health_request(policy.grpc_service)
        headers.append((b"content-length", str(len(body)).encode("ascii")))  # without it httpcore sends no body
        status, fields, answer = await _exchange(
            endpoint,
            policy,
            tls,
            self._vpcs.device(endpoint.vpc),
            method="POST",
            path=_GRPC_PATH,
            headers=headers,
            is_http2=True,
            body=body,
        )
        if status != 200:
            return ProbeResult(is_ok=False, detail=f"status {status}")
        code = fields.get(b"grpc-status", b"0")
        if code != b"0":
            number = code.decode("ascii") if code.isdigit() and len(code) <= 3 else "?"
            return ProbeResult(is_ok=False, detail=f"grpc-status {number}")
        serving = decode_health_response(answer)
        if serving is None:
            return ProbeResult(is_ok=False, detail="no health message in the answer")
        return ProbeResult(is_ok=serving == _SERVING, detail=_SERVING_NAMES.get(serving, f"health {serving}"))


PROBERS: Mapping[ProbeType, type[HttpProber] | type[TcpProber] | type[GrpcProber]] = {
    ProbeType.HTTP: HttpProber,
    ProbeType.TCP: TcpProber,
    ProbeType.GRPC: GrpcProber,
}


def make_prober(kind: ProbeType, vpcs: VpcInterfaces | None = None) -> Prober:
    """Return a prober of this type, whose sockets are bound as `vpcs` says; it holds no state and may be shared."""
    return PROBERS[kind](vpcs)


def encode_health_request(service: str) -> bytes:
    """Return a gRPC message holding HealthCheckRequest: field 1, string `service`, left out when empty."""
    name = service.encode("utf-8")
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return b"\x00" + len(message).to_bytes(4, "big") + message


def decode_health_response(data: bytes) -> int | None:
    """Return field 1, enum `status`, of the HealthCheckResponse in a gRPC message (0 if absent, as proto3 has it).

    None if there is no complete, uncompressed message or it cannot be read; unknown fields are skipped.
    """
    if len(data) < 5 or data[0] != 0:
        return None
    size = int.from_bytes(data[1:5], "big")
    message = data[5 : 5 + size]
    if len(message) < size:
        return None
    status = at = 0
    while at < size:
        tag, at = _read_varint(message, at)
        if at < 0:
            return None
        field, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _read_varint(message, at)
            if at < 0:
                return None
            if field == 1:
                status = value
        elif wire_type == 2:
            length, at = _read_varint(message, at)
            if at < 0 or at + length > size:
                return None
            at += length
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4
            if at > size:
                return None
        else:
            return None
    return status


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return value and next position; position -1 if it is cut short or longer than 64 bits."""
    value = 0
    for index in range(10):
        if at + index >= len(data):
            break
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    return 0, -1


def _authority(endpoint: Endpoint, policy: ActiveHealthPolicy) -> str:
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"{host}:{policy.port or endpoint.port}"


async def _within(
    timeout_s: float,
    ask: Callable[[Endpoint, ActiveHealthPolicy, UpstreamTls | None], Awaitable[ProbeResult]],
    endpoint: Endpoint,
    policy: ActiveHealthPolicy,
    tls: UpstreamTls | None,
) -> ProbeResult:
    """Run one probe under its total timeout and turn every failure into a result."""
    try:
        with trio.move_on_after(timeout_s):
            return await ask(endpoint, policy, tls)
    except Exception as exc:  # noqa: BLE001  # a probe's failure is its result, whatever it is
        return ProbeResult(is_ok=False, detail=_describe(exc))
    return ProbeResult(is_ok=False, detail=f"no answer within {timeout_s:g} s")


def _describe(exc: BaseException) -> str:
    """Name a failure in a few words: the error itself rather than what a library wrapped around it."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"certificate not trusted: {seen.verify_message}"
        if isinstance(seen, ssl.SSLError):
            return f"tls: {(seen.reason or 'error').lower().replace('_', ' ')}"
        if isinstance(seen, OSError) and seen.errno:
            return os.strerror(seen.errno).lower()
        if isinstance(seen, BaseExceptionGroup):  # trio gathers one error for each address it tried: here one
            seen = seen.exceptions[0]
        else:
            seen = seen.__cause__ or seen.__context__
    if isinstance(exc, UpstreamError):
        return "no interface in the vpc"
    if isinstance(exc, httpcore.ProtocolError):
        return "not valid HTTP"
    if isinstance(exc, httpcore.NetworkError):
        return "connection lost"
    return type(exc).__name__


async def _exchange(
    endpoint: Endpoint,
    policy: ActiveHealthPolicy,
    tls: UpstreamTls | None,
    device: str,
    *,
    method: str,
    path: str,
    headers: Sequence[tuple[bytes, bytes]],
    is_http2: bool,
    body: bytes = b"",
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return status, header fields (names in lower case) and the body, as far as `READ_BYTES` allow."""
    scheme, port = ("https" if tls else "http"), (policy.port or endpoint.port)
    # httpcore sets the ALPN list on the context it is given: this one is shared with nobody who wants another.
    context = client_context(tls, ("http/1.1", "h2") if is_http2 else ("http/1.1",)) if tls else None
    extensions = {"sni_hostname": tls.server_name} if tls and tls.server_name else {}
    request = httpcore.Request(
        method=method,
        url=httpcore.URL(scheme=scheme, host=endpoint.address, port=port, target=path),
        headers=headers,
        content=_Body(body) if body else None,
        extensions=extensions,
    )
    backend = _BoundedBackend(READ_BYTES, device)
    connection = httpcore.AsyncHTTPConnection(
        origin=request.url.origin,
        ssl_context=context,
        http1=not is_http2,
        http2=is_http2,
        network_backend=backend,
    )
    try:
        response = await connection.handle_async_request(request)
        content = bytearray()
        try:
            async for chunk in response.aiter_stream():
                content += chunk
        except httpcore.RemoteProtocolError:
            if not backend.is_spent:
                raise
        finally:
            await response.aclose()
        fields = {name.lower(): value for name, value in response.headers}
        return response.status, fields, bytes(content)
    finally:
        await connection.aclose()


class _Body:
    """A request body of one piece. httpcore's own is an async generator, which trio reports if sending fails midway."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data, self._data = self._data, b""
        if not data:
            raise StopAsyncIteration
        return data


class _BoundedBackend(httpcore.TrioBackend):
    """Connections that seem to end when the peer has sent so much: bodies need no cutting short in mid-iteration."""

    def __init__(self, left: int, device: str = "") -> None:
        self.left = left
        self._device = device

    @property
    def is_spent(self) -> bool:
        """True once the end was ours, not the peer's."""
        return self.left <= 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect as trio does; by the probe's interface, if it has one, which must be said before connecting."""
        if self._device:
            return _BoundedStream(await _connect_by(self._device, host, port), self)
        stream = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        return _BoundedStream(stream, self)


async def _connect_by(device: str, address: str, port: int) -> _SocketStream:
    family = trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_BINDTODEVICE, device.encode())
        await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return _SocketStream(trio.SocketStream(sock))


class _SocketStream(httpcore.AsyncNetworkStream):
    """A stream of trio's as httpcore wants it; whole probes have a timeout, so single steps need none."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise httpcore.ReadError(str(exc)) from exc

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            await self._stream.send_all(buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise httpcore.WriteError(str(exc)) from exc

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        assert isinstance(self._stream, trio.SocketStream)
        secured = trio.SSLStream(
            self._stream, ssl_context, server_hostname=server_hostname, https_compatible=True, server_side=False
        )
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as exc:
            raise httpcore.ConnectError(str(exc)) from exc
        return _SocketStream(secured)

    def get_extra_info(self, info: str) -> object:
        if info == "ssl_object" and isinstance(self._stream, trio.SSLStream):
            return getattr(self._stream, "_ssl_object", None)  # as httpcore's own does; for ALPN
        return None


class _BoundedStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream, budget: _BoundedBackend) -> None:
        self._stream = stream
        self._budget = budget

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._budget.is_spent:
            return b""
        data = await self._stream.read(min(max_bytes, self._budget.left), timeout)
        self._budget.left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        secured = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _BoundedStream(secured, self._budget)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
