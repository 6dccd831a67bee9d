"""The requests besides plain HTTP/1.1: HTTP/2, gRPC, WebSocket, and connections that are watched for themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from datum_soak.backend_h2 import STREAM_MESSAGES, frame_message, messages_of
from datum_soak.client_h1 import Answer, Http1Connection
from datum_soak.client_h2 import Http2Pool, NotProcessed
from datum_soak.client_ws import WebSocket
from datum_soak.load import SIZES, Attempt, Load, check_body
from datum_soak.outcomes import Address, Cause, Failure, Kind
from datum_soak.payload import digest, make_body

H2_CONNECTIONS = 6
GRPC_CONNECTIONS = 4
MAX_RESENDS = 3
WEBSOCKETS = 8
WEBSOCKET_EVERY_S = 0.4
ESTABLISHED = 8
ESTABLISHED_EVERY_S = 0.25

MIX: Mapping[Kind, float] = {
    Kind.H2_GET: 16,
    Kind.H2_UPLOAD: 4,
    Kind.H2_FLIP: 4,
    Kind.H2_CUT: 0.3,
    Kind.GRPC: 8,
    Kind.GRPC_STREAM: 3,
}
"""Shares of the open loop beside those in `load`."""


class Http2Kinds:
    """HTTP/2 and gRPC requests."""

    def __init__(self, load: Load, gateway: Address, nursery: trio.Nursery) -> None:
        self._load = load
        self.h2 = Http2Pool(gateway, H2_CONNECTIONS, nursery)
        self.grpc = Http2Pool(gateway, GRPC_CONNECTIONS, nursery)
        load.add(Kind.H2_GET, self._get)
        load.add(Kind.H2_UPLOAD, self._upload)
        load.add(Kind.H2_FLIP, self._flip)
        load.add(Kind.H2_CUT, self._cut)
        load.add(Kind.GRPC, self._unary)
        load.add(Kind.GRPC_STREAM, self._stream)

    def close(self) -> None:
        """Close all connections."""
        self.h2.close()
        self.grpc.close()

    async def _exchange(
        self,
        attempt: Attempt,
        pool: Http2Pool,
        path: str,
        *,
        body: bytes = b"",
        fields: tuple[tuple[str, str], ...] = (),
    ) -> Answer:
        head = [
            (":method", "POST" if body else "GET"),
            (":scheme", "http"),
            (":authority", "soak.test"),
            (":path", path),
            ("x-soak-id", attempt.request_id),
            *fields,
        ]
        begun: list[bool] = []
        try:
            while True:
                connection = await pool.take()
                attempt.local = connection.local
                attempt.is_reused = connection.exchanges > 0
                try:
                    answer = await connection.exchange(head, body, begun=begun)
                    break
                except NotProcessed as error:
                    attempt.resent += 1
                    if attempt.resent > MAX_RESENDS:
                        raise Failure(Cause.PROTOCOL, f"refused {attempt.resent} times") from error
        finally:
            attempt.has_answer_begun = bool(begun)
        if answer.fields.get("grpc-status", "0") != "0":
            code = answer.fields["grpc-status"]
            said, _, detail = answer.fields.get("grpc-message", "").partition(":")
            # The router's own answers say UNAVAILABLE with their reason where HTTP has 503.
            status = 503 if code == "14" else 200
            raise Failure(Cause.STATUS, detail, status=status, reason=said or f"grpc-status {code}")
        self._load.check(attempt, answer.status, answer.fields, answer.body)
        return answer

    async def _get(self, attempt: Attempt) -> None:
        size = self._load.random.choice(SIZES)
        answer = await self._exchange(attempt, self.h2, f"/main/body/{size}")
        check_body(answer.body, make_body(attempt.request_id, size))

    async def _upload(self, attempt: Attempt) -> None:
        body = make_body(attempt.request_id, max(1, self._load.random.choice(SIZES)))
        answer = await self._exchange(attempt, self.h2, "/main/sum", body=body)
        check_body(answer.body, digest(body).encode())

    async def _flip(self, attempt: Attempt) -> None:
        required = self._load.promises.generation
        answer = await self._exchange(attempt, self.h2, "/flip/body/64")
        check_body(answer.body, make_body(attempt.request_id, 64))
        self._load.promises.check_generation(answer.fields.get("x-edit", ""), required)

    async def _cut(self, attempt: Attempt) -> None:
        answer = await self._exchange(attempt, self.h2, "/cut/cut/60000")
        check_body(answer.body, make_body(attempt.request_id, 60000))

    async def _unary(self, attempt: Attempt) -> None:
        await self._call(attempt, "Unary", 1)

    async def _stream(self, attempt: Attempt) -> None:
        await self._call(attempt, "Stream", STREAM_MESSAGES)

    async def _call(self, attempt: Attempt, method: str, times: int) -> None:
        message = make_body(attempt.request_id, self._load.random.choice((0, 1, 100, 1024, 16384)))
        fields = (("content-type", "application/grpc"), ("te", "trailers"))
        answer = await self._exchange(
            attempt, self.grpc, f"/soak.Echo/{method}", body=frame_message(message), fields=fields
        )
        if "grpc-status" not in answer.fields:
            raise Failure(Cause.CUT_BODY, "no grpc-status")
        try:
            found = messages_of(answer.body)
        except ValueError as error:
            raise Failure(Cause.CUT_BODY, str(error)) from error
        if len(found) != times:
            raise Failure(Cause.CUT_BODY, f"{len(found)} messages, expected {times}")
        for item in found:
            check_body(item, message)


class WebSockets:
    """Tunnels that live as long as the gateway lets them, a message on each now and then."""

    def __init__(self, load: Load, gateway: Address) -> None:
        self._load = load
        self._gateway = gateway
        self._free: list[WebSocket] = []
        load.add(Kind.WEBSOCKET, self._echo)

    async def run(self, until: trio.Event) -> None:
        """Send messages until told to stop."""
        async with trio.open_nursery() as nursery:
            for _ in range(WEBSOCKETS):
                nursery.start_soon(self._send_forever, until)
        while self._free:
            await self._free.pop().aclose()

    async def _send_forever(self, until: trio.Event) -> None:
        while not until.is_set():
            await self._load.send(Kind.WEBSOCKET)
            with trio.move_on_after(WEBSOCKET_EVERY_S * (0.5 + self._load.random.random())):
                await until.wait()

    async def _echo(self, attempt: Attempt) -> None:
        def connected(local: Address) -> None:
            attempt.local = local

        tunnel = await self._take(connected)
        connected(tunnel.local)
        attempt.is_reused = tunnel.messages > 0
        message = make_body(attempt.request_id, self._load.random.choice((1, 100, 1024, 65536)))
        try:
            check_body(await tunnel.echo(message), message)
        except BaseException:
            await tunnel.aclose()
            raise
        self._free.append(tunnel)

    async def _take(self, connected: Callable[[Address], None]) -> WebSocket:
        while self._free:
            tunnel = self._free.pop(0)
            try:
                await tunnel.poll()
            except Failure:
                pass  # it ended between two messages; what matters is whether another one can be had
            else:
                if not tunnel.is_closed_by_peer:
                    return tunnel
            await tunnel.aclose()
        return await WebSocket.open(self._gateway, connected)


class Established:
    """Keep-alive connections with a slow, steady rhythm: they must not notice what befalls newcomers."""

    def __init__(self, load: Load, path: str) -> None:
        self._load = load
        self._path = path
        self._connections: list[Http1Connection] = []
        load.add(Kind.H1_ESTABLISHED, self._get)

    async def run(self, until: trio.Event) -> None:
        """Send until told to stop."""
        async with trio.open_nursery() as nursery:
            for _ in range(ESTABLISHED):
                nursery.start_soon(self._send_forever, until)
        for connection in self._connections:
            await connection.aclose()

    async def _send_forever(self, until: trio.Event) -> None:
        while not until.is_set():
            await self._load.send(Kind.H1_ESTABLISHED)
            with trio.move_on_after(ESTABLISHED_EVERY_S):
                await until.wait()

    async def _get(self, attempt: Attempt) -> None:
        connection = self._connections.pop(0) if self._connections else await self._load.h1.open()
        if connection.exchanges and connection.is_closed_by_peer():
            await connection.aclose()
            connection = await self._load.h1.open()
        answer = await self._load.exchange(attempt, connection, self._path)
        check_body(answer.body, make_body(attempt.request_id, 1024))
        if connection.is_reusable:
            self._connections.append(connection)
        else:
            await connection.aclose()
