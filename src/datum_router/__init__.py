"""Datum Router: a Layer 7 application router for Galactic VPC. This package is its pure, synchronous core.

The public names are imported when they are first used: a worker that serves needs neither the compiler nor the
manifests' types, and every import of a module below passes through here.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datum_router.balancing.base import Balancer, HealthView, PickContext
    from datum_router.compiler.compiler import CompileOptions, Compiler, CompileResult
    from datum_router.compiler.diagnostics import Diagnostic, Severity
    from datum_router.compiler.link import Snapshot
    from datum_router.compiler.linker import Linker
    from datum_router.errors import ConfigError, DatumRouterError, PluginError, ProtocolError, UpstreamError
    from datum_router.model.endpoint import Endpoint, make_endpoint
    from datum_router.model.request import Headers, LocalReply, RequestHead, ResponseHead
    from datum_router.model.route import Rule
    from datum_router.model.service import Service
    from datum_router.model.snapshot import SnapshotData
    from datum_router.plugins.hookspecs import hookimpl
    from datum_router.plugins.manager import PluginSet, load_plugins
    from datum_router.plugins.specs import API_VERSION
    from datum_router.reasons import Reason
    from datum_router.registry.store import Store
    from datum_router.routing.explain import explain_match
    from datum_router.routing.matcher import Matcher

__version__ = "0.1.0"

__all__ = [
    "API_VERSION",
    "Balancer",
    "CompileOptions",
    "CompileResult",
    "Compiler",
    "ConfigError",
    "DatumRouterError",
    "Diagnostic",
    "Endpoint",
    "Headers",
    "HealthView",
    "Linker",
    "LocalReply",
    "Matcher",
    "PickContext",
    "PluginError",
    "PluginSet",
    "ProtocolError",
    "Reason",
    "RequestHead",
    "ResponseHead",
    "Rule",
    "Service",
    "Severity",
    "Snapshot",
    "SnapshotData",
    "Store",
    "UpstreamError",
    "__version__",
    "explain_match",
    "hookimpl",
    "load_plugins",
    "make_endpoint",
]

_HOMES = {
    "API_VERSION": "plugins.specs",
    "Balancer": "balancing.base",
    "CompileOptions": "compiler.compiler",
    "CompileResult": "compiler.compiler",
    "Compiler": "compiler.compiler",
    "ConfigError": "errors",
    "DatumRouterError": "errors",
    "Diagnostic": "compiler.diagnostics",
    "Endpoint": "model.endpoint",
    "Headers": "model.request",
    "HealthView": "balancing.base",
    "Linker": "compiler.linker",
    "LocalReply": "model.request",
    "Matcher": "routing.matcher",
    "PickContext": "balancing.base",
    "PluginError": "errors",
    "PluginSet": "plugins.manager",
    "ProtocolError": "errors",
    "Reason": "reasons",
    "RequestHead": "model.request",
    "ResponseHead": "model.request",
    "Rule": "model.route",
    "Service": "model.service",
    "Severity": "compiler.diagnostics",
    "Snapshot": "compiler.link",
    "SnapshotData": "model.snapshot",
    "Store": "registry.store",
    "UpstreamError": "errors",
    "explain_match": "routing.explain",
    "hookimpl": "plugins.hookspecs",
    "load_plugins": "plugins.manager",
    "make_endpoint": "model.endpoint",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
