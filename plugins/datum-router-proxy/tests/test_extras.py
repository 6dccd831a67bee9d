"""Rules with more than plain filters keep off the fast lanes."""

from __future__ import annotations

import msgspec
import pytest

from datum_router.model.filters import CorsPolicy, Fault, Mirror, ReplyTemplate
from datum_router.model.route import BackendRef, HeaderEdit, PluginFilter, Rule
from datum_router.model.service import ServiceKey
from datum_router_proxy import request as requests
from datum_router_proxy.testing_peers import make_rule, make_service, make_snapshot
from datum_router_proxy.wire import hygiene
from datum_router_proxy.wire.http2 import RequestReceived

SIDE = ServiceKey("default/side")
PLAIN = make_rule(filters=[HeaderEdit(set=(("x-a", "1"),))])


def template() -> requests.Template:
    hop = hygiene.Hop(peer_ip="192.0.2.1")
    event = RequestReceived(1, b"GET", b"http", b"a.test", b"/", None, (), None, True)
    return requests.from_h2(event, hop, "test")


def changed(**change: object) -> Rule:
    return msgspec.structs.replace(PLAIN, **change)


@pytest.mark.parametrize(
    "rule",
    [
        changed(cors=CorsPolicy(origins=("*",))),
        changed(max_request_body_bytes=1),
        changed(replies=(ReplyTemplate(body="x"),)),
        changed(filters=(Mirror(service=SIDE),)),
        changed(filters=(Fault(status=503, abort_percent=1),)),
        changed(filters=(PluginFilter(name="p"),)),
        changed(destinations=(BackendRef(service=ServiceKey("default/api"), filters=(HeaderEdit(),)),)),
    ],
)
def test_a_rule_with_more_than_plain_filters_keeps_off_the_fast_lanes(rule: Rule) -> None:
    (plain,) = make_snapshot([make_service([9000])], [PLAIN]).rules.values()
    assert plain.extra is None
    assert plain.is_simple
    (linked,) = make_snapshot([make_service([9000])], [rule]).rules.values()
    assert linked.extra is not None
    assert not linked.is_simple
    assert template().prepare(plain)
