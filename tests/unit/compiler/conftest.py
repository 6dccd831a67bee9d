from collections.abc import Callable, Mapping
from typing import Any

import pytest

from datum_router.compiler.compiler import CompileOptions, Compiler, CompileResult
from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.meta import ObjectKey
from datum_router.model.listener import Listener
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.plugins.protocols import Delete, Upsert
from datum_router.registry.store import Store

FALLBACK = Listener(name="plain", host="127.0.0.1", port=8080)


def obj(kind: str, name: str, spec: Mapping[str, Any], *, namespace: str = "default", created: str = "") -> dict:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if created:
        metadata["creationTimestamp"] = created
    return {"apiVersion": "router.datum.net/v1alpha1", "kind": kind, "metadata": metadata, "spec": dict(spec)}


def service(name: str = "my-api", *addresses: str, namespace: str = "default", **spec: Any) -> dict:
    endpoints = [{"address": address} for address in addresses or ("10.0.0.1",)]
    return obj("VPCService", name, {"port": 80, "endpoints": endpoints, **spec}, namespace=namespace)


def route(name: str = "api", *services: str, created: str = "", namespace: str = "default", **spec: Any) -> dict:
    destinations = [{"vpcServiceRef": {"name": item}} for item in services or ("my-api",)]
    return obj("VPCRoute", name, {"destinations": destinations, **spec}, created=created, namespace=namespace)


class Bench:
    """A store and a compiler; `apply` objects, `compile`, look at the result."""

    def __init__(self, plugins: PluginSet, **options: Any) -> None:
        self.store = Store(plugins.kinds)
        self.compiler = Compiler(plugins, CompileOptions(**{"fallback_listener": FALLBACK, **options}))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        for index, raw in enumerate(objects):
            origin = Origin(source="test", file=f"{raw['metadata']['name']}-{raw['kind']}.yaml", line=index + 1)
            self.store.apply(Upsert(source="test", raw=raw, origin=origin))

    def delete(self, raw: Mapping[str, Any]) -> None:
        key = ObjectKey(kind=raw["kind"], namespace=raw["metadata"]["namespace"], name=raw["metadata"]["name"])
        self.store.apply(Delete(source="test", key=key, file=f"{key.name}-{key.kind}.yaml"))

    def compile(self, *objects: Mapping[str, Any]) -> CompileResult:
        self.apply(*objects)
        return self.compiler.compile(self.store.view())

    def reasons(self, result: CompileResult) -> list[str]:
        return [str(item.reason) for item in result.diagnostics]


class Kit:
    obj = staticmethod(obj)
    service = staticmethod(service)
    route = staticmethod(route)


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture(scope="session")
def plugins() -> PluginSet:
    return load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])


@pytest.fixture
def bench(plugins: PluginSet) -> Callable[..., Bench]:
    return lambda **options: Bench(plugins, **options)
