"""Limits of a listener and what broken filters lead to, by the row of the threat list."""

from __future__ import annotations

import json

import msgspec
import pytest
import trio

from datum_router.errors import PluginContractError
from datum_router.model.listener import Listener
from datum_router.model.request import LocalReply, RequestHead, ResponseHead
from datum_router.reasons import Reason
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_peers import Exchange, bounded, gateway, make_service, upstream

both = pytest.mark.parametrize("down", ["h1", "h2"])
SMALL = Listener(name="test", max_request_body_bytes=1000)


async def count(exchange: Exchange) -> None:
    await exchange.reply(200, b"%d" % len(await exchange.body()))


async def fields(exchange: Exchange) -> None:
    await exchange.body()
    shown = {name.decode(): value.decode() for name, value in exchange.headers}
    await exchange.reply(200, json.dumps(shown).encode())


@both
def test_a5_a_stated_length_past_the_limit_is_413_and_nothing_reaches_the_upstream(down: str) -> None:
    async def main() -> None:
        seen: list[str] = []

        async def note(exchange: Exchange) -> None:
            seen.append(exchange.path)
            await count(exchange)

        async with upstream(note) as server:
            service = make_service([server.port])
            async with gateway([service], listener=SMALL) as running:
                async with client(running.port, down) as peer:
                    assert (await peer.request("POST", "/fits", body=b"x" * 1000)).body == b"1000"
                async with client(running.port, down) as peer:
                    answer = await peer.request("POST", "/long", body=b"x" * 1001)
                    assert answer.status == 413
                    assert answer.body.startswith(b"body_too_large")
                assert (down, Reason.BODY_TOO_LARGE) in running.recorder.rejections
                assert seen == ["/fits"]

    bounded(main)


def test_a5_a_chunked_body_past_the_limit_is_413_and_never_complete_at_the_upstream() -> None:
    async def main() -> None:
        completed: list[int] = []

        async def note(exchange: Exchange) -> None:
            body = await exchange.body()
            completed.append(len(body))
            await exchange.reply(200, b"")

        async with upstream(note) as server, gateway([make_service([server.port])], listener=SMALL) as running:
            async with client(running.port, "h1") as peer:
                answer = await peer.request("POST", "/", body=b"x" * 5000, is_chunked=True)
                assert answer.status == 413
            async with client(running.port, "h1") as peer:
                assert (await peer.request("POST", "/", body=b"x" * 10, is_chunked=True)).status == 200
        assert completed == [10]

    bounded(main)


@both
@pytest.mark.parametrize(("hops", "expected"), [(0, "127.0.0.1"), (1, "192.0.2.7")])
def test_b5_the_client_address_is_the_peers_unless_hops_are_trusted(down: str, hops: int, expected: str) -> None:
    async def main() -> None:
        async with upstream(fields) as server:
            listener = Listener(name="test", trusted_hops=hops)
            async with gateway([make_service([server.port])], listener=listener) as running:
                async with client(running.port, down) as peer:
                    answer = await peer.request("GET", "/", [(b"x-forwarded-for", b"203.0.113.9, 192.0.2.7")])
                    assert answer.status == 200
                    shown = json.loads(answer.body)
                    assert "203.0.113.9" not in shown["x-forwarded-for"] or hops
                await running.recorder.until(lambda: len(running.recorder.events) == 1)
                assert running.recorder.events[0].client_ip == expected

    bounded(main)


class BrokenFilter:
    """What a plugin might do: break on the request, or on the response."""

    def __init__(self, *, on_request: bool) -> None:
        self._on_request = on_request

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        if self._on_request:
            return LocalReply(status=500, reason=Reason.BAD_FILTER_OUTPUT, detail="filter x produced an invalid head")
        return head

    def on_response(self, head: ResponseHead) -> ResponseHead:
        raise PluginContractError("filter x: response field with a line feed", reason=Reason.BAD_FILTER_OUTPUT)


@both
@pytest.mark.parametrize("on_request", [True, False])
def test_a25_what_a_broken_filter_makes_is_never_sent_and_the_next_request_is_served(
    down: str, on_request: bool
) -> None:
    async def main() -> None:
        async with upstream(count) as server, gateway([make_service([server.port])]) as running:
            (linked,) = running.holder.current.rules.values()
            linked.filters = (BrokenFilter(on_request=on_request),)
            async with client(running.port, down) as peer:
                answer = await peer.request("GET", "/")
                assert answer.status == 500
                assert answer.body.startswith(b"bad_filter_output")
            linked.filters = ()
            async with client(running.port, down) as peer:
                assert (await peer.request("GET", "/")).status == 200
            with trio.fail_after(5):
                await running.recorder.until(lambda: len(running.recorder.events) == 2)
            assert [event.reason for event in running.recorder.events] == [Reason.BAD_FILTER_OUTPUT, Reason.ROUTED]

    bounded(main)


def test_listener_limits_follow_an_update() -> None:
    async def main() -> None:
        async with upstream(count) as server, gateway([make_service([server.port])], listener=SMALL) as running:
            running.plane.update_listener(msgspec.structs.replace(SMALL, max_request_body_bytes=10))
            async with client(running.port, "h1") as peer:
                assert (await peer.request("POST", "/", body=b"x" * 11)).status == 413

    bounded(main)
