"""Active/standby: all traffic goes to the first endpoint that is healthy."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router import Endpoint, HealthView, PickContext, hookimpl
from datum_router.plugins import BalancerSpec, PluginInfo


class FirstHealthy:
    """Prefer the earliest healthy endpoint."""

    __slots__ = ()

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return the first endpoint that is usable and was not tried yet for this request."""
        candidates = [endpoint for endpoint in endpoints if endpoint.key not in ctx.excluded]
        usable = (endpoint for endpoint in candidates if health.is_usable(endpoint.key))
        # `endpoints` holds unhealthy ones only in panic mode, when too few are healthy: then the first is as good.
        return next(usable, candidates[0] if candidates else None)


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who this is."""
    return PluginInfo(name="first-healthy", version="1.0.0", api=1, stability="stable", posture="untrusted-downstream")


@hookimpl
def datum_router_balancers() -> Sequence[BalancerSpec]:
    """Add the balancer under the name that `spec.loadBalancing` uses."""
    return [BalancerSpec(name="first-healthy", config=None, create=lambda _policy: FirstHealthy())]
