"""Active probes against real servers on loopback: a hand-written HTTP one, and grpcio's."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent import futures
from contextlib import asynccontextmanager

import grpc
import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st

from datum_router.model.endpoint import Endpoint, make_endpoint
from datum_router.model.policy import ActiveHealthPolicy, ProbeType
from datum_router.model.service import UpstreamTls
from datum_router.plugins.protocols import ProbeResult
from datum_router_proxy.prober import (
    READ_BYTES,
    GrpcProber,
    HttpProber,
    TcpProber,
    decode_health_response,
    encode_health_request,
    make_prober,
)

CA = trustme.CA()
CA_PEM = CA.cert_pem.bytes().decode()
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Handler = Callable[[trio.abc.Stream], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, *, certificate: str = "", address: str = "127.0.0.1") -> AsyncIterator[Endpoint]:
    """Serve one handler on a loopback port."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host=address)
        port = listener.socket.getsockname()[1]
        listeners: list[trio.SocketListener | trio.SSLListener[trio.SocketStream]] = [listener]
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            CA.issue_cert(certificate).configure_cert(context)
            listeners = [trio.SSLListener(listener, context)]
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        try:
            yield make_endpoint(address, port)
        finally:
            nursery.cancel_scope.cancel()


def answering(answer: bytes, heads: list[bytes] | None = None) -> Handler:
    """Return a handler that reads one head and answers."""

    async def handle(stream: trio.abc.Stream) -> None:
        head = b""
        try:
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some(65536)
                if not data:
                    return
                head += data
            if heads is not None:
                heads.append(head)
            await stream.send_all(answer)
            await stream.aclose()
        except trio.BrokenResourceError:
            return

    return handle


def http_probe(
    handler: Handler, policy: ActiveHealthPolicy, tls: UpstreamTls | None = None, *, certificate: str = ""
) -> ProbeResult:
    async def main() -> ProbeResult:
        async with serving(handler, certificate=certificate) as endpoint:
            return await HttpProber().probe(endpoint, policy, tls)

    return trio.run(main)


def test_an_expected_status_is_healthy_and_the_request_is_as_the_policy_says() -> None:
    heads: list[bytes] = []
    policy = ActiveHealthPolicy(
        http_path="/ready?deep=1", method="HEAD", host="shop.example", headers=(("X-Probe", "yes"),)
    )
    result = http_probe(answering(b"HTTP/1.1 204 No Content\r\n\r\n", heads), policy)
    assert result == ProbeResult(is_ok=True, detail="status 204")
    lines = heads[0].lower().split(b"\r\n")
    assert lines[0] == b"head /ready?deep=1 http/1.1"
    assert b"host: shop.example" in lines
    assert b"x-probe: yes" in lines
    assert b"user-agent: datum-router-probe" in lines
    assert b"connection: close" in lines


def test_the_host_is_the_endpoint_unless_given() -> None:
    heads: list[bytes] = []
    assert http_probe(answering(OK, heads), ActiveHealthPolicy()).is_ok
    assert b"\r\nhost: 127.0.0.1:" in heads[0].lower()
    assert heads[0].startswith(b"GET /healthz HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("status", "expected", "is_ok"),
    [
        (200, ((200, 299),), True),
        (299, ((200, 299),), True),
        (300, ((200, 299),), False),
        (199 + 304, ((200, 299),), False),
        (401, ((200, 299), (401, 401)), True),
    ],
)
def test_status_ranges_are_inclusive(status: int, expected: tuple[tuple[int, int], ...], is_ok: bool) -> None:
    answer = f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode()
    result = http_probe(answering(answer), ActiveHealthPolicy(expected_statuses=expected))
    assert result == ProbeResult(is_ok=is_ok, detail=f"status {status}")


def test_redirects_are_not_followed() -> None:
    heads: list[bytes] = []
    answer = b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"
    result = http_probe(answering(answer, heads), ActiveHealthPolicy())
    assert result == ProbeResult(is_ok=False, detail="status 302")
    assert len(heads) == 1


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"]
)
def test_an_endless_body_is_read_to_the_bound_only(head: bytes) -> None:
    sent = 0

    async def endless(stream: trio.abc.Stream) -> None:
        nonlocal sent
        await stream.receive_some(65536)
        await stream.send_all(head)
        try:
            while True:
                await stream.send_all(bytes(16_384))
                sent += 16_384
        except trio.BrokenResourceError:
            return

    result = http_probe(endless, ActiveHealthPolicy())
    assert result.is_ok
    assert READ_BYTES <= sent + 16_384 < 64 * 1024 * 1024  # the kernel's buffers, not for ever


def test_a_body_cut_short_by_the_endpoint_is_unhealthy() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"
    assert http_probe(answering(answer), ActiveHealthPolicy()) == ProbeResult(is_ok=False, detail="not valid HTTP")


def test_what_is_not_http_is_unhealthy() -> None:
    assert http_probe(answering(b"SSH-2.0-OpenSSH\r\n"), ActiveHealthPolicy()) == ProbeResult(
        is_ok=False, detail="not valid HTTP"
    )


def test_an_end_without_an_answer_is_unhealthy() -> None:
    assert http_probe(answering(b""), ActiveHealthPolicy()) == ProbeResult(is_ok=False, detail="not valid HTTP")


async def silent(stream: trio.abc.Stream) -> None:
    try:
        await trio.sleep_forever()
    finally:
        await trio.aclose_forcefully(stream)


async def dripping(stream: trio.abc.Stream) -> None:
    """Send a byte now and then: no single read times out."""
    try:
        await stream.receive_some(65536)
        for byte in OK:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.02)
    except trio.BrokenResourceError:
        return


@pytest.mark.parametrize("handler", [silent, dripping])
def test_the_timeout_is_for_the_whole_probe(handler: Handler) -> None:
    result = http_probe(handler, ActiveHealthPolicy(timeout_s=0.1))
    assert result == ProbeResult(is_ok=False, detail="no answer within 0.1 s")


def refused_endpoint() -> Endpoint:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return make_endpoint("127.0.0.1", sock.getsockname()[1])


@pytest.mark.parametrize("kind", list(ProbeType))
def test_a_refused_connection_is_unhealthy_for_every_type(kind: ProbeType) -> None:
    async def main() -> ProbeResult:
        return await make_prober(kind).probe(refused_endpoint(), ActiveHealthPolicy(type=kind), None)

    assert trio.run(main) == ProbeResult(is_ok=False, detail="connection refused")


def test_a_policy_that_cannot_be_sent_is_unhealthy_not_an_exception() -> None:
    policy = ActiveHealthPolicy(headers=(("bad name", "x"),))
    result = http_probe(answering(OK), policy)
    assert not result.is_ok


def test_cancellation_passes_through() -> None:
    async def main() -> bool:
        async with serving(silent) as endpoint:
            with trio.move_on_after(0.05) as scope:
                await HttpProber().probe(endpoint, ActiveHealthPolicy(timeout_s=60), None)
            return scope.cancelled_caught

    assert trio.run(main)


def test_https_verifies_against_the_given_ca_and_name() -> None:
    tls = UpstreamTls(ca_pem=CA_PEM, server_name="internal.example")
    result = http_probe(answering(OK), ActiveHealthPolicy(), tls, certificate="internal.example")
    assert result == ProbeResult(is_ok=True, detail="status 200")
    address = http_probe(answering(OK), ActiveHealthPolicy(), UpstreamTls(ca_pem=CA_PEM), certificate="127.0.0.1")
    assert address.is_ok


def test_https_with_a_wrong_name_is_unhealthy() -> None:
    async def main() -> ProbeResult:
        async def handle(stream: trio.abc.Stream) -> None:
            try:
                await stream.receive_some(1)
            except trio.BrokenResourceError:
                return

        async with serving(handle, certificate="internal.example") as endpoint:
            tls = UpstreamTls(ca_pem=CA_PEM, server_name="other.example")
            return await HttpProber().probe(endpoint, ActiveHealthPolicy(), tls)

    result = trio.run(main)
    assert not result.is_ok
    assert result.detail.startswith("certificate not trusted: ")


def test_tcp_connects_and_says_nothing() -> None:
    got: list[bytes] = []

    async def main() -> ProbeResult:
        seen = trio.Event()

        async def handle(stream: trio.abc.Stream) -> None:
            got.append(bytes(await stream.receive_some(10)))
            seen.set()

        async with serving(handle) as endpoint:
            result = await TcpProber().probe(endpoint, ActiveHealthPolicy(type=ProbeType.TCP), None)
            await seen.wait()
            return result

    assert trio.run(main) == ProbeResult(is_ok=True, detail="connected")
    assert got == [b""]


def test_the_policys_port_overrides_the_endpoints() -> None:
    async def main() -> ProbeResult:
        async with serving(answering(OK)) as endpoint:
            policy = ActiveHealthPolicy(port=endpoint.port)
            return await HttpProber().probe(make_endpoint("127.0.0.1", 1), policy, None)

    assert trio.run(main).is_ok


# --- grpc ----------------------------------------------------------------------------------------------------------


class Health(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """grpc.health.v1.Health/Check by hand: `status` per service name, bytes in and out."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.answers: dict[bytes, bytes] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method != "/grpc.health.v1.Health/Check":
            return None

        def check(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.requests.append(request)
            answer = self.answers.get(request)
            if answer is None:
                context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
                raise AssertionError("abort raises")
            return answer

        return grpc.unary_unary_rpc_method_handler(check)


def test_a_probe_takes_no_certificate_that_requests_would_not_take() -> None:
    def probe(*pins: str) -> ProbeResult:
        tls = UpstreamTls(ca_pem=CA_PEM, server_name="sni.example", subject_alt_names=pins)
        return http_probe(answering(OK), ActiveHealthPolicy(), tls, certificate="internal.example")

    assert probe("other.example", "internal.example").is_ok
    result = probe("sni.example")
    assert not result.is_ok
    assert result.detail == "certificate not trusted: found internal.example, which is not in subjectAltNames"


@pytest.fixture(params=["plain", "tls"])
def health(request: pytest.FixtureRequest) -> Iterator[tuple[Health, Endpoint, UpstreamTls | None]]:
    handler = Health()
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(handler,))
    tls: UpstreamTls | None = None
    if request.param == "tls":
        cert = CA.issue_cert("127.0.0.1")
        chain = b"".join(blob.bytes() for blob in cert.cert_chain_pems)
        credentials = grpc.ssl_server_credentials([(cert.private_key_pem.bytes(), chain)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        tls = UpstreamTls(ca_pem=CA_PEM)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, make_endpoint("127.0.0.1", port), tls
    server.stop(None).wait(5)


GRPC = ActiveHealthPolicy(type=ProbeType.GRPC)


@pytest.mark.parametrize(
    ("answer", "is_ok", "detail"),
    [
        (b"\x08\x01", True, "serving"),
        (b"\x08\x02", False, "not serving"),
        (b"", False, "unknown"),
        (b"\x08\x63", False, "health 99"),
    ],
)
def test_grpc_health_is_judged_by_the_message(
    health: tuple[Health, Endpoint, UpstreamTls | None], answer: bytes, is_ok: bool, detail: str
) -> None:
    handler, endpoint, tls = health
    handler.answers[b""] = answer
    assert trio.run(GrpcProber().probe, endpoint, GRPC, tls) == ProbeResult(is_ok=is_ok, detail=detail)


def test_grpc_asks_for_the_named_service(health: tuple[Health, Endpoint, UpstreamTls | None]) -> None:
    handler, endpoint, tls = health
    handler.answers[b"\x0a\x04shop"] = b"\x08\x01"
    policy = ActiveHealthPolicy(type=ProbeType.GRPC, grpc_service="shop")
    assert trio.run(GrpcProber().probe, endpoint, policy, tls).is_ok
    unknown = trio.run(GrpcProber().probe, endpoint, GRPC, tls)
    assert unknown == ProbeResult(is_ok=False, detail="grpc-status 5")


def test_grpc_without_a_health_service_is_unhealthy(health: tuple[Health, Endpoint, UpstreamTls | None]) -> None:
    handler, endpoint, tls = health
    handler.service = lambda handler_call_details: None  # type: ignore[method-assign]
    assert trio.run(GrpcProber().probe, endpoint, GRPC, tls) == ProbeResult(is_ok=False, detail="grpc-status 12")


def test_an_http1_server_is_no_healthy_grpc_server() -> None:
    async def main() -> ProbeResult:
        async with serving(answering(OK)) as endpoint:
            return await GrpcProber().probe(endpoint, GRPC, None)

    assert not trio.run(main).is_ok


def message(body: bytes) -> bytes:
    return b"\x00" + len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (message(b"\x08\x01"), 1),
        (message(b""), 0),
        (message(b"\x08\x01\x08\x02"), 2),  # the last one counts
        (message(b"\x12\x02ab\x08\x01"), 1),  # an unknown string before it
        (message(b"\x15abcd\x19abcdefgh\x08\x01"), 1),
        (message(b"\x08\x01")[:-1], None),
        (b"", None),
        (b"\x01" + message(b"\x08\x01")[1:], None),  # compressed
        (message(b"\x08"), None),
        (message(b"\x08" + b"\xff" * 10), None),
        (message(b"\x12\x7fab"), None),
        (message(b"\x0b"), None),
        (message(b"\x15ab"), None),
    ],
)
def test_health_responses_are_decoded_strictly(data: bytes, expected: int | None) -> None:
    assert decode_health_response(data) == expected


@given(st.binary(max_size=64))
def test_decoding_never_raises(data: bytes) -> None:
    result = decode_health_response(data)
    assert result is None or result >= 0


def test_a_long_service_name_has_a_two_byte_length() -> None:
    encoded = encode_health_request("x" * 200)
    assert encoded[:8] == b"\x00\x00\x00\x00\xcb\x0a\xc8\x01"
    assert len(encoded) == 5 + 203
