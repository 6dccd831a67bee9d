"""Whatever the order and repetition of events that lead to one state of a source, the store ends in one view."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.table import KindTable
from datum_router.plugins.protocols import Delete, SourceEvent, Upsert
from datum_router.registry.store import Store, StoreView

TABLE = KindTable(OWN_KINDS)
NAMES = ("a", "b", "c")
FILES = ("f.yaml", "g.yaml")
State = dict[str, tuple[int, str]]
"""Name -> (port, file); port 0 stands for a version that is bad."""


def key(name: str) -> ObjectKey:
    return ObjectKey(kind="VPCService", namespace="default", name=name)


def upsert(name: str, port: int, file: str, source: str = "files") -> Upsert:
    raw = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCService",
        "metadata": {"name": name},
        "spec": {"port": port, "endpoints": [{"address": "10.0.0.1"}]},
    }
    return Upsert(source=source, raw=raw, origin=Origin(source=source, file=file, line=port))


def between(old: State, new: State) -> list[SourceEvent]:
    """Return the events that say how `new` differs from `old`, as a source would emit them, in no special order."""
    events: list[SourceEvent] = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            events.append(Delete(source="files", key=key(name), file=old[name][1]))
        elif old.get(name) != new[name]:
            if name in old and old[name][1] != new[name][1]:
                events.append(Delete(source="files", key=key(name), file=old[name][1]))
            events.append(upsert(name, *new[name]))
    return events


def seen(view: StoreView) -> dict[str, object]:
    manifests = view.list("VPCService")
    return {
        "manifests": msgspec.to_builtins(manifests),
        "got": [view.get("VPCService", "default", name) is not None for name in NAMES],
        "origins": [view.origin(key(name)) for name in NAMES],
        "diagnostics": view.diagnostics(),
    }


states = st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(1, 4), st.sampled_from(FILES)))
any_states = st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(0, 4), st.sampled_from(FILES)))


@settings(max_examples=200, deadline=None)
@given(st.lists(states, max_size=5), states, st.data())
def test_any_history_that_ends_in_one_state_ends_in_one_view(
    history: list[State], last: State, data: st.DataObject
) -> None:
    straight = Store(TABLE)
    for event in between({}, last):
        straight.apply(event)

    winding = Store(TABLE)
    state: State = {}
    for step in [*history, last]:
        events = data.draw(st.permutations(between(state, step)))
        for event in events:
            winding.apply(event)
            if data.draw(st.booleans()):
                assert not winding.apply(event).changed
        state = step
    assert seen(winding.view()) == seen(straight.view())


def in_json(event: SourceEvent) -> SourceEvent:
    if not isinstance(event, Upsert) or isinstance(event.raw, msgspec.Raw):
        return event
    raw = dict(event.raw)
    kind = {"api_version": str(raw.pop("apiVersion")), "kind": str(raw.pop("kind"))}
    return msgspec.structs.replace(event, raw=msgspec.Raw(msgspec.json.encode(raw)), **kind)


@settings(max_examples=200, deadline=None)
@given(st.lists(any_states, min_size=1, max_size=5), st.data())
def test_objects_in_json_and_as_plain_data_end_in_one_view(history: list[State], data: st.DataObject) -> None:
    plain, mixed = Store(TABLE), Store(TABLE)
    before = mixed.view()
    state: State = {}
    for step in history:
        for event in between(state, step):
            told = in_json(event) if data.draw(st.booleans()) else event
            assert plain.apply(event).changed == mixed.apply(told).changed
        state = step
    assert seen(plain.view()) == seen(mixed.view())
    assert plain.view().refused() == mixed.view().refused()
    assert mixed.view().changes(before) == plain.view().changes(None)


@settings(max_examples=200, deadline=None)
@given(st.lists(any_states, min_size=1, max_size=5))
def test_changed_keys_are_exactly_those_whose_manifest_differs(history: list[State]) -> None:
    store = Store(TABLE)
    state: State = {}
    for step in history:
        before = store.view()
        changed: set[ObjectKey] = set()
        diagnostics_changed = False
        for event in between(state, step):
            change = store.apply(event)
            changed |= change.changed
            diagnostics_changed |= change.diagnostics_changed
        after = store.view()
        for name in NAMES:
            if key(name) not in changed:
                assert before.get("VPCService", "default", name) == after.get("VPCService", "default", name)
        if before.diagnostics() != after.diagnostics():
            assert diagnostics_changed
        state = step


@settings(max_examples=200, deadline=None)
@given(st.lists(any_states, min_size=1, max_size=5))
def test_a_bad_version_never_takes_a_good_one_out_of_force(history: list[State]) -> None:
    store = Store(TABLE)
    expected: dict[str, int] = {}
    state: State = {}
    for step in history:
        for name in list(expected):
            # A source that moves an object between files says so by an upsert alone.
            if name not in step:
                store.apply(Delete(source="files", key=key(name), file=state[name][1]))
                del expected[name]
        for name in set(state) - set(step) - set(expected):
            store.apply(Delete(source="files", key=key(name), file=state[name][1]))
        for name, (port, file) in step.items():
            store.apply(upsert(name, port, file))
            if port:
                expected[name] = port
        state = step
        view = store.view()
        ports = {item.metadata.name: item.spec.port for item in view.list("VPCService")}  # type: ignore[attr-defined]  # all are VPCServices
        assert ports == expected


@settings(max_examples=100, deadline=None)
@given(st.permutations([("files", 1), ("kubernetes", 2), ("other", 3)]), st.data())
def test_among_several_sources_there_is_one_owner_and_the_others_are_told(
    claims: list[tuple[str, int]], data: st.DataObject
) -> None:
    store = Store(TABLE)
    for source, port in claims:
        store.apply(upsert("a", port, f"{source}.yaml", source))
    remaining = list(claims)
    while remaining:
        view = store.view()
        (found,) = view.list("VPCService")
        owner = found.spec.port  # type: ignore[attr-defined]  # all are VPCServices
        assert owner in {port for _, port in remaining}
        assert len(view.diagnostics()) == len(remaining) - 1
        gone = data.draw(st.sampled_from(remaining))
        change = store.apply(Delete(source=gone[0], key=key("a"), file=f"{gone[0]}.yaml"))
        assert bool(change.changed) == (gone[1] == owner)
        remaining.remove(gone)
    assert store.view().list("VPCService") == ()
    assert store.view().diagnostics() == ()
