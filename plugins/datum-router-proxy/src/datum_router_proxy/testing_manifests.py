"""Kit for tests that begin with a manifest: what a VPCRoute says, compiled, and ready for `testing_peers.gateway`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datum_router.compiler.compiler import CompileOptions, Compiler
from datum_router.compiler.diagnostics import Diagnostic, Origin
from datum_router.model.listener import Listener
from datum_router.model.route import Rule
from datum_router.model.service import Service
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import Upsert
from datum_router.registry.store import Store


class Compiled:
    """What became of the manifests: arguments of `gateway`, and what the compiler had to say."""

    def __init__(self, services: list[Service], rules: list[Rule], diagnostics: Sequence[Diagnostic]) -> None:
        self.services = services
        self.rules = rules
        self.diagnostics = list(diagnostics)


def compile_route(
    ports: Sequence[int], route: Mapping[str, object] = {}, service: Mapping[str, object] = {}
) -> Compiled:
    """Compile a VPCRoute that leads every request to one VPCService with endpoints at `ports` of loopback.

    Args:
        route, service: More fields of their specs.
    """
    plugins = load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])
    store = Store(plugins.kinds)
    endpoints = [{"address": "127.0.0.1", "port": port} for port in ports]
    specs: dict[str, Mapping[str, object]] = {
        "VPCService": {"port": 80, "endpoints": endpoints, **service},
        "VPCRoute": {"destinations": [{"vpcServiceRef": {"name": "backend"}}], **route},
    }
    for kind, spec in specs.items():
        raw = {
            "apiVersion": "router.datum.net/v1alpha1",
            "kind": kind,
            "metadata": {"name": "backend", "namespace": "default"},
            "spec": spec,
        }
        store.apply(Upsert(source="test", raw=raw, origin=Origin(source="test", file=f"{kind}.yaml", line=1)))
    options = CompileOptions(fallback_listener=Listener(name="test", host="127.0.0.1", port=8080))
    result = Compiler(plugins, options).compile(store.view())
    return Compiled(list(result.data.services.values()), list(result.data.rules), result.diagnostics)
