"""The slow herd: thousands of connections that idle, say nothing, trickle a head, or hardly read (threats E1 to E6).

One epoll and plain sockets, no task for each: the herd must not starve the load generator beside it. Every member's end
is classified; members that the gateway has ended are replaced, so that the herd keeps its size.
"""

from __future__ import annotations

import collections
import enum
import errno
import random
import select
import socket

import trio

from datum_soak.outcomes import Address
from datum_soak.stage import Stage

PER_ADDRESS = 100
"""Members from one address: the gateway's default limit is 200 for each worker."""
OPEN_PER_TURN = 60
TURN_S = 0.05
TRICKLE_EVERY_TURNS = 40
HEAD = b"GET /main/body/10 HTTP/1.1\r\nhost: soak.test\r\nx-slow: "
READ_SLOWLY = b"GET /main/body/262144 HTTP/1.1\r\nhost: soak.test\r\nx-soak-id: slow\r\n\r\n"
RECEIVE_BUFFER = 4096
READERS_PERCENT = 2
IDLERS_PERCENT = 60
"""Most are idle keep-alive connections, which the gateway keeps for 60 s: were all of them ended after 10 s, holding
ten thousand would take a thousand new ones a second."""
BUILD_UP_RATE = 150.0
"""Members per second that the herd grows by at least, before it is given up as too small for this machine."""
IDLE = b"GET /main/body/10 HTTP/1.1\r\nhost: soak.test\r\nx-soak-id: idler\r\n\r\n"
SLOW = "slow clients"
ENOUGH = 0.95


class Manner(enum.StrEnum):
    """How a member is slow."""

    IDLER = "idle keep-alive"
    SILENT = "silent"
    TRICKLE = "trickled head"
    READER = "slow reader"


SHARES = {
    Manner.IDLER: IDLERS_PERCENT,
    Manner.READER: READERS_PERCENT,
    Manner.SILENT: (100 - IDLERS_PERCENT - READERS_PERCENT) / 2,
    Manner.TRICKLE: (100 - IDLERS_PERCENT - READERS_PERCENT) / 2,
}
FIRST_WORDS = {Manner.IDLER: IDLE, Manner.READER: READ_SLOWLY, Manner.TRICKLE: HEAD}


class Member:
    """One connection of the herd."""

    __slots__ = ("is_open", "manner", "received", "sock", "source")

    def __init__(self, manner: Manner, source: str, gateway: Address) -> None:
        self.manner = manner
        self.source = source
        self.received = b""
        self.is_open = False
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if manner is Manner.READER:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.sock.bind((source, 0))
        self.sock.connect_ex(gateway)


def end_of(manner: Manner, received: bytes, error: int) -> str:
    """Return how the gateway ended a member, as a label; `as it must` for what E1 and E2 ask for."""
    if manner is Manner.SILENT and not received and not error:
        return "silent: closed without an answer, as it must"
    if manner is Manner.IDLER and received.startswith(b"HTTP/1.1 200 ") and not error:
        return "idle keep-alive: closed after its answer, as it must"
    if manner is Manner.TRICKLE and received.startswith(b"HTTP/1.1 408 "):
        return "trickled head: 408, as it must"
    said = received[:12].decode("latin-1") or "nothing"
    return f"{manner}: got {said}, then {errno.errorcode.get(error, 'end of file')}"


class Herd:
    """Open `size` members and keep that many."""

    def __init__(self, stage: Stage, size: int) -> None:
        self.ends: collections.Counter[str] = collections.Counter()
        self.opened = 0
        self._stage = stage
        self._size = size
        self._epoll = select.epoll()
        self._members: dict[int, Member] = {}
        self._highest = 0
        self._random = random.Random(stage.options.seed + 3)

    @property
    def count(self) -> int:
        """Return how many members are connected."""
        return sum(member.is_open for member in self._members.values())

    async def run(self) -> None:
        """Keep the herd until cancelled; then end it."""
        turn = 0
        try:
            while True:
                turn += 1
                self._open_some()
                self._poll()
                self._trickle(turn)
                await trio.sleep(TURN_S)
        finally:
            for member in self._members.values():
                member.sock.close()
            self._members.clear()
            self._epoll.close()

    def _open_some(self) -> None:
        for _ in range(min(OPEN_PER_TURN, self._size - len(self._members))):
            self.opened += 1
            # Whole addresses are used in turn, so that replaced members never crowd on one.
            slot = self.opened % self._size
            source = f"127.0.{100 + slot // PER_ADDRESS // 250}.{slot // PER_ADDRESS % 250 + 1}"
            # By lot, not in turn: a member that is replaced often must not change the shares.
            manner = self._random.choices(list(SHARES), list(SHARES.values()))[0]
            member = Member(manner, source, self._stage.gateway.address)
            self._members[member.sock.fileno()] = member
            self._highest = max(self._highest, member.sock.fileno())
            self._epoll.register(member.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _poll(self) -> None:
        for descriptor, events in self._epoll.poll(0):
            member = self._members[descriptor]
            if events & select.EPOLLOUT and not member.is_open and not events & (select.EPOLLERR | select.EPOLLHUP):
                member.is_open = True
                # A slow reader is looked at in `_trickle` only; the others when the gateway has something to say.
                wanted = 0 if member.manner is Manner.READER else select.EPOLLIN
                self._epoll.modify(descriptor, wanted)
                if (words := FIRST_WORDS.get(member.manner)) is not None:
                    self._send(member, words)
            elif events & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
                self._receive(member, 4096)

    def _trickle(self, turn: int) -> None:
        for descriptor in range(turn % TRICKLE_EVERY_TURNS, self._highest + 1, TRICKLE_EVERY_TURNS):
            member = self._members.get(descriptor)
            if member is None or not member.is_open:
                continue
            if member.manner is Manner.TRICKLE:
                self._send(member, b"x")
            elif member.manner is Manner.READER:
                self._receive(member, 1024)

    def _send(self, member: Member, data: bytes) -> None:
        try:
            member.sock.send(data)
        except BlockingIOError:
            pass
        except OSError:
            # It is closed; what the gateway said before is read first.
            self._receive(member, 4096)

    def _receive(self, member: Member, size: int) -> None:
        error = 0
        try:
            data = member.sock.recv(size)
        except BlockingIOError:
            return
        except OSError as problem:
            data, error = b"", problem.errno or 0
        if data:
            member.received = (member.received + data)[:64]
            return
        if not member.is_open and error:
            self.ends[f"{member.manner}: not connected, {errno.errorcode.get(error, error)}"] += 1
        else:
            self.ends[end_of(member.manner, member.received, error)] += 1
        self._epoll.unregister(member.sock.fileno())
        del self._members[member.sock.fileno()]
        member.sock.close()


async def slow_clients(stage: Stage, *, hold_s: float) -> None:
    """Let the herd come, hold it for some seconds, and see it off; bystanders are judged by the verdict."""
    size = stage.options.slow_clients
    herd = Herd(stage, size)
    most = most_seen = 0
    with stage.window(SLOW):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(herd.run)
            with trio.move_on_after(size / BUILD_UP_RATE):
                while herd.count < ENOUGH * size:  # noqa: ASYNC110 - the herd is polled, too
                    await trio.sleep(0.5)
            with trio.move_on_after(hold_s):
                while True:
                    most = max(most, herd.count)
                    most_seen = max(most_seen, (await stage.gateway.stats()).gauges.get("connections", 0))
                    await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
    for label, count in herd.ends.most_common():
        stage.note(f"slow clients: {count} x {label}")
    stage.note(f"slow clients: {herd.opened} opened, {most} at once; the gateway counted {most_seen} connections")
    stage.require("slow clients at once", most >= size * ENOUGH, most, f"95 % of {size}")
    stage.require("connections that the gateway held", most_seen >= size * 0.9, most_seen, f"90 % of {size}")
    wrong = sum(count for label, count in herd.ends.items() if not label.endswith("as it must"))
    stage.require("slow clients ended otherwise than by 408 or silently", wrong == 0, wrong, 0)
