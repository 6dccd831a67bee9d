"""Requests over HTTP/1 that are sent and answered while their task sleeps end, and are handed over, as others do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import pytest

from datum_router.model.policy import ConnectionLimits, TimeoutPolicy
from datum_router_proxy.express import ExpressLane
from datum_router_proxy.loop import Loop
from datum_router_proxy.server.h1 import H1Connection
from datum_router_proxy.testing_peers import SERVICE, make_rule, make_service
from datum_router_proxy.testing_roads import CLOSED, Forwarded, H1Client, H1Server, World

HEAD = b"GET /a HTTP/1.1\r\nHost: shop.example\r\n\r\n"
OTHER = b"GET /b HTTP/1.1\r\nHost: other.example\r\nX-New: 1\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ndate: Sat, 28 Nov 2026 15:29:44 GMT\r\ncontent-length: 2\r\n\r\nok"


class Requests:
    """A client whose head is known and a gateway with a kept connection; an upstream that `is_silent` answers not."""

    def __init__(self) -> None:
        rule = make_rule(timeouts=TimeoutPolicy(request_s=10.0))
        self.world = World(make_service([9000]), lambda world: H1Server(world, self.answer), [rule])
        self.client = H1Client()
        self.is_silent = False

    def answer(self, request: Forwarded) -> Sequence[bytes]:
        """Answer a request."""
        return () if self.is_silent else (ANSWER,)

    def send(self, *pieces: bytes) -> bytes:
        """Let pieces arrive at the same time; return what the client got for them."""
        before = len(self.client.got)
        for piece in pieces:
            self.client.pipe.give(piece)
        self.world.settle()
        return self.client.got[before:]

    def let_another_wait(self) -> H1Client:
        """Take the only connection that is allowed; return another client, whose request waits for it."""
        self.world.edit([make_rule()], make_service([9000], limits=ConnectionLimits(max_connections=1)))
        self.is_silent = True
        self.send(HEAD)
        other = H1Client("192.0.2.2")
        self.world.connect(other, is_h2=False)
        other.pipe.give(OTHER)
        self.world.settle()
        return other

    @property
    def serving(self) -> H1Connection:
        """The connection."""
        eager = self.client.pipe.eager
        assert eager is not None
        found = eager.__self__  # type: ignore[attr-defined]  # a bound method
        assert isinstance(found, H1Connection)
        return found


@contextmanager
def running() -> Iterator[Requests]:
    requests = Requests()
    with requests.world.running():
        requests.world.connect(requests.client, is_h2=False)
        assert requests.send(HEAD).endswith(b"\r\n\r\nok")  # the first one dials, which is the pipeline's business
        yield requests
    assert requests.world.left_over == ""


def test_a_request_whose_head_is_known_needs_no_step_of_a_task() -> None:
    with running() as requests, mock.patch.object(Loop, "_step", side_effect=AssertionError):
        assert [requests.send(HEAD).count(b"200 OK") for _ in range(3)] == [1, 1, 1]
        assert requests.world.express == 3
        assert requests.world.loop.failures == 0


def test_requests_keep_their_order_when_only_the_second_is_known() -> None:
    with running() as requests:
        got = requests.send(OTHER, HEAD)
        assert got.count(b"200 OK") == 2
        assert [one.head.split(b" ")[1] for one in requests.world.forwarded] == [b"/a", b"/b", b"/a"]


def test_what_comes_behind_a_request_in_the_air_waits_for_its_turn() -> None:
    with running() as requests:
        requests.is_silent = True
        assert requests.send(HEAD) == b""
        assert requests.send(OTHER, HEAD) == b""
        assert len(requests.world.forwarded) == 2
        requests.is_silent = False
        requests.world.upstreams[0].to_send.append(ANSWER)
        assert requests.send().count(b"200 OK") == 3


def test_a_wake_up_for_nothing_lets_no_request_overtake_the_one_in_the_air() -> None:
    with running() as requests:
        requests.is_silent = True
        requests.send(HEAD)
        requests.send(OTHER)
        task = requests.world.upstreams[0].pipe.task
        assert task is not None
        task.wake()  # as the loop does when the kernel takes the rest of a long head
        requests.send()
        assert len(requests.world.forwarded) == 2
        requests.is_silent = False
        requests.world.upstreams[0].to_send.append(ANSWER)
        assert requests.send().count(b"200 OK") == 2
        assert [one.head.split(b" ")[1] for one in requests.world.forwarded] == [b"/a", b"/a", b"/b"]


def test_who_waits_for_a_connection_has_it_before_who_comes_later() -> None:
    with running() as requests:
        world, other = requests.world, requests.let_another_wait()
        for _ in range(2):  # both come at the same time
            world.upstreams[0].pipe.give(ANSWER)
            requests.send(HEAD)
        assert [one.address for one in world.forwarded][1:] == [b"192.0.2.1", b"192.0.2.2", b"192.0.2.1"]
        world.upstreams[0].pipe.give(ANSWER)
        assert requests.send().count(b"200 OK") == 1
        assert other.got.count(b"200 OK") == 1


def test_who_waits_for_a_connection_keeps_its_place_if_another_is_faster() -> None:
    requests = Requests()
    requests.is_silent = True
    world = requests.world
    world.edit([make_rule()], make_service([9000], limits=ConnectionLimits(max_connections=1)))
    clients = [H1Client(f"192.0.2.{number}") for number in range(4)]
    with world.running(has_lane=False):
        for client in clients:
            world.connect(client, is_h2=False)
        for client in clients[:3]:
            client.pipe.give(HEAD)
            world.settle()
        world.pipeline._transport._call_all(SERVICE)  # both look, find nothing, and wait again
        world.settle()
        world.upstreams[0].pipe.give(ANSWER)
        clients[3].pipe.give(HEAD)  # its task has its turn before that of the first who waits
        for _ in clients:
            world.settle()
            world.upstreams[0].pipe.give(ANSWER)
        world.settle()
        assert [one.address[-1:] for one in world.forwarded] == [b"0", b"3", b"1", b"2"]
        assert [client.got.count(b"200 OK") for client in clients] == [1, 1, 1, 1]


def test_the_wait_for_a_connection_does_not_begin_again_when_another_is_faster() -> None:
    with running() as requests:
        world, other = requests.world, requests.let_another_wait()
        for _ in range(2):
            world.wait(world.pipeline.settings.pool_wait_s * 0.6)
            world.pipeline._transport._call_all(SERVICE)
            world.settle()
        assert b"503 " in other.got


def test_the_deadline_of_a_request_in_the_air_is_kept() -> None:
    with running() as requests:
        requests.is_silent = True
        assert requests.send(HEAD) == b""
        assert requests.world.pipeline.in_flight == 1
        requests.world.wait(11.0)
        assert requests.client.got.split(b"\r\n\r\nok", 1)[1].startswith(b"HTTP/1.1 504 ")
        assert requests.world.upstreams[0].pipe.ended == "reset"


def test_between_two_requests_in_the_air_a_connection_is_idle() -> None:
    with running() as requests:
        assert requests.send(HEAD)
        assert requests.serving.is_idle
        requests.world.wait(requests.world.pipeline.settings.keep_alive_timeout_s - 1.0)
        assert not requests.client.pipe.ended
        assert requests.send(HEAD)
        requests.world.wait(requests.world.pipeline.settings.keep_alive_timeout_s + 1.0)
        assert requests.client.pipe.ended


def test_a_client_that_leaves_takes_its_request_along() -> None:
    with running() as requests:
        requests.is_silent = True
        requests.send(HEAD)
        requests.send(CLOSED)
        assert requests.world.pipeline.in_flight == 0
        assert requests.world.upstreams[0].pipe.ended == "reset"


def test_a_client_that_leaves_with_its_request_takes_it_along() -> None:
    with running() as requests:
        requests.is_silent = True
        requests.send(HEAD, CLOSED)
        assert requests.world.pipeline.in_flight == 0


@pytest.mark.parametrize("piece", [CLOSED, b"HTTP/1.1 2", b"nonsense\r\n\r\n"])
def test_an_upstream_that_answers_otherwise_is_the_pipelines_business(piece: bytes) -> None:
    with running() as requests:
        requests.is_silent = True
        requests.send(HEAD)
        requests.is_silent = False
        requests.world.upstreams[0].to_send.append(piece)
        if piece.startswith(b"HTTP"):
            requests.world.upstreams[0].to_send.append(ANSWER[len(piece) :])
        expected = b"502 " if piece.startswith(b"nonsense") else b"200 "  # a closed one is asked again (U4)
        assert requests.send().startswith(b"HTTP/1.1 " + expected)


def test_a_loop_that_ends_gives_back_what_requests_hold() -> None:
    with running() as requests:
        requests.is_silent = True
        requests.send(HEAD)
        assert requests.world.left_over != ""


def test_a_connection_that_is_cut_gives_back_what_its_request_holds() -> None:
    with running() as requests:
        requests.is_silent = True
        requests.send(HEAD)
        requests.serving.cut()
        requests.world.settle()
        assert requests.world.left_over == ""
        assert requests.client.pipe.ended == "reset"


def test_a_drain_that_begins_meanwhile_is_told_by_the_answer() -> None:
    with running() as requests:
        requests.is_silent = True
        requests.send(HEAD)
        requests.world.pipeline.is_draining = True
        requests.serving.finish_drain()
        requests.world.upstreams[0].to_send.append(ANSWER)
        assert b"\r\nconnection: close\r\n" in requests.send()
        assert requests.client.pipe.ended == "closed"


@pytest.mark.parametrize("head", [HEAD, OTHER])
@pytest.mark.parametrize("has_kept", [True, False])
def test_a_request_that_came_in_time_is_served_though_its_task_has_its_turn_late(head: bytes, has_kept: bool) -> None:
    with running() as requests:
        if not has_kept:
            requests.world.upstreams[0].to_send.append(CLOSED)
            requests.send()
        requests.world.wait(requests.world.pipeline.settings.keep_alive_timeout_s - 1.0)
        requests.client.pipe.give(head)
        requests.client.pipe.tell()
        requests.world.now += 2.0
        requests.world.loop.sweep()
        assert requests.send().count(b"200 OK") == 1


def test_a_request_that_came_before_the_end_of_a_drain_is_served() -> None:
    with running() as requests:
        requests.client.pipe.give(OTHER)
        requests.client.pipe.tell()  # it was read, and its task has not had its turn
        requests.world.pipeline.is_draining = True
        requests.serving.finish_drain()
        assert requests.send().count(b"200 OK") == 1
        assert requests.client.pipe.ended == "closed"


def test_a_request_that_comes_as_its_connection_is_closed_is_not_sent() -> None:
    with running() as requests:
        requests.serving.finish_drain()
        assert requests.send(HEAD) == b""
        assert len(requests.world.forwarded) == 1
        assert requests.client.pipe.ended == "closed"


def test_a_client_that_does_not_take_its_answer_is_waited_for_but_not_for_ever() -> None:
    with running() as requests:
        requests.client.pipe.buffered = 1
        assert requests.send(HEAD).count(b"200 OK") == 1
        assert requests.send(HEAD) == b"", "nothing more is read of it"
        requests.client.pipe.buffered = 0
        assert requests.client.pipe.task is not None
        requests.client.pipe.task.wake()  # as the loop does when the kernel takes the rest
        assert requests.send().count(b"200 OK") == 1
        requests.client.pipe.buffered = 1
        assert requests.send(HEAD).count(b"200 OK") == 1
        requests.world.wait(requests.world.pipeline.settings.write_timeout_s + 1.0)
        requests.world.wait(requests.world.pipeline.settings.write_timeout_s + 1.0)
        assert requests.client.pipe.ended == "reset"


@pytest.mark.parametrize("step", ["choose", "send"])
def test_a_fault_of_ours_before_it_is_sent_is_met_by_the_task(step: str) -> None:
    with running() as requests:
        whole = getattr(ExpressLane, step)
        raised = []

        def once(*args: object, **kwargs: object) -> object:
            if not raised:
                raised.append(1)
                raise RuntimeError("bug")
            return whole(*args, **kwargs)

        with mock.patch.object(ExpressLane, step, once):
            assert requests.send(HEAD).count(b"200 OK") == 1
        assert raised
        assert requests.world.left_over == ""


def test_a_fault_of_ours_at_its_answer_costs_one_connection(caplog: pytest.LogCaptureFixture) -> None:
    with running() as requests:
        with mock.patch.object(ExpressLane, "answer", side_effect=RuntimeError("bug")):
            assert requests.send(HEAD) == b""
        assert "request failed" in caplog.text
        assert requests.client.pipe.ended == "reset"
        assert requests.world.left_over == ""
        assert requests.world.loop.tasks == 0
        requests.client = H1Client()
        requests.world.connect(requests.client, is_h2=False)
        assert requests.send(HEAD).count(b"200 OK") == 1
