"""Upstreams of the soak: one process, many listeners that open and close on command.

Commands come as JSON lines on stdin, `{"do": "open", "name": "e1", "host": "127.0.1.1", "h2": false}` and
`{"do": "close", "name": "e1"}`; each is answered by one JSON line. `close` is graceful: no new connections, requests
under way are finished, idle connections are closed. End of file ends the process.

Paths end in `/body/SIZE`, `/chunked/SIZE`, `/slow/SIZE/MILLISECONDS`, `/cut/SIZE` (half of it, then a reset), and
`/sum`, which says length and SHA-256 of what arrived; every answer carries `x-soak-id` of its request and `x-backend`.
"""

from __future__ import annotations

import json
import resource
import socket
import struct
import sys

import trio
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from datum_soak.backend_h2 import Http2Server
from datum_soak.payload import digest, make_body

READ_BYTES = 65536
BEFORE_CUT_S = 0.25
"""The router must have read the half that was sent: a reset throws away what waits in its receive queue."""
SLOW_PIECES = 10


def reset_on_close(sock: trio.socket.SocketType) -> None:
    """Make the next close of the socket send a reset instead of an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Connection:
    """One HTTP/1.1 connection from the router."""

    def __init__(self, name: str, stream: trio.SocketStream) -> None:
        self.name = name
        self.stream = stream
        self.is_closing = False
        self.idle: trio.CancelScope | None = None
        self._buffer = bytearray()

    def close_when_idle(self) -> None:
        """Finish the request under way, if there is one, and close."""
        self.is_closing = True
        if self.idle is not None:
            self.idle.cancel()

    async def serve(self) -> None:
        """Answer requests until the router closes or we shall."""
        while not self.is_closing:
            head = await self._read_head()
            if head is None:
                return
            line, *lines = head.decode("latin-1").split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (item.partition(":") for item in lines)}
            method, target, _version = line.split(" ")
            if fields.get("upgrade", "").lower() == "websocket":
                await self._websocket(head)
                return
            body = await self._read_body(fields)
            await self._answer(method, target.partition("?")[0], fields.get("x-soak-id", ""), body)

    async def _more(self) -> bool:
        data = await self.stream.receive_some(READ_BYTES)
        self._buffer += data
        return bool(data)

    async def _read_head(self) -> bytes | None:
        with trio.CancelScope() as scope:
            self.idle = scope if not self._buffer else None
            while (end := self._buffer.find(b"\r\n\r\n")) < 0:
                if not await self._more():
                    return None
                self.idle = None
            head = bytes(self._buffer[:end])
            del self._buffer[: end + 4]
            return head
        return None

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not await self._more():
                raise trio.BrokenResourceError("the router went away in a body")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _read_body(self, fields: dict[str, str]) -> bytes:
        if "chunked" not in fields.get("transfer-encoding", ""):
            return await self._take(int(fields.get("content-length", "0")))
        parts = []
        while True:
            while (end := self._buffer.find(b"\r\n")) < 0:
                if not await self._more():
                    raise trio.BrokenResourceError("the router went away in a body")
            size = int((await self._take(end + 2)).split(b";")[0], 16)
            parts.append((await self._take(size + 2))[:-2])
            if size == 0:
                return b"".join(parts)

    async def _answer(self, method: str, path: str, request_id: str, body: bytes) -> None:
        what, _, rest = path.lstrip("/").partition("/")[2].partition("/")
        size = int(rest.partition("/")[0] or "0")
        content = digest(body).encode() if what == "sum" else make_body(request_id, size)
        head = f"HTTP/1.1 200 OK\r\nx-soak-id: {request_id}\r\nx-backend: {self.name}\r\n".encode()
        if what == "chunked":
            middle = len(content) // 3
            chunks = (content[:middle], content[middle:])
            data = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks if chunk)
            await self.stream.send_all(head + b"transfer-encoding: chunked\r\n\r\n" + data + b"0\r\n\r\n")
            return
        head += b"content-length: %d\r\n\r\n" % len(content)
        if what == "cut":
            await self.stream.send_all(head + content[: size // 2])
            await trio.sleep(BEFORE_CUT_S)
            reset_on_close(self.stream.socket)
            raise trio.BrokenResourceError("cut on purpose")
        if what == "slow":
            pause_s = int(rest.partition("/")[2]) / 1000 / SLOW_PIECES
            await self.stream.send_all(head)
            step = -(-len(content) // SLOW_PIECES)
            for start in range(0, len(content), step):
                await trio.sleep(pause_s)
                await self.stream.send_all(content[start : start + step])
            return
        await self.stream.send_all(head + content)

    async def _websocket(self, head: bytes) -> None:
        protocol = ServerProtocol(max_size=1 << 20)
        protocol.receive_data(head + b"\r\n\r\n" + bytes(self._buffer))
        is_open = False
        while True:
            for event in protocol.events_received():
                if not is_open:
                    protocol.send_response(protocol.accept(event))  # type: ignore[arg-type] # the first event is the request
                    is_open = True
                elif event.opcode is Opcode.BINARY and protocol.state is State.OPEN:  # type: ignore[union-attr]
                    protocol.send_binary(event.data)  # type: ignore[union-attr]
            for data in protocol.data_to_send():
                if data:
                    await self.stream.send_all(data)
                else:
                    await self.stream.send_eof()
            if protocol.close_expected():
                return
            data = await self.stream.receive_some(READ_BYTES)
            if data:
                protocol.receive_data(data)
            else:
                protocol.receive_eof()


class Endpoint:
    """One listener: `open` until `close`."""

    def __init__(self, name: str, *, is_h2: bool) -> None:
        self.name = name
        self.is_h2 = is_h2
        self.accepting = trio.CancelScope()
        self.connections: set[Connection | Http2Server] = set()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection; what the router breaks off is no error of ours."""
        connection = Http2Server(self.name, stream) if self.is_h2 else Connection(self.name, stream)
        self.connections.add(connection)
        try:
            await connection.serve()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.connections.discard(connection)
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.aclose()

    def close(self) -> None:
        """Accept no more; let every connection finish what it does."""
        self.accepting.cancel()
        for connection in list(self.connections):
            connection.close_when_idle()


async def open_endpoint(endpoint: Endpoint, host: str, port: int, nursery: trio.Nursery) -> int:
    """Listen and return the port."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    await sock.bind((host, port))
    sock.listen(1024)
    listener = trio.SocketListener(sock)

    async def accept() -> None:
        with endpoint.accepting:
            # Connections live in the outer nursery: they end by themselves after the listener has.
            await trio.serve_listeners(endpoint.handle, [listener], handler_nursery=nursery)
        await listener.aclose()

    nursery.start_soon(accept)
    return int(listener.socket.getsockname()[1])


async def main() -> None:
    """Obey commands until stdin ends."""
    endpoints: dict[str, Endpoint] = {}
    async with trio.open_nursery() as nursery:
        commands = trio.lowlevel.FdStream(sys.stdin.fileno())
        buffer = b""
        while data := await commands.receive_some(READ_BYTES):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                command = json.loads(line)
                answer: dict[str, object] = {"name": command["name"]}
                if command["do"] == "open":
                    endpoint = endpoints[command["name"]] = Endpoint(command["name"], is_h2=command.get("h2", False))
                    answer["port"] = await open_endpoint(endpoint, command["host"], command.get("port", 0), nursery)
                else:
                    endpoints.pop(command["name"]).close()
                print(json.dumps(answer), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(main)
