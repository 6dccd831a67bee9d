"""Gateways' reports, and whether a change is in force everywhere."""

from __future__ import annotations

import msgspec
import pytest

from datum_router.manifests.meta import ObjectKey
from datum_router.plugins.cluster import LeaseRecord
from datum_router.reasons import Reason
from datum_router.reconcile import reports
from datum_router.reconcile.reports import (
    IN_FORCE,
    MAX_CONNECTIONS,
    MAX_COUNTED,
    MAX_RECORD_S,
    MAX_REFUSED,
    NO_GATEWAY,
    REPORT_ANNOTATION,
    GatewayReport,
    Refusal,
    ReportBook,
    Verdicts,
    decode_report,
    encode_report,
    make_problem,
    make_refusals,
    version_number,
)

ROUTE = ObjectKey(kind="VPCRoute", namespace="shop", name="api")


def record(name: str, report: GatewayReport, *, renewed_at: float = 1000.0, version: str = "1") -> LeaseRecord:
    return LeaseRecord(
        namespace="datum-router",
        name=f"gateway-{name}",
        holder=name,
        duration_s=300,
        renewed_at=renewed_at,
        annotations={REPORT_ANNOTATION: encode_report(report)},
        version=version,
    )


def at(version: str, **more: object) -> GatewayReport:
    return msgspec.convert({"versions": {"VPCRoute": version}, **more}, GatewayReport)


def book(*records: LeaseRecord, now: float = 0.0, wall: float = 1000.0) -> ReportBook:
    made = ReportBook()
    made.update(records, now=now, wall=wall)
    return made


def test_a_report_survives_its_annotation() -> None:
    refusal = Refusal(kind="VPCRoute", namespace="shop", name="api", reason="InvalidValue", message="no")
    report = GatewayReport(digest="d1", versions={"VPCRoute": "12"}, refused=(refusal,), problem="port taken")
    assert decode_report(encode_report(report)) == report


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"versions": 3}', "\ud800", '{"more": ' + "[" * 100_000 + "]" * 100_000 + "}"]
)
def test_what_no_gateway_wrote_is_no_report(text: str) -> None:
    assert decode_report(text) is None


@pytest.mark.parametrize(
    ("text", "number"), [("12", 12), ("", 0), ("x", 0), ("-3", 0), ("١", 0), (str(2**64), 2**64), ("9" * 5000, 0)]
)
def test_versions_are_numbers(text: str, number: int) -> None:
    assert version_number(text) == number


def test_without_gateways_nothing_is_known() -> None:
    assert book().verdicts(0.0).of(ROUTE, "5") == NO_GATEWAY


def test_in_force_once_every_gateway_has_come_as_far() -> None:
    known = book(record("a", at("7")), record("b", at("5")))
    assert known.verdicts(0.0).of(ROUTE, "5") == IN_FORCE
    behind = known.verdicts(0.0).of(ROUTE, "6")
    assert (behind.status, behind.reason) == ("False", "Pending")
    assert behind.message == "not in force yet on b"


def test_versions_are_compared_as_numbers_not_as_text() -> None:
    assert book(record("a", at("100"))).verdicts(0.0).of(ROUTE, "99") == IN_FORCE


def test_another_kinds_version_says_nothing() -> None:
    known = book(record("a", GatewayReport(versions={"VPCService": "9"})))
    assert known.verdicts(0.0).of(ROUTE, "5").reason == "Pending"


def test_many_that_are_behind_are_counted() -> None:
    known = book(*(record(name, at("1")) for name in "abcde"))
    assert known.verdicts(0.0).of(ROUTE, "2").message == "not in force yet on a, b, c and 2 others"


def test_a_gateway_that_cannot_says_why() -> None:
    known = book(record("a", at("1", problem="port 80 is taken")))
    assert known.verdicts(0.0).of(ROUTE, "2").message == "not in force yet on a (port 80 is taken)"


def test_a_refused_object_is_not_in_force() -> None:
    refusal = {"kind": "VPCRoute", "namespace": "shop", "name": "api", "reason": "InvalidValue", "message": "bad"}
    verdicts = book(record("a", at("9")), record("b", at("9", refused=[refusal]))).verdicts(0.0)
    verdict = verdicts.of(ROUTE, "5")
    assert (verdict.status, verdict.reason, verdict.message) == ("False", "InvalidValue", "gateway b: bad")
    assert verdicts.of(ObjectKey(kind="VPCRoute", namespace="shop", name="other"), "5") == IN_FORCE
    assert [gateway for gateway, _ in verdicts.refusals_of(ROUTE, Reason.INVALID_VALUE)] == ["b"]
    assert verdicts.refusals_of(ROUTE, Reason.CONFLICTED) == []


def test_an_object_that_was_in_force_before_only_needs_not_to_be_refused() -> None:
    assert book(record("a", GatewayReport())).verdicts(0.0).of(ROUTE, "") == IN_FORCE


def test_a_gateway_of_other_namespaces_is_not_waited_for() -> None:
    known = book(record("a", at("9")), record("b", at("1", namespaces=["elsewhere"])))
    assert known.verdicts(0.0).of(ROUTE, "5") == IN_FORCE
    assert book(record("b", at("1", namespaces=["elsewhere"]))).verdicts(0.0).of(ROUTE, "5") == NO_GATEWAY


@pytest.mark.parametrize(
    ("selector", "labels", "is_concerned"),
    [
        ("tier=edge", {"tier": "edge"}, True),
        ("tier==edge", {"tier": "edge"}, True),
        ("tier=edge", {"tier": "core"}, False),
        ("tier=edge", {}, False),
        ("tier!=edge", {"tier": "edge"}, False),
        ("tier!=edge", {}, True),
        ("tier=edge,zone=a", {"tier": "edge", "zone": "b"}, False),
        ("tier in (a, b)", {}, True),
    ],
)
def test_a_gateway_that_selects_other_labels_is_not_waited_for(
    selector: str, labels: dict[str, str], is_concerned: bool
) -> None:
    verdicts = book(record("a", at("1", labelSelector=selector))).verdicts(0.0)
    assert (verdicts.of(ROUTE, "5", labels=labels) != NO_GATEWAY) is is_concerned


def test_a_gateway_that_does_not_renew_counts_until_its_lease_has_run_out() -> None:
    known = book(record("a", at("1")), now=10.0)
    assert known.verdicts(310.0).of(ROUTE, "5").reason == "Pending"
    assert known.next_expiry(10.0) == 300.0
    assert known.verdicts(310.5).of(ROUTE, "5") == NO_GATEWAY
    assert known.next_expiry(310.5) == float("inf")


def test_a_renewal_keeps_it_and_changes_no_verdict() -> None:
    known = book(record("a", at("1")), now=10.0)
    renewed = record("a", at("1"), renewed_at=1120.0, version="2")
    assert not known.update([renewed], now=130.0, wall=1120.0)
    assert known.verdicts(430.0).gateways.keys() == {"a"}


def test_one_that_had_run_out_long_ago_is_not_waited_for_by_a_new_reader() -> None:
    known = book(record("a", at("1"), renewed_at=1000.0), wall=1000.0 + 601.0)
    assert known.verdicts(0.0).of(ROUTE, "5") == NO_GATEWAY


def test_a_clock_that_is_ahead_does_not_make_a_gateway_look_gone() -> None:
    assert book(record("a", at("9")), wall=1000.0 + 599.0).verdicts(0.0).of(ROUTE, "5") == IN_FORCE


def test_update_tells_whether_a_verdict_may_differ() -> None:
    known = ReportBook()
    first = record("a", at("1"))
    assert known.update([first], now=0.0, wall=1000.0)
    assert not known.update([first], now=1.0, wall=1001.0)
    assert known.update([record("a", at("2"), version="2")], now=2.0, wall=1002.0)
    assert known.update([], now=3.0, wall=1003.0)
    assert not known.update([LeaseRecord(namespace="n", name="other")], now=4.0, wall=1004.0)


def test_one_that_comes_back_after_it_had_run_out_counts_again() -> None:
    known = book(record("a", at("1")))
    assert known.update([record("a", at("1"), version="2")], now=400.0, wall=1400.0)
    assert known.verdicts(400.0).of(ROUTE, "1") == IN_FORCE


def test_refusals_are_bounded_one_an_object_and_in_order() -> None:
    many = [
        Refusal(kind="VPCRoute", namespace="n", name=f"r{index:04}", reason="X") for index in range(MAX_REFUSED + 1)
    ]
    found, is_cut = make_refusals([*reversed(many), many[0]])
    assert found == tuple(many[:MAX_REFUSED])
    assert is_cut


def test_messages_are_cut_to_size() -> None:
    (one,), is_cut = make_refusals([Refusal(kind="VPCRoute", name="r", reason="X", message="m" * 1000)])
    assert len(one.message) == reports.MAX_MESSAGE_CHARS
    assert one.message.endswith("...")
    assert not is_cut


def test_the_largest_report_fits_well_into_an_annotation() -> None:
    many = [
        Refusal(kind="VPCRoute", namespace="n" * 63, name="x" * 250 + f"{index:03}", reason="R" * 30, message="m" * 999)
        for index in range(MAX_REFUSED)
    ]
    refused, _ = make_refusals(many)
    assert (
        len(encode_report(GatewayReport(refused=refused))) < 200_000
    )  # the API's limit is 262,144 for all annotations


def test_a_gateway_that_follows_namespaces_one_by_one_has_a_version_for_each() -> None:
    versions = {"VPCRoute/shop": "7", "VPCRoute/other": "3"}
    verdicts = book(record("a", GatewayReport(versions=versions, namespaces=("shop", "other")))).verdicts(0.0)
    assert verdicts.of(ROUTE, "7") == IN_FORCE
    assert verdicts.of(ROUTE, "8").reason == "Pending"
    assert verdicts.of(ObjectKey(kind="VPCRoute", namespace="other", name="x"), "4").reason == "Pending"


def test_a_record_does_not_count_for_ever_whatever_it_says() -> None:
    forged = msgspec.structs.replace(record("a", at("1")), duration_s=2**31 - 1)
    known = book(forged, now=10.0)
    assert known.next_expiry(10.0) == MAX_RECORD_S
    assert known.verdicts(10.0 + MAX_RECORD_S).of(ROUTE, "5").reason == "Pending"
    assert known.verdicts(11.0 + MAX_RECORD_S).of(ROUTE, "5") == NO_GATEWAY


def test_no_gateway_speaks_for_another_by_taking_its_name() -> None:
    forged = msgspec.structs.replace(record("z", at("9")), holder="a")
    known = book(record("a", at("1")), forged)
    assert list(known.live(0.0)) == ["a", "a (lease gateway-z)"]
    assert known.verdicts(0.0).of(ROUTE, "5").message == "not in force yet on a"


@pytest.mark.parametrize("reason", ["", "not one word", "x" * 2000, "Umlaut\u00e4"])
def test_a_reason_that_the_api_would_not_take_is_not_passed_on(reason: str) -> None:
    refusal = {"kind": "VPCRoute", "namespace": "shop", "name": "api", "reason": reason, "message": "m" * 100_000}
    verdict = book(record("a", at("9", refused=[refusal], problem="p" * 100_000))).verdicts(0.0).of(ROUTE, "5")
    assert verdict.reason == Reason.INVALID
    assert len(verdict.message) < 300


def test_a_report_is_never_longer_than_an_annotation_may_be() -> None:
    # The longest names, and texts whose characters take the most bytes in JSON.
    refusals = [
        Refusal(
            kind="ServiceBinding",
            namespace=f"{number:063}",
            name=f"{number:0253}",
            reason="MutuallyExclusive",
            message="\x01" * 10_000,
        )
        for number in range(1000)
    ]
    refused, is_cut = make_refusals(refusals)
    assert is_cut
    assert 30 < len(refused) < MAX_REFUSED
    report = GatewayReport(
        refused=refused, is_cut=is_cut, problem=make_problem(["\x01" * 200] * 1000), versions=dict.fromkeys("abc", "1")
    )
    assert len(encode_report(report).encode()) < 100_000
    assert decode_report(encode_report(report)) == report


def test_connections_are_those_of_all_gateways_and_no_gateway_is_believed_everything() -> None:
    out = ObjectKey(kind="VPCEgress", namespace="default", name="out")
    found = Verdicts(
        {
            "a": GatewayReport(connections={"default/out": 2, "default/none": 0}),
            "b": GatewayReport(connections={"default/out": 3, "default/bad": -5}),
        }
    ).connections()
    assert found == {out: 5}
    assert Verdicts({"a": GatewayReport(connections={"default/out": 10**12})}).connections()[out] == MAX_CONNECTIONS
    many = {f"default/e{number:04}": 1 for number in range(MAX_COUNTED + 50)}
    assert len(Verdicts({"a": GatewayReport(connections=many)}).connections()) == MAX_COUNTED
