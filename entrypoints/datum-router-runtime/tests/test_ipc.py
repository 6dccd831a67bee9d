import os
import socket

import msgspec
import pytest
import trio

from datum_router.model.endpoint import EndpointKey, make_endpoint
from datum_router.model.route import HeaderEdit, Redirect, Rewrite, Rule, RuleId
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins.protocols import HealthChange
from datum_router_runtime.ipc import (
    ControlChannel,
    ControlClosed,
    FullSnapshot,
    HealthUpdates,
    Hello,
    ListenerSocket,
    Message,
)

CHANGE = HealthChange(service=ServiceKey("a/b"), endpoint=EndpointKey("10.0.0.1:80"), is_usable=False, since=1.5)
FILTERS = (HeaderEdit(set=(("x", "y"),)), Redirect(hostname="a.test"), Rewrite(prefix_path="/"))
SNAPSHOT = FullSnapshot(
    data=SnapshotData(
        version=3,
        digest="d",
        services={ServiceKey("a/b"): Service(key=ServiceKey("a/b"), endpoints=(make_endpoint("fd00::1", 80),))},
        rules=(Rule(id=RuleId("a/r#0"), route="a/r", filters=FILTERS),),
    ),
    health=(CHANGE,),
)


def pair() -> tuple[ControlChannel, ControlChannel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return ControlChannel(ours), ControlChannel(theirs)


async def exchange(*messages: Message) -> list[Message]:
    sender, receiver = pair()
    received: list[Message] = []

    async def receive() -> None:
        received.extend([await receiver.receive() for _ in messages])

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for message in messages:
                await sender.send(message)
    sender.close()
    receiver.close()
    return received


def test_messages_arrive_whole_in_order_and_typed() -> None:
    sent: list[Message] = [Hello(pid=7), SNAPSHOT, HealthUpdates(changes=(CHANGE,))]
    assert trio.run(exchange, *sent) == sent


def test_a_message_larger_than_every_buffer_arrives() -> None:
    services = {
        ServiceKey(f"n/s{index}"): Service(key=ServiceKey(f"n/s{index}"), endpoints=(make_endpoint("10.0.0.1", 80),))
        for index in range(20_000)
    }
    big = FullSnapshot(data=SnapshotData(version=1, services=services))
    (found,) = trio.run(exchange, big)
    assert found == big
    assert len(msgspec.msgpack.encode(big)) > 1 << 20


def test_listening_sockets_travel_in_the_order_of_their_messages() -> None:
    async def run() -> list[tuple[str, tuple[str, int]]]:
        sender, receiver = pair()
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        expected = [(f"l{index}", sock.getsockname()) for index, sock in enumerate(sockets)]
        for (name, _), sock in zip(expected, sockets, strict=True):
            await sender.send(ListenerSocket(name=name), fd=sock.fileno())
            sock.close()
        found = []
        for _ in expected:
            message = await receiver.receive()
            assert isinstance(message, ListenerSocket)
            with receiver.take_socket() as taken:
                found.append((message.name, taken.getsockname()))
        sender.close()
        receiver.close()
        assert found == expected
        return found

    assert len(trio.run(run)) == 3


def test_descriptors_that_nobody_took_are_closed_with_the_channel() -> None:
    async def run() -> None:
        sender, receiver = pair()
        with socket.create_server(("127.0.0.1", 0)) as sock:
            await sender.send(ListenerSocket(name="a"), fd=sock.fileno())
        before = len(os.listdir("/proc/self/fd"))
        await receiver.receive()
        assert len(os.listdir("/proc/self/fd")) == before + 1
        receiver.close()
        assert len(os.listdir("/proc/self/fd")) == before - 1
        sender.close()

    trio.run(run)


def test_the_end_of_the_other_side_is_told() -> None:
    async def run() -> None:
        sender, receiver = pair()
        sender.close()
        with pytest.raises(ControlClosed, match="end of file"):
            await receiver.receive()
        receiver.close()

    trio.run(run)
