"""What mypy must accept, and what it must refuse: an `ignore` that is not needed is an error under --strict."""

from __future__ import annotations

import random
from collections.abc import Sequence

from datum_router import Endpoint, Headers, HealthView, LocalReply, PickContext, RequestHead, hookimpl, make_endpoint
from datum_router.model.route import BackendRef
from datum_router.model.service import ServiceKey
from datum_router.plugins import BalancerSpec, PluginInfo


class First:
    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        return endpoints[0] if endpoints else None


class WrongBalancer:
    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint]) -> Endpoint | None:
        return None


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    return PluginInfo(name="x", version="1", api=1, stability="alpha", posture="no-traffic")


accepted = BalancerSpec(name="first", create=lambda _policy: First())
refused_balancer = BalancerSpec(name="wrong", create=lambda _policy: WrongBalancer())  # type: ignore[arg-type, return-value]
refused_stability = PluginInfo(name="x", version="1", api=1, stability="soon", posture="no-traffic")  # type: ignore[arg-type]
refused_key = BackendRef(service="default/a")  # type: ignore[arg-type]
accepted_key = BackendRef(service=ServiceKey("default/a"))

head = RequestHead(method="GET", authority="a.test", host="a.test", path="/")
value: bytes | None = Headers([(b"a", b"b")]).get(b"a")
refused_name = head.headers.get("a")  # type: ignore[arg-type]
reply = LocalReply(status=503, reason="no_healthy_endpoint")
endpoint: Endpoint = make_endpoint("10.0.0.1", 80)
context = PickContext(rng=random.Random(1))
