"""Requests that are under way without a coroutine end, and are handed over, as those with one are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import pytest

from datum_router.model.policy import TimeoutPolicy
from datum_router.model.service import UpstreamProtocol
from datum_router_proxy.express import ExpressLane
from datum_router_proxy.server.h2 import H2Stream
from datum_router_proxy.testing import data, headers
from datum_router_proxy.testing_peers import make_rule, make_service
from datum_router_proxy.testing_roads import H2Client, H2Server, World
from datum_router_proxy.wire.http2 import RequestReceived

CALL = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"example.com"),
    (b":path", b"/shop.Cart/Add"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
MESSAGE = b"\0\0\0\0\2hi"


def whole(stream_id: int) -> list[bytes]:
    head = headers(stream_id, [(b":status", b"200"), (b"content-type", b"application/grpc")], end_stream=False)
    return [head + data(stream_id, MESSAGE) + headers(stream_id, [(b"grpc-status", b"0")])]


class Calls:
    """A client and a gateway whose connection to the upstream is up; one that `is_silent` answers no more."""

    def __init__(self) -> None:
        service = make_service([9000], protocol=UpstreamProtocol.GRPC)
        rule = make_rule(timeouts=TimeoutPolicy(request_s=10.0))
        self.world = World(service, lambda world: H2Server(world, self.answer), [rule])
        self.client = H2Client()
        self.is_silent = False

    def answer(self, request: RequestReceived) -> Sequence[bytes]:
        """Answer a call."""
        return () if self.is_silent else whole(request.stream_id)

    def call(self) -> list[tuple[str, object]]:
        """Make a call, its head and message in one piece, and return what has come of it."""
        connection = self.client.connection
        stream_id = connection.get_next_available_stream_id()
        connection.send_headers(stream_id, list(CALL))
        connection.send_data(stream_id, MESSAGE, end_stream=True)
        self.client.got[stream_id] = []
        self.client.flush()
        self.world.settle()
        return self.client.got[stream_id]


@contextmanager
def running() -> Iterator[Calls]:
    calls = Calls()
    with calls.world.running():
        calls.world.connect(calls.client, is_h2=True)
        assert calls.call()[-1] == ("end", 0)  # it dials, which is the pipeline's business
        yield calls
    assert calls.world.left_over == ""


def test_a_call_that_comes_and_is_answered_whole_needs_no_coroutine() -> None:
    with running() as calls, mock.patch.object(H2Stream, "run", side_effect=AssertionError):
        got = [calls.call() for _ in range(3)]
        assert all(kind[0][0] == "ResponseReceived" and kind[-1] == ("end", 0) for kind in got)
        assert calls.world.express == 3
        assert calls.world.loop.tasks == 2  # those of the two connections


def test_d23_the_deadline_of_a_call_under_way_is_kept() -> None:
    with running() as calls:
        calls.is_silent = True
        got = calls.call()
        assert got == []
        calls.world.wait(11.0)
        assert (b"grpc-status", b"4") in got[0][1]  # type: ignore[operator]
        assert calls.world.loop.tasks == 2


def test_a_client_that_leaves_takes_its_call_along() -> None:
    with running() as calls:
        calls.is_silent = True
        calls.call()
        assert calls.world.pipeline.in_flight == 1
        calls.client.connection.reset_stream(3)
        calls.client.flush()
        calls.world.settle()
        assert calls.world.pipeline.in_flight == 0
        assert calls.world.loop.tasks == 2


def test_an_upstream_that_is_lost_is_the_pipelines_business() -> None:
    with running() as calls:
        calls.is_silent = True
        got = calls.call()
        calls.world.upstreams[0].pipe.give(b"")
        calls.world.settle()
        assert (b"grpc-status", b"14") in got[0][1]  # type: ignore[operator]


def test_a_loop_that_ends_gives_back_what_calls_hold() -> None:
    with running() as calls:
        calls.is_silent = True
        calls.call()
        assert calls.world.left_over != ""


@pytest.mark.parametrize("step", ["send_shared", "answer_shared"])
def test_a_fault_of_ours_costs_one_call(step: str, caplog: pytest.LogCaptureFixture) -> None:
    with running() as calls:
        with mock.patch.object(ExpressLane, step, side_effect=ZeroDivisionError):
            assert calls.call() == [("cut", 2)]
        assert "request failed" in caplog.text
        assert calls.world.left_over == ""
        assert calls.call()[-1] == ("end", 0)
