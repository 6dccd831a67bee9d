"""A small backend for the demo: HTTP/1.1, WebSocket echo and gRPC (echo and health) of one 'cloud'.

Made of independent libraries (h11, websockets, grpcio), none of the router's own code.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import h11
import trio
from websockets.frames import Opcode
from websockets.server import ServerProtocol

Rpc = Iterator[bytes]


class Echo(grpc.GenericRpcHandler):
    """`datum.demo.Echo`: messages are plain bytes; every answer begins with the cloud's name."""

    def __init__(self, name: str) -> None:
        prefix = f"{name}:".encode()

        def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.set_trailing_metadata((("x-cloud", name),))
            return prefix + request

        def server_stream(request: bytes, _context: grpc.ServicerContext) -> Rpc:
            for index in range(5):
                yield prefix + request + b"#" + str(index).encode()

        def client_stream(requests: Rpc, _context: grpc.ServicerContext) -> bytes:
            return prefix + b",".join(requests)

        def bidi(requests: Rpc, _context: grpc.ServicerContext) -> Rpc:
            for request in requests:
                yield prefix + request

        def sleep(_request: bytes, context: grpc.ServicerContext) -> bytes:
            while context.is_active():
                trio.run(trio.sleep, 0.01)
            return b""

        def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"asked to fail: {request.decode()}")
            raise AssertionError("abort returns never")

        def check(_request: bytes, _context: grpc.ServicerContext) -> bytes:
            return b"\x08\x01"  # HealthCheckResponse{status: SERVING}

        self._methods = {
            "/datum.demo.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
            "/datum.demo.Echo/ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
            "/datum.demo.Echo/ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
            "/datum.demo.Echo/Bidi": grpc.stream_stream_rpc_method_handler(bidi),
            "/datum.demo.Echo/Sleep": grpc.unary_unary_rpc_method_handler(sleep),
            "/datum.demo.Echo/Fail": grpc.unary_unary_rpc_method_handler(fail),
            "/grpc.health.v1.Health/Check": grpc.unary_unary_rpc_method_handler(check),
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._methods.get(details.method)


async def serve_connection(name: str, stream: trio.SocketStream) -> None:
    """Serve one connection: HTTP/1.1, and WebSocket from the request on that asks for it."""
    try:
        await serve_http(name, stream)
    except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
        pass
    finally:
        await stream.aclose()


async def serve_websocket(name: str, stream: trio.SocketStream, first: bytes) -> None:
    """Echo every message, with the cloud's name before text."""
    protocol = ServerProtocol()
    protocol.receive_data(first)
    is_open = False
    while True:
        for event in protocol.events_received():
            if not is_open:
                protocol.send_response(protocol.accept(event))
                is_open = True
            elif event.opcode is Opcode.TEXT:
                protocol.send_text(f"{name}:".encode() + event.data)
            elif event.opcode is Opcode.BINARY:
                protocol.send_binary(event.data)
        for data in protocol.data_to_send():
            if data:
                await stream.send_all(data)
            else:
                await stream.send_eof()
        if protocol.close_expected():
            return
        data = await stream.receive_some(65536)
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()


async def serve_http(name: str, stream: trio.SocketStream) -> None:
    """Answer each request with what arrived, as JSON."""
    connection = h11.Connection(h11.SERVER)
    while True:
        request: h11.Request | None = None
        body_bytes = 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    await stream.send_all(connection.send(h11.InformationalResponse(status_code=100, headers=[])))
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                request = event
                if (b"upgrade", b"websocket") in request.headers:
                    lines = [b"GET " + request.target + b" HTTP/1.1", *(b": ".join(pair) for pair in request.headers)]
                    head = b"\r\n".join(lines) + b"\r\n\r\n"
                    await serve_websocket(name, stream, head + connection.trailing_data[0])
                    return
            elif isinstance(event, h11.Data):
                body_bytes += len(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return
        assert request is not None
        await stream.send_all(answer(name, connection, request, body_bytes))
        if connection.our_state is h11.MUST_CLOSE:
            return
        connection.start_next_cycle()


def answer(name: str, connection: h11.Connection, request: h11.Request, body_bytes: int) -> bytes:
    path = request.target.decode()
    value = {
        "cloud": name,
        "method": request.method.decode(),
        "path": path,
        "body_bytes": body_bytes,
        "headers": {key.decode(): item.decode("latin-1") for key, item in request.headers},
    }
    body = json.dumps(value).encode() + b"\n"
    head = h11.Response(
        status_code=200,
        headers=[
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-cloud", name),
        ],
    )
    data = connection.send(head)
    if request.method != b"HEAD":
        data += connection.send(h11.Data(data=body))
    return data + connection.send(h11.EndOfMessage())


async def run(name: str, host: str, http_port: int, grpc_port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = grpc.server(ThreadPoolExecutor(max_workers=8), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers([Echo(name)])
    server.add_insecure_port(f"{host}:{grpc_port}")
    server.start()
    listeners = await trio.open_tcp_listeners(http_port, host=host)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def handler(stream: trio.SocketStream) -> None:
                await serve_connection(name, stream)

            nursery.start_soon(trio.serve_listeners, handler, listeners)
            print(f"{name} ready", flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break
    server.stop(grace=None).wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument("--grpc-port", type=int, default=9090)
    options = parser.parse_args()
    trio.run(run, options.name, options.host, options.http_port, options.grpc_port)


if __name__ == "__main__":
    main()
