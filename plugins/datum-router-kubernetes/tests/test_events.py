"""Which events are written, which are counted, and which are dropped."""

from __future__ import annotations

import json

import msgspec
import pytest

from datum_router.clock import ManualClock
from datum_router.manifests.meta import GroupVersionKind, ObjectKey
from datum_router.plugins.cluster import ObjectEvent
from datum_router_kubernetes.events import (
    MAX_NOTE_BYTES,
    MAX_REMEMBERED,
    OBJECT_BURST,
    OBJECT_REFILL_S,
    SERIES_S,
    UPDATE_S,
    Dropped,
    EventBook,
    Folded,
    NewEvent,
    Repeat,
)

GVK = GroupVersionKind(group="router.datum.net", version="v1alpha1", kind="VPCRoute")
EVENT = ObjectEvent(
    gvk=GVK,
    key=ObjectKey(kind="VPCRoute", namespace="shop", name="api"),
    uid="uid-1",
    type="Warning",
    reason="VPCServiceNotFound",
    action="Resolve",
    note="vpcservice shop/api is not there",
)


class Told:
    """A book, its clock and what it decides."""

    def __init__(self) -> None:
        self.book = EventBook(controller="router.datum.net/router-controller", instance="pod-1")
        self.clock = ManualClock()

    def decide(self, event: ObjectEvent = EVENT) -> NewEvent | Repeat | Folded | Dropped:
        return self.book.decide(event, now=self.clock(), at=1_700_000_000 + self.clock())


def made(decision: object) -> dict[str, object]:
    assert isinstance(decision, NewEvent), decision
    found: dict[str, object] = json.loads(decision.body)
    return found


def test_a_new_event_says_everything() -> None:
    told = Told()
    told.clock.advance(0.25)
    decision = told.decide()
    body = made(decision)
    assert isinstance(decision, NewEvent)
    assert decision.namespace == "shop"
    assert body == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": decision.name, "namespace": "shop"},
        "eventTime": "2023-11-14T22:13:20.250000Z",
        "reportingController": "router.datum.net/router-controller",
        "reportingInstance": "pod-1",
        "action": "Resolve",
        "reason": "VPCServiceNotFound",
        "regarding": {
            "apiVersion": "router.datum.net/v1alpha1",
            "kind": "VPCRoute",
            "name": "api",
            "namespace": "shop",
            "uid": "uid-1",
        },
        "note": "vpcservice shop/api is not there",
        "type": "Warning",
    }
    assert decision.name.startswith("api.")


def test_repeats_are_counted_and_written_once_a_minute() -> None:
    told = Told()
    first = told.decide()
    assert isinstance(first, NewEvent)
    for _ in range(5):
        told.clock.advance(UPDATE_S / 10)
        assert isinstance(told.decide(), Folded)
    told.clock.advance(UPDATE_S / 2)
    repeat = told.decide()
    assert isinstance(repeat, Repeat)
    assert (repeat.namespace, repeat.name) == (first.namespace, first.name)
    assert json.loads(repeat.body) == {"series": {"count": 7, "lastObservedTime": "2023-11-14T22:14:20.000000Z"}}
    assert isinstance(told.decide(), Folded)


def test_after_ten_quiet_minutes_it_is_a_new_event() -> None:
    told = Told()
    first = told.decide()
    told.clock.advance(SERIES_S)
    assert isinstance(told.decide(), Repeat)  # seen again just in time: the ten minutes begin anew
    told.clock.advance(SERIES_S + 0.001)
    second = told.decide()
    assert isinstance(first, NewEvent)
    assert isinstance(second, NewEvent)
    assert first.name != second.name


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(EVENT, note="another"),
        msgspec.structs.replace(EVENT, reason="PortNotFound"),
        msgspec.structs.replace(EVENT, type="Normal"),
        msgspec.structs.replace(EVENT, uid="uid-2"),
    ],
)
def test_what_differs_is_another_event(other: ObjectEvent) -> None:
    told = Told()
    first, second = told.decide(), told.decide(other)
    assert isinstance(first, NewEvent)
    assert isinstance(second, NewEvent)
    assert first.name != second.name


def test_an_object_with_too_many_events_is_cut_off_and_others_are_not() -> None:
    told = Told()
    decisions = [told.decide(msgspec.structs.replace(EVENT, note=str(n))) for n in range(OBJECT_BURST + 5)]
    assert [type(one) for one in decisions] == [NewEvent] * OBJECT_BURST + [Dropped] * 5
    assert isinstance(told.decide(msgspec.structs.replace(EVENT, uid="uid-2")), NewEvent)
    told.clock.advance(OBJECT_REFILL_S)
    late = [told.decide(msgspec.structs.replace(EVENT, note=f"late {n}")) for n in range(2)]
    assert [type(one) for one in late] == [NewEvent, Dropped]


def test_counts_cost_the_allowance_as_well() -> None:
    told = Told()
    kinds = []
    for _ in range(OBJECT_BURST * 2):
        kinds.append(type(told.decide()))
        told.clock.advance(UPDATE_S)
    assert kinds[:OBJECT_BURST] == [NewEvent] + [Repeat] * (OBJECT_BURST - 1)
    # One write comes back in OBJECT_REFILL_S, in which five repeats come.
    assert kinds.count(Dropped) >= OBJECT_BURST / 2


def test_an_event_that_could_not_be_created_is_new_the_next_time() -> None:
    told = Told()
    told.decide()
    told.book.forget(EVENT)
    assert isinstance(told.decide(), NewEvent)


def test_an_event_that_is_gone_from_the_cluster_is_created_again() -> None:
    told = Told()
    first = told.decide()
    told.clock.advance(UPDATE_S)
    assert isinstance(told.decide(), Repeat)
    renewed = told.book.renew(EVENT, now=told.clock(), at=1_700_000_060)
    assert isinstance(first, NewEvent)
    assert renewed.name != first.name
    assert isinstance(told.decide(), Folded)


def test_only_so_many_are_remembered() -> None:
    told = Told()
    for n in range(MAX_REMEMBERED + 1):
        assert isinstance(told.decide(msgspec.structs.replace(EVENT, uid=f"uid-{n}")), NewEvent)
    assert len(told.book) == MAX_REMEMBERED
    assert isinstance(told.decide(msgspec.structs.replace(EVENT, uid=f"uid-{MAX_REMEMBERED}")), Folded)
    assert isinstance(told.decide(msgspec.structs.replace(EVENT, uid="uid-0")), NewEvent)  # the oldest was forgotten


@pytest.mark.parametrize("letter", ["a", "é", "€", "\U0001f600"])
def test_a_note_is_cut_at_what_the_api_takes(letter: str) -> None:
    body = made(Told().decide(msgspec.structs.replace(EVENT, note=letter * 2000)))
    note = body["note"]
    assert isinstance(note, str)
    assert MAX_NOTE_BYTES - 4 < len(note.encode()) <= MAX_NOTE_BYTES
    assert note == letter * (len(note) - 1) + "…"


def test_a_note_that_just_fits_is_left_alone() -> None:
    for note in ("a" * MAX_NOTE_BYTES, "é" * (MAX_NOTE_BYTES // 2), ""):
        assert made(Told().decide(msgspec.structs.replace(EVENT, note=note)))["note"] == note


def test_the_longest_name_still_makes_a_name() -> None:
    key = ObjectKey(kind="VPCRoute", namespace="shop", name="a" * 230 + "." + "b" * 22)
    decision = Told().decide(msgspec.structs.replace(EVENT, key=key))
    assert isinstance(decision, NewEvent)
    assert len(decision.name) <= 253
    assert decision.name.startswith("a" * 230 + ".")
    assert ".." not in decision.name


def test_an_object_without_namespace_has_its_events_in_the_default_one() -> None:
    key = ObjectKey(kind="GatewayClass", namespace="", name="api")
    decision = Told().decide(msgspec.structs.replace(EVENT, key=key))
    assert isinstance(decision, NewEvent)
    assert decision.namespace == "default"
    assert "namespace" not in json.loads(decision.body)["regarding"]
