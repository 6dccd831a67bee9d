"""Plain channels: edge-triggered reading, buffered writing, half close, resets, clean-up."""

from __future__ import annotations

import random
import select
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.clock import ManualClock
from datum_router.reasons import Reason
from datum_router_proxy.channel import (
    CLOSE_FLUSH_S,
    IOV_MAX,
    LINGER_BYTES,
    LINGER_S,
    RECV_BYTES,
    ChannelError,
    PlainChannel,
    drain,
    wait_readable,
)
from datum_router_proxy.loop import DeadlineExpired, Loop, current_task, park


def pump(loop: Loop, until: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Drive the loop until the condition holds; a condition that never does is a failure."""
    while not until():
        if loop.drain() or until():
            continue
        ready, _, _ = select.select([loop._epoll.fileno()], [], [], timeout_s)
        assert ready or until(), "nothing happened for too long"


def settle(loop: Loop) -> None:
    while loop.drain():
        pass


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def loop(clock: ManualClock) -> Iterator[Loop]:
    loop = Loop(clock=clock, rng=random.Random(1))
    yield loop
    if not loop.is_closed:
        loop._close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


@pytest.fixture
def pair(loop: Loop) -> Iterator[tuple[PlainChannel, socket.socket]]:
    near, far = tcp_pair()
    near.setblocking(False)
    far.settimeout(10)
    channel = PlainChannel(loop, near, peer=("127.0.0.1", 9))
    yield channel, far
    channel.abort()
    far.close()


@pytest.mark.parametrize("turn", [1, -1])
def test_all_that_has_come_is_noted_before_anybody_acts_on_it(loop: Loop, turn: int) -> None:
    """What an idle upstream has said is not to be taken for its answer to a request that came at the same moment."""
    pairs = [tcp_pair() for _ in range(2)]
    for near, _ in pairs:
        near.setblocking(False)
    channels = [PlainChannel(loop, near) for near, _ in pairs]
    settle(loop)
    seen: list[list[bool]] = []

    def look() -> bool:
        seen.append([channel.readable for channel in channels])
        return True

    async def sleep() -> None:
        await park()

    for channel in channels:
        channel.task = loop.spawn(sleep(), name="sleep")
        channel.eager = look
    loop.drain()
    for _, far in pairs[::turn]:
        far.sendall(b"x")
    settle(loop)
    assert seen == [[True, True], [True, True]]
    assert loop.tasks == 2, "they were not woken"
    for channel, (_, far) in zip(channels, pairs, strict=True):
        channel.abort()
        far.close()


def test_whoever_begins_something_new_waits_behind_the_others_and_what_is_closed_meanwhile_is_left_alone(
    loop: Loop, clock: ManualClock
) -> None:
    pairs = [tcp_pair() for _ in range(3)]
    for near, _ in pairs:
        near.setblocking(False)
    client, gone, upstream = (PlainChannel(loop, near) for near, _ in pairs)
    settle(loop)
    acted: list[str] = []

    async def sleep() -> None:
        await park()

    class Waiting:
        is_deferred = False

        def defer(self) -> bool:
            raise AssertionError("there is time")

        def release(self) -> None:
            raise AssertionError("it was not deferred")

    def act(name: str) -> Callable[[], bool]:
        def acts() -> bool:
            acted.append(name)
            if name == "upstream":
                gone.close()
            return True

        return acts

    for name, channel in (("client", client), ("gone", gone), ("upstream", upstream)):
        channel.task = loop.spawn(sleep(), name="sleep")
        channel.eager = act(name)
    client.deferrable = gone.deferrable = Waiting()
    settle(loop)
    acted.clear()
    clock.advance(5.0)
    for _, far in pairs:
        far.sendall(b"x")
    settle(loop)
    assert acted == ["upstream", "client"]
    assert client.noted_at == 105.0
    for channel, (_, far) in zip((client, gone, upstream), pairs, strict=True):
        channel.abort()
        far.close()


@pytest.mark.parametrize("is_new", [True, False])
def test_more_that_comes_for_one_that_waits_for_its_turn_gives_it_no_second_one(
    loop: Loop, clock: ManualClock, pair: tuple[PlainChannel, socket.socket], is_new: bool
) -> None:
    channel, far = pair
    settle(loop)
    turns = 0

    def act() -> bool:
        nonlocal turns
        turns += 1
        while channel.recv() is not None:
            pass
        return True

    async def sleep() -> None:
        await park()

    class Waiting:
        is_deferred = False

        def defer(self) -> bool:
            raise AssertionError("nobody asks")

        def release(self) -> None:
            raise AssertionError("it was not deferred")

    channel.task = loop.spawn(sleep(), name="sleep")
    channel.eager = act
    channel.deferrable = Waiting() if is_new else None
    settle(loop)
    loop.now = noted_at = clock()
    for _ in range(3):
        channel.handle(select.EPOLLIN)
        loop.now += 1.0
    assert len(loop.arrivals) + len(loop.eager) == 1
    assert channel.noted_at == noted_at, "it has waited since then"
    settle(loop)
    assert turns == 1
    far.sendall(b"x")
    pump(loop, lambda: turns == 2)  # what comes later gives it another one


def test_one_that_fails_to_act_loses_its_descriptor_only(
    loop: Loop, pair: tuple[PlainChannel, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    channel, far = pair

    def fail() -> bool:
        raise RuntimeError("bug")

    async def sleep() -> None:
        await park()

    channel.task = loop.spawn(sleep(), name="sleep")
    channel.eager = fail
    loop.drain()
    far.sendall(b"x")
    pump(loop, lambda: channel.is_closed)
    settle(loop)
    assert (loop.failures, loop.tasks, len(loop.eager)) == (1, 0, 0)
    assert "event handler failed" in caplog.text


def run(loop: Loop, channel: PlainChannel, body: Coroutine[object, None, None]) -> None:
    """Run a coroutine as the channel's owner to its end."""

    async def owned() -> None:
        channel.task = current_task()
        await body

    task = loop.spawn(owned(), name="owner")
    failures = loop.failures
    pump(loop, lambda: task.done)
    assert loop.failures == failures, "the task failed, see the log"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_new_channel_is_not_readable_until_the_kernel_says_so(
    loop: Loop, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    settle(loop)
    assert not channel.readable
    assert channel.recv() is None
    far.send(b"x")
    pump(loop, lambda: channel.readable)
    assert channel.recv() == b"x"
    assert not channel.readable


def test_data_sent_before_registration_is_seen(loop: Loop) -> None:
    near, far = tcp_pair()
    near.setblocking(False)
    far.send(b"early")
    channel = PlainChannel(loop, near)
    pump(loop, lambda: channel.readable)
    assert channel.recv() == b"early"
    channel.close()
    far.close()


def test_a_full_recv_leaves_the_channel_readable(loop: Loop, pair: tuple[PlainChannel, socket.socket]) -> None:
    channel, far = pair
    far.sendall(b"abcdef")
    pump(loop, lambda: channel.readable)
    assert channel.recv(3) == b"abc"
    assert channel.readable
    assert channel.recv(3) == b"def"
    assert channel.readable  # it cannot know yet
    assert channel.recv(3) is None
    assert not channel.readable


def test_an_end_that_arrives_with_data_is_found_by_the_next_recv(
    loop: Loop, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    far.sendall(b"last words")
    far.shutdown(socket.SHUT_WR)
    pump(loop, lambda: channel.hangup)
    assert channel.recv() == b"last words"
    assert channel.readable
    assert channel.recv() == b""
    assert channel.readable
    assert channel.recv() == b""


def test_a_reset_is_raised_and_stays(loop: Loop, pair: tuple[PlainChannel, socket.socket]) -> None:
    channel, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    pump(loop, lambda: channel.hangup)
    for _ in range(3):  # the kernel itself would say "end" the second time
        with pytest.raises(ChannelError, match="connection reset by peer") as caught:
            channel.recv()
        assert caught.value.reason is Reason.DOWNSTREAM_RESET
    with pytest.raises(ChannelError):
        channel.write(b"x")


def test_a_failed_write_does_not_turn_the_end_into_a_clean_one(
    loop: Loop, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    far.send(b"answer")
    pump(loop, lambda: channel.readable)
    channel.write(b"unread")
    far.close()  # unread data: the kernel sends a reset after "answer"
    pump(loop, lambda: channel.hangup)
    with pytest.raises(ChannelError):
        channel.write(b"more")
    assert channel.recv() in (b"answer", None)  # what came first may still be had
    for _ in range(3):
        with pytest.raises(ChannelError):
            channel.recv()


def test_last_progress_follows_the_clock_both_ways(
    loop: Loop, clock: ManualClock, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    assert channel.last_progress == 100.0
    clock.advance(5)
    far.send(b"x")
    pump(loop, lambda: channel.readable)
    channel.recv()
    assert channel.last_progress == 105.0
    clock.advance(5)
    loop.sweep()
    channel.write(b"y")
    assert channel.last_progress == 110.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20), st.integers(1, 3000), st.integers(0, 2**32))
def test_every_byte_arrives_once_under_any_chunking(chunks: list[int], size: int, seed: int) -> None:
    loop = Loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    channel = PlainChannel(loop, near)
    rng = random.Random(seed)
    sent = [rng.randbytes(length) for length in chunks]
    got = bytearray()

    async def reader() -> None:
        channel.task = current_task()
        while True:
            await wait_readable(channel)
            data = channel.recv(size)
            if data == b"":
                return
            got.extend(data or b"")

    task = loop.spawn(reader(), name="reader")
    for data in sent:
        far.sendall(data)
        for _ in range(rng.randrange(3)):
            loop._round()
    far.close()
    pump(loop, lambda: task.done)
    channel.close()
    loop._close()
    assert bytes(got) == b"".join(sent)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_small_write_leaves_at_once_in_one_piece(loop: Loop, pair: tuple[PlainChannel, socket.socket]) -> None:
    channel, far = pair
    channel.write(b"head ", b"", b"body")
    assert channel.buffered == 0
    assert far.recv(100) == b"head body"
    channel.write(b"")
    channel.write()
    assert channel.buffered == 0


def test_what_the_kernel_refuses_is_kept_without_copying_and_sent_in_order(
    loop: Loop, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    big = random.Random(3).randbytes(32 * 1024 * 1024)
    channel.write(big)
    kept = channel.buffered
    assert 0 < kept < len(big)
    assert channel._buffers is not None
    assert channel._buffers[0].obj is big
    channel.write(b"tail", b"er")
    assert channel.buffered == kept + 6
    got = bytearray()

    async def writer() -> None:
        await drain(channel)
        channel.finish_writes()

    async def owned() -> None:
        channel.task = current_task()
        await writer()

    task = loop.spawn(owned(), name="writer")
    far.setblocking(False)
    while not task.done:
        loop.drain()
        try:
            got += far.recv(1 << 20)
        except BlockingIOError:
            continue
    far.setblocking(True)
    while data := far.recv(1 << 20):
        got += data
    assert bytes(got) == big + b"tailer"
    assert channel.buffered == 0


def test_more_buffers_than_one_sendmsg_takes(loop: Loop, pair: tuple[PlainChannel, socket.socket]) -> None:
    channel, far = pair
    parts = [bytes([index % 251]) * 7 for index in range(IOV_MAX * 2 + 5)]
    channel.write(*parts)
    pump(loop, lambda: channel.buffered == 0)
    channel.finish_writes()
    got = b""
    while data := far.recv(1 << 16):
        got += data
    assert got == b"".join(parts)


def test_a_disciplined_writer_stays_bounded_against_a_slow_reader(
    loop: Loop, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    chunk = bytes(65536)
    total = 64 * 1024 * 1024
    most = 0
    got = 0

    async def writer() -> None:
        nonlocal most
        for _ in range(total // len(chunk)):
            channel.write(chunk)
            most = max(most, channel.buffered)
            if channel.buffered:
                await drain(channel)
        channel.close()

    async def owned() -> None:
        channel.task = current_task()
        await writer()

    loop.spawn(owned(), name="writer")
    while got < total:
        loop.drain()
        got += len(far.recv(300_000))
    assert got == total
    assert 0 < most <= len(chunk)


def test_drain_raises_when_the_peer_resets(loop: Loop, pair: tuple[PlainChannel, socket.socket]) -> None:
    channel, far = pair
    channel.write(bytes(16 * 1024 * 1024))
    assert channel.buffered
    seen: list[Reason] = []

    async def writer() -> None:
        try:
            await drain(channel)
        except ChannelError as exc:
            seen.append(exc.reason)

    async def owned() -> None:
        channel.task = current_task()
        await writer()

    task = loop.spawn(owned(), name="writer")
    settle(loop)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    pump(loop, lambda: task.done)
    assert seen == [Reason.DOWNSTREAM_RESET]
    assert channel.buffered == 0


def test_a_write_error_can_be_followed_by_reading_what_came_before(
    loop: Loop, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    far.send(b"413 too large")
    far.shutdown(socket.SHUT_WR)
    pump(loop, lambda: channel.hangup)
    assert channel.recv() == b"413 too large"
    channel.write(b"still allowed: only their direction has ended")
    assert far.recv(100).startswith(b"still")


# --- half close and the end -----------------------------------------------------------------------------------------


def test_half_close_waits_for_the_buffer_and_keeps_reading(
    loop: Loop, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    size = 8 * 1024 * 1024
    channel.write(bytes(size))
    assert channel.buffered
    channel.finish_writes()
    channel.finish_writes()
    with pytest.raises(AssertionError):
        channel.write(b"x")
    got = 0
    far.setblocking(False)
    while True:
        loop.drain()
        try:
            data = far.recv(1 << 20)
        except BlockingIOError:
            continue
        if not data:
            break
        got += len(data)
    assert got == size
    far.setblocking(True)
    far.send(b"reply")
    pump(loop, lambda: channel.readable)
    assert channel.recv() == b"reply"


def test_close_sends_what_is_buffered_then_gives_the_descriptor_back(
    loop: Loop, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    closed: list[bool] = []
    channel.on_close = lambda _: closed.append(True)
    size = 8 * 1024 * 1024
    channel.write(bytes(size))
    channel.close()
    channel.close()
    assert closed == []
    with pytest.raises(ChannelError, match="closed by us"):
        channel.write(b"x")
    got = 0
    far.setblocking(False)
    while True:
        loop.drain()
        try:
            data = far.recv(1 << 20)
        except BlockingIOError:
            continue
        if not data:
            break
        got += len(data)
    settle(loop)
    assert got == size
    assert closed == [True]
    assert loop.descriptors == 0
    assert loop.tasks == 0


def test_close_gives_up_on_a_reader_that_never_reads(
    loop: Loop, clock: ManualClock, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, _far = pair
    channel.write(bytes(16 * 1024 * 1024))
    channel.close()
    settle(loop)
    clock.advance(CLOSE_FLUSH_S)
    loop.sweep()
    settle(loop)
    assert loop.descriptors == 0
    assert loop.tasks == 0
    assert loop.failures == 0


def test_linger_lets_the_answer_arrive_though_the_peer_is_still_sending(
    loop: Loop, clock: ManualClock, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    far.send(b"a body nobody wants")
    pump(loop, lambda: channel.readable)
    channel.write(b"400 no")
    channel.linger()
    settle(loop)
    far.send(b" and more of it")
    settle(loop)
    assert far.recv(100) == b"400 no"
    assert far.recv(100) == b""
    assert loop.descriptors == 1
    far.close()
    pump(loop, lambda: loop.descriptors == 0)


def test_linger_is_bounded_in_time_and_in_bytes(loop: Loop, clock: ManualClock) -> None:
    for limit in ("time", "bytes"):
        near, far = tcp_pair()
        near.setblocking(False)
        channel = PlainChannel(loop, near)
        channel.linger()
        settle(loop)
        if limit == "time":
            clock.advance(LINGER_S)
            loop.sweep()
        else:
            far.sendall(bytes(LINGER_BYTES))
        pump(loop, lambda: loop.descriptors == 0 and loop.tasks == 0)
        far.close()


def test_abort_resets_and_tells_the_owner(loop: Loop, pair: tuple[PlainChannel, socket.socket]) -> None:
    channel, far = pair
    closed: list[bool] = []
    channel.on_close = lambda _: closed.append(True)
    seen: list[str] = []

    async def reader() -> None:
        try:
            await wait_readable(channel)
        except ChannelError as exc:
            seen.append(str(exc))

    async def owned() -> None:
        channel.task = current_task()
        await reader()

    task = loop.spawn(owned(), name="reader")
    settle(loop)
    channel.abort()
    channel.abort()
    channel.close()
    pump(loop, lambda: task.done)
    assert seen == ["connection with 127.0.0.1 port 9: aborted by us"]
    assert closed == [True]
    with pytest.raises(ConnectionResetError):
        far.recv(1)


def test_a_deadline_ends_waiting_for_data(
    loop: Loop, clock: ManualClock, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, _far = pair
    seen: list[Reason] = []

    async def reader() -> None:
        task = current_task()
        task.deadline = loop.now + 10
        task.deadline_reason = Reason.HEAD_TIMEOUT
        try:
            await wait_readable(channel)
        except DeadlineExpired as exc:
            seen.append(exc.reason)

    task = loop.spawn(reader(), name="reader")
    settle(loop)
    clock.advance(10)
    loop.sweep()
    pump(loop, lambda: task.done)
    assert seen == [Reason.HEAD_TIMEOUT]


def test_the_owner_can_change_while_the_channel_is_idle(loop: Loop, pair: tuple[PlainChannel, socket.socket]) -> None:
    channel, far = pair
    got: list[tuple[str, bytes]] = []

    async def take(name: str) -> None:
        channel.task = current_task()
        await wait_readable(channel)
        got.append((name, channel.recv() or b""))
        channel.task = None

    for name in ("first", "second"):
        task = loop.spawn(take(name), name=name)
        settle(loop)
        far.send(name.encode())
        pump(loop, lambda task=task: task.done)  # type: ignore[misc]
    assert got == [("first", b"first"), ("second", b"second")]
    far.close()
    pump(loop, lambda: channel.hangup)  # noted though nobody owns it


def test_one_connection_cannot_take_more_than_one_recv_without_others_running(
    loop: Loop, pair: tuple[PlainChannel, socket.socket]
) -> None:
    channel, far = pair
    far.setblocking(False)
    sent = 0
    try:
        while True:
            sent += far.send(bytes(RECV_BYTES))
    except BlockingIOError:
        pass
    pump(loop, lambda: channel.readable)
    data = channel.recv()
    assert data is not None
    assert len(data) <= RECV_BYTES < sent
