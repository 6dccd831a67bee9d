"""A store, a compiler and an index at work together, as in a controller."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from datum_router.compiler.compiler import CompileOptions, Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.meta import Condition, ObjectKey, StatusPart
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.plugins.protocols import Delete, Upsert
from datum_router.reconcile.conditions import ConditionType, find
from datum_router.reconcile.index import FactIndex
from datum_router.reconcile.reports import IN_FORCE, Refusal, Verdict
from datum_router.reconcile.status import desired_status, plain_status
from datum_router.registry.store import Store

NOW = "2026-01-01T00:00:00Z"


class Desk:
    """Objects as an API server keeps them, and what the controller knows of them."""

    def __init__(self, plugins: PluginSet) -> None:
        self.seen: set[ObjectKey] = set()
        self.store = Store(plugins.kinds, seen=self.seen)
        self.compiler = Compiler(plugins, CompileOptions(are_credentials_known=False))
        self.index = FactIndex()
        self.objects: dict[ObjectKey, dict[str, Any]] = {}
        self.version = 0

    def put(self, kind: str, name: str, spec: dict[str, Any], *, namespace: str = "default", **more: Any) -> ObjectKey:
        """Create or edit an object, without compiling."""
        key = ObjectKey(kind=kind, namespace=namespace, name=name)
        old = self.objects.get(key, {"metadata": {"generation": 0}, "spec": None})
        generation = old["metadata"]["generation"] + (old["spec"] != spec)
        api = "galactic.datumapis.com/v1alpha" if kind in ("VPC", "VPCAttachment") else "router.datum.net/v1alpha1"
        metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "generation": generation}
        self.objects[key] = {**old, "apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec, **more}
        self._emit(key)
        return key

    def delete(self, key: ObjectKey) -> None:
        del self.objects[key]
        self.store.apply(Delete(source="test", key=key))

    def compile(self) -> set[ObjectKey]:
        """Compile what there is; return the objects whose status may differ."""
        view = self.store.view()
        seen = set(self.seen)
        self.seen.clear()
        return self.index.update(self.compiler.compile(view), view, seen)

    def echo(self) -> set[ObjectKey]:
        """Take in what was read without compiling."""
        seen = set(self.seen)
        self.seen.clear()
        return self.index.refresh(self.store.view(), seen)

    def desired(
        self,
        key: ObjectKey,
        *,
        verdict: Verdict = IN_FORCE,
        refusals: tuple[tuple[str, Refusal], ...] = (),
        now: str = NOW,
    ) -> StatusPart:
        subject = self.index.subject(key, status=self.index.status(key), verdict=verdict, refusals=refusals)
        assert subject is not None
        return desired_status(subject, self.index.facts(key), now=now)

    def write(self, key: ObjectKey, **options: Any) -> StatusPart:
        """Write the status that an object ought to have, and read the object again."""
        status = self.desired(key, **options)
        self.objects[key]["status"] = copy.deepcopy(plain_status(status))
        self._emit(key)
        self.echo()
        return status

    def _emit(self, key: ObjectKey) -> None:
        self.version += 1
        raw = self.objects[key]
        raw["metadata"]["resourceVersion"] = str(self.version)
        self.store.apply(Upsert(source="test", raw=copy.deepcopy(raw), origin=Origin(source="test")))


def of(status: StatusPart, kind: ConditionType) -> Condition:
    found = find(status.conditions, kind)  # type: ignore[attr-defined]
    assert found is not None
    return found


@pytest.fixture(scope="session")
def plugins() -> PluginSet:
    return load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])


@pytest.fixture
def desk(plugins: PluginSet) -> Desk:
    return Desk(plugins)


@pytest.fixture
def condition_of() -> Callable[[StatusPart, ConditionType], Condition]:
    return of
