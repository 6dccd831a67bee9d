"""Load shedding: the controller, by itself and in a simulated gateway on virtual time."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.policy.shedding import (
    CALM_S,
    INTERVAL_S,
    LEAST_SHARE,
    ONSET_S,
    SHORT,
    TARGET_S,
    Patience,
    Shedder,
    describe_shedding,
)

SHORT_S = SHORT * TARGET_S


def test_a_young_queue_sheds_nothing_and_nobody_needs_to_look_often() -> None:
    shedder = Shedder()
    for step in range(100):
        shedder.note(TARGET_S * 0.4, step * 0.25)
        assert not shedder.is_alert
    assert (shedder.share, shedder.is_shedding) == (1.0, False)


def test_a_burst_that_leaves_a_moment_without_a_queue_sheds_nothing() -> None:
    shedder = Shedder()
    for step in range(100):
        shedder.note(0.0 if step % 4 == 0 else 10 * TARGET_S, step * INTERVAL_S / 5)
    assert not shedder.is_shedding


def test_one_moment_in_which_the_process_was_not_run_sheds_nothing_but_calls_for_a_closer_look() -> None:
    shedder = Shedder()
    for step in range(40):
        shedder.note(10 * TARGET_S if step == 20 else 0.0, step * 0.25)
        assert shedder.is_alert is (step == 20)
        assert not shedder.is_shedding


def test_a_standing_queue_sheds_more_the_older_it_is() -> None:
    shares = []
    for age_s in (1.05 * TARGET_S, 1.5 * TARGET_S, 10 * TARGET_S):
        shedder = Shedder()
        now = 0.0
        while not shedder.is_shedding:
            shedder.note(age_s, now)
            assert shedder.is_shedding is (now >= ONSET_S), "not before it has stood for long enough"
            now += ONSET_S / 4
        shares.append(shedder.share)
    assert shares == pytest.approx([0.9, 1 / 1.5, 0.5])


def test_what_waits_still_counts_once_it_is_too_old_and_not_before() -> None:
    shedder = Shedder()
    for step in range(20):
        shedder.note_waiting(TARGET_S, step * INTERVAL_S)
    assert not shedder.is_shedding
    for step in range(20, 40):
        shedder.note_waiting(2 * TARGET_S, step * INTERVAL_S)
    assert shedder.is_shedding


def test_a_target_of_0_switches_it_off() -> None:
    shedder = Shedder(0.0)
    for step in range(100):
        shedder.note(9.0, step * INTERVAL_S)
    assert not shedder.is_shedding


@given(share=st.floats(LEAST_SHARE, 1.0), asked=st.integers(1, 400))
def test_as_many_are_let_in_as_the_share_says_to_within_one(share: float, asked: int) -> None:
    shedder = Shedder()
    shedder.share = share
    admitted = sum(shedder.admits() for _ in range(asked))
    assert abs(admitted - share * asked) <= 1.0 + 1e-6


@given(samples=st.lists(st.tuples(st.floats(0, 5), st.floats(0.001, 1)), max_size=100))
def test_the_share_keeps_within_its_bounds_and_all_are_let_in_once_the_queue_is_gone(
    samples: list[tuple[float, float]],
) -> None:
    shedder, now = Shedder(), 0.0
    for age_s, gap_s in samples:
        now += gap_s
        shedder.note(age_s, now)
        assert LEAST_SHARE <= shedder.share <= 1.0
        assert shedder.is_shedding is (shedder.share < 1.0)
    begun_at = now = now + 6.0
    while shedder.is_alert:
        now += 0.02
        shedder.note(0.0, now)
    assert now - begun_at < 5.0, "from the least share up again"


# --- how long one may have waited -------------------------------------------------------------------------------------

LOOK_S = 0.01


def looked(patience: Patience, ages_s: list[float], since: float = 0.0, every_s: float = LOOK_S) -> list[float]:
    """Return the limits of as many looks at the queue."""
    return [patience.limit_s(age_s, since + number * every_s) for number, age_s in enumerate(ages_s)]


def test_a_queue_that_has_stood_too_old_for_long_enough_is_limited_until_nobody_was_late_for_long_enough() -> None:
    patience = Patience()
    onset = round(ONSET_S / LOOK_S)
    assert looked(patience, [TARGET_S + 0.01] * onset) == [math.inf] * onset
    assert patience.limit_s(TARGET_S + 0.01, ONSET_S) == SHORT_S
    assert patience.is_overloaded(ONSET_S)
    assert patience.limit_s(SHORT_S + 0.001, ONSET_S + CALM_S / 2) == SHORT_S, "one is late"
    assert patience.limit_s(SHORT_S, ONSET_S + CALM_S) == SHORT_S, "one is not"
    over_at = ONSET_S + 1.5 * CALM_S
    assert patience.is_overloaded(over_at - 0.001)
    assert not patience.is_overloaded(over_at)
    assert patience.limit_s(9.0, over_at) == math.inf


@pytest.mark.parametrize(
    ("ages_s", "every_s"),
    [
        ([TARGET_S] * 400, LOOK_S),  # never older than the target
        (([9.0] * 30 + [0.0]) * 10, LOOK_S),  # a moment without a queue
        ([9.0] * 100, TARGET_S + 0.001),  # nobody asked in between: there was none
    ],
)
def test_a_queue_that_is_old_only_now_and_then_is_not_limited(ages_s: list[float], every_s: float) -> None:
    assert set(looked(Patience(), ages_s, every_s=every_s)) == {math.inf}


def test_with_a_target_of_0_nobody_is_late() -> None:
    patience = Patience(0.0)
    assert set(looked(patience, [9.0] * 400)) == {math.inf}
    assert not patience.is_overloaded(2.0)


@given(
    looks=st.lists(
        st.tuples(
            st.sampled_from([0.0, SHORT_S, 1.5 * SHORT_S, TARGET_S, 2.0, 2.0, 2.0]), st.floats(0, 1.2 * TARGET_S)
        ),
        max_size=100,
    )
)
def test_the_limit_is_that_of_an_oracle_which_remembers_every_look(looks: list[tuple[float, float]]) -> None:
    patience, now = Patience(), 0.0
    seen: list[tuple[float, float]] = []
    over_at = -math.inf
    for age_s, gap_s in looks:
        now += gap_s
        seen.append((now, age_s))
        if now < over_at:
            expected = SHORT_S
            if age_s > SHORT_S:
                over_at = now + CALM_S
        else:
            run = [now]  # of looks without a break, each of which found the queue too old
            for (at, age), (later, _) in zip(reversed(seen[:-1]), reversed(seen), strict=False):
                if later - at > TARGET_S or at < over_at:
                    break
                run.append(at)
                if age <= TARGET_S:
                    break
            is_over = age_s > TARGET_S and now - run[-1] >= ONSET_S
            expected = SHORT_S if is_over else math.inf
            if is_over:
                over_at = now + CALM_S
        assert patience.limit_s(age_s, now) == expected
        assert patience.is_overloaded(now) is (now < over_at)


# --- a simulated gateway --------------------------------------------------------------------------------------------


class Result(msgspec.Struct, frozen=True):
    """What clients met while there was too much; `recovered_s`: until all were let in, after it was over."""

    goodput: float
    p99_s: float
    recovered_s: float


SERVE_S = 1 / 2000
"""A tenth of what a worker does: so are the connections and the refusals in a second, beside its real ones."""
REFUSE_S = 2 * SERVE_S
"""A refusal is dearer than an answer: half of it to take the request, half to say so."""
HOLD_S, RELEASES_PER_S, PATIENCE_S = 0.5, 50, 0.25
QUIET_S, LOUD_S, AFTER_S = 3.0, 20.0, 8.0


def simulate(target_s: float, *, times: float, connections: int = 1000, seed: int = 1) -> Result:
    """Run a gateway of one core with a FIFO queue, `times` its capacity arriving at random for `LOUD_S`.

    Each connection carries one request at a time; who finds none that is free, or is not answered in `PATIENCE_S`, has
    failed. Refusals are held and released as the data plane does it.
    """
    rng = random.Random(seed)
    shedder = Shedder(target_s)
    ends_at = QUIET_S + LOUD_S + AFTER_S
    arrivals: deque[float] = deque()
    at = 0.0
    while at < ends_at:
        is_loud = QUIET_S <= at < QUIET_S + LOUD_S
        at += rng.expovariate((times if is_loud else 0.5) / SERVE_S)
        arrivals.append(at)
    now, beat_at, sent_at, credit = 0.0, 0.0, -1.0, 0.0
    free = connections
    busy: list[float] = []
    queue: deque[tuple[str, float]] = deque()
    held: deque[float] = deque()
    answered: list[tuple[float, float]] = []
    recovered_at = ends_at
    while now < ends_at:
        while busy and busy[0] <= now:
            heapq.heappop(busy)
            free += 1
        while arrivals and arrivals[0] <= now:
            asked_at = arrivals.popleft()
            if free:
                free -= 1
                queue.append(("request", asked_at))
        if now >= beat_at:
            if sent_at >= 0:
                shedder.note_waiting(now - sent_at, now)
            else:
                sent_at = now
                queue.append(("canary", now))
            wait_s = 0.02 if shedder.is_alert or held else 0.25
            credit = min(RELEASES_PER_S / 4, credit + RELEASES_PER_S * wait_s)
            beat_at = now + wait_s
            while held and held[0] <= now and credit >= 1:
                held.popleft()
                credit -= 1
                queue.append(("refusal", now))
        if not queue:
            now = max(now + 1e-6, min([beat_at, *busy[:1], *([arrivals[0]] if arrivals else [])]))
            continue
        what, since = queue.popleft()
        if what == "canary":
            shedder.note(now - sent_at, now)
            sent_at = -1.0
            if now < QUIET_S + LOUD_S or shedder.is_shedding:
                recovered_at = ends_at
            else:
                recovered_at = min(recovered_at, now)
        elif what == "refusal":
            now += REFUSE_S / 2
            heapq.heappush(busy, now)
        elif shedder.is_shedding and not shedder.admits():
            now += REFUSE_S / 2
            held.append(now + HOLD_S)
        else:
            now += SERVE_S
            heapq.heappush(busy, now)
            answered.append((now, now - since))
    loud = [took for done_at, took in answered if QUIET_S + 2 <= done_at < QUIET_S + LOUD_S]
    in_time = sum(took <= PATIENCE_S for took in loud)
    return Result(
        in_time / (LOUD_S - 2) * SERVE_S, sorted(loud)[len(loud) * 99 // 100], recovered_at - QUIET_S - LOUD_S
    )


@pytest.mark.parametrize("times", [1.5, 3.0, 6.0])
@pytest.mark.parametrize("connections", [100, 1000])
def test_goodput_stays_latency_is_bounded_and_it_is_over_soon(times: float, connections: int) -> None:
    found = simulate(TARGET_S, times=times, connections=connections)
    assert found.goodput >= 0.8, "share of the capacity that is answered in time"
    assert found.p99_s <= 4 * TARGET_S, "of those that were let in"
    assert found.recovered_s <= 5.0


def test_without_it_nearly_everything_comes_too_late() -> None:
    found = simulate(0.0, times=3.0)
    assert found.goodput < 0.1
    assert found.p99_s > 0.4


@pytest.mark.parametrize(
    ("target_s", "said"),
    [
        (0.0, "load shedding: off (shed_queue_age_s=0)"),
        (
            0.2,
            "load shedding (shed_queue_age_s): after 0.5 s of a queue older than 0.2 s, 503 with Retry-After: 2 to who "
            "has waited for more than 0.05 s, or to a share",
        ),
    ],
)
def test_it_is_said_in_words(target_s: float, said: str) -> None:
    assert describe_shedding(target_s) == said
