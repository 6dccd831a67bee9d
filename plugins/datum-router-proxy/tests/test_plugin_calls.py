"""Whatever way a request takes, each part of a plugin is asked once for it, also if it raises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from unittest import mock

import msgspec
import pytest

from datum_router.balancing.base import HealthView, PickContext
from datum_router.filters.base import LocalReply, ResponseHead
from datum_router.model.endpoint import Endpoint
from datum_router.model.request import RequestHead
from datum_router.model.route import BalancingPolicy, PluginFilter
from datum_router.model.service import UpstreamProtocol
from datum_router.plugins import BalancerSpec, FilterSpec, PluginInfo, builtin, hookimpl
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router_proxy import testing_roads
from datum_router_proxy.testing import data, headers
from datum_router_proxy.testing_peers import make_rule, make_service
from datum_router_proxy.testing_roads import Forwarded, H1Client, H1Server, H2Client, H2Server, World
from datum_router_proxy.wire.http2 import RequestReceived

GET = ((b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"example.com"), (b":path", b"/"))
POST = ((b":method", b"POST"), *GET[1:])


class Plugin:
    """Offers a balancer and a filter, counts what they are asked, and raises where it is told to.

    Attributes:
        raises: `pick`, `request`, `response` or nothing.
    """

    def __init__(self, raises: str) -> None:
        self.raises = raises
        self.asked: Counter[str] = Counter()

    def ask(self, what: str) -> None:
        self.asked[what] += 1
        if what == self.raises:
            raise ValueError("broken on purpose")

    def pick(self, _ctx: PickContext, endpoints: Sequence[Endpoint], _health: HealthView) -> Endpoint | None:
        self.ask("pick")
        return endpoints[0]

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        self.ask("request")
        return head

    def on_response(self, head: ResponseHead) -> ResponseHead:
        self.ask("response")
        return head

    def loaded(self) -> PluginSet:
        """Return what is offered, beside the core's."""
        info = PluginInfo(name="p", version="1", api=1, stability="alpha", posture="untrusted-downstream")

        class Module:
            pass

        module = Module()

        def datum_router_plugin_info() -> PluginInfo:
            return info

        def datum_router_balancers() -> list[BalancerSpec]:
            return [BalancerSpec(name="counting", create=lambda _policy: self)]

        def datum_router_filters() -> list[FilterSpec]:
            return [FilterSpec(name="counting", create=lambda _config: self)]

        for hook in (datum_router_plugin_info, datum_router_balancers, datum_router_filters):
            setattr(module, hook.__name__, hookimpl(hook))
        return load_plugins(
            [
                Candidate(entry_point="builtin", distribution="", load=lambda: builtin),
                Candidate(entry_point="p", distribution="", load=lambda: module),
            ]
        )


def h1_answer(_: Forwarded) -> Sequence[bytes]:
    return [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"]


def h2_answer(request: RequestReceived) -> Sequence[bytes]:
    head = headers(request.stream_id, [(b":status", b"200")], end_stream=False)
    return [head + data(request.stream_id, b"ok", end_stream=True)]


@pytest.fixture(params=["", "pick", "request", "response"])
def plugin(request: pytest.FixtureRequest) -> Iterator[Plugin]:
    made = Plugin(request.param)
    plugins = made.loaded()
    with mock.patch.object(testing_roads, "_plugins", return_value=plugins):
        yield made


@pytest.mark.parametrize("has_filter", [False, True])
@pytest.mark.parametrize("is_h2_upstream", [False, True])
@pytest.mark.parametrize("is_h2_client", [False, True])
@pytest.mark.parametrize("has_body", [False, True])
def test_p1_each_part_is_asked_once_for_a_request(
    plugin: Plugin, has_filter: bool, is_h2_upstream: bool, is_h2_client: bool, has_body: bool
) -> None:
    protocol = UpstreamProtocol.GRPC if is_h2_upstream else UpstreamProtocol.HTTP
    filters = [PluginFilter(name="counting")] if has_filter else []
    rule = msgspec.structs.replace(make_rule(filters=filters), balancing=BalancingPolicy(algorithm="counting"))
    world = World(
        make_service([9000], protocol=protocol),
        lambda world: H2Server(world, h2_answer) if is_h2_upstream else H1Server(world, h1_answer),
        [rule],
    )
    order = ["request", "pick", "response"] if has_filter else ["pick"]
    reached = order[: order.index(plugin.raises) + 1] if plugin.raises in order else order
    with world.running():
        for number in range(1, 5):  # the first one dials; a fifth failure would disable the plugin
            client: H1Client | H2Client = H2Client() if is_h2_client else H1Client()
            world.connect(client, is_h2=is_h2_client)
            if isinstance(client, H2Client):
                client.request(POST if has_body else GET, *([b"hello"] if has_body else []))
            elif has_body:
                client.pipe.give(b"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 5\r\n\r\nhello")
            else:
                client.pipe.give(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
            world.settle()
            assert plugin.asked == dict.fromkeys(reached, number)
        world.end()
        assert world.left_over == ""
