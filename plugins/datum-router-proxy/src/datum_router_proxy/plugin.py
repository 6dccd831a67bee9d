"""Hook implementations of the built-in data plane."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from datum_router.model.policy import ProbeType
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.specs import DataPlaneSpec, HealthCheckSpec, PluginInfo
from datum_router_proxy.dataplane import create
from datum_router_proxy.prober import make_prober
from datum_router_proxy.settings import from_text


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who this is."""
    return PluginInfo(name="proxy", version="0.1.0", api=1, stability="beta", posture="untrusted-downstream")


@hookimpl
def datum_router_data_planes() -> Sequence[DataPlaneSpec]:
    """Add the data plane `proxy`."""
    return [DataPlaneSpec(name="proxy", validate=from_text, create=create)]


@hookimpl
def datum_router_health_checks() -> Sequence[HealthCheckSpec]:
    """Add HTTP, TCP and gRPC probes."""
    return [HealthCheckSpec(type=kind, create=functools.partial(make_prober, kind)) for kind in ProbeType]
