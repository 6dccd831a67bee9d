"""Who asks, who listens to the wire, and who watches the gateway's health: threads inside namespaces."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from lab.network import LabError, enter
from lab.plan import ADMIN_PORT, GATEWAY_HOST, GATEWAY_PORT, INTERNET, SEGMENT_ROUTING_HEADER

T = TypeVar("T")
ETH_P_ALL = 3
CAPTURED_BYTES = 512
MAX_SEEN_PATHS = 1000
ANSWER_TIMEOUT_S = 10.0
"""More than `timeouts.request` of the route that is asked under load."""
PATIENCE_S = 60.0
"""How long anything may take on a slow machine that takes a second or two on others."""


@dataclass(frozen=True)
class Answer:
    """One request and its end.

    Attributes:
        began, ended: Monotonic seconds.
        status: 0: no answer at all.
        cloud, tenant: As the backend says; empty if none answered.
    """

    began: float
    ended: float
    status: int
    cloud: str = ""
    tenant: str = ""
    sender: str = ""


class Caller:
    """A keep-alive client; use it in a thread that has entered a namespace."""

    def __init__(self, address: str, *, host: str, path: str) -> None:
        self._address = address
        self._connection = self._make()
        self._host = host
        self._path = path

    def _make(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, GATEWAY_PORT, timeout=ANSWER_TIMEOUT_S)

    def ask(self) -> Answer:
        """Send one request; a failure is an answer with status 0, and the next request connects anew."""
        began = time.monotonic()
        try:
            self._connection.request("GET", self._path, headers={"Host": self._host})
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            self._connection = self._make()
            return Answer(began, time.monotonic(), 0)
        said = json.loads(body) if response.status == 200 else {}
        return Answer(
            began,
            time.monotonic(),
            response.status,
            said.get("cloud", ""),
            said.get("tenant", ""),
            said.get("from", ""),
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def inside(host: str, work: Callable[[], T]) -> T:
    """Run `work` in a namespace, in a thread of its own, and return what it returns.

    Raises:
        LabError: `work` raised; the cause is chained.
    """
    found: list[T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            enter(host)
            found.append(work())
        except Exception as error:  # noqa: BLE001  # raised by who waits for the thread
            failed.append(error)

    thread = threading.Thread(target=run, name=f"in {host}")
    thread.start()
    thread.join()
    if failed:
        raise LabError(f"in {host}: {failed[0]!r}") from failed[0]
    return found[0]


def ask_many(host: str, address: str, *, name: str, path: str, times: int) -> list[Answer]:
    """Send `times` requests from a namespace, one after the other, a new connection after every 50."""

    def work() -> list[Answer]:
        answers: list[Answer] = []
        while len(answers) < times:
            caller = Caller(address, host=name, path=path)
            answers += [caller.ask() for _ in range(min(50, times - len(answers)))]
            caller.close()
        return answers

    return inside(host, work)


class Load:
    """Steady requests from a namespace by `threads` clients, until stopped."""

    def __init__(self, host: str, address: str, *, name: str, path: str, per_second: float, threads: int) -> None:
        self._answers: list[Answer] = []
        self._is_over = threading.Event()
        self._failed: list[Exception] = []
        pause_s = threads / per_second

        def work(number: int) -> None:
            try:
                enter(host)
                caller = Caller(address, host=name, path=path)
                due = time.monotonic() + pause_s * number / threads
                while not self._is_over.wait(max(0.0, due - time.monotonic())):
                    self._answers.append(caller.ask())
                    due = max(
                        due + pause_s, time.monotonic() - 1.0
                    )  # what a slow answer held up is not all made up for
                caller.close()
            except Exception as error:  # noqa: BLE001  # raised by who reads the answers
                self._failed.append(error)

        self._threads = [threading.Thread(target=work, args=(number,)) for number in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    @property
    def answers(self) -> list[Answer]:
        """Every request that has ended, in order of their begin.

        Raises:
            LabError: A client thread has broken.
        """
        if self._failed:
            raise LabError(f"load: {self._failed[0]!r}") from self._failed[0]
        return sorted(self._answers, key=lambda answer: answer.began)


# --- the wire ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentRouted:
    """Addresses of a packet in SRv6: the node that sent it, the segment, and the tenant's packet within."""

    node: str
    segment: str
    source: str
    destination: str


def read_segment_routed(packet: bytes) -> SegmentRouted | None:
    """Return what an IPv6 packet with a segment routing header (RFC 8754) holds, None if it is another packet."""
    if len(packet) < 48 or packet[0] >> 4 != 6 or packet[6] != SEGMENT_ROUTING_HEADER or packet[42] != 4:
        return None
    inner = packet[40 + 8 * (packet[41] + 1) :]
    if len(inner) >= 40 and inner[0] >> 4 == 6:
        source, destination = inner[8:24], inner[24:40]
    elif len(inner) >= 20 and inner[0] >> 4 == 4:
        source, destination = inner[12:16], inner[16:20]
    else:
        return None
    texts = [str(ipaddress.ip_address(part)) for part in (packet[8:24], packet[24:40], source, destination)]
    return SegmentRouted(*texts)


@dataclass
class Wire:
    """What has been seen on one of the Internet's cables.

    Attributes:
        segment_routed: Packets by their addresses, at most `MAX_SEEN_PATHS` of these.
        marked: How those went that hold the mark which was asked for.
        bare: Packets with an address of a tenant that were not in SRv6: there must be none.
    """

    segment_routed: Counter[SegmentRouted] = field(default_factory=Counter)
    marked: list[SegmentRouted] = field(default_factory=list)
    bare: int = 0


@contextlib.contextmanager
def tapped(cable: str, mark: bytes = b"") -> Iterator[Wire]:
    """Listen to a cable of the Internet; what it holds is complete when the context has ended.

    Args:
        mark: Bytes to look for at the begin of what packets carry.
    """
    wire = Wire()
    is_over = threading.Event()
    sockets: list[socket.socket] = []

    def open_socket() -> None:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind((cable, ETH_P_ALL))
        sock.settimeout(0.1)
        sockets.append(sock)

    def listen() -> None:
        while True:
            try:
                packet, _ = sockets[0].recvfrom(CAPTURED_BYTES)
            except TimeoutError:
                if is_over.is_set():
                    return
                continue
            found = read_segment_routed(packet)
            if found is not None:
                if found in wire.segment_routed or len(wire.segment_routed) < MAX_SEEN_PATHS:
                    wire.segment_routed[found] += 1
                if mark and mark in packet and len(wire.marked) < MAX_SEEN_PATHS:
                    wire.marked.append(found)
            elif _is_tenants(packet):
                wire.bare += 1

    inside(INTERNET, open_socket)
    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield wire
    finally:
        is_over.set()
        thread.join()
        sockets[0].close()


def _is_tenants(packet: bytes) -> bool:
    """Tell whether an address of the tenants' plan stands in the outer header."""
    if packet[:1] and packet[0] >> 4 == 4:
        return packet[12:14] == b"\x0a\x01" or packet[16:18] == b"\x0a\x01"
    return packet[8:10] == b"\xfd\x10" or packet[24:26] == b"\xfd\x10"


# --- the gateway's view ---------------------------------------------------------------------------------------------


def page(host: str, port: int, path: str) -> object:
    """Return a page of an admin listener in a namespace, whatever its status.

    Raises:
        LabError: Nobody listens there, or what is there is no JSON.
    """

    def work() -> object:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.request("GET", path)
            body: object = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return body

    return inside(host, work)


def health(service: str) -> dict[str, str]:
    """Return endpoint -> what probes say of it, of one service."""
    found = page(GATEWAY_HOST, ADMIN_PORT, "/health")
    assert isinstance(found, dict)
    return {one["endpoint"]: one["state"] for one in found["endpoints"] if one["service"] == service}


def wait_for(what: str, condition: Callable[[], bool], *, timeout_s: float = PATIENCE_S) -> float:
    """Wait until something is so and return when it was first seen, in monotonic seconds.

    Raises:
        LabError: It was not so within `timeout_s`; names `what`.
    """
    ends_at = time.monotonic() + timeout_s
    while time.monotonic() < ends_at:
        if condition():
            return time.monotonic()
        time.sleep(0.02)
    raise LabError(f"not within {timeout_s:g} s: {what}")
