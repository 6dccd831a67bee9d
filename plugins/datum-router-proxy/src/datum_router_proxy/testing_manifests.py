"""From manifests to a running gateway, for tests: what a user writes, and what a client gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import yaml

from datum_router.compiler.compiler import CompileOptions, Compiler
from datum_router.compiler.diagnostics import Diagnostic
from datum_router.model.listener import Listener
from datum_router.model.route import Rule
from datum_router.model.service import Service
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.plugins.protocols import Upsert
from datum_router.registry.store import Store
from datum_router.routing.regex import load_engine
from datum_router_files.yamlscan import read_documents
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_peers import Gateway, gateway

Manifest = Mapping[str, object]
LISTENER = Listener(name="test")


def manifest(kind: str, name: str, spec: Mapping[str, object]) -> Manifest:
    """Build a manifest of one of our kinds."""
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": dict(spec),
    }


def service(name: str, port: int, **spec: object) -> Manifest:
    """Build a VPCService with one endpoint on loopback."""
    return manifest("VPCService", name, {"port": port, "endpoints": [{"address": "127.0.0.1"}], **spec})


def route(name: str, *services: str, **spec: object) -> Manifest:
    """Build a VPCRoute to services."""
    destinations = [{"vpcServiceRef": {"name": one}} for one in services]
    return manifest("VPCRoute", name, {"destinations": destinations, **spec} if services else spec)


def load(*candidates: Candidate) -> PluginSet:
    """Load the built-in plugin and others."""
    own = Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)
    return load_plugins([own, *candidates])


def compile_manifests(
    manifests: Iterable[Manifest], plugins: PluginSet | None = None
) -> tuple[SnapshotData, Sequence[Diagnostic]]:
    """Compile manifests as the gateway does that reads them from a YAML file."""
    plugins = plugins or load()
    store = Store(plugins.kinds)
    content = read_documents(yaml.safe_dump_all(manifests, encoding="utf-8"), file="test.yaml", source="test")
    assert not content.diagnostics, [one.render() for one in content.diagnostics]
    for document in content.documents:
        store.apply(Upsert(source="test", raw=document.raw, origin=document.origin))
    result = Compiler(plugins, CompileOptions(fallback_listener=LISTENER, regex=load_engine())).compile(store.view())
    return result.data, result.diagnostics


def serve(
    manifests: Iterable[Manifest],
    *,
    plugins: PluginSet | None = None,
    settings: ProxySettings = ProxySettings(),
    are_warnings_expected: bool = False,
) -> AbstractAsyncContextManager[Gateway]:
    """Run a data plane that serves these manifests; whatever `check` would say of them fails the test."""
    data, diagnostics = compile_manifests(manifests, plugins)
    assert are_warnings_expected or not diagnostics, [one.render() for one in diagnostics]
    return gateway(
        data.services.values(), data.rules, settings=settings, listener=data.listeners[0], plugins=plugins or load()
    )


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
    endpoints = [{"address": "127.0.0.1", "port": port} for port in ports]
    data, diagnostics = compile_manifests(
        (
            manifest("VPCService", "backend", {"port": 80, "endpoints": endpoints, **service}),
            manifest("VPCRoute", "backend", {"destinations": [{"vpcServiceRef": {"name": "backend"}}], **route}),
        )
    )
    return Compiled(list(data.services.values()), list(data.rules), diagnostics)
