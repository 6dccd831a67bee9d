"""What is held of an API that is somebody else's, and how fast its events are read."""

from __future__ import annotations

import pytest

from datum_router_kubernetes.budget import EVENTS_BURST, EVENTS_PER_S, Budget, Holding, OverBudget


def names(*some: int) -> dict[tuple[str, str], int]:
    return {("ns", f"o{number}"): 10 for number in some}


def test_all_collections_together_are_within_the_budget() -> None:
    budget = Budget(max_objects=10, max_bytes=1000)
    one, other = Holding(budget, "a"), Holding(budget, "b")
    one.take_page(names(*range(6)), is_first=True)
    with pytest.raises(OverBudget, match="more than 10 objects, which is all"):
        other.take_page(names(*range(5)), is_first=True)
    other.take_page(names(*range(4)), is_first=True)
    one.let_go(("ns", "o0"), ("ns", "never"))
    other.take_event(("ns", "new"), 10)


def test_bytes_are_bounded_too_and_a_change_counts_by_its_difference() -> None:
    budget = Budget(max_objects=10, max_bytes=100)
    held = Holding(budget, "a")
    held.take_event(("ns", "a"), 60)
    held.take_event(("ns", "a"), 90)
    with pytest.raises(OverBudget, match="more than 100 bytes of objects"):
        held.take_event(("ns", "b"), 11)
    held.take_event(("ns", "b"), 10)


def test_a_list_that_replaces_everything_fits() -> None:
    held = Holding(Budget(max_objects=10, max_bytes=1000), "a")
    held.take_page(names(*range(10)), is_first=True)
    held.take_page(names(*range(100, 105)), is_first=True)
    held.take_page(names(*range(105, 110)), is_first=False)
    held.let_go(*names(*range(10)))
    held.take_page(names(*range(200, 210)), is_first=True)


def test_an_api_whose_objects_are_others_each_time_fills_no_more_than_twice_the_budget() -> None:
    held = Holding(Budget(max_objects=10, max_bytes=1000), "a")
    for number in range(4):
        held.take_page(names(*range(number * 5, number * 5 + 5)), is_first=True)
    with pytest.raises(OverBudget):
        held.take_page(names(*range(20, 25)), is_first=True)


def test_a_list_of_empty_pages_has_an_end() -> None:
    held = Holding(Budget(max_objects=10, max_bytes=1000), "a")
    for number in range(10):
        held.take_page({}, is_first=not number)
    with pytest.raises(OverBudget):
        held.take_page({}, is_first=False)


def test_events_are_read_at_a_rate_after_a_burst() -> None:
    budget = Budget(max_objects=1, max_bytes=1)
    assert budget.pace(int(EVENTS_BURST), now=0.0) == 0.0
    assert budget.pace(int(EVENTS_PER_S), now=0.0) == pytest.approx(1.0)
    assert budget.pace(0, now=1.0) == 0.0
    assert budget.pace(int(EVENTS_BURST), now=1000.0) == 0.0
