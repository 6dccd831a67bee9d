"""Slices: what is written for a change and what is left alone, and that what is written reads back as it was."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from datum_router.discovery.marks import MAX_LOCATION_CHARS, MAX_TOPOLOGY_CHARS
from datum_router.discovery.plan import Change, Put, Remove, Wanted, plan
from datum_router.discovery.slices import (
    Group,
    PublishedSlice,
    Slice,
    endpoints_of,
    group_of,
    published,
    raw_of,
    refusal,
)
from datum_router.model.endpoint import make_endpoint, make_locality

GROUP = Group(port=8080)


def wanted(count: int = 0, *, first: int = 0, conflict: str = "", stale: str = "") -> Wanted:
    members = {f"10.0.{number // 256}.{number % 256}": True for number in range(first, first + count)}
    return Wanted(
        namespace="shop",
        service="api",
        cluster="b",
        owner_uid="uid-1",
        groups={GROUP: members} if members else {},
        conflict=conflict,
        stale_since=stale,
    )


def applied(existing: list[Slice], changes: list[Change]) -> list[Slice]:
    by_name = {one.name: one for one in existing}
    for change in changes:
        if isinstance(change, Put):
            by_name[change.slice.name] = change.slice
        else:
            del by_name[change.name]
    return list(by_name.values())


def after(want: Wanted, existing: list[Slice], limit: int = 100) -> list[Slice]:
    found = applied(existing, list(plan(want, existing, limit=limit)))
    assert list(plan(want, found, limit=limit)) == [], "what was just written is written again"
    return found


def addresses(slices: list[Slice]) -> set[str]:
    return {address for one in slices for address, _ in one.members}


def test_endpoints_are_spread_over_slices_of_limited_size() -> None:
    found = after(wanted(250), [])
    assert sorted(len(one.members) for one in found) == [50, 100, 100]
    assert len({one.name for one in found}) == 3


def test_one_endpoint_more_writes_one_slice() -> None:
    there = after(wanted(250), [])
    changes = list(plan(wanted(251), there))
    assert len(changes) == 1
    assert isinstance(changes[0], Put)
    assert len(changes[0].slice.members) == 51


def test_one_endpoint_less_writes_the_slice_that_it_is_in_and_the_next_one_takes_its_place() -> None:
    there = after(wanted(200), [])
    changes = list(plan(wanted(199, first=1), there))
    assert [type(change) for change in changes] == [Put]
    there = applied(there, changes)
    changes = list(plan(wanted(200, first=1), there))
    assert len(changes) == 1, "the hole is filled"
    assert len(applied(there, changes)) == 2


def test_an_endpoint_that_does_not_serve_any_more_writes_its_slice_only() -> None:
    there = after(wanted(200), [])
    want = wanted(200)
    groups = {GROUP: {**want.groups[GROUP], "10.0.0.7": False}}
    changes = list(plan(msgspec.structs.replace(want, groups=groups), there))
    assert len(changes) == 1
    assert isinstance(changes[0], Put)
    assert ("10.0.0.7", False) in changes[0].slice.members


def test_an_empty_slice_is_removed() -> None:
    there = after(wanted(101), [])
    changes = list(plan(wanted(100), there))
    assert [type(change) for change in changes] == [Remove]
    assert list(plan(wanted(0), applied(there, changes))) == [Remove("shop", there[0].name)]


def test_a_conflict_is_said_by_a_slice_without_endpoints_and_goes_with_it() -> None:
    there = after(wanted(0, conflict="spec.port is 1 there and 2 here"), [])
    assert [(one.members, one.conflict) for one in there] == [((), "spec.port is 1 there and 2 here")]
    changed = after(wanted(3, conflict="other"), there)
    assert sorted((len(one.members), one.conflict) for one in changed) == [(0, "other"), (3, "")]
    assert after(wanted(3), changed) == [one for one in changed if one.members]


def test_a_stale_mark_rewrites_every_slice_and_no_endpoint() -> None:
    there = after(wanted(150), [])
    marked = after(wanted(150, stale="2026-01-01T00:00:00Z"), there)
    assert [one.members for one in marked] == [one.members for one in there]
    assert {one.stale_since for one in marked} == {"2026-01-01T00:00:00Z"}


def test_a_slice_that_holds_too_much_is_cut() -> None:
    there = after(wanted(10), [])
    found = after(wanted(10), there, limit=4)
    assert max(len(one.members) for one in found) == 4
    assert addresses(found) == addresses(there)


PLACES = st.builds(
    make_locality,
    st.dictionaries(st.sampled_from(["topology.datum.net/city-code", "a/b"]), st.sampled_from(["DFW", "x"])),
    location=st.sampled_from(["", "dfw-1"]),
    latitude=st.one_of(st.none(), st.floats(-90, 90)),
    longitude=st.floats(-180, 180),
)
ENDPOINTS = st.builds(
    make_endpoint,
    st.ip_addresses().map(str),
    st.integers(1, 65535),
    weight=st.integers(0, 1_000_000),
    priority=st.integers(0, 128),
    locality=PLACES,
    origin=st.sampled_from(["static", "attachment", "servicebinding:a/b"]),
    is_serving=st.booleans(),
    vpc=st.sampled_from(["", "shop/main"]),
)


@given(ENDPOINTS, st.sampled_from(["", "2026-01-01T00:00:00Z"]))
def test_what_is_written_reads_back_as_it_was(endpoint: object, stale: str) -> None:
    assert isinstance(endpoint, type(make_endpoint("10.0.0.1", 1)))
    one = Slice(
        namespace="shop",
        name="api-0",
        service="api",
        cluster="b",
        owner_uid="uid-1",
        group=group_of(endpoint),
        members=((endpoint.address, endpoint.is_serving),),
        stale_since=stale,
    )
    raw = msgspec.json.encode(raw_of(one))
    assert published(msgspec.json.decode(raw, type=PublishedSlice)) == one
    (back,) = endpoints_of(one)
    where = endpoint.locality
    if where.latitude is None or where.longitude is None:
        where = msgspec.structs.replace(where, latitude=None, longitude=None)
    expected = msgspec.structs.replace(endpoint, locality=where, origin="cluster:b", cluster="b")
    assert back == expected


def test_marks_that_somebody_has_spoilt_are_passed_over() -> None:
    spoilt = {
        "router.datum.net/weight": "many",
        "router.datum.net/priority": "-1",
        "router.datum.net/coordinates": "north,1e9",
        "router.datum.net/topology": "=,x",
        "router.datum.net/vpc-service": "api",
    }
    raw = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "api-0",
            "namespace": "shop",
            "labels": {"endpointslice.kubernetes.io/managed-by": "discovery.router.datum.net"},
            "annotations": spoilt,
        },
        "ports": [{"port": 80}],
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": []}],
    }
    found = published(msgspec.convert(raw, PublishedSlice))
    assert found is not None
    (endpoint,) = endpoints_of(found)
    assert (endpoint.weight, endpoint.priority, endpoint.locality.latitude) == (100, 0, None)


def test_slices_of_others_are_not_ours() -> None:
    raw = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "x", "namespace": "y"}}
    assert published(msgspec.convert(raw, PublishedSlice)) is None


def test_addresses_that_no_slice_may_hold_are_told() -> None:
    refused = ("127.0.0.1", "::1", "0.0.0.0", "169.254.169.254", "fe80::1", "224.0.0.1", "::ffff:10.0.0.1", "x")
    assert all(refusal(address) for address in refused)
    assert not any(refusal(address) for address in ("10.0.0.1", "fd00::1", "203.0.113.9"))


TEXTS = st.text(max_size=40)


@given(st.dictionaries(TEXTS, TEXTS, max_size=8), TEXTS, TEXTS)
def test_places_of_any_text_are_read_back_as_they_were_written(
    topology: dict[str, str], location: str, vpc: str
) -> None:
    """Anything else would be written again by each daemon that starts."""
    place = make_locality(topology, location=location)
    group = group_of(make_endpoint("10.0.0.1", 80, locality=place, vpc=vpc))
    one = Slice(namespace="shop", name="a", service="api", cluster="b", owner_uid="u", group=group)
    found = published(msgspec.json.decode(msgspec.json.encode(raw_of(one)), type=PublishedSlice))
    assert found == one
    assert dict(group.topology) == {key: value for key, value in topology.items() if key}


def test_a_place_that_is_too_long_for_an_annotation_is_told_in_part() -> None:
    place = make_locality({"a": "1", "b": "x" * MAX_TOPOLOGY_CHARS, "c": "3"})
    assert group_of(make_endpoint("10.0.0.1", 80, locality=place)).topology == (("a", "1"),)
    named = [group_of(make_endpoint("10.0.0.1", 80, locality=make_locality({}, location="x" * n))) for n in (253, 254)]
    assert [len(one.location) for one in named] == [MAX_LOCATION_CHARS, 0]
