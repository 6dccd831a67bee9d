"""What is said of joined clusters: conditions, and the Leases that hold them."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.discovery.report import (
    MAX_MESSAGE_CHARS,
    TYPES,
    ClusterReport,
    Facts,
    is_urgent,
    lease_name,
    plain,
    read_record,
    record_of,
    report_of,
)
from datum_router.discovery.standing import Phase
from datum_router.reasons import Reason

T0 = 1_700_000_000.0
READY = Facts(name="b", phase=Phase.READY, reason=Reason.READY, exports=3, slices=2, id="x", version="7", uid="u-1")


def said(facts: Facts) -> dict[str, tuple[str, str]]:
    return {one.type: (one.status, one.reason) for one in report_of(facts, None, now=T0).conditions}


def changed(**more: object) -> Facts:
    return msgspec.structs.replace(READY, **more)


def test_a_cluster_that_is_well() -> None:
    report = report_of(READY, None, now=T0)
    assert said(READY) == {
        "Accepted": ("True", "Accepted"),
        "Ready": ("True", "Ready"),
        "Synced": ("True", "Synced"),
        "Stale": ("False", "Heard"),
    }
    assert tuple(one.type for one in report.conditions) == TYPES
    assert report.trouble is None


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            changed(phase=Phase.INVALID, reason=Reason.INVALID_KUBECONFIG, refused=(Reason.INVALID_KUBECONFIG, "no")),
            {"Accepted": "InvalidKubeconfig", "Ready": "InvalidKubeconfig", "Stale": "ClusterStale"},
        ),
        (
            changed(refused=(Reason.INVALID_KUBECONFIG, "the one before is used")),
            {"Accepted": "InvalidKubeconfig"},
        ),
        (
            changed(phase=Phase.REFUSED, reason=Reason.OWN_CLUSTER, refused=(Reason.OWN_CLUSTER, "own"), slices=0),
            {"Accepted": "OwnCluster", "Ready": "OwnCluster", "Synced": "OwnCluster"},
        ),
        (
            changed(phase=Phase.UNREACHABLE, reason=Reason.CLUSTER_UNREACHABLE),
            {"Ready": "ClusterUnreachable", "Synced": "ClusterUnreachable", "Stale": "ClusterStale"},
        ),
        (
            changed(phase=Phase.UNREACHABLE, reason=Reason.CLUSTER_UNREACHABLE, slices=0),
            {"Ready": "ClusterUnreachable", "Synced": "ClusterUnreachable"},
        ),
        (changed(conflicts={("shop", "api"): "spec.port is 1 there and 2 here"}), {"Synced": "ExportConflict"}),
        (changed(failing=[("shop", "api")]), {"Synced": "WriteFailed"}),
        (changed(phase=Phase.CONNECTING, reason=Reason.PENDING), {"Ready": "Pending", "Synced": "Pending"}),
    ],
)
def test_what_is_wrong_is_said_by_the_conditions_that_it_is_about(facts: Facts, expected: dict[str, str]) -> None:
    good = {"Accepted": "True", "Ready": "True", "Synced": "True", "Stale": "False"}
    found = said(facts)
    if facts.phase in (Phase.INVALID,):
        expected = {**expected, "Synced": str(facts.reason)}
    assert {kind: reason for kind, (status, reason) in found.items() if status != good[kind]} == expected


def test_conflicts_are_named_up_to_some() -> None:
    conflicts = {("shop", f"s{n}"): "why " * 100 for n in range(9)}
    (synced,) = [
        one for one in report_of(changed(conflicts=conflicts), None, now=T0).conditions if one.type == "Synced"
    ]
    assert synced.message.startswith("shop/s0: why ")
    assert synced.message.endswith("; and 4 more")
    assert len(synced.message) <= MAX_MESSAGE_CHARS


def test_times_move_with_the_status_alone() -> None:
    first = report_of(READY, None, now=T0)
    gone = changed(phase=Phase.UNREACHABLE, reason=Reason.CLUSTER_UNREACHABLE, message="one")
    second = report_of(gone, first, now=T0 + 10)
    third = report_of(msgspec.structs.replace(gone, message="two"), second, now=T0 + 20)
    times = {one.type: one.last_transition_time[-9:] for one in third.conditions}
    assert times == {"Accepted": "22:13:20Z", "Ready": "22:13:30Z", "Synced": "22:13:30Z", "Stale": "22:13:30Z"}
    assert is_urgent(None, first)
    assert is_urgent(first, second)
    assert not is_urgent(second, third), "other words are no hurry"
    assert is_urgent(third, report_of(msgspec.structs.replace(gone, uid="u-2"), third, now=T0))


def test_stale_says_until_when() -> None:
    facts = changed(phase=Phase.UNREACHABLE, reason=Reason.CLUSTER_UNREACHABLE, since_at=T0, kept_until_at=T0 + 86_400)
    message = report_of(facts, None, now=T0).conditions[-1].message
    assert message == ("not heard since 2023-11-14T22:13:20Z; its last endpoints are used until 2023-11-15T22:13:20Z")


def test_a_lease_says_all_and_is_owned_by_the_secret() -> None:
    report = report_of(changed(conflicts={("shop", "api"): "no"}), None, now=T0)
    record = record_of(report, "system", now=T0)
    assert record.name == "cluster-b"
    assert record.labels == {
        "router.datum.net/component": "remote-cluster",
        "router.datum.net/ready": "True",
        "router.datum.net/stale": "False",
        "router.datum.net/reason": "ExportConflict",
    }
    assert [(one.kind, one.name, one.uid) for one in record.owners] == [("Secret", "b", "u-1")]
    assert json.loads(record.annotations["router.datum.net/conditions"])[0] == {
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "lastTransitionTime": "2023-11-14T22:13:20Z",
    }
    assert read_record(record) == report


@pytest.mark.parametrize("text", ["", "{}", "[{}]", "[" * 5000, '[{"type":"","status":"x","reason":"1"}]'])
def test_a_lease_that_says_something_else_is_none(text: str) -> None:
    record = record_of(report_of(READY, None, now=T0), "system", now=T0)
    notes = {**record.annotations, "router.datum.net/conditions": text}
    assert read_record(msgspec.structs.replace(record, annotations=notes)) is None


def test_a_lease_of_another_name_is_none() -> None:
    record = record_of(report_of(READY, None, now=T0), "system", now=T0)
    assert read_record(msgspec.structs.replace(record, name="cluster-c")) is None


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", fullmatch=True)


@given(NAMES, NAMES)
def test_names_of_leases_differ_and_fit(one: str, other: str) -> None:
    assert (lease_name(one) == lease_name(other)) == (one == other)
    assert len(lease_name(one)) <= 253


def test_names_at_the_limit_that_begin_alike_differ() -> None:
    stem = "a" * 252
    names = {lease_name(stem + last) for last in "bcd"}
    assert len(names) == 3
    assert max(map(len, names)) <= 253


@given(st.text())
def test_what_remote_clusters_say_is_printable_and_kept_whole(text: str) -> None:
    facts = changed(phase=Phase.UNREACHABLE, reason=Reason.CLUSTER_UNREACHABLE, message=text)
    report = report_of(facts, None, now=T0)
    assert all(one.message.isprintable() for one in report.conditions)
    assert read_record(record_of(report, "system", now=T0)) == report
    assert len(plain(text)) == len(text)


def test_a_report_of_nothing_can_be_read() -> None:
    empty = ClusterReport(name="b")
    assert read_record(record_of(empty, "system", now=T0)) == empty
