"""Datum Router: a Layer 7 application router for Galactic VPC. This package is its pure, synchronous core."""

from datum_router.balancing.base import Balancer, HealthView, PickContext
from datum_router.compiler.compiler import CompileOptions, Compiler, CompileResult
from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.compiler.link import Linker, Snapshot
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
