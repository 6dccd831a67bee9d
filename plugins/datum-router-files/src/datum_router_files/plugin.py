"""Hook implementations of the files plugin.

The source is imported when it is created: nothing but the supervisor reads YAML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.specs import PluginInfo, SourceSpec
from datum_router_files import NAME

if TYPE_CHECKING:
    from datum_router.plugins.protocols import Source


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who the plugin is."""
    return PluginInfo(name="datum-router-files", version="0.1.0", api=1, stability="beta", posture="no-traffic")


@hookimpl
def datum_router_sources() -> Sequence[SourceSpec]:
    """Offer the directory source."""
    return [SourceSpec(name=NAME, create=_source)]


def _source(settings: Mapping[str, str]) -> Source:
    from datum_router_files.source import create_source

    return create_source(settings)
