from __future__ import annotations

import random
from collections import Counter

import pytest

from datum_router.balancing.split import Split
from datum_router.model.route import BackendRef
from datum_router.testing.factories import make_destination

PICKS = 10_000


def chosen(split: Split, usable: set[str] | None = None, picks: int = PICKS) -> Counter[str]:
    rng = random.Random(42)

    def is_usable(ref: BackendRef) -> bool:
        return usable is None or ref.service in usable

    return Counter(ref.service if (ref := split.choose(rng, is_usable)) is not None else "none" for _ in range(picks))


@pytest.mark.parametrize("weights", [(1, 1), (90, 10), (1, 2, 3, 4), (999_999, 1), (10**15, 10**15, 10**15)])
def test_shares_follow_weights_within_three_sigma(weights: tuple[int, ...]) -> None:
    counts = chosen(Split([make_destination(f"d/{n}", weight) for n, weight in enumerate(weights)]))
    for n, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(counts[f"d/{n}"] - PICKS * share) <= max(1, 3 * (PICKS * share * (1 - share)) ** 0.5)


def test_weight_zero_gets_nothing() -> None:
    split = Split([make_destination("d/a", 0), make_destination("d/b", 1), make_destination("d/c", 0)])
    assert chosen(split, picks=1000) == {"d/b": 1000}


def test_all_weights_zero_or_no_destination_gives_none() -> None:
    assert chosen(Split([make_destination("d/a", 0), make_destination("d/b", 0)]), picks=5) == {"none": 5}
    assert chosen(Split([]), picks=5) == {"none": 5}


def test_a_destination_without_usable_endpoint_passes_its_share_on() -> None:
    split = Split([make_destination("d/a", 98), make_destination("d/b", 1), make_destination("d/c", 1)])
    counts = chosen(split, usable={"d/b", "d/c"})
    assert counts["d/a"] == 0
    assert abs(counts["d/b"] - PICKS / 2) <= 3 * (PICKS * 0.25) ** 0.5


def test_the_next_priority_serves_only_when_no_lower_destination_is_usable() -> None:
    split = Split(
        [
            make_destination("d/standby", 100, priority=1),
            make_destination("d/a", 1),
            make_destination("d/b", 1),
            make_destination("d/last", 1, priority=7),
        ]
    )
    assert set(chosen(split, picks=200)) == {"d/a", "d/b"}
    assert set(chosen(split, usable={"d/b", "d/standby", "d/last"}, picks=200)) == {"d/b"}
    assert set(chosen(split, usable={"d/standby", "d/last"}, picks=200)) == {"d/standby"}
    assert set(chosen(split, usable={"d/last"}, picks=200)) == {"d/last"}


def test_without_anything_usable_the_lowest_level_is_split_as_written() -> None:
    split = Split([make_destination("d/a", 1), make_destination("d/b", 1), make_destination("d/c", 1, priority=1)])
    assert set(chosen(split, usable=set(), picks=200)) == {"d/a", "d/b"}


def test_a_destination_with_a_problem_keeps_its_share() -> None:
    split = Split([make_destination("d/a", 1, problem="VPCServiceNotFound"), make_destination("d/b", 1)])
    counts = chosen(split)
    assert abs(counts["d/a"] - PICKS / 2) <= 3 * (PICKS * 0.25) ** 0.5


def test_a_problem_alone_is_answered_but_gives_way_to_a_usable_standby() -> None:
    problem = make_destination("d/a", 1, problem="VPCServiceNotFound")
    assert chosen(Split([problem]), picks=5) == {"d/a": 5}
    assert chosen(Split([problem, make_destination("d/b", priority=1)]), picks=5) == {"d/b": 5}


def test_a_standby_of_weight_zero_does_not_serve() -> None:
    split = Split([make_destination("d/a", 1), make_destination("d/b", 0, priority=1)])
    assert chosen(split, usable={"d/b"}, picks=5) == {"d/a": 5}
