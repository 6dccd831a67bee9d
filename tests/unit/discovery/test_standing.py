"""How clusters stand: marks of those that are gone, and of those that come and go."""

from __future__ import annotations

import pytest

from datum_router.discovery.standing import FIRST_CALM_S, FLAP_WINDOW_S, MAX_CALM_S, Phase, Standing, advance, calmed

T0 = 1_700_000_000.0


def after(*steps: tuple[Phase, float]) -> Standing:
    found = Standing()
    for phase, at in steps:
        found = advance(found, phase, "", now=T0 + at, marked_at=None)
    return found


UP, DOWN, REMOVED, REFUSED = Phase.READY, Phase.UNREACHABLE, Phase.REMOVED, Phase.REFUSED


def test_the_first_outage_is_marked_and_over_at_once() -> None:
    assert after((UP, 0), (DOWN, 10)).marked_at == T0 + 10
    assert after((UP, 0), (DOWN, 10), (UP, 20)).marked_at == 0


def test_the_second_one_keeps_its_mark_until_it_was_heard_for_a_while() -> None:
    found = after((UP, 0), (DOWN, 10), (UP, 20), (DOWN, 30), (UP, 40))
    assert (found.marked_at, found.calm_at) == (T0 + 30, T0 + 40 + FIRST_CALM_S)
    assert calmed(found, now=T0 + 40 + FIRST_CALM_S - 1) == found
    assert calmed(found, now=T0 + 40 + FIRST_CALM_S).marked_at == 0


def test_a_mark_stays_as_it_is_while_a_cluster_comes_and_goes() -> None:
    steps = [(UP, 0.0), (DOWN, 10.0), (UP, 20.0), (DOWN, 30.0)]
    for number in range(20):
        steps += [(UP, 40.0 + number * 10), (DOWN, 45.0 + number * 10)]
        assert after(*steps).marked_at == T0 + 30
    found = after(*steps, (UP, 300))
    assert found.calm_at == T0 + 300 + MAX_CALM_S


def test_outages_that_are_far_apart_do_not_count_together() -> None:
    found = after((UP, 0), (DOWN, 10), (UP, 20), (DOWN, 10 + FLAP_WINDOW_S), (UP, 20 + FLAP_WINDOW_S))
    assert found.marked_at == 0


@pytest.mark.parametrize("last", [REFUSED])
def test_a_cluster_of_which_nothing_is_published_has_no_mark(last: Phase) -> None:
    found = after((UP, 0), (DOWN, 10), (UP, 20), (DOWN, 30), (last, 40))
    assert (found.marked_at, found.calm_at) == (0, float("inf"))


def test_a_removed_cluster_is_marked_with_the_time_of_that() -> None:
    found = after((UP, 0), (DOWN, 10), (UP, 20), (DOWN, 30), (UP, 40), (REMOVED, 50))
    assert (found.marked_at, found.since_at) == (T0 + 50, T0 + 50)


def test_staleness_counts_from_the_newest_outage() -> None:
    found = after((UP, 0), (DOWN, 10), (UP, 20), (DOWN, 30), (UP, 40), (DOWN, 50))
    assert (found.since_at, found.marked_at) == (T0 + 50, T0 + 30)
