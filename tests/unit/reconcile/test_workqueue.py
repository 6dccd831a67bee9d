from __future__ import annotations

import random

import pytest

from datum_router.reconcile.workqueue import FIRST_BACKOFF_S, MAX_BACKOFF_S, MAX_HOLD_S, WorkQueue


class Latest(random.Random):
    """A generator whose jitter is as long as it can be."""

    def random(self) -> float:
        return 1.0


def make() -> WorkQueue[str]:
    return WorkQueue(Latest())


def test_a_key_that_is_added_often_is_looked_at_once() -> None:
    queue = make()
    for _ in range(5):
        queue.add("a", now=0.0)
    assert queue.take(0.0) == "a"
    assert queue.take(0.0) is None
    queue.done("a")
    assert len(queue) == 0
    assert queue.take(1.0) is None


def test_the_time_to_settle_runs_from_the_first_call() -> None:
    queue = make()
    queue.add("a", now=0.0, after_s=0.2)
    queue.add("a", now=0.1, after_s=0.2)
    assert queue.next_at() == 0.2
    assert queue.take(0.19) is None
    assert queue.take(0.2) == "a"


def test_an_earlier_time_wins() -> None:
    queue = make()
    queue.add("a", now=0.0, after_s=5.0)
    queue.add("a", now=1.0)
    assert queue.take(1.0) == "a"
    assert queue.take(9.0) is None


def test_a_key_that_is_added_while_it_runs_comes_once_more() -> None:
    queue = make()
    queue.add("a", now=0.0)
    assert queue.take(0.0) == "a"
    queue.add("a", now=0.1, after_s=0.2)
    queue.add("a", now=0.2, after_s=0.2)
    assert queue.take(9.0) is None, "never two looks at one key at once"
    queue.done("a")
    assert queue.next_at() == pytest.approx(0.3)
    assert queue.take(queue.next_at()) == "a"
    queue.done("a")
    assert queue.take(9.0) is None


def test_keys_come_in_the_order_in_which_they_are_due_urgent_ones_first() -> None:
    queue = make()
    for number in range(3):
        queue.add(f"late{number}", now=0.0, is_urgent=False)
    queue.add("edit", now=1.0)
    queue.add("late2", now=1.0)
    assert [queue.take(1.0) for _ in range(5)] == ["late2", "edit", "late0", "late1", None]


def test_a_key_that_fails_waits_longer_each_time_and_others_do_not() -> None:
    queue = make()
    queue.add("bad", now=0.0)
    waits = []
    now = 0.0
    for _ in range(20):
        assert queue.take(now) == "bad"
        waits.append(queue.failed("bad", now=now))
        queue.add("good", now=now)
        assert queue.take(now) == "good"
        queue.done("good")
        assert queue.take(now) is None
        now = queue.next_at()
    assert waits[:3] == [FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S]
    assert waits[-1] == MAX_BACKOFF_S
    assert queue.failing == 1


def test_success_ends_the_backoff() -> None:
    queue = make()
    queue.add("a", now=0.0)
    for now in (0.0, 1.0, 2.0):
        assert queue.take(now) == "a"
        queue.failed("a", now=now)
    assert queue.take(9.0) == "a"
    queue.done("a")
    assert queue.failing == 0
    queue.add("a", now=10.0)
    assert queue.take(10.0) == "a"
    assert queue.failed("a", now=10.0) == FIRST_BACKOFF_S


def test_adding_a_key_in_backoff_does_not_make_it_come_earlier() -> None:
    queue = make()
    queue.add("a", now=0.0)
    assert queue.take(0.0) == "a"
    queue.failed("a", now=0.0, at_least_s=30.0)
    queue.add("a", now=1.0)
    assert queue.take(29.9) is None
    assert queue.take(30.0) == "a"


def test_a_key_that_was_given_up_comes_only_when_it_is_added() -> None:
    queue = make()
    queue.add("a", now=0.0)
    assert queue.take(0.0) == "a"
    queue.gave_up("a")
    assert queue.next_at() == float("inf")
    queue.add("a", now=1.0)
    assert queue.take(1.0) == "a"


def test_what_fails_for_all_holds_all_and_each_keeps_its_turn() -> None:
    queue = make()
    for name in "abc":
        queue.add(name, now=0.0)
    for name in "ab":
        assert queue.take(0.0) == name
    assert not queue.is_held(0.0)
    assert queue.hold("a", now=0.0) == 0.5
    assert queue.is_held(0.49)
    assert not queue.is_held(0.5)
    assert queue.hold("b", now=0.1) == pytest.approx(0.4), "the second of one outage does not make it longer"
    assert queue.take(0.49) is None
    assert queue.next_at() == 0.5
    assert queue.take(0.5) == "c"
    assert queue.hold("c", now=0.5) == 1.0
    assert queue.take(1.5) == "a"
    queue.done("a")
    assert queue.take(1.5) == "b"
    assert queue.hold("b", now=1.6) == 0.5, "a success ended the outage"


def test_an_urgent_key_stays_urgent_when_it_fails() -> None:
    queue = make()
    queue.add("late", now=0.0, is_urgent=False)
    queue.add("edit", now=1.0)
    for end in (queue.failed, queue.hold):
        assert queue.take(1.0 if end == queue.failed else 2.0) == "edit"
        end("edit", now=1.0)
    assert queue.take(9.0) == "edit"
    assert queue.take(9.0) == "late"


def test_a_hold_never_gets_longer_than_its_limit_unless_the_other_side_asks_for_it() -> None:
    queue = make()
    queue.add("a", now=0.0)
    now = 0.0
    for _ in range(50):
        assert queue.take(now) == "a"
        wait_s = queue.hold("a", now=now)
        now += wait_s
    assert wait_s == pytest.approx(MAX_HOLD_S)
    assert queue.take(now) == "a"
    assert queue.hold("a", now=now, at_least_s=60.0) == pytest.approx(60.0)


def test_a_key_that_is_discarded_does_not_come_again() -> None:
    queue = make()
    queue.add("waits", now=0.0)
    queue.add("runs", now=0.0)
    queue.discard("waits")
    assert queue.take(0.0) == "runs"
    queue.add("runs", now=0.0)
    queue.discard("runs")
    assert queue.failed("runs", now=0.0) == 0.0
    assert len(queue) == 0
    assert queue.next_at() == float("inf")


def test_clear_forgets_everything() -> None:
    queue = make()
    queue.add("a", now=0.0)
    queue.add("b", now=0.0)
    assert queue.take(0.0) == "a"
    queue.hold("a", now=0.0)
    queue.clear()
    assert (len(queue), queue.failing, queue.next_at()) == (0, 0, float("inf"))
    queue.done("b")  # one that had run and tells late does no harm
    queue.add("a", now=0.0)
    assert queue.take(0.0) == "a"


def test_memory_does_not_grow_with_how_often_a_key_is_added() -> None:
    queue = make()
    queue.add("a", now=0.0, after_s=100_000.0)
    for number in range(50_000):
        queue.add("a", now=0.0, after_s=90_000.0 - number)
    assert sum(len(heap) for heap in queue._heaps) < 1100
    assert queue.take(90_000.0) == "a"
