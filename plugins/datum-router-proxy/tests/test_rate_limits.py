"""Rate limits as clients meet them: on every lane, with a store that works and one that does not."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
import trio

from datum_router.compiler.linker import Linker
from datum_router.model.filters import CorsPolicy, ReplyTemplate
from datum_router.model.limits import HostRateLimit, RateLimitPolicy, RateScope
from datum_router.model.listener import HostPolicy, Listener
from datum_router.model.policy import RetryPolicy
from datum_router.model.route import Match, PathMatch, RuleId
from datum_router.model.snapshot import SnapshotData
from datum_router.observe import names
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import RateLimitStore
from datum_router.policy.buckets import Draw
from datum_router.reasons import Reason
from datum_router.testing.ratelimit import MemoryStore
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import compile_route, route, service
from datum_router_proxy.testing_manifests import serve as serve_manifests
from datum_router_proxy.testing_peers import Exchange, Gateway, bounded, gateway, make_rule, make_service, upstream

both = pytest.mark.parametrize("down", ["h1", "h2"])
HOURLY = RateLimitPolicy(scope=RateScope.ROUTE, owner="default/route", requests=3, window_s=3600, burst=3)
INGRESS = msgspec.structs.replace(HOURLY, scope=RateScope.INGRESS, requests=2, burst=2)


async def ok(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"ok")


def decisions(running: Gateway) -> dict[tuple[str, ...], float]:
    cells = running.plane.take_cells()
    return {cell.labels: cell.value for cell in cells if cell.metric == names.RATE_LIMIT_DECISIONS.name}


LIMITED: dict[str, object] = {"rateLimit": {"requests": 3, "unit": "Hour"}}


@both
def test_every_request_of_a_kept_connection_counts_and_answers_say_what_is_left(down: str) -> None:
    async def main() -> None:
        async with upstream(ok) as server:
            manifests = [service("s", server.port), route("api", "s", **LIMITED)]
            async with serve_manifests(manifests) as running:
                async with client(running.port, down) as peer:
                    answers = [await peer.request("GET", "/") for _ in range(6)]
                assert [answer.status for answer in answers] == [200] * 3 + [429] * 3
                assert [answer.header(b"ratelimit") for answer in answers[:4]] == [
                    b'"route";r=2;t=1200',
                    b'"route";r=1;t=2400',
                    b'"route";r=0;t=3600',
                    b'"route";r=0;t=1200',
                ]
                assert answers[0].header(b"ratelimit-policy") == answers[5].header(b"ratelimit-policy")
                assert answers[0].header(b"retry-after") is None
                assert answers[5].header(b"retry-after") == b"1200"
                assert answers[5].body.startswith(b"rate_limited: too many requests")
                assert running.recorder.reasons == [(down, Reason.RATE_LIMITED)] * 3
                assert decisions(running) == {("route", "allowed"): 3, ("route", "limited"): 3}
                assert decisions(running) == {}

    bounded(main)


RATES: list[tuple[str, dict[str, object], list[int], bytes, bytes]] = [
    # name, the limit, statuses of six requests of users a, a, b, a, b, a, and what the first is told
    ("an hour", {"requests": 2, "unit": "Hour"}, [200, 200, 429, 429, 429, 429], b"r=1;t=1800", b"q=2;w=3600"),
    ("a minute", {"requests": 2, "unit": "Minute"}, [200, 200, 429, 429, 429, 429], b"r=1;t=30", b"q=2;w=60"),
    ("a burst", {"requests": 2, "unit": "Hour", "burst": 4}, [200] * 4 + [429] * 2, b"r=3;t=1800", b"q=2;w=3600"),
    ("a small burst", {"requests": 9, "unit": "Hour", "burst": 1}, [200] + [429] * 5, b"r=0;t=400", b"q=9;w=3600"),
    ("each user", {"requests": 2, "unit": "Hour", "keys": ["Header:x-user"]}, [200, 200, 200, 429, 200, 429],
     b"r=1;t=1800", b"q=2;w=3600"),
    ("each address", {"requests": 2, "unit": "Hour", "keys": ["SourceIP"]}, [200, 200, 429, 429, 429, 429],
     b"r=1;t=1800", b"q=2;w=3600"),
]  # fmt: skip


@both
@pytest.mark.parametrize("place", ["route", "filter"])
@pytest.mark.parametrize(
    ("rate", "statuses", "left", "policy"), [case[1:] for case in RATES], ids=[case[0] for case in RATES]
)
def test_limits_of_a_manifest(
    down: str, place: str, rate: dict[str, object], statuses: list[int], left: bytes, policy: bytes
) -> None:
    spec = {"rateLimit": rate} if place == "route" else {"filters": [{"type": "RateLimit", "rateLimit": rate}]}

    async def main() -> None:
        async with upstream(ok) as server:
            manifests = [service("s", server.port), route("api", "s", **spec)]
            async with serve_manifests(manifests) as running, client(running.port, down) as peer:
                answers = [await peer.request("GET", "/", [(b"x-user", bytes([user]))]) for user in b"aababa"]
            assert [answer.status for answer in answers] == statuses
            first = answers[0]
            assert ((first.header(b"ratelimit") or b"").partition(b";")[2]) == left
            assert policy in (first.header(b"ratelimit-policy") or b"")
            assert len(server.requests) == statuses.count(200)

    bounded(main)


@both
def test_the_limit_of_an_ingress_comes_first_and_counts_what_no_route_takes(down: str) -> None:
    async def main() -> None:
        limits = (
            HostRateLimit(hostnames=("other.test",), policy=msgspec.structs.replace(INGRESS, owner="default/other")),
            HostRateLimit(hostnames=("*.example",), policy=INGRESS),
        )
        listener = Listener(name="test", rate_limits=limits)
        rule = msgspec.structs.replace(make_rule(), match=Match(path=PathMatch(value="/a")), rate_limits=(HOURLY,))
        async with (
            upstream(ok) as server,
            gateway([make_service([server.port])], [rule], listener=listener) as running,
            client(running.port, down) as peer,
        ):
            answers = [await peer.request("GET", path) for path in ("/a", "/b", "/a")]
            assert [answer.status for answer in answers] == [200, 404, 429]
            assert answers[0].header(b"ratelimit") in (
                b'"ingress";r=1;t=1800, "route";r=2;t=1200',
                b'"ingress";r=1;t=1800',  # h11 and h2 give the first of two fields
            )
            assert answers[2].header(b"ratelimit") == b'"ingress";r=0;t=1800'
            assert decisions(running) == {
                ("ingress", "allowed"): 2,
                ("ingress", "limited"): 1,
                ("route", "allowed"): 1,
            }

    bounded(main)


@both
def test_a_route_without_limits_keeps_to_the_fast_lane_beside_one_that_has(down: str) -> None:
    async def main() -> None:
        limited = msgspec.structs.replace(make_rule(), rate_limits=(HOURLY,), match=Match(path=PathMatch(value="/a")))
        free = msgspec.structs.replace(make_rule(), id=RuleId("default/free#0"))
        async with upstream(ok) as server, gateway([make_service([server.port])], [limited, free]) as running:
            rules = running.holder.current.rules
            assert [rules[rule.id].needs_pipeline for rule in (limited, free)] == [True, False]
            async with client(running.port, down) as peer:
                answers = [await peer.request("GET", "/b") for _ in range(8)]
            assert {answer.status for answer in answers} == {200}
            assert {answer.header(b"ratelimit") for answer in answers} == {None}

    bounded(main)


@both
def test_what_a_limit_refuses_is_an_answer_of_its_route(down: str) -> None:
    async def main() -> None:
        async with upstream(ok) as server:
            limited = route(
                "api", "s",
                cors={"allowedOrigins": ["https://shop.example"]},
                localReplies=[{"contentType": "application/json", "body": '{"reason": "%REASON%"}'}],
                rateLimit={"requests": 1, "unit": "Hour"},
            )  # fmt: skip
            manifests = [service("s", server.port), limited]
            async with serve_manifests(manifests) as running, client(running.port, down) as peer:
                answers = [await peer.request("GET", "/", [(b"origin", b"https://shop.example")]) for _ in range(2)]
            assert [answer.status for answer in answers] == [200, 429]
            assert answers[1].body == b'{"reason": "rate_limited"}'
            assert answers[1].header(b"access-control-allow-origin") == b"https://shop.example"
            assert [(event.route, event.service) for event in running.recorder.events] == [
                ("default/api", "default/s"), ("default/api", ""),
            ]  # fmt: skip

    bounded(main)


# --- shared stores -------------------------------------------------------------------------------------------------


class Broken:
    """A store that fails, or never answers, until it is mended."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.is_mended = False

    async def take(self, key: str, policy: RateLimitPolicy) -> Draw:
        if self.is_mended:
            return Draw(0.0, 1, 1.0)
        if self.error is None:
            await trio.sleep_forever()
        else:
            raise self.error
        raise AssertionError

    async def close(self) -> None:
        raise AssertionError


def serve(store: RateLimitStore, port: int, running: Gateway, spec: Mapping[str, object] = LIMITED) -> None:
    """Swap to a route of this spec whose limits are counted in the store."""
    plugins = load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])
    compiled = compile_route([port], spec)
    services = {service.key: service for service in compiled.services}
    data = SnapshotData(version=2, services=services, rules=tuple(compiled.rules))
    running.holder.swap(Linker(plugins, rate_store=store).link(data))


@both
def test_a_shared_store_decides_in_place_of_the_gateways_own_table(down: str) -> None:
    async def main() -> None:
        store = MemoryStore(lambda: 50.0)
        async with upstream(ok) as server, gateway() as one, gateway() as other:
            more = {"type": "RateLimit", "rateLimit": {"requests": 3, "unit": "Hour", "burst": 9}}
            for running in (one, other):
                serve(store, server.port, running, {**LIMITED, "filters": [more]})
            statuses = []
            for running in (one, other, one, other):
                async with client(running.port, down) as peer:
                    statuses.append((await peer.request("GET", "/")).status)
            assert statuses == [200, 200, 200, 429]

    bounded(main)


@both
@pytest.mark.parametrize("error", [None, OSError("no route"), ValueError("a bug")], ids=["silent", "refused", "bug"])
@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "closed"])
def test_a_store_that_does_not_answer_lets_through_or_refuses_as_the_setting_says(
    down: str, error: Exception | None, is_closed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = Broken(error)
        settings = ProxySettings(rate_limit_timeout_s=0.01, rate_limit_fail_closed=is_closed)
        async with upstream(ok) as server, gateway(settings=settings) as running, client(running.port, down) as peer:
            serve(store, server.port, running)
            answers = [await peer.request("GET", "/") for _ in range(2)]
            assert [answer.status for answer in answers] == [503 if is_closed else 200] * 2
            if is_closed:
                assert answers[0].body.startswith(b"rate_limit_unknown")
                assert answers[0].header(b"retry-after") == b"1"
            assert decisions(running) == {("route", "failed_closed" if is_closed else "failed_open"): 2}
            store.is_mended = True
            assert (await peer.request("GET", "/")).status == 200

    with caplog.at_level("INFO", logger="datum_router_proxy.gate"):
        bounded(main)
    said = [record.message for record in caplog.records if record.name == "datum_router_proxy.gate"]
    assert said == ["rate limit store failed", "rate limit store works again"], "once each, not for every request"


@both
def test_429_is_an_answer_of_its_rule_and_of_its_hosts(down: str) -> None:
    async def main() -> None:
        policy = HostPolicy(owner="default/web", hostnames=(), hsts="max-age=300")
        listener = Listener(name="test", policies=(policy,), trusted_hops=1)
        rule = msgspec.structs.replace(
            make_rule(retry=RetryPolicy(hedge_delay_s=10.0, hedge_attempts=2)),
            rate_limits=(msgspec.structs.replace(HOURLY, burst=1),),
            cors=CorsPolicy(origins=("https://a.test",)),
            replies=(ReplyTemplate(statuses=(429,), body="slow down", content_type="text/plain"),),
        )
        async with (
            upstream(ok) as server,
            gateway([make_service([server.port])], [rule], listener=listener) as running,
            client(running.port, down) as peer,
        ):
            head = [(b"origin", b"https://a.test"), (b"x-forwarded-proto", b"https")]
            answers = [await peer.request("GET", "/", head) for _ in range(2)]
            assert [answer.status for answer in answers] == [200, 429]
            for answer in answers:
                assert answer.header(b"strict-transport-security") == b"max-age=300"
                assert answer.header(b"access-control-allow-origin") == b"https://a.test"
                assert answer.header(b"ratelimit") is not None
            assert answers[1].body == b"slow down"
            assert [event.route for event in running.recorder.events] == ["default/route"] * 2

    bounded(main)
