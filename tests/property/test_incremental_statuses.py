"""After any sequence of edits the index knows what one that begins now would, and has named all that differs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.compiler import CompileOptions, Compiler, CompileResult
from datum_router.manifests.meta import ObjectKey, StatusPart
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import SourceEvent
from datum_router.reconcile.index import FactIndex
from datum_router.reconcile.reports import IN_FORCE
from datum_router.reconcile.status import desired_status, is_same_status
from datum_router.registry.store import Store, StoreView
from tests.property.edits import all_plugins, edits

NOW = "2026-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def plugins() -> PluginSet:
    return all_plugins()


def statuses(index: FactIndex) -> dict[ObjectKey, StatusPart]:
    found = {}
    for key in index.objects():
        subject = index.subject(key, status=None, verdict=IN_FORCE)
        assert subject is not None
        found[key] = desired_status(subject, index.facts(key), now=NOW)
    return found


def from_nothing(result: CompileResult, view: StoreView, keys: set[ObjectKey]) -> FactIndex:
    index = FactIndex()
    index.update(result, view, keys)
    return index


@settings(max_examples=150, deadline=None)
@given(
    batches=st.lists(st.lists(edits(files=("",)), max_size=10), min_size=1, max_size=6),
    are_refreshed=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_what_may_differ_is_named_and_what_is_known_is_what_compiling_found(
    plugins: PluginSet, batches: list[list[SourceEvent]], are_refreshed: list[bool]
) -> None:
    seen: set[ObjectKey] = set()
    every: set[ObjectKey] = set()
    store = Store(plugins.kinds, seen=seen)
    compiler = Compiler(plugins, CompileOptions(are_credentials_known=False))
    index = FactIndex()
    before: dict[ObjectKey, StatusPart] = {}
    for batch, is_refreshed in zip(batches, are_refreshed, strict=False):
        is_changed = False
        for event in batch:
            change = store.apply(event)
            is_changed |= bool(change.changed) or change.diagnostics_changed
        view = store.view()
        every |= seen
        if is_refreshed and not is_changed:
            changed = index.refresh(view, seen)
        else:
            result = compiler.compile(view)
            changed = index.update(result, view, seen)
            assert statuses(index) == statuses(from_nothing(result, view, every))
        seen.clear()
        now = statuses(index)
        differing = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
        assert differing <= changed
        before = now


@settings(max_examples=50, deadline=None)
@given(batch=st.lists(edits(files=("",)), max_size=20))
def test_every_status_is_the_same_as_itself_and_has_each_condition_once(
    plugins: PluginSet, batch: list[SourceEvent]
) -> None:
    seen: set[ObjectKey] = set()
    store = Store(plugins.kinds, seen=seen)
    for event in batch:
        store.apply(event)
    view = store.view()
    index = from_nothing(Compiler(plugins).compile(view), view, seen)
    for status in statuses(index).values():
        assert is_same_status(status, status)
        types = [one.type for one in status.conditions]  # type: ignore[attr-defined]
        assert len(set(types)) == len(types)
