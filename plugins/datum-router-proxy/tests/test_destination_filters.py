"""Edits of heads by a rule or a destination, and conditions on gRPC by expression, from the manifest to both peers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import pytest
import trio

from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import Manifest, manifest, route, serve, service
from datum_router_proxy.testing_peers import Exchange, bounded, refused_port, upstream

both = pytest.mark.parametrize("down", ["h1", "h2"])


async def echo(exchange: Exchange) -> None:
    """Answer with what came."""
    await exchange.body()
    shown = {name.decode(): value.decode() for name, value in exchange.headers}
    await exchange.reply(200, json.dumps({"path": exchange.path, **shown}).encode(), [(b"x-own", b"1")])


def edited(name: str, **destination: object) -> dict[str, object]:
    return {
        "vpcServiceRef": {"name": name},
        "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-for", "value": name}]}},
            {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": f"/{name}"}}},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-from", "value": name}]}},
        ],
        **destination,
    }


@both
def test_each_destination_has_its_own_edits_and_a_retry_begins_from_the_clients_head(down: str) -> None:
    async def main() -> None:
        async with upstream(echo) as server:
            manifests = [
                service("gone", refused_port()),
                service("there", server.port),
                route("api", destinations=[edited("gone"), edited("there", priority=1), edited("gone", weight=0)]),
            ]
            async with serve(manifests) as running, client(running.port, down) as peer:
                for _ in range(3):
                    answer = await peer.request("GET", "/x")
                    assert answer.status == 200
                    shown = json.loads(answer.body)
                    assert (shown["path"], shown["x-for"]) == ("/there", "there")
                    assert answer.header(b"x-from") == b"there"

    bounded(main)


@both
def test_rule_and_destination_edit_in_turn_and_the_rule_has_the_last_word_on_answers(down: str) -> None:
    def sets(kind: str, value: str) -> dict[str, object]:
        field = kind[0].lower() + kind[1:]
        return {"type": kind, field: {"set": [{"name": "x-who", "value": value}]}}

    async def main() -> None:
        async with upstream(echo) as server:
            edits = [sets("RequestHeaderModifier", "rule"), sets("ResponseHeaderModifier", "rule")]
            own = [sets("RequestHeaderModifier", "destination"), sets("ResponseHeaderModifier", "destination")]
            api = route("api", destinations=[{"vpcServiceRef": {"name": "s"}, "filters": own}], filters=edits)
            async with serve([service("s", server.port), api]) as running, client(running.port, down) as peer:
                answer = await peer.request("GET", "/")
                assert json.loads(answer.body)["x-who"] == "destination"
                assert answer.header(b"x-who") == b"rule"

    bounded(main)


def test_two_destinations_of_one_service_are_told_apart() -> None:
    async def main() -> None:
        async with upstream(echo) as server:
            plain = {"vpcServiceRef": {"name": "s"}, "weight": 0}
            api = route("api", destinations=[plain, edited("s")])
            async with serve([service("s", server.port), api]) as running, client(running.port, "h1") as peer:
                assert json.loads((await peer.request("GET", "/")).body)["x-for"] == "s"

    bounded(main)


def test_grpc_names_are_compared_by_expression() -> None:
    async def main() -> None:
        async with upstream(echo) as server:
            match = {"grpcService": "shop[.]v[12][.]Cart", "grpcMethod": "Get.*", "grpcMatchType": "RegularExpression"}
            api = manifest("VPCRoute", "api", {"match": match, "destinations": [{"vpcServiceRef": {"name": "s"}}]})
            async with serve([service("s", server.port), api]) as running, client(running.port, "h1") as peer:
                found = {
                    path: (await peer.request("GET", path)).status
                    for path in (
                        "/shop.v1.Cart/GetItem", "/shop.v2.Cart/Get", "/shop.v3.Cart/Get", "/shop.v1.Cart/Put",
                        "/shopxv1.Cart/Get", "/shop.v1.Cart/Get/x/y", "/x/shop.v1.Cart/Get",
                    )
                }  # fmt: skip
                assert [path for path, status in found.items() if status == 200] == [
                    "/shop.v1.Cart/GetItem", "/shop.v2.Cart/Get",
                ]  # fmt: skip

    bounded(main)


def asks(**edits: object) -> Manifest:
    return {"type": "RequestHeaderModifier", "requestHeaderModifier": edits}


def tells(**edits: object) -> Manifest:
    return {"type": "ResponseHeaderModifier", "responseHeaderModifier": edits}


def rewrites(**edits: object) -> Manifest:
    return {"type": "URLRewrite", "urlRewrite": edits}


def prefix(new: str) -> Manifest:
    return rewrites(path={"type": "ReplacePrefixMatch", "replacePrefixMatch": new})


def full(new: str) -> Manifest:
    return rewrites(path={"type": "ReplaceFullPath", "replaceFullPath": new})


def field(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}


EDITS: list[tuple[str, Sequence[Manifest], str, str, Mapping[str, str], Mapping[str, str]]] = [
    # name, filters, what is asked for below /api, what the service is asked for, fields that it gets, and the client
    ("nothing", [], "/api/x", "/api/x", {"host": "shop.example", "x-one": "1"}, {"x-own": "1"}),
    ("prefix", [prefix("/v2")], "/api/x/y?q=1", "/v2/x/y?q=1", {"host": "shop.example"}, {}),
    ("prefix alone", [prefix("/v2")], "/api", "/v2", {}, {}),
    ("prefix with a slash", [prefix("/v2/")], "/api/x", "/v2/x", {}, {}),
    ("prefix by the root", [prefix("/")], "/api/x?q=/api", "/x?q=/api", {}, {}),
    ("prefix alone by the root", [prefix("/")], "/api", "/", {}, {}),
    ("path", [full("/v3/all")], "/api/x?q=1", "/v3/all?q=1", {}, {}),
    ("host", [rewrites(hostname="b.test")], "/api/x", "/api/x", {"host": "b.test"}, {}),
    ("host and prefix", [rewrites(hostname="b.test", **prefix("/v2")["urlRewrite"])], "/api/x", "/v2/x",
     {"host": "b.test"}, {}),
    ("request: set", [asks(set=[field("X-One", "new")])], "/api", "/api", {"x-one": "new", "x-two": "2"}, {}),
    ("request: set what is not there", [asks(set=[field("x-new", "n")])], "/api", "/api", {"x-new": "n"}, {}),
    ("request: add", [asks(add=[field("x-one", "more")])], "/api", "/api", {"x-one": "1, more"}, {}),
    ("request: remove", [asks(remove=["X-Two"])], "/api", "/api", {"x-one": "1", "x-two": ""}, {}),
    ("request: remove, set and add",
     [asks(remove=["x-two"], set=[field("x-one", "set")], add=[field("x-new", "add")])], "/api", "/api",
     {"x-one": "set", "x-two": "", "x-new": "add"}, {}),
    ("answer: set", [tells(set=[field("x-own", "ours")])], "/api", "/api", {}, {"x-own": "ours", "x-two": "2"}),
    ("answer: add", [tells(add=[field("x-own", "more")])], "/api", "/api", {}, {"x-own": "1, more"}),
    ("answer: remove", [tells(remove=["X-Own"])], "/api", "/api", {"x-one": "1"}, {"x-own": "", "x-two": "2"}),
    ("all at once", [prefix("/v2"), asks(add=[field("x-new", "n")]), tells(remove=["x-two"])], "/api/x", "/v2/x",
     {"x-new": "n"}, {"x-own": "1", "x-two": ""}),
]  # fmt: skip


@both
@pytest.mark.parametrize("place", ["rule", "destination"])
@pytest.mark.parametrize(
    ("filters", "asked", "target", "sent", "answered"), [case[1:] for case in EDITS], ids=[case[0] for case in EDITS]
)
def test_edits_of_a_manifest_are_on_the_heads(
    down: str,
    place: str,
    filters: Sequence[Manifest],
    asked: str,
    target: str,
    sent: Mapping[str, str],
    answered: Mapping[str, str],
) -> None:
    """Fields of one name count as one list; an empty one is not there."""

    def joined(fields: Sequence[tuple[bytes, bytes]], name: str) -> str:
        return b", ".join(value for key, value in fields if key.lower() == name.encode()).decode()

    async def app(exchange: Exchange) -> None:
        await exchange.reply(200, b"ok", [(b"x-own", b"1"), (b"x-two", b"2")])

    async def main() -> None:
        async with upstream(app) as server:
            destination: dict[str, object] = {"vpcServiceRef": {"name": "s"}}
            spec: dict[str, object] = {"match": {"pathPrefix": "/api"}, "destinations": [destination]}
            (spec if place == "rule" else destination)["filters"] = list(filters)
            manifests = [service("s", server.port), route("api", **spec)]
            async with serve(manifests) as running, client(running.port, down) as peer:
                for _ in range(3):  # the lanes take over as soon as connections are there
                    answer = await peer.request("GET", asked, [(b"x-one", b"1"), (b"x-two", b"2")])
                    assert answer.status == 200
                    got = server.requests[-1]
                    assert got.path == target
                    assert {name: joined(got.headers, name) for name in sent} == sent
                    assert {name: joined(answer.headers, name) for name in answered} == answered

    bounded(main)


Own = Callable[[int], Sequence[Manifest]]
Expected = Callable[[int], Mapping[str, str]]

ATTEMPTS: list[tuple[str, Own, Expected]] = [
    # name, filters of a destination, what its service is asked for and gets of the client's x-0, x-1, x-2 and x-all
    ("add", lambda at: [asks(add=[field("x-all", f"d{at}")])], lambda at: {"x-all": f"c, d{at}", "x-0": "c"}),
    ("add to another", lambda at: [asks(add=[field(f"x-{at}", "d")])],
     lambda at: {f"x-{one}": "c, d" if one == at else "c" for one in range(3)}),
    ("set", lambda at: [asks(set=[field(f"x-{at}", "d")])],
     lambda at: {f"x-{one}": "d" if one == at else "c" for one in range(3)}),
    ("set what is not there", lambda at: [asks(set=[field(f"x-new-{at}", "d")])],
     lambda at: {f"x-new-{one}": "d" if one == at else "" for one in range(3)}),
    ("remove", lambda at: [asks(remove=[f"x-{at}"])],
     lambda at: {f"x-{one}": "" if one == at else "c" for one in range(3)}),
    ("remove and add", lambda at: [asks(remove=["x-all"]), asks(add=[field("x-all", f"d{at}")])][at % 2 :],
     lambda at: {"x-all": "c, d1" if at % 2 else f"d{at}"}),
    ("prefix", lambda at: [prefix(f"/v{at}")], lambda at: {"path": f"/v{at}/x?q=1"}),
    ("prefix below itself", lambda at: [prefix(f"/api/v{at}")], lambda at: {"path": f"/api/v{at}/x?q=1"}),
    ("path and host of the first ones", lambda at: [] if at == 2 else [rewrites(hostname="b.test", **full("/b")[
        "urlRewrite"])], lambda at: {"path": "/api/x?q=1", "host": "shop.example"} if at == 2 else {
        "path": "/b?q=1", "host": "b.test"}),
]  # fmt: skip


@both
@pytest.mark.parametrize("failure", ["status", "reset", "refused", "slow"])
@pytest.mark.parametrize(("own", "expected"), [case[1:] for case in ATTEMPTS], ids=[case[0] for case in ATTEMPTS])
def test_each_attempt_begins_from_what_the_rule_makes_of_the_clients_head(
    down: str, failure: str, own: Own, expected: Expected
) -> None:
    """The services of three destinations are tried in turn, and the last one answers."""

    async def fail(exchange: Exchange) -> None:
        await exchange.body()
        if failure == "status":
            await exchange.reply(503, b"no")
        elif failure == "reset":
            await exchange.reset()
        else:
            await trio.sleep_forever()

    def seen(request: Exchange, name: str) -> str:
        if name == "path":
            return request.path
        return b", ".join(value for key, value in request.headers if key == name.encode()).decode()

    async def main() -> None:
        async with upstream(fail) as one, upstream(fail) as two, upstream(echo) as three:
            tried = [three] if failure == "refused" else [one, two, three]
            ports = [refused_port(), refused_port()] * (failure == "refused") + [server.port for server in tried]
            retries = {"maxRetries": 2, "backoff": {"initialMs": 1, "maxMs": 1}}
            if failure == "slow":
                retries = {"maxRetries": 0, "hedging": {"delay": "10ms", "maxAttempts": 3}}
            api = route(
                "api",
                match={"pathPrefix": "/api"},
                filters=[asks(add=[field("x-rule", "r")]), tells(add=[field("x-from", "r")])],
                destinations=[
                    {
                        "vpcServiceRef": {"name": f"s{at}"},
                        "filters": [*own(at), tells(add=[field("x-from", f"d{at}")])],
                        "priority": at,
                    }
                    for at in range(3)
                ],
                retries=retries,
            )
            manifests = [*(service(f"s{at}", port) for at, port in enumerate(ports)), api]
            async with serve(manifests) as running, client(running.port, down) as peer:
                fields = [(name, b"c") for name in (b"x-0", b"x-1", b"x-2", b"x-all")]
                answer = await peer.request("GET", "/api/x?q=1", fields)
                assert answer.status == 200
                assert [value for name, value in answer.headers if name == b"x-from"] == [b"d2", b"r"]
                for at, server in enumerate(reversed(tried)):
                    (request,) = server.requests
                    wanted = {"path": "/api/x?q=1", "x-rule": "r", **expected(2 - at)}
                    assert {name: seen(request, name) for name in wanted} == wanted

    bounded(main)
