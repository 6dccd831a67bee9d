"""Sessions, and cookies for consistent hashing, as clients meet them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pytest
import trio

from datum_router_proxy.testing_clients import Answer, client
from datum_router_proxy.testing_manifests import compile_route
from datum_router_proxy.testing_peers import Exchange, bounded, gateway, refused_port, upstream

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
@pytest.mark.parametrize(
    ("spec", "said_in", "sent_in", "beginning"),
    [
        pytest.param({}, b"set-cookie", b"cookie", b"dr-", id="a cookie of the route's own name"),
        pytest.param({"type": "Cookie", "name": "s"}, b"set-cookie", b"cookie", b"s=", id="a cookie by name"),
        pytest.param({"type": "Header"}, b"x-session-affinity", b"x-session-affinity", b"", id="the usual header"),
        pytest.param({"type": "Header", "name": "X-Session"}, b"x-session", b"x-session", b"", id="a header by name"),
    ],
)
def test_a_session_keeps_a_client_at_one_of_several_endpoints(
    down: str, spec: Mapping[str, object], said_in: bytes, sent_in: bytes, beginning: bytes
) -> None:
    async def main() -> None:
        async with upstream(named(b"one")) as one, upstream(named(b"two")) as two, upstream(named(b"three")) as three:
            made = compile_route([one.port, two.port, three.port], {"sessionAffinity": spec})
            async with gateway(made.services, made.rules) as running, client(running.port, down) as peer:
                without = {(await peer.request("GET", "/")).body for _ in range(6)}
                assert without == {b"one", b"two", b"three"}, "no session, no affinity"
                for _ in range(3):
                    first = await peer.request("GET", "/")
                    crumb, _, _ = (first.header(said_in) or b"").partition(b";")
                    assert crumb.startswith(beginning)
                    again = [await peer.request("GET", "/", [(sent_in, crumb)]) for _ in range(6)]
                    assert {answer.body for answer in again} == {first.body}
                    assert {answer.header(said_in) for answer in again} == {None}
                    assert str(one.port).encode() not in crumb
                other = b"B" if crumb[-5:-4] == b"A" else b"A"
                broken = await peer.request("GET", "/", [(sent_in, crumb[:-5] + other + crumb[-4:])])
                assert broken.status == 200
                assert broken.header(said_in) is not None, "a token that is none begins a session"

    bounded(main)


FOREVER = b"Path=/; HttpOnly; SameSite=Lax"


def lasting(seconds: int) -> bytes:
    return b"Path=/; Max-Age=%d; HttpOnly; SameSite=Lax" % seconds


@pytest.mark.parametrize(
    ("spec", "first", "steps"),
    [
        pytest.param({}, FOREVER, [(10**9, True, b"")], id="nothing ends it"),
        pytest.param(
            {"absoluteTimeout": "1m"}, FOREVER, [(59, True, b""), (60, False, FOREVER)], id="so long after its begin"
        ),
        pytest.param(
            {"lifetime": "Permanent", "absoluteTimeout": "1m"},
            lasting(60),
            [(59, True, b""), (60, False, lasting(60)), (119, True, b""), (120, False, lasting(60))],
            id="permanent, up to its end",
        ),
        pytest.param(
            {"idleTimeout": "1m"},
            FOREVER,
            # Noted as seen after a quarter of it, and only then.
            [(14, True, b""), (59, True, FOREVER), (118, True, FOREVER), (178, False, FOREVER)],
            id="so long after its last request",
        ),
        pytest.param(
            {"lifetime": "Permanent", "absoluteTimeout": "100s", "idleTimeout": "1m"},
            lasting(100),
            [(50, True, lasting(50)), (99, True, lasting(1)), (100, False, lasting(100))],
            id="whichever comes first",
        ),
    ],
)
def test_a_session_ends_when_the_route_says(
    spec: Mapping[str, object], first: bytes, steps: Sequence[tuple[int, bool, bytes]]
) -> None:
    """Each step: seconds after the begin, whether the session is still good, and attributes of a new cookie if any."""

    async def main() -> None:
        start = 1_700_000_000.0
        now = start
        async with upstream(named(b"one")) as one, upstream(named(b"two")) as two:
            # In turns, so that whoever is without a session meets the other endpoint.
            route = {"sessionAffinity": spec, "loadBalancing": "round-robin"}
            made = compile_route([one.port, two.port], route)
            async with gateway(made.services, made.rules) as running, client(running.port, "h1") as peer:
                running.plane._pipeline.gate._wall_clock = lambda: now
                answer = await peer.request("GET", "/")
                crumb, _, attributes = (answer.header(b"set-cookie") or b"").partition(b"; ")
                assert attributes == first
                body = answer.body
                for after_s, is_good, expected in steps:
                    now = start + after_s
                    answer = await peer.request("GET", "/", [(b"cookie", crumb)])
                    given, _, attributes = (answer.header(b"set-cookie") or b"").partition(b"; ")
                    assert (answer.body == body, attributes) == (is_good, expected), after_s
                    crumb, body = given or crumb, answer.body

    bounded(main)


@both
def test_a_session_moves_when_its_endpoint_cannot_be_reached(down: str) -> None:
    async def main() -> None:
        async with upstream(named(b"one")) as one:
            route = {
                "sessionAffinity": {"name": "s"},
                "retries": {"maxRetries": 1, "backoff": {"initialMs": 1, "maxMs": 2}},
            }
            made = compile_route([one.port, refused_port()], route)
            (service,), (rule,) = made.services, made.rules
            async with gateway(made.services, made.rules) as running, client(running.port, down) as peer:
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


def hashed(cookie: Mapping[str, object]) -> Mapping[str, object]:
    config = {"hashOn": "Cookie", "cookie": {"name": "user", **cookie}, "tableSize": 251}
    return {"loadBalancing": "consistent-hash", "loadBalancingConfig": config}


@both
@pytest.mark.parametrize(
    ("cookie", "attributes"),
    [
        ({"ttl": "60s", "path": "/shop"}, b"; Path=/shop; Max-Age=60; HttpOnly; SameSite=Lax"),
        ({"ttl": "1500ms"}, b"; Path=/; Max-Age=2; HttpOnly; SameSite=Lax"),
        ({"ttl": "0s"}, b"; Path=/; HttpOnly; SameSite=Lax"),
        ({"path": "/shop"}, b"; Path=/shop; HttpOnly; SameSite=Lax"),
    ],
)
def test_a_client_without_the_hashed_cookie_is_given_one_that_leads_back(
    down: str, cookie: Mapping[str, object], attributes: bytes
) -> None:
    async def main() -> None:
        async with upstream(named(b"one")) as one, upstream(named(b"two")) as two:
            made = compile_route([one.port, two.port], hashed(cookie))
            async with gateway(made.services, made.rules) as running, client(running.port, down) as peer:
                seen: set[bytes] = set()
                for _ in range(12):
                    first = await peer.request("GET", "/")
                    said = first.header(b"set-cookie")
                    assert said is not None
                    assert said.startswith(b"user=")
                    assert said.endswith(attributes)
                    again = [await peer.request("GET", "/", [(b"cookie", given(first))]) for _ in range(3)]
                    assert {answer.body for answer in again} == {first.body}
                    assert {answer.header(b"set-cookie") for answer in again} == {None}
                    seen.add(first.body)
                assert seen == {b"one", b"two"}, "new clients are spread"

    bounded(main)


def test_a_hashed_cookie_of_which_only_the_name_is_given_is_left_to_the_service() -> None:
    async def main() -> None:
        async with upstream(named(b"one")) as one:
            made = compile_route([one.port], hashed({}))
            async with gateway(made.services, made.rules) as running, client(running.port, "h1") as peer:
                assert (await peer.request("GET", "/")).header(b"set-cookie") is None

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

        route = {"sessionAffinity": {"name": "s"}, "retries": {"hedging": {"delay": "20ms"}}}
        async with upstream(slow) as one, upstream(quick) as two:
            made = compile_route([one.port, two.port], route)
            async with gateway(made.services, made.rules) as running, client(running.port, down) as peer:
                first = await peer.request("GET", "/")
                if first.body == b"quick":
                    first = await peer.request("GET", "/")
                asked.clear()
                again = await peer.request("GET", "/slowly", [(b"cookie", given(first))])
                assert (again.body, again.header(b"set-cookie")) == (b"slow", None)
                assert asked == ["slow"]

    bounded(main)
