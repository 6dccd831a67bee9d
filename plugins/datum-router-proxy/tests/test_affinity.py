"""Sessions, and cookies for consistent hashing, as clients meet them."""

from __future__ import annotations

import time

import msgspec
import pytest
import trio

from datum_router.model.affinity import AffinityKind, AffinityPolicy, SetCookie
from datum_router.model.policy import RetryPolicy
from datum_router.model.route import BalancingPolicy, HashOn
from datum_router_proxy.testing_clients import Answer, client
from datum_router_proxy.testing_peers import (
    Exchange,
    bounded,
    gateway,
    make_rule,
    make_service,
    refused_port,
    upstream,
)

both = pytest.mark.parametrize("down", ["h1", "h2"])


def named(name: bytes):  # type: ignore[no-untyped-def]  # an application of the test kit
    async def app(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.reply(200, name)

    return app


def given(answer: Answer) -> bytes:
    cookie = answer.header(b"set-cookie")
    assert cookie is not None
    return cookie.partition(b";")[0]


@both
def test_a_cookie_keeps_a_client_at_one_of_several_endpoints(down: str) -> None:
    async def main() -> None:
        rule = msgspec.structs.replace(make_rule(), affinity=AffinityPolicy(name="s"))
        async with upstream(named(b"one")) as one, upstream(named(b"two")) as two, upstream(named(b"three")) as three:
            service = make_service([one.port, two.port, three.port])
            async with gateway([service], [rule]) as running, client(running.port, down) as peer:
                without = {(await peer.request("GET", "/")).body for _ in range(6)}
                assert without == {b"one", b"two", b"three"}, "no session, no affinity"
                for _ in range(3):
                    first = await peer.request("GET", "/")
                    crumb = given(first)
                    again = [await peer.request("GET", "/", [(b"cookie", crumb)]) for _ in range(6)]
                    assert {answer.body for answer in again} == {first.body}
                    assert {answer.header(b"set-cookie") for answer in again} == {None}
                    assert str(one.port).encode() not in crumb
                broken = await peer.request("GET", "/", [(b"cookie", crumb[:-2] + b"xx")])
                assert broken.status == 200
                assert broken.header(b"set-cookie") is not None, "a token that is none begins a session"

    bounded(main)


@both
def test_a_header_does_the_same(down: str) -> None:
    async def main() -> None:
        policy = AffinityPolicy(kind=AffinityKind.HEADER, name="x-session")
        rule = msgspec.structs.replace(make_rule(), affinity=policy)
        async with upstream(named(b"one")) as one, upstream(named(b"two")) as two:
            service = make_service([one.port, two.port])
            async with gateway([service], [rule]) as running, client(running.port, down) as peer:
                first = await peer.request("GET", "/")
                token = first.header(b"x-session")
                assert token is not None
                again = {(await peer.request("GET", "/", [(b"x-session", token)])).body for _ in range(6)}
                assert again == {first.body}

    bounded(main)


@both
def test_a_session_moves_when_its_endpoint_cannot_be_reached(down: str) -> None:
    async def main() -> None:
        rule = msgspec.structs.replace(
            make_rule(retry=RetryPolicy(max_retries=1, initial_backoff_s=0.001, max_backoff_s=0.002)),
            affinity=AffinityPolicy(name="s"),
        )
        async with upstream(named(b"one")) as one:
            service = make_service([one.port, refused_port()])
            async with gateway([service], [rule]) as running, client(running.port, down) as peer:
                linked = running.holder.current.rules[rule.id]
                assert linked.affinity is not None
                dead = service.endpoints[1].key
                ((_, cookie),) = linked.affinity.fields(None, service.key, dead, at=time.time(), is_secure=False)
                crumb = cookie.partition(b";")[0]
                answer = await peer.request("GET", "/", [(b"cookie", crumb)])
                assert (answer.status, answer.body) == (200, b"one")
                moved = given(answer)
                assert moved != crumb
                assert (await peer.request("GET", "/", [(b"cookie", moved)])).header(b"set-cookie") is None

    bounded(main)


@both
def test_a_client_without_the_hashed_cookie_is_given_one_that_leads_back(down: str) -> None:
    async def main() -> None:
        balancing = BalancingPolicy(
            algorithm="consistent-hash",
            hash_on=HashOn.COOKIE,
            hash_name="user",
            table_size=251,
            cookie=SetCookie(ttl_s=60, path="/shop"),
        )
        rule = msgspec.structs.replace(make_rule(), balancing=balancing)
        async with upstream(named(b"one")) as one, upstream(named(b"two")) as two:
            service = make_service([one.port, two.port])
            async with gateway([service], [rule]) as running, client(running.port, down) as peer:
                seen: set[bytes] = set()
                for _ in range(12):
                    first = await peer.request("GET", "/")
                    cookie = first.header(b"set-cookie")
                    assert cookie is not None
                    assert cookie.endswith(b"; Path=/shop; Max-Age=60; HttpOnly; SameSite=Lax")
                    again = [await peer.request("GET", "/", [(b"cookie", given(first))]) for _ in range(3)]
                    assert {answer.body for answer in again} == {first.body}
                    assert {answer.header(b"set-cookie") for answer in again} == {None}
                    seen.add(first.body)
                assert seen == {b"one", b"two"}, "new clients are spread"

    bounded(main)


@both
def test_a_session_is_not_lost_to_a_hedge(down: str) -> None:
    async def main() -> None:
        asked: list[str] = []

        async def slow(exchange: Exchange) -> None:
            await exchange.body()
            asked.append("slow")
            if exchange.path == "/slowly":
                await trio.sleep(0.1)  # longer than the delay of the hedge, which is not to begin
            await exchange.reply(200, b"slow")

        async def quick(exchange: Exchange) -> None:
            await exchange.body()
            asked.append("quick")
            await exchange.reply(200, b"quick")

        rule = make_rule(retry=RetryPolicy(hedge_delay_s=0.02, hedge_attempts=2))
        rule = msgspec.structs.replace(rule, affinity=AffinityPolicy(name="s"))
        async with upstream(slow) as one, upstream(quick) as two:
            service = make_service([one.port, two.port])
            async with gateway([service], [rule]) as running, client(running.port, down) as peer:
                first = await peer.request("GET", "/")
                if first.body == b"quick":
                    first = await peer.request("GET", "/")
                asked.clear()
                again = await peer.request("GET", "/slowly", [(b"cookie", given(first))])
                assert (again.body, again.header(b"set-cookie")) == (b"slow", None)
                assert asked == ["slow"]

    bounded(main)
