"""Filters of one destination, and conditions on gRPC by expression, from the manifest to what a service gets."""

from __future__ import annotations

import json

import pytest

from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import manifest, route, serve, service
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
