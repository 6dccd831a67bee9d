"""How a client came is what trusted proxies say, and what nobody else says: redirects to HTTPS, HSTS, cookies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import manifest, route, serve, service
from datum_router_proxy.testing_peers import Exchange, bounded, upstream

both = pytest.mark.parametrize("down", ["h1", "h2"])
HSTS = b"strict-transport-security"
PROXY = {"clientIP": {"trustedProxies": ["127.0.0.0/8"]}}
ELSEWHERE = {"clientIP": {"trustedProxies": ["203.0.113.0/24"]}}
HOPS = {"clientIP": {"trustedHops": 1}}


def ingress(spec: Mapping[str, object]) -> Mapping[str, object]:
    """Build an ingress for the host that clients ask for, on one HTTP listener: TLS, if there is any, ends in front."""
    rules = [{"path": "/", "service": {"name": "shop"}}]
    return manifest("VPCIngress", "edge", {"host": "shop.example", "rules": rules, **spec})


async def ok(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"ok")


@both
@pytest.mark.parametrize(
    ("trust", "said", "is_https"),
    [
        (PROXY, [], False),
        (PROXY, [b"http"], False),
        (PROXY, [b"https"], True),
        (PROXY, [b"wss"], True),
        (PROXY, [b"ws"], False),
        (PROXY, [b"http", b"https"], True),  # the nearest proxy has the last word, as in what is passed on
        (PROXY, [b"https", b"http"], False),
        (PROXY, [b"https, http"], False),  # no scheme: what is not understood says nothing
        (PROXY, [b"HTTPS"], False),
        (HOPS, [b"https"], True),
        (ELSEWHERE, [b"https"], False),
    ],
)
def test_clients_are_sent_to_https_once_and_told_to_stay_there(
    down: str, trust: Mapping[str, object], said: Sequence[bytes], is_https: bool
) -> None:
    async def main() -> None:
        spec = {"httpsRedirect": True, "hsts": {"maxAgeSeconds": 600}, **trust}
        fields = [(b"x-forwarded-proto", value) for value in said]
        async with (
            upstream(ok) as server,
            serve([service("shop", server.port), ingress(spec)]) as running,
            client(running.port, down) as peer,
        ):
            for _ in range(3):  # the first by the pipeline, the others by the express lane
                answer = await peer.request("GET", "/a?b=c", fields)
                told = (answer.status, answer.header(b"location"), answer.header(HSTS))
                assert told == ((200, None, b"max-age=600") if is_https else (308, b"https://shop.example/a?b=c", None))
            assert len(server.requests) == 3 * is_https

    bounded(main)


@both
def test_requests_of_one_connection_may_have_come_in_both_ways(down: str) -> None:
    async def main() -> None:
        spec = {"hsts": {"maxAgeSeconds": 600}, **PROXY}
        async with (
            upstream(ok) as server,
            serve([service("shop", server.port), ingress(spec)]) as running,
            client(running.port, down) as peer,
        ):
            for scheme in (b"https", b"http", b"https", b"https", b"http"):
                answer = await peer.request("GET", "/", [(b"x-forwarded-proto", scheme)])
                assert (answer.status, answer.header(HSTS) is not None) == (200, scheme == b"https")

    bounded(main)


@pytest.mark.parametrize(("trust", "is_https"), [(PROXY, True), (ELSEWHERE, False)])
def test_redirects_of_routes_and_cookies_go_by_the_clients_scheme(trust: Mapping[str, object], is_https: bool) -> None:
    async def main() -> None:
        affinity = {"type": "Cookie", "name": "session"}
        filters = [{"type": "RequestRedirect", "requestRedirect": {"hostname": "other.test"}}]
        manifests = [
            ingress(
                {"rules": [{"path": "/other", "service": {"name": "shop"}}], **trust}
            ),  # a host's own rules go first
            route("kept", "shop", match={"pathPrefix": "/kept"}, sessionAffinity=affinity),
            route("gone", match={"pathPrefix": "/gone"}, filters=filters),
        ]
        said = [(b"x-forwarded-proto", b"https")]
        async with (
            upstream(ok) as server,
            serve([service("shop", server.port), *manifests]) as running,
            client(running.port, "h1") as peer,
        ):
            answer = await peer.request("GET", "/gone", said)
            assert answer.header(b"location") == (b"https" if is_https else b"http") + b"://other.test/gone"
            answer = await peer.request("GET", "/kept", said)
            cookie = answer.header(b"set-cookie") or b""
            assert cookie.startswith(b"session=")
            assert (b"Secure" in cookie) is is_https

    bounded(main)
