from __future__ import annotations

import random

import msgspec
import pytest

from datum_router.manifests.meta import Condition
from datum_router.reconcile.conditions import (
    CUT,
    MAX_MESSAGE_CHARS,
    ConditionType,
    bounded,
    condition,
    find,
    is_same,
    is_true,
    merge,
    timestamp,
)

THEN, NOW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
ACCEPTED = condition(ConditionType.ACCEPTED, True, "Accepted", generation=1)
READY = condition(ConditionType.READY, False, "NoEndpoints", "no endpoints", generation=1)


def test_a_new_condition_has_changed_now() -> None:
    (one,) = merge((), [ACCEPTED], now=NOW)
    assert one == Condition(
        type="Accepted", status="True", reason="Accepted", last_transition_time=NOW, observed_generation=1
    )


@pytest.mark.parametrize(
    "change",
    [{"reason": "Other"}, {"message": "other"}, {"observed_generation": 2}],
    ids=lambda change: next(iter(change)),
)
def test_the_time_stays_unless_the_status_changes(change: dict[str, object]) -> None:
    old = merge((), [ACCEPTED], now=THEN)
    (one,) = merge(old, [msgspec.structs.replace(ACCEPTED, **change)], now=NOW)
    assert one.last_transition_time == THEN
    assert not is_same(old, [one])


def test_the_time_moves_with_the_status() -> None:
    old = merge((), [ACCEPTED], now=THEN)
    (one,) = merge(old, [msgspec.structs.replace(ACCEPTED, status="False")], now=NOW)
    assert one.last_transition_time == NOW


def test_a_condition_that_lacks_its_time_gets_one() -> None:
    (one,) = merge([ACCEPTED], [ACCEPTED], now=NOW)
    assert one.last_transition_time == NOW


def test_the_order_is_always_the_same() -> None:
    every = [condition(kind, True, "Accepted", generation=1) for kind in ConditionType]
    random.Random(1).shuffle(every)
    assert [one.type for one in merge((), every, now=NOW)] == [str(kind) for kind in ConditionType]


def test_times_and_order_make_no_difference_and_others_conditions_neither() -> None:
    old = [*reversed(merge((), [ACCEPTED, READY], now=THEN)), Condition(type="TheirOwn", status="True", reason="Why")]
    assert is_same(old, merge((), [ACCEPTED, READY], now=NOW))
    assert not is_same(old, merge((), [ACCEPTED], now=NOW)), "one of ours is to go"
    assert not is_same(old[:1], merge((), [ACCEPTED, READY], now=NOW)), "one of ours is missing"


def test_unknown_is_neither_true_nor_false() -> None:
    one = condition(ConditionType.PROGRAMMED, None, "Pending", generation=3)
    assert one.status == "Unknown"
    assert not is_true([one], ConditionType.PROGRAMMED)
    assert is_true([one, ACCEPTED], ConditionType.ACCEPTED)
    assert not is_true([ACCEPTED], ConditionType.ACCEPTED, ConditionType.READY)
    assert find([one, ACCEPTED], ConditionType.ACCEPTED) is ACCEPTED
    assert find([one], ConditionType.ACCEPTED) is None


def test_messages_are_cut_to_what_the_schema_allows() -> None:
    assert bounded("x" * MAX_MESSAGE_CHARS) == "x" * MAX_MESSAGE_CHARS
    cut = condition(ConditionType.ACCEPTED, False, "InvalidValue", "x" * (MAX_MESSAGE_CHARS + 1), generation=1).message
    assert len(cut) == MAX_MESSAGE_CHARS
    assert cut.endswith(CUT)


def test_times_are_rfc_3339_in_whole_seconds() -> None:
    assert timestamp(1_700_000_000.9) == "2023-11-14T22:13:20Z"
