"""A raw HTTP/1.1 client that says exactly how an exchange failed, and a first-in-first-out pool of connections."""

from __future__ import annotations

import collections
import errno
import os
import socket

import msgspec
import trio

from datum_soak.outcomes import Address, Cause, Failure

READ_BYTES = 65536
CONNECT_TIMEOUT_S = 5.0
MAX_IDLE_S = 1.0


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A complete answer; field names are lower case."""

    status: int
    fields: dict[str, str]
    body: bytes


async def connect(gateway: Address, source: str = "") -> trio.SocketStream:
    """Connect, from the address `source` if given.

    Raises:
        Failure: Refused, reset or no answer in time.
    """
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if source:
            await sock.bind((source, 0))
        with trio.fail_after(CONNECT_TIMEOUT_S):
            await sock.connect(gateway)
    except trio.TooSlowError as error:
        sock.close()
        raise Failure(Cause.CONNECT_TIMEOUT) from error
    except OSError as error:
        sock.close()
        if error.errno == errno.ECONNREFUSED:
            raise Failure(Cause.REFUSED) from error
        if error.errno == errno.ECONNRESET:
            raise Failure(Cause.CONNECT_RESET) from error
        raise Failure(Cause.CLIENT, f"connect: {error}") from error
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


class Http1Connection:
    """One connection; one exchange at a time.

    Attributes:
        local: Our address.
        exchanges: How many were begun.
        has_answer_begun: Whether the exchange under way has got a byte of its answer.
        is_reusable: Whether another exchange may begin.
    """

    __slots__ = ("_buffer", "_stream", "exchanges", "has_answer_begun", "is_reusable", "local")

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self.local: Address = stream.socket.getsockname()[:2]
        self.exchanges = 0
        self.has_answer_begun = False
        self.is_reusable = True

    def is_closed_by_peer(self) -> bool:
        """Look, without waiting, whether the gateway has closed the idle connection (or sent something unasked)."""
        descriptor = os.dup(self._stream.socket.fileno())
        try:
            with socket.socket(fileno=descriptor) as look:
                look.setblocking(False)
                look.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    async def exchange(self, method: str, path: str, fields: dict[str, str], body: bytes | None = None) -> Answer:
        """Send a request and return its answer. If it fails or is cancelled, the connection is of no more use.

        Raises:
            Failure: With the cause.
        """
        self.exchanges += 1
        self.has_answer_begun = False
        self.is_reusable = False
        lines = [
            f"{method} {path} HTTP/1.1",
            "host: soak.test",
            *(f"{name}: {value}" for name, value in fields.items()),
        ]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        try:
            await self._stream.send_all(head + (body or b""))
        except trio.BrokenResourceError as error:
            # The gateway may have answered before it closed; what came counts.
            if not await self._more_after_break():
                raise _broken(error) from error
        answer = await self._read_answer()
        self.is_reusable = answer.fields.get("connection", "").lower() != "close"
        if self._buffer:
            raise Failure(Cause.MIXED_UP, f"{len(self._buffer)} bytes after the answer's end")
        return answer

    async def aclose(self) -> None:
        """Close."""
        self.is_reusable = False
        await trio.aclose_forcefully(self._stream)

    async def _more_after_break(self) -> bool:
        try:
            data = await self._stream.receive_some(READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        self._buffer += data
        return bool(data)

    async def _more(self) -> None:
        try:
            data = await self._stream.receive_some(READ_BYTES)
        except trio.BrokenResourceError as error:
            raise _broken(error, in_body=self.has_answer_begun) from error
        if not data:
            raise Failure(Cause.CUT_BODY if self.has_answer_begun else Cause.CLOSED)
        self._buffer += data
        self.has_answer_begun = True

    async def _read_answer(self) -> Answer:
        buffer = self._buffer
        while True:
            while (end := buffer.find(b"\r\n\r\n")) < 0:
                await self._more()
            self.has_answer_begun = True
            line, *lines = buffer[:end].decode("latin-1").split("\r\n")
            del buffer[: end + 4]
            parts = line.split(" ", 2)
            if len(parts) < 2 or parts[0] != "HTTP/1.1" or not parts[1].isdecimal():
                raise Failure(Cause.PROTOCOL, f"status line {line[:80]!r}")
            status = int(parts[1])
            if status >= 200 or status == 101:
                break
        fields = {name.lower(): value.strip() for name, _, value in (item.partition(":") for item in lines)}
        return Answer(status=status, fields=fields, body=await self._read_body(status, fields))

    async def _read_body(self, status: int, fields: dict[str, str]) -> bytes:
        if status == 101:
            return b""
        if fields.get("transfer-encoding", "") == "chunked":
            return await self._read_chunks()
        if "content-length" not in fields:
            raise Failure(Cause.PROTOCOL, "an answer without a length")
        return await self._take(int(fields["content-length"]))

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _read_chunks(self) -> bytes:
        parts: list[bytes] = []
        while True:
            while (end := self._buffer.find(b"\r\n")) < 0:
                await self._more()
            try:
                size = int((await self._take(end + 2))[:-2], 16)
            except ValueError as error:
                raise Failure(Cause.PROTOCOL, "chunk header") from error
            chunk = await self._take(size + 2)
            if chunk[-2:] != b"\r\n":
                raise Failure(Cause.PROTOCOL, "chunk end")
            if size == 0:
                return b"".join(parts)
            parts.append(chunk[:-2])

    # --- for what follows a 101 ------------------------------------------------------------------------------------

    def take_stream(self) -> tuple[trio.SocketStream, bytes]:
        """Give away the stream and the bytes read already, after a 101."""
        self.is_reusable = False
        return self._stream, bytes(self._buffer)


def _broken(error: BaseException, *, in_body: bool = False) -> Failure:
    cause = error.__cause__
    number = cause.errno if isinstance(cause, OSError) else 0
    if in_body:
        return Failure(Cause.CUT_BODY, "reset")
    return Failure(Cause.RESET, errno.errorcode.get(number or 0, ""))


class Http1Pool:
    """Idle connections, the longest idle first; none is used again after `MAX_IDLE_S`.

    A server may close an idle connection just as a request is on its way (RFC 9112 section 9.5), and nobody can help
    that. A client that wants no such loss gives idle connections up before the server's shortest time, here its
    lameduck; for what fails on the others there is no excuse.
    """

    __slots__ = ("_gateway", "_idle", "opened")

    def __init__(self, gateway: Address) -> None:
        self._gateway = gateway
        self._idle: collections.deque[tuple[float, Http1Connection]] = collections.deque()
        self.opened = 0

    async def take(self) -> Http1Connection:
        """Return an idle connection that the gateway has not closed, or a new one."""
        while self._idle:
            since, connection = self._idle.popleft()
            if trio.current_time() - since < MAX_IDLE_S and not connection.is_closed_by_peer():
                return connection
            await connection.aclose()
        return await self.open()

    async def open(self) -> Http1Connection:
        """Return a new connection."""
        stream = await connect(self._gateway)
        self.opened += 1
        return Http1Connection(stream)

    async def give_back(self, connection: Http1Connection) -> None:
        """Keep it if it can serve again, else close it."""
        if connection.is_reusable:
            self._idle.append((trio.current_time(), connection))
        else:
            await connection.aclose()

    async def aclose(self) -> None:
        """Close the idle ones."""
        while self._idle:
            await self._idle.popleft()[1].aclose()
