"""Paths, bodies and answers of requests about objects."""

from __future__ import annotations

import json

import pytest

from datum_router.errors import ClusterNotFound, ClusterRejected
from datum_router.manifests.meta import GroupVersionKind, ObjectKey
from datum_router.plugins.cluster import StatusWrite
from datum_router_kubernetes.objects import applied_of, encoded, identified, is_object_missing, path_of, status_body

ROUTE = GroupVersionKind(group="router.datum.net", version="v1alpha1", kind="VPCRoute")
KEY = ObjectKey(kind="VPCRoute", namespace="shop", name="api")


def test_paths() -> None:
    assert path_of("", "v1", "namespaces", name="shop") == "/api/v1/namespaces/shop"
    assert path_of("", "v1", "secrets", namespace="shop", name="tls") == "/api/v1/namespaces/shop/secrets/tls"
    assert path_of("g.io", "v1", "things", namespace="shop") == "/apis/g.io/v1/namespaces/shop/things"
    path = path_of("g.io", "v1", "things", namespace="shop", name="a", subresource="status")
    assert path == "/apis/g.io/v1/namespaces/shop/things/a/status"


def test_a_status_names_the_version_it_is_for() -> None:
    write = StatusWrite(gvk=ROUTE, plural="vpcroutes", key=KEY, uid="u", status={"a": [1]})
    assert json.loads(status_body(write, "41")) == {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCRoute",
        "metadata": {"name": "api", "namespace": "shop", "resourceVersion": "41"},
        "status": {"a": [1]},
    }


def test_an_object_says_what_it_is() -> None:
    raw: dict[str, object] = {"apiVersion": "router.datum.net/v1alpha1", "kind": "VPCRoute"}
    raw["metadata"] = {"name": "api", "namespace": "shop"}
    assert identified(raw) == (ROUTE, KEY)
    core = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "namespace": None}}
    assert identified(core) == (
        GroupVersionKind(group="", version="v1", kind="Namespace"),
        ObjectKey(kind="Namespace", namespace="", name="shop"),
    )


@pytest.mark.parametrize(
    ("raw", "fields"),
    [
        ({}, ["apiVersion", "kind", "metadata.name"]),
        ({"apiVersion": "v1", "kind": "Pod", "metadata": []}, ["metadata.name"]),
        ({"apiVersion": 1, "kind": "Pod", "metadata": {"name": "", "namespace": 7}},
         ["apiVersion", "metadata.name", "metadata.namespace"]),
    ],
)  # fmt: skip
def test_what_an_object_lacks_to_be_applied_is_named(raw: dict[str, object], fields: list[str]) -> None:
    with pytest.raises(ClusterRejected, match=fields[0]) as caught:
        identified(raw)
    assert [field for field, _ in caught.value.causes] == fields


def test_only_another_version_is_no_change() -> None:
    def raw(version: str, port: int) -> dict[str, object]:
        return {"metadata": {"name": "api", "uid": "u", "generation": 1, "resourceVersion": version}, "port": port}

    for before, is_changed in ((None, True), (raw("1", 80), False), (raw("2", 81), True)):
        applied = applied_of(json.dumps(raw("2", 80)).encode(), before, KEY)
        assert applied.is_changed is is_changed
        assert (applied.key, applied.uid, applied.generation, applied.version) == (KEY, "u", 1, "2")


@pytest.mark.parametrize(
    ("text", "is_missing"),
    [
        ('the API answered 404 NotFound: vpcroutes.router.datum.net "api" not found', True),
        ('the API answered 404 NotFound: namespaces "shop" not found', False),
        ("the API answered 404 NotFound: the server could not find the requested resource", False),
        ("the API answered 404", False),
    ],
)
def test_a_missing_object_and_a_missing_kind_are_told_apart(text: str, is_missing: bool) -> None:
    assert is_object_missing(ClusterNotFound(text, status=404), KEY) is is_missing


@pytest.mark.parametrize("value", ["\ud800", object(), {(1, 2): 3}])
def test_what_json_cannot_say_is_rejected(value: object) -> None:
    with pytest.raises(ClusterRejected, match=r"^vpcroute shop/api: cannot be written as JSON"):
        encoded({"spec": value}, KEY)
