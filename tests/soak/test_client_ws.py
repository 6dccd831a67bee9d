"""A WebSocket that is refused is an error status with the gateway's reason, as any other request's."""

from __future__ import annotations

import pytest
import trio

from datum_soak.client_ws import WebSocket
from datum_soak.outcomes import Address, Cause, Failure


def test_a_refused_handshake_keeps_status_reason_and_address() -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(9999)
        body = b"local_resources: the router has no descriptors left\n"
        await stream.send_all(b"HTTP/1.1 503 x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        told: list[Address] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, refuse, listeners)
            with trio.fail_after(10), pytest.raises(Failure) as caught:
                await WebSocket.open(listeners[0].socket.getsockname()[:2], told.append)
            nursery.cancel_scope.cancel()
        failure = caught.value
        assert (failure.cause, failure.status, failure.reason) == (Cause.STATUS, 503, "local_resources")
        assert len(told) == 1

    trio.run(main)
