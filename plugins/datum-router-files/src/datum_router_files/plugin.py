"""Hook implementations of the files plugin."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.specs import PluginInfo, SourceSpec
from datum_router_files.source import NAME, create_source


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who the plugin is."""
    return PluginInfo(name="datum-router-files", version="0.1.0", api=1, stability="beta", posture="no-traffic")


@hookimpl
def datum_router_sources() -> Sequence[SourceSpec]:
    """Offer the directory source."""
    return [SourceSpec(name=NAME, create=create_source)]
