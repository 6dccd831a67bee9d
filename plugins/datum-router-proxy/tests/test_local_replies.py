"""Bodies of the gateway's own answers, from the manifest to what a client gets."""

from __future__ import annotations

import json

import pytest

from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import manifest, route, serve, service
from datum_router_proxy.testing_peers import bounded, refused_port

both = pytest.mark.parametrize("down", ["h1", "h2"])
OF_ROUTE = {
    "statuses": [503],
    "contentType": "application/json",
    "body": '{"status": %STATUS%, "reason": "%REASON%", "id": "%REQUEST_ID%"}',
}
OF_LISTENER = {"contentType": "text/html", "body": "<h1>%STATUS% %STATUS_TEXT%</h1>"}


@both
def test_the_route_comes_before_the_listener_and_calls_get_a_grpc_status(down: str) -> None:
    async def main() -> None:
        manifests = [
            service("s", refused_port()),
            route("api", "s", match={"pathPrefix": "/api"}, localReplies=[OF_ROUTE]),
            manifest(
                "VPCIngress", "edge",
                {"host": "shop.example", "listeners": [{"name": "http", "port": 80}], "localReplies": [OF_LISTENER],
                 "rules": [{"path": "/other", "service": {"name": "s"}}]},
            ),
        ]  # fmt: skip
        async with serve(manifests) as running, client(running.port, down) as peer:
            answer = await peer.request("GET", "/api")
            assert (answer.status, answer.header(b"content-type")) == (503, b"application/json")
            event = running.recorder.events[0]
            assert json.loads(answer.body) == {"status": 503, "reason": "connect_failed", "id": event.request_id}
            for path, status, text in (("/nothing", 404, b"Not Found"), ("/other", 503, b"Service Unavailable")):
                answer = await peer.request("GET", path)
                assert (answer.status, answer.header(b"content-type")) == (status, b"text/html; charset=utf-8")
                assert answer.body == b"<h1>%d %b</h1>" % (status, text)
            answer = await peer.request("HEAD", "/nothing")
            assert (answer.status, answer.body) == (404, b"")
            answer = await peer.request("GET", "/api", [(b"content-type", b"application/grpc")])
            assert (answer.status, answer.header(b"grpc-status"), answer.body) == (200, b"14", b"")

    bounded(main)
