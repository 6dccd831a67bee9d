"""Conversations in memory: our engine with itself, and both roles against the independent `h2` library."""

from __future__ import annotations

import random

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router_proxy.wire.http2 import (
    DataReceived,
    Http2Connection,
    Http2Limits,
    RequestReceived,
    ResponseReceived,
    Role,
    StreamEnded,
    TrailersReceived,
)

NAME = st.from_regex(rb"x-[a-z0-9]{1,8}", fullmatch=True)
VALUE = st.from_regex(rb"[\x21-\x7e]([\x20-\x7e]{0,30}[\x21-\x7e])?", fullmatch=True)
FIELDS = st.lists(st.tuples(NAME, VALUE), max_size=6)
MESSAGE = st.fixed_dictionaries(
    {
        "fields": FIELDS,
        "trailers": st.none() | st.lists(st.tuples(NAME, VALUE), min_size=1, max_size=3),
        "body": st.integers(0, 200_000),
        "pad": st.booleans(),
    }
)
EXCHANGES = st.lists(st.tuples(MESSAGE, MESSAGE), min_size=1, max_size=5)

REQUEST = [(b":method", b"POST"), (b":scheme", b"https"), (b":path", b"/a?b=c"), (b":authority", b"example.test")]
STATUS = [(b":status", b"200")]


def content(size: int) -> bytes:
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


class Ours:
    """One side run by our engine: sends what it is told as windows allow, keeps what it receives."""

    def __init__(self, role: Role) -> None:
        limits = Http2Limits(stream_window_bytes=20_000, window_update_base=5_000)
        self.engine = Http2Connection(role, limits)
        self.engine.initiate()
        self.got: dict[int, dict] = {}
        self.todo: dict[int, tuple[bytes, list | None]] = {}
        self.answers: dict[int, dict] = {}
        self.order: list[dict] = []

    def request(self, message: dict) -> int:
        stream_id = self.engine.open_stream()
        self._begin(stream_id, REQUEST + message["fields"], message)
        return stream_id

    def _begin(self, stream_id: int, head: list, message: dict) -> None:
        if message["trailers"] is None and not message["body"]:
            self.engine.send_headers(stream_id, head, end_stream=True)
            return
        self.engine.send_headers(stream_id, head)
        self.todo[stream_id] = (content(message["body"]), message["trailers"])

    def pump(self) -> None:
        for stream_id, (left, trailers) in list(self.todo.items()):
            now = left[: self.engine.sendable(stream_id)]
            left = left[len(now) :]
            ends = not left and trailers is None
            if now or ends:
                self.engine.send_data(stream_id, now, end_stream=ends)
            if not left:
                if trailers is not None:
                    self.engine.send_trailers(stream_id, trailers)
                del self.todo[stream_id]
            else:
                self.todo[stream_id] = (left, trailers)

    def receive(self, data: bytes, cut: random.Random) -> None:
        while data:
            size = cut.choice((1, 7, 100, 5_000, 100_000))
            events = self.engine.receive_data(data[:size], 0.0)
            data = data[size:]
            while self.engine.has_buffered:
                events += self.engine.receive_data_more(0.0)
            for event in events:
                self._handle(event)

    def _handle(self, event: object) -> None:
        if isinstance(event, (RequestReceived, ResponseReceived)):
            self.got[event.stream_id] = {
                "fields": list(event.fields),
                "body": b"",
                "trailers": None,
                "ended": event.end_stream,
            }
            if event.end_stream:
                self._ended(event.stream_id)
        elif isinstance(event, DataReceived):
            self.got[event.stream_id]["body"] += event.data
            self.engine.acknowledge(event.stream_id, len(event.data))
            if event.end_stream:
                self.got[event.stream_id]["ended"] = True
                self._ended(event.stream_id)
        elif isinstance(event, TrailersReceived):
            self.got[event.stream_id]["trailers"] = list(event.fields)
            self.got[event.stream_id]["ended"] = True
            self._ended(event.stream_id)
        elif isinstance(event, StreamEnded):
            self.got[event.stream_id]["ended"] = True
            self._ended(event.stream_id)

    def _ended(self, stream_id: int) -> None:
        if self.order:
            message = self.order[(stream_id - 1) // 2]
            self._begin(stream_id, STATUS + message["fields"], message)

    def output(self) -> bytes:
        self.pump()
        return self.engine.data_to_send()


class Theirs:
    """The same with the h2 library."""

    def __init__(self, role: Role) -> None:
        config = h2.config.H2Configuration(client_side=role is Role.CLIENT, header_encoding=None)
        self.engine = h2.connection.H2Connection(config)
        self.engine.initiate_connection()
        self.got: dict[int, dict] = {}
        self.todo: dict[int, tuple[bytes, list | None, bool]] = {}
        self.order: list[dict] = []

    def request(self, message: dict) -> int:
        stream_id = self.engine.get_next_available_stream_id()
        self._begin(stream_id, REQUEST + message["fields"], message)
        return stream_id

    def _begin(self, stream_id: int, head: list, message: dict) -> None:
        if message["trailers"] is None and not message["body"]:
            self.engine.send_headers(stream_id, head, end_stream=True)
            return
        self.engine.send_headers(stream_id, head)
        self.todo[stream_id] = (content(message["body"]), message["trailers"], message["pad"])

    def pump(self) -> None:
        for stream_id, (left, trailers, pad) in list(self.todo.items()):
            while True:
                overhead = 9 if pad else 0
                room = min(self.engine.local_flow_control_window(stream_id), self.engine.max_outbound_frame_size)
                now = left[: max(0, room - overhead)]
                left = left[len(now) :]
                ends = not left and trailers is None
                if not now and not ends:
                    break
                use = pad and room >= len(now) + overhead
                self.engine.send_data(stream_id, now, end_stream=ends, pad_length=8 if use else None)
                if ends:
                    break
            if not left:
                if trailers is not None:
                    self.engine.send_headers(stream_id, trailers, end_stream=True)
                del self.todo[stream_id]
            else:
                self.todo[stream_id] = (left, trailers, pad)

    def receive(self, data: bytes, cut: random.Random) -> None:
        if not data:
            return
        for event in self.engine.receive_data(data):
            if isinstance(event, (h2.events.RequestReceived, h2.events.ResponseReceived)):
                fields = [(bytes(n), bytes(v)) for n, v in event.headers if not n.startswith(b":")]
                self.got[event.stream_id] = {"fields": fields, "body": b"", "trailers": None, "ended": False}
            elif isinstance(event, h2.events.DataReceived):
                self.got[event.stream_id]["body"] += event.data
                self.engine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.got[event.stream_id]["trailers"] = [(bytes(n), bytes(v)) for n, v in event.headers]
            elif isinstance(event, h2.events.StreamEnded):
                self.got[event.stream_id]["ended"] = True
                if self.order:
                    message = self.order[(event.stream_id - 1) // 2]
                    self._begin(event.stream_id, STATUS + message["fields"], message)

    def output(self) -> bytes:
        self.pump()
        return self.engine.data_to_send()


def expected(message: dict) -> dict:
    trailers = message["trailers"]
    return {"fields": message["fields"], "body": content(message["body"]), "trailers": trailers, "ended": True}


def converse(client: Ours | Theirs, server: Ours | Theirs, exchanges: list, seed: int) -> None:
    cut = random.Random(seed)
    server.order = [response for _, response in exchanges]
    streams = [client.request(request) for request, _ in exchanges]
    for _ in range(400):
        up, down = client.output(), server.output()
        if not up and not down:
            break
        server.receive(up, cut)
        client.receive(down, cut)
    for stream_id, (request, response) in zip(streams, exchanges, strict=True):
        assert server.got[stream_id] == expected(request)
        assert client.got[stream_id] == expected(response)
    for side in (client, server):
        if isinstance(side, Ours):
            assert side.engine.open_streams == 0
            assert not side.engine.is_terminated


PAIRS = {"our client, our server": (Ours, Ours), "our client, h2": (Ours, Theirs), "h2, our server": (Theirs, Ours)}


@pytest.mark.parametrize("pair", PAIRS)
@settings(max_examples=25, deadline=None)
@given(exchanges=EXCHANGES, seed=st.integers(0, 2**32))
def test_random_exchanges_arrive_whole(pair: str, exchanges: list, seed: int) -> None:
    make_client, make_server = PAIRS[pair]
    converse(make_client(Role.CLIENT), make_server(Role.SERVER), exchanges, seed)


def test_h2_takes_our_head_after_it_shrank_its_header_table() -> None:
    theirs, ours = Theirs(Role.CLIENT), Ours(Role.SERVER)
    theirs.engine.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    message = {"fields": [(b"x-a", b"b")], "trailers": None, "body": 10, "pad": False}
    converse(theirs, ours, [(message, message)] * 2, 0)
