"""The hooks of the plugin."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router import hookimpl
from datum_router.filters.base import Filter
from datum_router.model.route import PluginFilter
from datum_router.plugins.specs import FilterSpec, PluginInfo, ServiceUse


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who this is."""
    return PluginInfo(name="ext-authz", version="0.1.0", api=1, stability="beta", posture="untrusted-downstream")


@hookimpl
def datum_router_filters() -> Sequence[FilterSpec]:
    """Add the filter under the name that `spec.filters[].plugin.name` uses."""
    return [FilterSpec(name="ext-authz", create=_create, check=_check, service=ServiceUse.REQUIRED)]


def _create(config: PluginFilter) -> Filter:
    from datum_router_ext_authz.filter import ExtAuthz  # where no route uses it, nobody pays for it

    return ExtAuthz(config)


def _check(config: PluginFilter) -> str:
    from datum_router_ext_authz.config import problem_of

    return problem_of(config.config)
