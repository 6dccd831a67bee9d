from __future__ import annotations

import random

import msgspec
import pytest

from datum_router.plugins.cluster import LeaseRecord
from datum_router.reconcile.lease import MAX_UNKNOWN, Action, Elector, LeaseTimes, Read, Wait, Write
from datum_router.testing.factories import Unvaried

WALL = 1_700_000_000.0


class Api:
    """One lease, as an API server keeps it."""

    def __init__(self) -> None:
        self.record: LeaseRecord | None = None
        self.version = 0

    def write(self, record: LeaseRecord) -> LeaseRecord | None:
        """Return what is there now, or None for a conflict."""
        if (self.record.version if self.record else "") != record.version:
            return None
        self.version += 1
        self.record = msgspec.structs.replace(record, version=str(self.version))
        return self.record


def make(name: str, rng: random.Random | None = None, **times: float) -> Elector:
    return Elector(
        identity=name,
        namespace="ns",
        name="router-controller",
        rng=rng or Unvaried(),
        times=LeaseTimes(**times) if times else None,  # type: ignore[arg-type]
    )


def act(elector: Elector, api: Api, now: float) -> Action:
    """Take one action with an API that answers at once."""
    action = elector.step(now, wall=WALL + now)
    if isinstance(action, Read):
        elector.observed(api.record, now=now)
    elif isinstance(action, Write):
        record = api.write(action.record)
        if record is None:
            elector.failed(now=now)
        else:
            elector.written(record, now=now)
    return action


def run(elector: Elector, api: Api, now: float) -> None:
    """Act until there is nothing to do at this moment."""
    while not isinstance(act(elector, api, now), Wait):
        pass


def test_who_comes_first_leads_and_keeps_the_lease_by_renewing_it() -> None:
    api, one, other = Api(), make("one"), make("other")
    run(one, api, 0.0)
    run(other, api, 0.1)
    assert one.is_leading(0.0)
    assert not other.is_leading(0.1)
    assert other.holder == "one"
    for second in range(1, 120):
        run(one, api, float(second))
        run(other, api, second + 0.5)
        assert one.is_leading(float(second))
        assert not other.is_leading(second + 0.5)
    assert api.record is not None
    assert (api.record.holder, api.record.transitions, api.record.duration_s) == ("one", 0, 15)
    assert api.record.acquired_at == WALL
    assert api.record.renewed_at == WALL + 118


def test_a_leader_renews_every_retry_without_reading_first() -> None:
    api, one = Api(), make("one")
    run(one, api, 0.0)
    assert one.step(1.9, wall=WALL) == Wait(2.0)
    assert isinstance(one.step(2.0, wall=WALL), Write)


def test_a_leader_that_cannot_renew_stops_before_another_may_begin() -> None:
    api, one, other = Api(), make("one"), make("other")
    run(one, api, 0.0)
    run(other, api, 0.1)
    took_over_at = 0.0
    for tenth in range(2, 400):
        now = tenth / 10
        if isinstance(one.step(now, wall=WALL + now), Wait):
            pass
        else:
            one.failed(now=now)
        run(other, api, now)
        if other.is_leading(now) and not took_over_at:
            took_over_at = now
        assert one.is_leading(now) == (now < 10.0)
    assert 15.1 <= took_over_at <= 17.5, "after the whole duration since it was seen, and no later than one retry"
    assert api.record is not None
    assert (api.record.holder, api.record.transitions) == ("other", 1)


def test_leading_is_counted_from_when_the_renewal_was_sent_not_from_when_it_was_answered() -> None:
    api, one = Api(), make("one")
    run(one, api, 0.0)
    action = one.step(2.0, wall=WALL + 2)
    assert isinstance(action, Write)
    record = api.write(action.record)
    assert record is not None
    one.written(record, now=9.0)
    assert one.leads_until == 12.0


def test_a_write_whose_answer_is_lost_is_found_out_by_reading() -> None:
    api, one = Api(), make("one")
    assert isinstance(one.step(0.0, wall=WALL), Read)
    one.observed(None, now=0.0)
    action = one.step(0.0, wall=WALL)
    assert isinstance(action, Write)
    assert api.write(action.record) is not None
    one.failed(now=5.0)
    assert not one.is_leading(5.0), "it is not known to be ours"
    assert one.step(6.9, wall=WALL) == Wait(7.0)
    assert isinstance(one.step(7.0, wall=WALL), Read)
    one.observed(api.record, now=7.0)
    assert one.leads_until == 10.0, "since the write was sent"
    run(one, api, 7.0)
    assert one.leads_until == 17.0


def test_a_write_that_is_made_after_it_was_read_that_it_was_not_is_still_ours() -> None:
    api, one = Api(), make("one")
    run(one, api, 0.0)
    late = one.step(2.0, wall=WALL + 2)
    assert isinstance(late, Write)
    one.failed(now=2.5)
    assert isinstance(one.step(4.5, wall=WALL + 4.5), Read)
    one.observed(api.record, now=4.5)
    again = one.step(4.5, wall=WALL + 4.5)
    assert isinstance(again, Write)
    assert api.write(late.record) is not None
    assert api.write(again.record) is None
    one.failed(now=4.6)
    assert isinstance(one.step(6.6, wall=WALL + 6.6), Read)
    one.observed(api.record, now=6.6)
    assert one.leads_until == 12.0


def test_a_record_that_bears_our_name_but_is_not_ours_is_another_ones() -> None:
    api, one, twin = Api(), make("same"), make("same")
    run(one, api, 0.0)
    run(twin, api, 0.5)
    assert not twin.is_leading(0.5)
    for second in range(1, 60):
        run(one, api, float(second))
        run(twin, api, second + 0.5)
        assert one.is_leading(float(second))
        assert not twin.is_leading(second + 0.5)


def test_a_holder_that_lets_go_is_followed_at_once() -> None:
    api, one, other = Api(), make("one"), make("other")
    run(one, api, 0.0)
    run(other, api, 1.0)
    released = one.resign(wall=WALL + 1)
    assert not one.is_leading(1.0), "before the write that lets others in"
    assert released is not None
    assert released.holder == ""
    assert api.write(released) is not None
    assert one.step(1.0, wall=WALL) == Wait(float("inf"))
    run(other, api, 3.0)
    assert other.is_leading(3.0)
    assert api.record is not None
    assert api.record.transitions == 1


def test_who_holds_nothing_lets_go_of_nothing() -> None:
    api, one, other = Api(), make("one"), make("other")
    run(one, api, 0.0)
    run(other, api, 0.0)
    assert other.resign(wall=WALL) is None
    assert make("third").resign(wall=WALL) is None


def test_letting_go_while_a_renewal_is_under_way_takes_a_second_look() -> None:
    api, one = Api(), make("one")
    run(one, api, 0.0)
    renewal = one.step(2.0, wall=WALL + 2)
    assert isinstance(renewal, Write)
    assert api.write(renewal.record) is not None
    first = one.resign(wall=WALL + 2)
    assert first is not None
    assert api.write(first) is None
    one.observed(api.record, now=2.1)
    assert not one.is_leading(2.1)
    second = one.resign(wall=WALL + 2)
    assert second is not None
    assert api.write(second) is not None


def test_a_lease_that_is_deleted_is_left_alone_for_as_long_as_its_holder_may_not_know() -> None:
    api, one, other = Api(), make("one"), make("other")
    run(one, api, 0.0)
    run(other, api, 0.0)
    api.record = None
    run(other, api, 3.0)
    assert not other.is_leading(3.0)
    run(other, api, 17.9)
    assert not other.is_leading(17.9)
    run(other, api, 20.4)
    assert other.is_leading(20.4)


def test_the_former_holder_leads_again_at_once_if_nobody_took_the_lease() -> None:
    api, one = Api(), make("one")
    run(one, api, 0.0)
    for now in (2.0, 4.0, 6.0, 8.0, 10.0, 60.0):
        assert not isinstance(one.step(now, wall=WALL + now), Wait)
        one.failed(now=now)
    assert not one.is_leading(62.0)
    run(one, api, 62.0)
    assert one.is_leading(62.0)
    assert api.record is not None
    assert api.record.acquired_at == WALL + 62
    assert api.record.transitions == 0


def test_labels_and_annotations_of_a_lease_are_kept() -> None:
    api, one = Api(), make("one")
    api.write(LeaseRecord(namespace="ns", name="router-controller", labels={"a": "b"}, annotations={"c": "d"}))
    run(one, api, 0.0)
    assert api.record is not None
    assert (api.record.labels, api.record.annotations) == ({"a": "b"}, {"c": "d"})


def test_a_change_by_others_that_leaves_us_the_holder_ends_nothing() -> None:
    api, one = Api(), make("one")
    run(one, api, 0.0)
    assert api.record is not None
    api.write(
        LeaseRecord(**{**{n: getattr(api.record, n) for n in api.record.__struct_fields__}, "labels": {"x": "y"}})
    )
    assert isinstance(act(one, api, 2.0), Write), "lost against the one that labelled it"
    assert one.is_leading(2.0)
    run(one, api, 4.0)
    assert one.leads_until == 14.0
    assert api.record.labels == {"x": "y"}


def test_the_duration_that_counts_is_the_holders() -> None:
    api, one, other = Api(), make("one", duration_s=60, renew_deadline_s=40.0), make("other")
    run(one, api, 0.0)
    run(other, api, 0.0)
    run(other, api, 59.0)
    assert not other.is_leading(59.0)
    run(other, api, 61.5)
    assert other.is_leading(61.5)


def test_writes_of_unknown_outcome_are_remembered_up_to_a_limit() -> None:
    api, one = Api(), make("one")
    run(one, api, 0.0)
    now = 2.0
    for _ in range(3 * MAX_UNKNOWN):
        action = one.step(now, wall=WALL + now)
        if isinstance(action, Read):
            one.observed(api.record, now=now)
            action = one.step(now, wall=WALL + now)
        assert isinstance(action, Write)
        one.failed(now=now)
        now += 2.0
    assert len(one._sent) == MAX_UNKNOWN


def test_who_does_not_lead_looks_again_at_a_random_moment() -> None:
    api, one, other = Api(), make("one"), make("other", random.Random(1))
    run(one, api, 0.0)
    waits = set()
    now = 0.0
    for _ in range(5):
        action = act(other, api, now)
        while not isinstance(action, Wait):
            action = act(other, api, now)
        waits.add(round(action.until - now, 6))
        now = action.until
    assert len(waits) == 5
    assert all(2.0 <= wait <= 2.4 for wait in waits)


@pytest.mark.parametrize(
    "times",
    [
        {"duration_s": 10, "renew_deadline_s": 10.0},
        {"renew_deadline_s": 2.4, "retry_s": 2.0},
        {"retry_s": 0.0, "renew_deadline_s": 10.0},
    ],
)
def test_times_that_cannot_be_safe_are_refused(times: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected duration > renew deadline"):
        LeaseTimes(**times)  # type: ignore[arg-type]
