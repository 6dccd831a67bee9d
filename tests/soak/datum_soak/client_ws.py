"""Long-lived WebSockets: each message is a request, its echo the answer."""

from __future__ import annotations

from collections.abc import Callable

import trio
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from datum_soak.client_h1 import READ_BYTES, connect
from datum_soak.outcomes import Address, Cause, Failure

GOING_AWAY = 1001


class WebSocket:
    """One WebSocket; one message under way at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._protocol = ClientProtocol(parse_uri("ws://soak.test/ws/echo"), max_size=1 << 20)
        self.local: Address = stream.socket.getsockname()[:2]
        self.messages = 0

    @classmethod
    async def open(cls, gateway: Address, connected: Callable[[Address], None]) -> WebSocket:
        """Connect and do the handshake.

        Args:
            connected: Told our address before the handshake.

        Raises:
            Failure: It was not made.
        """
        socket = cls(await connect(gateway))
        connected(socket.local)
        try:
            await socket._handshake()
        except BaseException:
            await socket.aclose()
            raise
        return socket

    async def _handshake(self) -> None:
        protocol = self._protocol
        protocol.send_request(protocol.connect())
        await self._flush()
        while protocol.state is State.CONNECTING:
            await self._receive()
            if isinstance(protocol.handshake_exc, InvalidStatus):
                answer = protocol.handshake_exc.response
                reason = (answer.body or b"")[:80].decode("latin-1").partition(":")[0].strip()
                raise Failure(Cause.STATUS, "handshake", status=answer.status_code, reason=reason)
            if protocol.handshake_exc is not None:
                raise Failure(Cause.PROTOCOL, f"handshake: {protocol.handshake_exc}")
        protocol.events_received()

    @property
    def is_closed_by_peer(self) -> bool:
        """Tell whether the closing handshake has begun."""
        return self._protocol.state is not State.OPEN

    async def poll(self) -> None:
        """Take what has come meanwhile, without waiting: a close frame, if anything."""
        with trio.move_on_after(0):
            await self._receive()

    async def echo(self, message: bytes) -> bytes:
        """Send a message and return what comes back.

        Raises:
            Failure: GOING_AWAY if the gateway's close frame 1001 came instead.
        """
        self.messages += 1
        self._protocol.send_binary(message)
        await self._flush()
        parts: list[bytes] = []
        while True:
            for event in self._protocol.events_received():
                assert isinstance(event, Frame)
                if event.opcode is Opcode.CLOSE:
                    code = self._protocol.close_rcvd.code if self._protocol.close_rcvd else 0
                    raise Failure(Cause.GOING_AWAY if code == GOING_AWAY else Cause.CLOSED, f"close frame {code}")
                if event.opcode in (Opcode.BINARY, Opcode.CONT):
                    parts.append(bytes(event.data))
                    if event.fin:
                        return b"".join(parts)
            await self._receive()

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive_some(READ_BYTES)
        except trio.BrokenResourceError as error:
            raise Failure(Cause.RESET) from error
        if not data:
            raise Failure(Cause.CLOSED, "without a close frame")
        self._protocol.receive_data(data)
        await self._flush()

    async def _flush(self) -> None:
        try:
            for data in self._protocol.data_to_send():
                if data:
                    await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise Failure(Cause.RESET) from error

    async def aclose(self) -> None:
        """Close the closing handshake, if it is open still, and the connection."""
        with trio.move_on_after(1.0, shield=True):
            try:
                if self._protocol.state is State.OPEN:
                    self._protocol.send_close(1000)
                    await self._flush()
                    while not self._protocol.close_expected() or await self._stream.receive_some(READ_BYTES):
                        await self._receive()
            except (Failure, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        await trio.aclose_forcefully(self._stream)
