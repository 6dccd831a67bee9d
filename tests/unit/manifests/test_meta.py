"""Object keys, durations and metadata."""

from __future__ import annotations

import msgspec
import pytest

from datum_router.manifests.meta import GroupVersionKind, ObjectKey, ObjectMeta, key_of, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10.0), ("1m30s", 90.0), ("250ms", 0.25), ("0s", 0.0), ("1h", 3600.0), ("1h1m1s1ms", 3661.001)],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "10", "s", "-1s", "1.5s", "1d", " 1s", "1s\n", "100000s", "1s1s1s1s1s", "１s", "1S"]
)
def test_what_is_no_gateway_api_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration such as 10s"):
        parse_duration(text)


def test_a_key_reads_as_people_write_it() -> None:
    assert str(ObjectKey(kind="VPCRoute", namespace="default", name="api-routes")) == "vpcroute default/api-routes"
    assert str(ObjectKey(kind="Location", namespace="", name="fra")) == "location fra"


def test_keys_order_by_kind_then_namespace_then_name() -> None:
    keys = [
        ObjectKey(kind=kind, namespace=namespace, name=name)
        for kind in ("A", "B")
        for namespace in ("a", "b")
        for name in ("a", "b")
    ]
    assert sorted({*keys}) == keys
    assert len(set(keys)) == 8


def test_the_core_group_has_no_slash_in_its_api_version() -> None:
    assert GroupVersionKind(group="", version="v1", kind="Service").api_version == "v1"
    assert GroupVersionKind(group="g.x", version="v1", kind="K").api_version == "g.x/v1"


def test_metadata_takes_what_an_api_server_adds() -> None:
    raw = {
        "name": "a",
        "namespace": "b",
        "labels": None,
        "creationTimestamp": None,
        "managedFields": [{"manager": "kubectl"}],
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}],
    }
    meta = msgspec.convert(raw, ObjectMeta)
    assert key_of("Pod", meta) == ObjectKey(kind="Pod", namespace="b", name="a")
    assert meta.owner_references[0].name == "p"


def test_an_object_without_namespace_is_in_default() -> None:
    assert msgspec.convert({"name": "a"}, ObjectMeta).namespace == "default"
