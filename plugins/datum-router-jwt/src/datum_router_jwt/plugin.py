"""The hooks of the plugin."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from datum_router import hookimpl
from datum_router.filters.base import Filter
from datum_router.model.route import PluginFilter
from datum_router.plugins.specs import FilterSpec, PluginInfo, ServiceUse


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who this is."""
    return PluginInfo(name="jwt", version="0.1.0", api=1, stability="beta", posture="untrusted-downstream")


@hookimpl
def datum_router_filters() -> Sequence[FilterSpec]:
    """Add the filter under the name that `spec.filters[].plugin.name` uses."""
    return [FilterSpec(name="jwt", create=_creator(), check=_check, service=ServiceUse.OPTIONAL)]


def _creator() -> Callable[[PluginFilter], Filter]:
    makers: list[Callable[[PluginFilter], Filter]] = []

    def create(config: PluginFilter) -> Filter:
        if not makers:
            from datum_router_jwt.make import Maker  # where no route uses it, nobody pays for the cryptography

            makers.append(Maker().make)
        return makers[0](config)

    return create


def _check(config: PluginFilter) -> str:
    from datum_router_jwt.make import problem_of

    return problem_of(config)
