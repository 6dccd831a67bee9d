from __future__ import annotations

import gc

import pytest

from datum_router.observe.meter import CODE_SLOTS, DURATION_BOUNDS_S, MeterBook, MeterDelta


def only(book: MeterBook) -> MeterDelta:
    (delta,) = book.take()
    return delta


def test_a_request_is_counted_by_code_duration_and_bytes() -> None:
    book = MeterBook()
    meter = book.meter("h1", "default/api", "default/api")
    meter.ended(200, 0.003, 10, 1000)
    meter.ended(503, 0.003, 0, 20)
    meter.ended(0, 99.0, 5, 0)
    delta = only(book)
    assert (delta.protocol, delta.route, delta.service) == ("h1", "default/api", "default/api")
    assert len(delta.codes) == CODE_SLOTS
    assert {slot: count for slot, count in enumerate(delta.codes) if count} == {0: 1, 2: 1, 5: 1}
    assert {slot: count for slot, count in enumerate(delta.buckets) if count} == {2: 2, len(DURATION_BOUNDS_S): 1}
    assert delta.duration_s == pytest.approx(99.006)
    assert (delta.bytes_in, delta.bytes_out) == (15, 1020)


@pytest.mark.parametrize(("index", "bound"), list(enumerate(DURATION_BOUNDS_S)))
def test_a_bound_belongs_to_its_bucket(index: int, bound: float) -> None:
    book = MeterBook()
    meter = book.meter("h1", "", "")
    meter.ended(200, bound, 0, 0)
    assert only(book).buckets.index(1) == index


def test_what_was_taken_is_not_told_again() -> None:
    book = MeterBook()
    used = book.meter("h1", "default/a", "default/a")
    idle = book.meter("h1", "default/b", "default/b")
    used.ended(200, 0.1, 0, 0)
    assert [delta.route for delta in book.take()] == ["default/a"]
    assert book.take() == ()
    used.ended(200, 0.1, 0, 0)
    assert only(book).codes[2] == 1
    assert idle.route == "default/b"


def test_the_same_arguments_give_the_same_meter() -> None:
    book = MeterBook()
    meter = book.meter("h1", "default/a", "default/a")
    assert book.meter("h1", "default/a", "default/a") is meter
    assert book.meter("h2", "default/a", "default/a") is not meter


def test_a_meter_that_nobody_holds_is_forgotten_after_its_last_report() -> None:
    book = MeterBook()
    book.meter("h1", "default/a", "default/a").ended(200, 0.1, 0, 0)
    gc.collect()
    assert len(book) == 1, "its request is not reported yet"
    assert only(book).codes[2] == 1
    gc.collect()
    assert len(book) == 0
