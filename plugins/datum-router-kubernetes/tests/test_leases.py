"""Leases to and from the API's form."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.manifests.lease import unix_time
from datum_router.manifests.meta import OwnerReference
from datum_router.plugins.cluster import LeaseRecord
from datum_router_kubernetes.leases import (
    decode_lease,
    decode_page,
    encode_deletion,
    encode_new,
    encode_replacement,
    list_query,
    micro_time,
)

RECORD = LeaseRecord(
    namespace="datum-router",
    name="router-controller",
    holder="pod-1",
    duration_s=15,
    acquired_at=1_700_000_000.0,
    renewed_at=1_700_000_001.5,
    transitions=2,
    labels={"a": "b"},
    annotations={"c": "d"},
    owners=(OwnerReference(api_version="v1", kind="Pod", name="pod-1", uid="u-1"),),
    version="41",
)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1_700_000_000.25, "2023-11-14T22:13:20.250000Z"),
        (1_700_000_000.000001, "2023-11-14T22:13:20.000001Z"),
    ],
)
def test_times_have_microseconds(at: float, text: str) -> None:
    assert micro_time(at) == text
    assert unix_time(text) == at


@given(st.floats(0, 4e9))
def test_a_time_is_read_back_to_the_microsecond(at: float) -> None:
    assert unix_time(micro_time(at)) == pytest.approx(at, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14T23:13:20.5+01:00", 1_700_000_000.5),
        (None, 0.0),
        ("", 0.0),
        ("soon", 0.0),
        ("2023-11-14T22:13:20", 0.0),
    ],
)
def test_times_of_others_are_read(text: str | None, at: float) -> None:
    assert unix_time(text) == at


def test_a_new_lease_has_all_of_the_record_but_its_version() -> None:
    assert json.loads(encode_new(RECORD)) == {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": "router-controller",
            "namespace": "datum-router",
            "labels": {"a": "b"},
            "annotations": {"c": "d"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "pod-1", "uid": "u-1"}],
        },
        "spec": {
            "holderIdentity": "pod-1",
            "leaseDurationSeconds": 15,
            "acquireTime": "2023-11-14T22:13:20.000000Z",
            "renewTime": "2023-11-14T22:13:21.500000Z",
            "leaseTransitions": 2,
        },
    }


def test_what_is_empty_is_left_out() -> None:
    empty = LeaseRecord(namespace="n", name="l", duration_s=0)
    assert json.loads(encode_new(empty))["spec"] == {}


def test_a_replacement_names_the_version_and_leaves_nothing_of_the_old_one() -> None:
    patch = json.loads(encode_replacement(msgspec.structs.replace(RECORD, labels={}, owners=())))
    assert [(one["op"], one["path"]) for one in patch] == [
        ("replace", "/metadata/resourceVersion"),
        ("add", "/metadata/labels"),
        ("add", "/metadata/annotations"),
        ("add", "/metadata/ownerReferences"),
        ("add", "/spec"),
    ]
    assert [one["value"] for one in patch[:4]] == ["41", {}, {"c": "d"}, []]
    assert patch[4]["value"]["holderIdentity"] == "pod-1"


def test_a_deletion_names_the_version() -> None:
    assert json.loads(encode_deletion(RECORD))["preconditions"] == {"resourceVersion": "41"}


def test_a_lease_is_read_whatever_it_leaves_out() -> None:
    body = json.loads(encode_new(RECORD))
    body["metadata"]["resourceVersion"] = "41"
    assert decode_lease(json.dumps(body).encode()) == RECORD
    bare = {"metadata": {"name": "l", "namespace": "n", "resourceVersion": "1", "managedFields": []}}
    assert decode_lease(json.dumps(bare).encode()) == LeaseRecord(namespace="n", name="l", duration_s=0, version="1")
    with pytest.raises(msgspec.MsgspecError):
        decode_lease(b'{"metadata": {"name": 7}}')


def test_a_list_is_read_page_by_page() -> None:
    body = {"metadata": {"continue": "token"}, "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}
    found, page = decode_page(json.dumps(body).encode())
    assert ([lease.name for lease in found], page) == (["a", "b"], "token")
    assert decode_page(b'{"items": null, "metadata": {}}') == ([], "")
    assert list_query({"b": "2", "a": "1"}, page) == {"limit": "500", "labelSelector": "a=1,b=2", "continue": "token"}
    assert list_query({}, "") == {"limit": "500"}
