"""The bound that retries in a chain keep to, and that those of each gateway alone do not."""

from __future__ import annotations

import msgspec
import pytest

from datum_router.sim.retry_storm import MOST_ROWS, StormSettings, chart, simulate_way

SHORT = StormSettings(rate=80.0, healthy_s=3.0, fault_s=5.0, after_s=8.0)
BOUND = 1.2
"""One and the budget's 20 %."""


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_chain_that_shares_its_budget_keeps_the_bound_and_recovers_at_once(seed: int) -> None:
    result, timeline = simulate_way(msgspec.structs.replace(SHORT, seed=seed), is_budgeted=True)
    assert 1.0 < result.attempts_per_arrival <= BOUND
    assert result.recovered
    assert result.recovery_s <= 1.0
    assert sum(timeline.arrivals) == pytest.approx(80 * 16, rel=0.1)


@pytest.mark.parametrize("hops", [1, 3, 8])
def test_the_bound_does_not_depend_on_the_length_of_the_chain(hops: int) -> None:
    result, _ = simulate_way(msgspec.structs.replace(SHORT, hops=hops), is_budgeted=True)
    assert result.attempts_per_arrival <= BOUND


def test_gateways_that_retry_each_on_its_own_multiply_and_keep_the_service_down() -> None:
    result, timeline = simulate_way(SHORT, is_budgeted=False)
    assert result.attempts_per_arrival > 20 * BOUND
    assert not result.recovered
    assert result.recovery_s == SHORT.after_s, "as long as it was watched"
    assert sum(timeline.successes[9:]) == 0


def test_one_gateway_alone_without_a_budget_makes_all_its_tries() -> None:
    settings = msgspec.structs.replace(SHORT, hops=1, utilisation=0.1)
    assert simulate_way(settings, is_budgeted=False)[0].attempts_per_arrival == pytest.approx(3.0, abs=0.3)


def test_without_a_fault_nothing_is_tried_twice() -> None:
    _, timeline = simulate_way(msgspec.structs.replace(SHORT, fault_s=0.0), is_budgeted=False)
    assert sum(timeline.attempts) <= sum(timeline.arrivals) * 1.05
    assert sum(timeline.successes) >= sum(timeline.arrivals) * 0.99


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    first, again = (simulate_way(SHORT, is_budgeted=True) for _ in range(2))
    other = simulate_way(msgspec.structs.replace(SHORT, seed=2), is_budgeted=True)
    assert first == again
    assert first != other


def test_the_chart_has_a_bounded_number_of_lines_and_marks_the_fault() -> None:
    seen: list[float] = []
    budgeted = simulate_way(SHORT, is_budgeted=True, progress=seen.append)[1]
    assert seen[:3] == [1.0, 2.0, 3.0]
    lines = chart(SHORT, budgeted, budgeted)
    assert len(lines) <= 1 + 2 * MOST_ROWS
    assert sum("fails" in line for line in lines) == 5
    assert all("%" in line for line in lines[1:])
