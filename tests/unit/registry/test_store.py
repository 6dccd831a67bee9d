"""The manifest store: what is in force, what changed, and what is reported."""

from __future__ import annotations

import msgspec
import pytest

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import ObjectKey, ObjectMeta
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.manifests.vpcservice import VPCService, VPCServiceStatus
from datum_router.plugins.protocols import Delete, Problems, Synced, Upsert
from datum_router.reasons import Reason
from datum_router.registry.store import MAX_ANONYMOUS, Store, StoreChange, StoreView

KEY = ObjectKey(kind="VPCService", namespace="default", name="a")
NONE = StoreChange()


def raw(name: str = "a", port: object = 80, namespace: str = "default", **metadata: object) -> dict[str, object]:
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCService",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": {"port": port, "endpoints": [{"address": "10.0.0.1"}]},
    }


def upsert(content: dict[str, object], file: str = "a.yaml", line: int = 1, source: str = "files") -> Upsert:
    return Upsert(source=source, raw=content, origin=Origin(source=source, file=file, line=line))


def delete(file: str = "a.yaml", key: ObjectKey = KEY, source: str = "files") -> Delete:
    return Delete(source=source, key=key, file=file)


@pytest.fixture
def store() -> Store:
    return Store(KindTable(OWN_KINDS))


def port_of(view: StoreView, name: str = "a") -> int | None:
    found = view.get("VPCService", "default", name)
    assert found is None or isinstance(found, VPCService)
    return None if found is None else found.spec.port


def test_an_object_is_in_force_until_it_is_deleted(store: Store) -> None:
    assert store.apply(upsert(raw())) == StoreChange(changed=frozenset({KEY}))
    assert port_of(store.view()) == 80
    assert store.apply(delete()) == StoreChange(changed=frozenset({KEY}))
    assert port_of(store.view()) is None
    assert store.apply(delete()) == NONE


def test_a_change_is_told_and_an_echo_is_not(store: Store) -> None:
    store.apply(upsert(raw()))
    assert store.apply(upsert(raw())) == NONE
    echo = raw(resourceVersion="2") | {"status": {"ready": True}}
    assert store.apply(upsert(echo)) == StoreChange(is_refreshed=True)
    assert store.apply(upsert(raw(port=81))) == StoreChange(changed=frozenset({KEY}))
    assert port_of(store.view()) == 81


def test_views_give_the_latest_of_versions_with_equal_content_and_tell_of_no_change(store: Store) -> None:
    store.apply(upsert(raw(resourceVersion="1", generation=1)))
    before = store.view()
    store.apply(upsert(raw(resourceVersion="2", generation=2) | {"status": {"ready": True}}))
    after = store.view()
    found = after.get("VPCService", "default", "a")
    assert isinstance(found, VPCService)
    assert (found.metadata.resource_version, found.metadata.generation) == ("2", 2)
    assert found.status is not None
    assert found.status.ready
    assert after.list("VPCService") == (found,)
    assert after.changes(before) == {}
    old = before.get("VPCService", "default", "a")
    assert isinstance(old, VPCService)
    assert old.metadata.resource_version == "1"


def test_a_change_after_echoes_is_a_change(store: Store) -> None:
    store.apply(upsert(raw(resourceVersion="1")))
    before = store.view()
    store.apply(upsert(raw(resourceVersion="2")))
    store.apply(upsert(raw(port=81, resourceVersion="3")))
    store.apply(upsert(raw(port=81, resourceVersion="4")))
    assert store.view().changes(before) == {"VPCService": {("default", "a"): frozenset()}}


def test_metadata_of_a_bad_version_is_known_until_a_good_one_comes_or_the_object_goes(store: Store) -> None:
    store.apply(upsert(raw(generation=1)))
    assert store.view().refused() == {}
    bad = upsert(raw(port="x", generation=2, uid="u"))
    store.apply(bad)
    assert store.view().refused() == {KEY: ObjectMeta(name="a", generation=2, uid="u")}
    store.apply(upsert(raw(generation=3)))
    assert store.view().refused() == {}
    store.apply(bad)
    store.apply(delete())
    assert store.view().refused() == {}


def test_metadata_that_is_bad_itself_is_known_by_its_name(store: Store) -> None:
    store.apply(upsert(raw(labels=5)))
    assert store.view().refused() == {KEY: ObjectMeta(name="a")}


def json_upsert(content: dict[str, object], kind: str = "VPCService") -> Upsert:
    return Upsert(
        source="kubernetes",
        raw=msgspec.Raw(msgspec.json.encode(content)),
        api_version="router.datum.net/v1alpha1",
        kind=kind,
        origin=Origin(source="kubernetes"),
    )


def test_objects_in_json_are_taken_as_what_the_source_says_they_are(store: Store) -> None:
    text = {**raw(), "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata"}
    assert store.apply(json_upsert(text)) == StoreChange(changed=frozenset({KEY}))
    found = store.view().get("VPCService", "default", "a")
    assert isinstance(found, VPCService)
    assert (found.api_version, found.kind) == ("router.datum.net/v1alpha1", "VPCService")
    del text["apiVersion"], text["kind"]
    assert store.apply(json_upsert(text)) == StoreChange(is_refreshed=True)


def test_objects_in_json_of_unknown_kinds_are_counted(store: Store) -> None:
    event = msgspec.structs.replace(json_upsert(raw(), "Widget"), api_version="example.org/v1")
    assert not store.apply(event).changed
    assert store.view().skipped() == {"example.org/v1 Widget": 1}


def test_what_is_no_json_object_is_reported(store: Store) -> None:
    for text in (b"[1]", b'"a"', b'{"metadata"', b'{"metadata": {"name": "\\ud800"}}', b"\xff"):
        broken = msgspec.structs.replace(json_upsert({}), raw=msgspec.Raw(text))
        store.apply(broken)
        (found,) = store.view().diagnostics()
        assert found.reason is Reason.INVALID_SYNTAX


def test_an_object_that_only_moved_within_its_file_is_found_at_its_new_line(store: Store) -> None:
    store.apply(upsert(raw(), line=1))
    assert store.apply(upsert(raw(), line=9)) == StoreChange(diagnostics_changed=True)
    origin = store.view().origin(KEY)
    assert origin is not None
    assert origin.line == 9


def test_a_bad_version_leaves_the_last_good_one_in_force_and_says_so(store: Store) -> None:
    store.apply(upsert(raw()))
    assert store.apply(upsert(raw(port="x"), line=5)) == StoreChange(diagnostics_changed=True, is_refreshed=True)
    view = store.view()
    assert port_of(view) == 80
    origin = view.origin(KEY)
    assert origin is not None
    assert origin.line == 1
    error, note = sorted(view.diagnostics(), key=lambda item: item.severity)
    assert (error.severity, error.path, error.line) == (Severity.ERROR, "spec.port", 5)
    assert note.severity is Severity.INFO
    assert note.message == "this version is not used; the last good version stays in force"
    assert store.apply(upsert(raw(port=81))) == StoreChange(changed=frozenset({KEY}), diagnostics_changed=True)
    assert store.view().diagnostics() == ()


def test_going_back_to_the_last_good_content_clears_the_error_and_changes_no_object(store: Store) -> None:
    store.apply(upsert(raw()))
    store.apply(upsert(raw(port="x")))
    assert store.apply(upsert(raw())) == StoreChange(diagnostics_changed=True, is_refreshed=True)


def test_an_object_that_is_bad_from_the_start_is_absent(store: Store) -> None:
    assert store.apply(upsert(raw(port="x"))) == StoreChange(diagnostics_changed=True, is_refreshed=True)
    view = store.view()
    assert port_of(view) is None
    assert [item.severity for item in view.diagnostics()] == [Severity.ERROR]
    assert store.apply(delete()) == StoreChange(diagnostics_changed=True)
    assert store.view().diagnostics() == ()


def test_a_version_of_our_group_that_does_not_exist_is_a_bad_version(store: Store) -> None:
    store.apply(upsert(raw()))
    store.apply(upsert(raw() | {"apiVersion": "router.datum.net/v9"}))
    view = store.view()
    assert port_of(view) == 80
    assert Reason.UNKNOWN_KIND in {item.reason for item in view.diagnostics()}


# --- moves and duplicates --------------------------------------------------------------------------------------


def test_an_object_that_moves_to_another_file_stays_whichever_event_comes_first(store: Store) -> None:
    store.apply(upsert(raw()))
    store.apply(upsert(raw(port=81), file="b.yaml"))
    assert store.apply(delete(file="a.yaml")) == NONE
    assert port_of(store.view()) == 81
    assert store.view().diagnostics() == ()
    store.apply(delete(file="b.yaml"))
    store.apply(upsert(raw(port=82), file="c.yaml"))
    assert port_of(store.view()) == 82


def test_a_broken_version_in_another_file_keeps_the_old_content_until_that_file_lets_go(store: Store) -> None:
    store.apply(upsert(raw()))
    store.apply(upsert(raw(port="x"), file="b.yaml"))
    assert store.apply(delete(file="a.yaml")) == NONE
    assert port_of(store.view()) == 80
    assert store.apply(delete(file="b.yaml")).changed == {KEY}


def test_a_second_source_is_told_that_the_object_is_taken_and_takes_over_later(store: Store) -> None:
    store.apply(upsert(raw()))
    assert store.apply(upsert(raw(port=81), source="kubernetes", file="")) == StoreChange(diagnostics_changed=True)
    view = store.view()
    assert port_of(view) == 80
    (found,) = view.diagnostics()
    assert (found.reason, found.severity) == (Reason.DUPLICATE_OBJECT, Severity.ERROR)
    assert found.message == "the object is also defined by a.yaml:1, which is used"
    assert store.apply(upsert(raw(port=82), source="kubernetes", file="")) == NONE
    assert store.apply(delete()) == StoreChange(changed=frozenset({KEY}), diagnostics_changed=True)
    assert port_of(store.view()) == 82
    assert store.view().diagnostics() == ()


def test_the_first_source_with_a_good_version_owns_the_object_and_keeps_it(store: Store) -> None:
    store.apply(upsert(raw(port="x")))
    assert store.apply(upsert(raw(port=81), source="kubernetes", file="")).changed == {KEY}
    store.apply(upsert(raw(port=82)))
    view = store.view()
    assert port_of(view) == 81
    assert [(item.reason, item.file) for item in view.diagnostics()] == [(Reason.DUPLICATE_OBJECT, "a.yaml")]


# --- kinds that nobody knows -----------------------------------------------------------------------------------


def test_objects_of_unknown_kinds_are_counted_until_they_are_gone(store: Store) -> None:
    foreign: dict[str, object] = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}
    assert store.apply(upsert(foreign)) == NONE
    store.apply(upsert(foreign))
    assert store.view().skipped() == {"apps/v1 Deployment": 1}
    store.apply(delete(key=ObjectKey(kind="Deployment", namespace="default", name="x")))
    assert store.view().skipped() == {}


def test_a_namesake_of_another_group_leaves_an_object_and_its_diagnostics_alone(store: Store) -> None:
    store.apply(upsert(raw(port="x")))
    assert store.apply(upsert(raw() | {"apiVersion": "other.example/v1"})) == NONE
    assert len(store.view().diagnostics()) == 1


# --- problems, anonymous objects, views ------------------------------------------------------------------------


def problem(message: str = "m", file: str = "f.yaml", line: int = 1) -> Diagnostic:
    return Diagnostic(
        severity=Severity.ERROR, object=file, reason=Reason.INVALID_SYNTAX, message=message, file=file, line=line
    )


def test_problems_of_a_scope_replace_the_earlier_ones(store: Store) -> None:
    def problems(*found: Diagnostic, scope: str = "f.yaml") -> Problems:
        return Problems(source="files", scope=scope, diagnostics=found)

    assert store.apply(problems(problem("a"), problem("b"))) == StoreChange(diagnostics_changed=True)
    assert store.apply(problems(problem("a"), problem("b"))) == NONE
    store.apply(problems(problem("c", file="g.yaml"), scope="g.yaml"))
    assert [item.message for item in store.view().diagnostics()] == ["a", "b", "c"]
    assert store.apply(problems()) == StoreChange(diagnostics_changed=True)
    assert store.apply(problems()) == NONE
    assert [item.message for item in store.view().diagnostics()] == ["c"]


def test_an_object_without_a_name_is_reported_until_its_file_is_read_again(store: Store) -> None:
    nameless = upsert(raw() | {"metadata": {}})
    assert store.apply(nameless) == StoreChange(diagnostics_changed=True)
    assert store.apply(nameless) == NONE
    assert [item.path for item in store.view().diagnostics()] == ["metadata.name"]
    store.apply(Problems(source="files", scope="a.yaml"))
    assert store.view().diagnostics() == ()


def test_reports_about_nameless_objects_are_bounded(store: Store) -> None:
    for line in range(MAX_ANONYMOUS + 10):
        store.apply(upsert(raw() | {"metadata": {}}, line=line))
    assert len(store.view().diagnostics()) == MAX_ANONYMOUS


def test_synced_changes_nothing(store: Store) -> None:
    assert store.apply(Synced(source="files")) == NONE


def test_a_list_is_in_order_of_namespace_and_name(store: Store) -> None:
    for namespace, name in (("b", "a"), ("a", "b"), ("a", "a")):
        store.apply(upsert(raw(name, namespace=namespace)))
    found = store.view().list("VPCService")
    assert [(item.metadata.namespace, item.metadata.name) for item in found if isinstance(item, VPCService)] == [
        ("a", "a"),
        ("a", "b"),
        ("b", "a"),
    ]
    assert store.view().list("VPCRoute") == ()


def test_a_view_never_changes(store: Store) -> None:
    store.apply(upsert(raw()))
    before = store.view()
    store.apply(upsert(raw(port=81)))
    store.apply(upsert(raw("b")))
    store.apply(upsert(raw("c", port="x")))
    assert port_of(before) == 80
    assert len(before.list("VPCService")) == 1
    assert before.diagnostics() == ()
    assert before.get("VPCService", "default", "b") is None
    assert before.origin(ObjectKey(kind="VPCService", namespace="default", name="b")) is None
    assert len(store.view().list("VPCService")) == 2


def test_views_between_changes_share_their_lists(store: Store) -> None:
    store.apply(upsert(raw()))
    first = store.view().list("VPCService")
    assert store.view().list("VPCService") is first


def binding(name: str, target: str, namespace: str = "default", **spec: object) -> dict[str, object]:
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "ServiceBinding",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"serviceRef": {"name": "s"}, "vpcServiceRef": {"name": target}, **spec},
    }


def fed(view: StoreView, service: str) -> list[str]:
    return [str(item.metadata.name) for item in view.select("ServiceBinding", "vpcService", service)]  # type: ignore[attr-defined]  # all are ServiceBindings


def test_what_an_index_has_under_a_value_follows_the_objects_and_never_changes_in_a_view(store: Store) -> None:
    for one in (binding("z", "a"), binding("y", "a"), binding("x", "b")):
        store.apply(upsert(one))
    first = store.view()
    assert fed(first, "default/a") == ["y", "z"]
    store.apply(upsert(binding("z", "b")))
    store.apply(delete(key=ObjectKey(kind="ServiceBinding", namespace="default", name="x")))
    second = store.view()
    assert (fed(second, "default/a"), fed(second, "default/b")) == (["y"], ["z"])
    assert (fed(first, "default/a"), fed(first, "default/b")) == (["y", "z"], ["x"])
    assert fed(second, "prod/a") == []
    assert second.select("NoSuchKind", "vpcService", "default/a") == ()


def test_changes_name_the_values_of_the_old_and_of_the_new_version(store: Store) -> None:
    store.apply(upsert(binding("x", "a")))
    first = store.view()
    store.apply(upsert(binding("x", "b")))
    expected = frozenset({("vpcService", "default/a"), ("vpcService", "default/b")})
    assert store.view().changes(first) == {"ServiceBinding": {("default", "x"): expected}}


def test_an_echo_of_the_status_is_no_change_but_can_be_read(store: Store) -> None:
    store.apply(upsert(raw()))
    first = store.view()
    store.apply(upsert(raw(resourceVersion="2") | {"status": {"ready": True}}))
    second = store.view()
    assert second.changes(first) == {}
    found = second.get("VPCService", "default", "a")
    assert isinstance(found, VPCService)
    assert found.metadata.resource_version == "2"
    assert found.status is not None
    assert found.status.ready


def test_diagnostics_are_in_order_of_file_and_line(store: Store) -> None:
    store.apply(upsert(raw("z", port="x"), file="a.yaml", line=9))
    store.apply(upsert(raw("y", port="x"), file="b.yaml", line=1))
    store.apply(upsert(raw("x", port="x"), file="a.yaml", line=2))
    assert [(item.file, item.line) for item in store.view().diagnostics()] == [
        ("a.yaml", 2),
        ("a.yaml", 9),
        ("b.yaml", 1),
    ]


def test_an_object_of_a_kind_without_namespaces_is_deleted_by_the_name_that_a_source_gives_it() -> None:
    class Thing(msgspec.Struct, frozen=True, rename="camel"):
        api_version: str
        kind: str
        metadata: ObjectMeta

    row = ResourceKind(group="x.test", version="v1", kind="Thing", plural="things", struct=Thing, namespaced=False)
    store = Store(KindTable([row]))
    store.apply(upsert({"apiVersion": "x.test/v1", "kind": "Thing", "metadata": {"name": "a"}}))
    assert len(store.view().list("Thing")) == 1
    store.apply(delete(key=ObjectKey(kind="Thing", namespace="default", name="a")))
    assert store.view().list("Thing") == ()


def test_whoever_asks_is_told_of_every_version_that_is_taken_in() -> None:
    seen: set[ObjectKey] = set()
    store = Store(KindTable(OWN_KINDS), seen=seen)
    for event in (upsert(raw(resourceVersion="1")), upsert(raw(resourceVersion="2")), upsert(raw(port="x")), delete()):
        store.apply(event)
        assert seen == {KEY}
        seen.clear()
    store.apply(delete())
    assert not seen, "it was gone before"


def test_the_status_of_the_latest_version_is_known_even_if_that_version_is_bad(store: Store) -> None:
    def with_status(port: object, status: object) -> Upsert:
        return upsert({**raw(port=port), "status": status})

    assert store.view().status(KEY) is None
    store.apply(with_status(80, {"ready": True}))
    assert store.view().status(KEY) == VPCServiceStatus(ready=True)
    store.apply(with_status("x", {"endpointCount": 7}))
    assert store.view().status(KEY) == VPCServiceStatus(endpoint_count=7), "of the version that is refused"
    store.apply(with_status("x", {"endpointCount": "seven"}))
    assert store.view().status(KEY) is None
    store.apply(with_status(0, {"endpointCount": 8}))  # refused by a rule, not by its type
    assert store.view().status(KEY) == VPCServiceStatus(endpoint_count=8)
    store.apply(upsert(raw()))
    assert store.view().status(KEY) is None
