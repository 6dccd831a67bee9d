"""Bodies tell a cut, shifted or foreign one from the right one."""

from __future__ import annotations

import pytest

from datum_soak.config import Promises
from datum_soak.load import check_body, check_status
from datum_soak.memory import slope_bound, slope_per_hour
from datum_soak.outcomes import Cause, Failure
from datum_soak.payload import first_difference, make_body


@pytest.mark.parametrize("size", [0, 1, 17, 1024, 65536])
def test_a_body_has_its_size_and_no_other_request_has_it(size: int) -> None:
    body = make_body("r1", size)
    assert len(body) == size
    assert make_body("r1", size) == body
    if size > 1:
        assert make_body("r2", size) != body


def test_no_two_places_of_a_body_look_the_same() -> None:
    body = make_body("r1", 100_000)
    assert body.count(body[50_000:50_120]) == 1


def test_the_first_difference_is_found() -> None:
    body = make_body("r1", 5000)
    assert first_difference(body, body) == -1
    assert first_difference(body[:4000], body) == 4000
    assert first_difference(body[:1234] + b"?" + body[1235:], body) == 1234


@pytest.mark.parametrize("found", [make_body("r1", 999), make_body("r2", 1000), make_body("r1", 1000) + b"x"])
def test_a_wrong_body_is_a_failure(found: bytes) -> None:
    with pytest.raises(Failure) as caught:
        check_body(found, make_body("r1", 1000))
    assert caught.value.cause is Cause.CORRUPT


def test_an_error_status_keeps_the_gateways_reason() -> None:
    check_status(200, b"")
    with pytest.raises(Failure) as caught:
        check_status(503, b"pool_overflow: no connection to the upstream got free in time\nrequest id: 1\n")
    assert (caught.value.status, caught.value.reason) == (503, "pool_overflow")


def test_an_older_edit_than_the_one_in_force_is_a_failure() -> None:
    Promises.check_generation("7", 7)
    Promises.check_generation("8", 7)
    for found in ("6", "", "x"):
        with pytest.raises(Failure) as caught:
            Promises.check_generation(found, 7)
        assert caught.value.cause is Cause.STALE_CONFIG


def test_a_removed_endpoint_may_answer_only_what_began_before_its_grace_ended() -> None:
    promises = Promises()
    promises.removed["e1"] = 10.0
    promises.check_backend("e1", 10.9)
    assert promises.served == {"e1": 1}
    with pytest.raises(Failure) as caught:
        promises.check_backend("e1", 11.1)
    assert caught.value.cause is Cause.REMOVED_ENDPOINT


def test_the_slope_is_that_of_a_line_and_outliers_do_not_move_it() -> None:
    line = [(float(second), 40.0 + second / 3600 * 2.0) for second in range(120)]
    assert slope_per_hour(line) == pytest.approx(2.0)
    line[5] = (5.0, 400.0)
    assert slope_per_hour(line) == pytest.approx(2.0, abs=0.1)
    assert slope_per_hour([(0.0, 40.0)]) == 0.0


def test_a_longer_run_has_a_narrower_bound() -> None:
    assert slope_bound(3600.0) == pytest.approx(2.0)
    assert slope_bound(60.0) == pytest.approx(61.0)
