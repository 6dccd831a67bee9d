"""The gRPC interoperability cases through the gateway, h2 to h2: clients and servers of grpc-go and grpcio in pairs.

Cases and messages: grpc/grpc doc/interop-test-descriptions.md and `grpc.testing` (messages.proto). The few messages are
encoded here by hand, so that no code generator is needed.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

pytestmark = pytest.mark.e2e
SERVICE = "grpc.testing.TestService"
CASES = [
    "empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
    "timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response", "status_code_and_message",
    "special_status_message", "custom_metadata", "unimplemented_method", "unimplemented_service",
]  # fmt: skip
LARGE_REQUEST, LARGE_RESPONSE = 271_828, 314_159
REQUEST_SIZES, RESPONSE_SIZES = [27_182, 8, 1_828, 45_904], [31_415, 9, 2_653, 58_979]
INITIAL, TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"
METADATA = ((INITIAL, "test_initial_metadata_value"), (TRAILING, b"\xab\xab\xab"))
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


# --- messages: field numbers of messages.proto


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def encode(*fields: tuple[int, int | bytes]) -> bytes:
    return b"".join(
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )


def decode(data: bytes) -> dict[int, list[Any]]:
    """Return values by field number: whole numbers and byte strings are all that these messages have."""
    position, found = 0, dict[int, list[Any]]()

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while position < len(data):
        key = number()
        value: int | bytes = number()
        if key & 7 == 2:
            length = int(value)
            value = data[position : position + length]
            position += length
        found.setdefault(key >> 3, []).append(value)
    return found


def payload(size: int) -> bytes:
    return encode((2, bytes(size)))


def payload_size(message: bytes, field: int = 1) -> int:
    inner = decode(message).get(field)
    return len(decode(inner[0]).get(2, [b""])[0]) if inner else 0


def streaming_request(sizes: Iterable[int], size: int = 0, status: bytes | None = None) -> bytes:
    fields: list[tuple[int, int | bytes]] = [(2, encode((1, item))) for item in sizes]
    if size:
        fields.append((3, payload(size)))
    return encode(*fields, *([(7, status)] if status is not None else []))


# --- server


class TestService(grpc.GenericRpcHandler):
    """`grpc.testing.TestService` without UnimplementedCall; counts the calls that were opened and that ended."""

    __test__ = False

    def __init__(self) -> None:
        self.opened = 0
        self.cancelled = 0
        self.ended = 0
        self._lock = threading.Lock()

    def service(self, details: Any) -> Any:
        handlers = {
            "EmptyCall": grpc.unary_unary_rpc_method_handler(lambda _message, context: self._open(context) or b""),
            "UnaryCall": grpc.unary_unary_rpc_method_handler(self._unary),
            "StreamingInputCall": grpc.stream_unary_rpc_method_handler(self._input),
            "StreamingOutputCall": grpc.unary_stream_rpc_method_handler(self._output),
            "FullDuplexCall": grpc.stream_stream_rpc_method_handler(self._duplex),
        }
        service, _, method = details.method.removeprefix("/").partition("/")
        return handlers.get(method) if service == SERVICE else None

    def _open(self, context: Any) -> None:
        with self._lock:
            self.opened += 1

        def over() -> None:
            with self._lock:
                self.ended += 1
                self.cancelled += context.code() is None

        if not context.add_callback(over):  # it has ended before it began
            over()
        for name, value in context.invocation_metadata():
            if name == INITIAL:
                context.send_initial_metadata(((name, value),))
            elif name == TRAILING:
                context.set_trailing_metadata(((name, value),))

    def _check_status(self, message: bytes, context: Any) -> dict[int, list[Any]]:
        fields = decode(message)
        for wanted in fields.get(7, []):
            status = decode(wanted)
            codes = {item.value[0]: item for item in grpc.StatusCode}
            context.abort(codes[status[1][0]], status[2][0].decode())
        return fields

    def _unary(self, message: bytes, context: Any) -> bytes:
        self._open(context)
        fields = self._check_status(message, context)
        context.set_code(grpc.StatusCode.OK)
        return encode((1, payload(fields.get(2, [0])[0])))

    def _input(self, messages: Iterator[bytes], context: Any) -> bytes:
        self._open(context)
        return encode((1, sum(payload_size(message) for message in messages)))

    def _answers(self, message: bytes, context: Any) -> Iterator[bytes]:
        for parameters in self._check_status(message, context).get(2, []):
            yield encode((1, payload(decode(parameters)[1][0])))

    def _output(self, message: bytes, context: Any) -> Iterator[bytes]:
        self._open(context)
        yield from self._answers(message, context)

    def _duplex(self, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self._open(context)
        for message in messages:
            yield from self._answers(message, context)


@contextmanager
def grpcio_server() -> Iterator[tuple[int, TestService]]:
    service = TestService()
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, service
    server.stop(None).wait(10)


@contextmanager
def grpc_go_server(program: Callable[[str], str], log: Path, kit: Any) -> Iterator[tuple[int, None]]:
    with log.open("w") as output:
        environment = {**os.environ, "GRPC_GO_LOG_SEVERITY_LEVEL": "info"}
        process = subprocess.Popen([program("server"), "-port", "0"], stderr=output, env=environment)
    try:
        heard = re.compile(r"interop server listening on \S+:(\d+)")
        kit.eventually(lambda: heard.search(log.read_text()) is not None, "grpc-go's server listens")
        found = heard.search(log.read_text())
        assert found is not None
        yield int(found[1]), None
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module", params=["grpcio", pytest.param("grpc-go", marks=pytest.mark.external)])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kit: Any, peers: Any) -> Any:
    """A server of either kind behind a gateway: (its name, the gateway, what the server counted if it is ours)."""
    directory = tmp_path_factory.mktemp("grpc") / "manifests"
    directory.mkdir()
    if request.param == "grpcio":
        server: Any = grpcio_server()
    else:
        server = grpc_go_server(request.getfixturevalue("program"), directory.parent / "server.log", kit)
    with server as (port, service):
        peers.write_service(directory, "GRPC", port)
        gateway = kit.Gateway(directory, "--listen", "127.0.0.1:0")
        try:
            yield request.param, gateway, service
            assert "Traceback" not in gateway.log.read_text()
        finally:
            gateway.stop()


@pytest.fixture
def watched(path: Any, kit: Any) -> Iterator[Any]:
    """The path, and afterwards: every call that a server saw has ended, and the gateway holds none."""
    name, gateway, service = path
    yield name, gateway
    kit.eventually(lambda: gateway.stats()["gauges"].get("requests_in_flight", 0) == 0, "no request is held")
    if service is not None:
        kit.eventually(lambda: service.ended == service.opened, "every call at the server has ended")


# --- grpc-go's client


@pytest.mark.external
@pytest.mark.parametrize("case", CASES)
def test_grpc_go_client(case: str, watched: Any, program: Callable[[str], str], record_property: Any) -> None:
    name, gateway = watched
    done = subprocess.run(
        [program("client"), "-server_host", "127.0.0.1", "-server_port", str(gateway.port), "-test_case", case],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "GRPC_GO_LOG_SEVERITY_LEVEL": "info"},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\[interop\] \w+ done", done.stderr), done.stderr
    record_property(f"gRPC interop, grpc-go to {name}", case)


# --- the same with grpcio


class Client:
    """Stubs of TestService that take and return encoded messages."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.empty = channel.unary_unary(f"/{SERVICE}/EmptyCall")
        self.unary = channel.unary_unary(f"/{SERVICE}/UnaryCall")
        self.input = channel.stream_unary(f"/{SERVICE}/StreamingInputCall")
        self.output = channel.unary_stream(f"/{SERVICE}/StreamingOutputCall")
        self.duplex = channel.stream_stream(f"/{SERVICE}/FullDuplexCall")
        self.unimplemented_method = channel.unary_unary(f"/{SERVICE}/UnimplementedCall")
        self.unimplemented_service = channel.unary_unary("/grpc.testing.UnimplementedService/UnimplementedCall")


class Outgoing:
    """Requests of a stream, given one at a time; the stream stays open until `end`."""

    def __init__(self) -> None:
        self._items: list[bytes | None] = []
        self._changed = threading.Condition()

    def send(self, item: bytes | None) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items), timeout=30)
            item = self._items.pop(0) if self._items else None
        if item is None:
            raise StopIteration
        return item


def assert_code(call: Callable[[], object], code: grpc.StatusCode, details: str | None = None) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code
    if details is not None:
        assert caught.value.details() == details


def case_empty_unary(client: Client) -> None:
    assert client.empty(b"", timeout=20) == b""


def case_large_unary(client: Client) -> None:
    answer = client.unary(encode((2, LARGE_RESPONSE), (3, payload(LARGE_REQUEST))), timeout=20)
    assert payload_size(answer) == LARGE_RESPONSE


def case_client_streaming(client: Client) -> None:
    messages = [encode((1, payload(size))) for size in REQUEST_SIZES]
    assert decode(client.input(iter(messages), timeout=20))[1] == [sum(REQUEST_SIZES)]


def case_server_streaming(client: Client) -> None:
    answers = client.output(streaming_request(RESPONSE_SIZES), timeout=20)
    assert [payload_size(answer) for answer in answers] == RESPONSE_SIZES


def case_ping_pong(client: Client) -> None:
    outgoing = Outgoing()
    answers = client.duplex(outgoing, timeout=20)
    for size, wanted in zip(REQUEST_SIZES, RESPONSE_SIZES, strict=True):
        outgoing.send(streaming_request([wanted], size))
        assert payload_size(next(answers)) == wanted
    outgoing.send(None)
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def case_empty_stream(client: Client) -> None:
    answers = client.duplex(iter(()), timeout=20)
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def case_timeout_on_sleeping_server(client: Client) -> None:
    outgoing = Outgoing()
    answers = client.duplex(outgoing, timeout=0.001)
    outgoing.send(streaming_request([], REQUEST_SIZES[0]))
    assert_code(lambda: next(answers), grpc.StatusCode.DEADLINE_EXCEEDED)
    outgoing.send(None)
    # A deadline that has not passed before the call reaches the server, and is kept by the gateway as well.
    outgoing = Outgoing()
    answers = client.duplex(outgoing, timeout=2.0)
    outgoing.send(streaming_request([1], 1))
    assert payload_size(next(answers)) == 1
    assert_code(lambda: next(answers), grpc.StatusCode.DEADLINE_EXCEEDED)
    outgoing.send(None)


def case_cancel_after_begin(client: Client) -> None:
    outgoing = Outgoing()
    call = client.input.future(outgoing, timeout=20)
    call.cancel()
    assert call.cancelled()
    assert call.code() is grpc.StatusCode.CANCELLED
    outgoing.send(None)


def case_cancel_after_first_response(client: Client) -> None:
    outgoing = Outgoing()
    answers = client.duplex(outgoing, timeout=20)
    outgoing.send(streaming_request([RESPONSE_SIZES[0]], REQUEST_SIZES[0]))
    assert payload_size(next(answers)) == RESPONSE_SIZES[0]
    answers.cancel()
    assert_code(lambda: next(answers), grpc.StatusCode.CANCELLED)
    outgoing.send(None)


def case_status_code_and_message(client: Client) -> None:
    status = encode((1, 2), (2, b"test status message"))
    code, details = grpc.StatusCode.UNKNOWN, "test status message"
    assert_code(lambda: client.unary(encode((7, status)), timeout=20), code, details)
    assert_code(lambda: list(client.duplex(iter([streaming_request([], 0, status)]), timeout=20)), code, details)


def case_special_status_message(client: Client) -> None:
    status = encode((1, 2), (2, SPECIAL.encode()))
    assert_code(lambda: client.unary(encode((7, status)), timeout=20), grpc.StatusCode.UNKNOWN, SPECIAL)


def case_custom_metadata(client: Client) -> None:
    request = encode((2, LARGE_RESPONSE), (3, payload(LARGE_REQUEST)))
    _, call = client.unary.with_call(request, timeout=20, metadata=METADATA)
    answers = client.duplex(iter([streaming_request([LARGE_RESPONSE], LARGE_REQUEST)]), timeout=20, metadata=METADATA)
    assert [payload_size(answer) for answer in answers] == [LARGE_RESPONSE]
    for done in (call, answers):
        assert [item for item in done.initial_metadata() if item[0] == INITIAL] == [METADATA[0]]
        assert [item for item in done.trailing_metadata() if item[0] == TRAILING] == [METADATA[1]]


def case_unimplemented_method(client: Client) -> None:
    assert_code(lambda: client.unimplemented_method(b"", timeout=20), grpc.StatusCode.UNIMPLEMENTED)


def case_unimplemented_service(client: Client) -> None:
    assert_code(lambda: client.unimplemented_service(b"", timeout=20), grpc.StatusCode.UNIMPLEMENTED)


@pytest.mark.parametrize("case", CASES)
def test_grpcio_client(case: str, watched: Any, record_property: Any) -> None:
    name, gateway = watched
    with grpc.insecure_channel(f"127.0.0.1:{gateway.port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        globals()[f"case_{case}"](Client(channel))
    record_property(f"gRPC interop, grpcio to {name}", case)


@pytest.mark.parametrize("path", ["grpcio"], indirect=True)  # grpc-go's server does not tell what was cancelled
def test_a_cancelled_call_is_cancelled_at_the_server(path: Any, kit: Any) -> None:
    _, gateway, service = path
    before = service.cancelled
    with grpc.insecure_channel(f"127.0.0.1:{gateway.port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        case_cancel_after_first_response(Client(channel))
        kit.eventually(lambda: service.cancelled > before, "the server hears of it")
