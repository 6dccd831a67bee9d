# nested contexts stand in the order of the story
"""External authorisation and JWT, from the manifest to what client and service get: who may not pass never does.

The canary of threat F8 stands in every credential, and all outputs of the gateway are searched for it.
"""

from __future__ import annotations

import json
import logging
import time
import types
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import datum_router_ext_authz.plugin
import datum_router_jwt.plugin
import jwt
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from datum_router_jwt.make import Maker

from datum_router import hookimpl
from datum_router.observe import names
from datum_router.plugins.manager import Candidate, PluginSet
from datum_router.plugins.specs import FilterSpec, ServiceUse
from datum_router.reasons import Reason
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import Manifest, compile_manifests, load, manifest, route, serve, service
from datum_router_proxy.testing_peers import Exchange, Gateway, bounded, refused_port, upstream

both = pytest.mark.parametrize("down", ["h1", "h2"])
CANARY = "canary-4f1d2c"
BEARER = f"Bearer {CANARY}".encode()


def plugins(clock: Callable[[], float] | None = None) -> PluginSet:
    """Load both plugins; with a clock, keys have their age by it."""
    module = types.ModuleType("jwt_plugin")
    vars(module).update(vars(datum_router_jwt.plugin))
    if clock is not None:

        def datum_router_filters() -> list[FilterSpec]:
            return [FilterSpec(name="jwt", create=Maker(monotonic=clock).make, service=ServiceUse.OPTIONAL)]

        module.datum_router_filters = hookimpl(datum_router_filters)  # type: ignore[attr-defined]
    return load(
        Candidate(entry_point="ext-authz", distribution="", load=lambda: datum_router_ext_authz.plugin),
        Candidate(entry_point="jwt", distribution="", load=lambda: module),
    )


def plugin(name: str, service_name: str = "", **config: object) -> Manifest:
    settings: dict[str, object] = {"name": name, "config": config}
    if service_name:
        settings["vpcServiceRef"] = {"name": service_name}
    return {"type": "Plugin", "plugin": settings}


async def echo(exchange: Exchange) -> None:
    await exchange.body()
    shown = {name.decode(): value.decode() for name, value in exchange.headers}
    await exchange.reply(200, json.dumps({"path": exchange.path, **shown}).encode())


async def authz(exchange: Exchange) -> None:
    """Let pass whoever asks for a path with `ok`."""
    await exchange.body()
    if "ok" in exchange.path:
        await exchange.reply(200, b"", [(b"x-user", b"ann")])
    else:
        await exchange.reply(403, b"go away", [(b"www-authenticate", b"Bearer"), (b"content-type", b"text/plain")])


def outcomes(running: Gateway, seen: Counter[str]) -> dict[str, int]:
    for cell in running.plane.take_cells():
        if cell.metric == names.FILTERED.name:
            seen[" ".join(cell.labels)] += int(cell.value)
    return dict(seen)


@both
def test_a_service_says_who_may_pass(down: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        caplog.set_level(logging.DEBUG)
        async with upstream(echo) as one, upstream(authz) as two:
            made = [
                service("my-api", one.port), service("authz", two.port),
                route("api", "my-api", filters=[plugin("ext-authz", "authz", upstreamHeaders=["x-user"])]),
            ]  # fmt: skip
            async with serve(made, plugins=plugins()) as running, client(running.port, down) as peer:
                secret = [(b"authorization", BEARER), (b"x-user", b"forged")]
                answer = await peer.request("POST", "/ok", secret, body=b"abc")
                assert (answer.status, json.loads(answer.body)["x-user"]) == (200, "ann")
                answer = await peer.request("GET", "/no", secret)
                assert (answer.status, answer.body) == (403, b"go away")
                assert answer.header(b"www-authenticate") == b"Bearer"
                answer = await peer.request("GET", "/no", [*secret, (b"content-type", b"application/grpc")])
                assert (answer.status, answer.header(b"grpc-status")) == (200, b"7")
                answer = await peer.request("POST", "/a.B/ok", [*secret, (b"content-type", b"application/grpc"),
                                                                (b"te", b"trailers")], body=b"abc")  # fmt: skip
                assert len(one.requests) == 2, "a head with TE passes a filter that changes it"
                assert [exchange.header(b"authorization") for exchange in two.requests] == [BEARER] * 4
                assert outcomes(running, Counter()) == {"ext-authz allowed": 2, "ext-authz refused": 2}
                reasons = [event.reason for event in running.recorder.events]
                assert reasons[1:3] == [Reason.AUTH_DENIED] * 2
                assert CANARY not in repr(running.recorder.events)
        assert CANARY not in caplog.text

    bounded(main)


@both
@pytest.mark.parametrize("fault", ["away", "missing", "slow", "broken", "hangup"])
def test_if_nobody_can_say_nobody_passes(down: str, fault: str) -> None:
    async def answers(exchange: Exchange) -> None:
        if fault == "slow":
            await trio.sleep_forever()
        if fault == "hangup":
            await exchange.reset()
            return
        await exchange.reply(500, b"oops")

    async def main() -> None:
        async with upstream(echo) as one, upstream(answers) as two:
            made = [service("my-api", one.port), route(
                "api", "my-api", filters=[plugin("ext-authz", "authz", timeoutMs=100)]
            )]  # fmt: skip
            if fault != "missing":
                made.append(service("authz", refused_port() if fault == "away" else two.port))
            running_gateway = serve(made, plugins=plugins(), are_warnings_expected=fault == "missing")
            async with running_gateway as running, client(running.port, down) as peer:
                for _ in range(7):  # more than what would disable a plugin that fails
                    answer = await peer.request("GET", "/ok")
                    assert (answer.status, answer.body.partition(b":")[0]) == (503, b"auth_unavailable")
            assert one.requests == []

    bounded(main)


def test_a_preflight_carries_no_credentials_and_needs_none() -> None:
    async def main() -> None:
        async with upstream(echo) as one, upstream(authz) as two:
            made = [
                service("my-api", one.port), service("authz", two.port),
                route("api", "my-api", cors={"allowedOrigins": ["https://a.test"]},
                      filters=[plugin("ext-authz", "authz")]),
            ]  # fmt: skip
            async with serve(made, plugins=plugins()) as running, client(running.port, "h1") as peer:
                origin = (b"origin", b"https://a.test")
                answer = await peer.request("OPTIONS", "/no", [origin, (b"access-control-request-method", b"GET")])
                assert answer.status == 204
                answer = await peer.request("GET", "/no", [origin])
                assert (answer.status, answer.header(b"access-control-allow-origin")) == (403, b"https://a.test")
            assert len(two.requests) == 1

    bounded(main)


# --- tokens ----------------------------------------------------------------------------------------------------------

KEY, NEW_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())


def key_set(**keys: Any) -> dict[str, object]:
    algorithm = jwt.get_algorithm_by_name("ES256")
    return {"keys": [{**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid} for kid, key in keys.items()]}


def bearer(key: Any = KEY, kid: str = "one", **change: Any) -> tuple[bytes, bytes]:
    claims = {"iss": "https://issuer.test", "aud": "shop", "exp": time.time() + 600, "note": CANARY, **change}
    token = jwt.encode(claims, key, algorithm="ES256", headers={"kid": kid})
    return (b"authorization", b"Bearer " + token.encode())


class Issuer:
    """Serves key sets, and counts how often it is asked."""

    def __init__(self, **keys: Any) -> None:
        self.keys = keys
        self.status = 200
        self.asked = 0

    async def __call__(self, exchange: Exchange) -> None:
        self.asked += 1
        assert exchange.path == "/keys"
        await exchange.reply(self.status, msgspec.json.encode(key_set(**self.keys)))


SETTINGS = {"issuer": "https://issuer.test", "audiences": ["shop"], "algorithms": ["ES256"]}


def with_issuer(
    issuer: Callable[[Exchange], Awaitable[None]],
    run: Callable[[Gateway, Any], Awaitable[None]],
    clock: Callable[[], float] | None = None,
    **config: object,
) -> None:
    async def main() -> None:
        async with upstream(echo) as one, upstream(issuer) as two:
            item = plugin("jwt", "issuer", **SETTINGS, jwksPath="/keys", **config)
            made = [service("my-api", one.port), service("issuer", two.port), route("api", "my-api", filters=[item])]
            async with serve(made, plugins=plugins(clock)) as running:
                await run(running, one)

    bounded(main)


@both
def test_tokens_of_the_issuer_pass_and_keys_are_fetched_once(down: str, caplog: pytest.LogCaptureFixture) -> None:
    issuer = Issuer(one=KEY)
    caplog.set_level(logging.DEBUG)

    async def run(running: Gateway, _: Any) -> None:
        async with client(running.port, down) as peer:
            for _number in range(3):
                answer = await peer.request("GET", "/", [bearer(), (b"x-claims", b"forged")])
                shown = json.loads(answer.body)
                assert "authorization" not in shown, "the token is the gateway's"
                padded = shown["x-claims"] + "=" * (-len(shown["x-claims"]) % 4)
                assert CANARY in jwt.utils.base64url_decode(padded).decode()
            expired = bearer(exp=time.time() - 61)
            for credentials, said in (
                ([], b"Bearer"),
                ([(b"authorization", b"Basic abc")], b"Bearer"),
                ([bearer(), bearer()], b"Bearer"),
                ([expired], b'Bearer error="invalid_token", error_description="the token has expired"'),
            ):
                answer = await peer.request("GET", "/", credentials)
                assert (answer.status, answer.header(b"www-authenticate")) == (401, said)
                assert answer.body.startswith(b"auth_denied: ")
            assert outcomes(running, Counter()) == {"jwt allowed": 3, "jwt refused": 4}
            assert issuer.asked == 1
            assert CANARY not in repr(running.recorder.events)

    with_issuer(issuer, run, forwardPayloadHeader="x-claims")
    assert CANARY not in caplog.text


def test_without_keys_nobody_passes_and_the_issuer_is_not_hammered() -> None:
    issuer = Issuer(one=KEY)
    issuer.status = 500

    async def run(running: Gateway, server: Any) -> None:
        async with client(running.port, "h1") as peer:
            for _ in range(7):
                answer = await peer.request("GET", "/", [bearer()])
                assert (answer.status, answer.header(b"retry-after")) == (503, b"1")
            assert issuer.asked == 1
            assert server.requests == []

    with_issuer(issuer, run)


def test_an_unknown_key_is_asked_for_once_and_old_keys_are_fetched_on_the_side() -> None:
    now = [1000.0]
    issuer = Issuer(one=KEY)

    async def run(running: Gateway, _: Any) -> None:
        async with client(running.port, "h1") as peer:
            assert (await peer.request("GET", "/", [bearer()])).status == 200
            issuer.keys = {"two": NEW_KEY}
            assert (await peer.request("GET", "/", [bearer(NEW_KEY, "two")])).status == 401
            now[0] += 10
            assert (await peer.request("GET", "/", [bearer(NEW_KEY, "two")])).status == 200
            assert (await peer.request("GET", "/", [bearer(NEW_KEY, "three")])).status == 401
            assert issuer.asked == 2
            now[0] += 301
            issuer.keys = {"one": KEY}
            assert (await peer.request("GET", "/", [bearer(NEW_KEY, "two")])).status == 200, "old keys serve on"
            with trio.fail_after(5):
                while (await peer.request("GET", "/", [bearer()])).status != 200:
                    pass
            assert issuer.asked == 3

    with_issuer(issuer, run, clock=lambda: now[0])


@both
def test_clients_that_leave_do_not_keep_keys_from_coming(down: str) -> None:
    issuer = Issuer(one=KEY)
    asked, go_on = trio.Event(), trio.Event()

    async def slowly(exchange: Exchange) -> None:
        asked.set()
        await go_on.wait()
        await issuer(exchange)

    async def run(running: Gateway, _: Any) -> None:
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                async with client(running.port, down) as peer:
                    await peer.request("GET", "/", [bearer()])

            nursery.start_soon(leave)
            await asked.wait()
            nursery.cancel_scope.cancel()
        await running.recorder.until(lambda: bool(running.recorder.events))
        assert running.recorder.events[0].reason == Reason.DOWNSTREAM_RESET
        go_on.set()
        await running.recorder.until(lambda: bool(running.recorder.outcomes))
        async with client(running.port, down) as peer:
            assert (await peer.request("GET", "/", [bearer()])).status == 200
        assert issuer.asked == 1, "what was asked for by the one who left serves the others"

    with_issuer(slowly, run)


def test_keys_may_stand_in_the_manifest() -> None:
    async def main() -> None:
        async with upstream(echo) as one:
            item = plugin("jwt", **SETTINGS, keys=key_set(one=KEY), allowMissing=True, forwardToken=True)
            made = [service("my-api", one.port), route("api", "my-api", filters=[item])]
            async with serve(made, plugins=plugins()) as running, client(running.port, "h2") as peer:
                token = bearer()
                answer = await peer.request("GET", "/", [token])
                assert json.loads(answer.body)["authorization"] == token[1].decode()
                assert (await peer.request("GET", "/")).status == 200
                assert (await peer.request("GET", "/", [bearer(NEW_KEY)])).status == 401
                assert (await peer.request("GET", "/", [(b"authorization", b"Basic abc")])).status == 401

    bounded(main)


@pytest.mark.parametrize(
    ("item", "path", "message"),
    [
        (plugin("jwtt"), "name", "found 'jwtt', expected one of ext-authz, jwt"),
        (plugin("ext-authz"), "vpcServiceRef", "filter ext-authz needs a service to ask"),
        (plugin("jwt", **SETTINGS), "config", "expected either keys, or a vpcServiceRef of the filter"),
        (plugin("jwt", "my-api", **SETTINGS, audiance="x"), "config", "object contains unknown field `audiance`"),
        (plugin("jwt", "my-api", **{**SETTINGS, "algorithms": ["none"]}), "config", "algorithm 'none', expected one"),
        (plugin("jwt", **SETTINGS, keys={"keys": []}), "config", "no key for ES256"),
    ],
)
def test_settings_that_cannot_be_used_keep_the_route_out_of_force(item: Manifest, path: str, message: str) -> None:
    data, diagnostics = compile_manifests(
        [service("my-api", 80), manifest("VPCRoute", "api", {
            "destinations": [{"vpcServiceRef": {"name": "my-api"}}], "filters": [item],
        })],
        plugins(),
    )  # fmt: skip
    assert data.rules == ()
    (found,) = diagnostics
    assert found.path == f"spec.filters[0].plugin.{path}"
    assert found.message.startswith(message)
