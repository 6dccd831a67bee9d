from __future__ import annotations

import msgspec

from datum_router.balancing.base import ALL_USABLE, ALWAYS
from datum_router.health.active import HealthState
from datum_router.health.trial import TrialVerdict
from datum_router.health.view import HealthBook, HealthReason, HealthTable, OutcomeBatch
from datum_router.model.endpoint import EndpointKey, make_endpoint
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import ActiveHealthPolicy, OutlierPolicy
from datum_router.model.service import Service, ServiceKey
from datum_router.plugins.protocols import HealthChange, ProbeResult
from datum_router.testing.factories import make_endpoints, make_health_book, make_service

UP, DOWN = ProbeResult(is_ok=True), ProbeResult(is_ok=False, detail="connection refused")
ACTIVE = ActiveHealthPolicy(unhealthy_threshold=3, healthy_threshold=2)
SERVICE = make_service(endpoints=4, active=ACTIVE, outlier=OutlierPolicy(base_ejection_time_s=30.0))
A, B = SERVICE.endpoints[0].key, SERVICE.endpoints[1].key


def book(*services: Service, now: float = 0.0) -> HealthBook:
    made = make_health_book()
    made.set_services({service.key: service for service in services}, now=now)
    return made


def failures(endpoint: EndpointKey = A, count: int = 5) -> OutcomeBatch:
    return OutcomeBatch(service=SERVICE.key, endpoint=endpoint, runs=((OutcomeClass.GATEWAY_ERROR, count),))


def probes(made: HealthBook, results: list[ProbeResult], *, start: float = 1.0) -> list[HealthChange]:
    changes: list[HealthChange] = []
    for second, result in enumerate(results):
        changes += made.record_probe(SERVICE.key, A, result, now=start + second)
    return changes


def test_endpoints_are_usable_before_their_first_probe() -> None:
    made = book(SERVICE)
    assert made.view(SERVICE.key).is_usable(A)
    assert made.all_changes() == []
    assert made.describe(now=0.0)[SERVICE.key][0].state is HealthState.UNKNOWN


def test_a_failed_first_probe_takes_an_endpoint_out_at_once() -> None:
    made = book(SERVICE)
    [change] = probes(made, [DOWN])
    assert (change.endpoint, change.is_usable, change.since, change.reason) == (A, False, 1.0, "probe_failed")
    assert not made.view(SERVICE.key).is_usable(A)
    assert made.view(SERVICE.key).is_usable(B)


def test_a_passed_first_probe_changes_nothing() -> None:
    made = book(SERVICE)
    assert probes(made, [UP]) == []
    assert made.view(SERVICE.key).usable_since(A) == ALWAYS


def test_recovery_by_probes_begins_a_new_usable_time() -> None:
    made = book(SERVICE)
    changes = probes(made, [DOWN, UP, UP])
    assert [(change.is_usable, change.since) for change in changes] == [(False, 1.0), (True, 3.0)]
    assert made.view(SERVICE.key).usable_since(A) == 3.0


def verdict(number: int, *, is_ok: bool, endpoint: EndpointKey = A) -> TrialVerdict:
    return TrialVerdict(service=SERVICE.key, endpoint=endpoint, number=number, is_ok=is_ok)


def test_ejection_trials_and_return() -> None:
    made = book(SERVICE)
    [out] = made.record_outcomes([failures()], now=5.0)
    assert (out.is_usable, out.since, out.reason) == (False, 5.0, "ejected_consecutive_gateway_errors")
    assert made.next_due() == 35.0
    assert made.expire(34.9) == []
    [half] = made.expire(35.0)
    assert (half.is_usable, half.since, half.trial, half.reason) == (False, 5.0, 1, "half_open")
    assert made.next_due() is None
    [again] = made.record_trials([verdict(1, is_ok=False), verdict(1, is_ok=True)], now=36.0)
    assert (again.is_usable, again.trial, again.reason) == (False, 0, "trial_failed")
    assert made.next_due() == 36.0 + 60.0
    [half] = made.expire(96.0)
    assert half.trial == 2
    [back] = made.record_trials([verdict(2, is_ok=True)], now=97.0)
    assert (back.is_usable, back.since, back.trial, back.reason) == (True, 97.0, 0, "trial_passed")
    assert made.next_due() is None


def test_numbers_of_trials_are_those_of_no_other_endpoint_or_service() -> None:
    other = make_service("d/other", make_endpoints(1), outlier=OutlierPolicy(base_ejection_time_s=30.0))
    made = book(SERVICE, other)
    batch = OutcomeBatch(service=other.key, endpoint=other.endpoints[0].key, runs=((OutcomeClass.GATEWAY_ERROR, 5),))
    made.record_outcomes([failures(), failures(B), batch], now=0.0)
    assert sorted(change.trial for change in made.expire(30.0)) == [1, 2, 3]


def test_verdicts_on_what_is_not_there_are_ignored() -> None:
    made = book(SERVICE)
    unknown = TrialVerdict(service=ServiceKey("d/none"), endpoint=A, number=1, is_ok=False)
    assert made.record_trials([unknown, verdict(1, is_ok=False)], now=1.0) == []
    unwatched = msgspec.structs.replace(SERVICE, outlier=None)
    made.set_services({unwatched.key: unwatched}, now=2.0)
    assert made.record_trials([verdict(1, is_ok=False)], now=3.0) == []


def test_a_half_open_endpoint_that_probes_find_down_is_not_tried() -> None:
    made = book(SERVICE)
    probes(made, [UP])
    made.record_outcomes([failures()], now=5.0)
    table = HealthTable()
    table.apply(made.expire(35.0))
    assert table.trials(SERVICE.key) == {A: 1}
    [change] = probes(made, [DOWN, DOWN, DOWN], start=36.0)
    assert (change.is_usable, change.trial, change.reason) == (False, 0, "probe_failed")
    table.apply([change])
    assert table.trials(SERVICE.key) == {}


def test_a_passing_probe_brings_a_half_open_endpoint_back() -> None:
    made = book(SERVICE)
    made.record_outcomes([failures()], now=5.0)
    made.expire(35.0)
    [back] = probes(made, [UP], start=36.0)
    assert (back.is_usable, back.trial, back.reason) == (True, 0, "probe_passed")


def test_tables_know_which_endpoints_are_half_open() -> None:
    made, table, late = book(SERVICE), HealthTable(), HealthTable()
    assert table.trials(SERVICE.key) == {}
    table.apply(made.record_outcomes([failures()], now=5.0))
    assert table.trials(SERVICE.key) == {}
    assert table.apply(made.expire(35.0)) == {SERVICE.key}
    late.reset(made.all_changes())
    assert table.trials(SERVICE.key) == late.trials(SERVICE.key) == {A: 1}
    assert not table.view(SERVICE.key).is_usable(A)
    table.apply(made.record_trials([verdict(1, is_ok=True)], now=36.0))
    assert table.trials(SERVICE.key) == {}
    assert table.view(SERVICE.key).is_usable(A)


def test_outcomes_half_open_due_breakers_even_if_nobody_called_expire() -> None:
    made = book(SERVICE)
    made.record_outcomes([failures()], now=5.0)
    changes = made.record_outcomes([failures(B, 1)], now=40.0)
    assert [(change.endpoint, change.is_usable, change.trial) for change in changes] == [(A, False, 1)]


def test_an_endpoint_that_is_both_ejected_and_down_needs_both_to_return() -> None:
    made = book(SERVICE)
    probes(made, [UP])
    made.record_outcomes([failures()], now=5.0)
    assert probes(made, [DOWN, DOWN, DOWN], start=6.0) == []
    assert made.expire(35.0) == []
    assert not made.view(SERVICE.key).is_usable(A)
    [back] = probes(made, [UP, UP], start=40.0)
    assert back.is_usable


def test_recovery_by_probes_ends_an_ejection_too() -> None:
    made = book(SERVICE)
    probes(made, [DOWN])
    made.record_outcomes([failures()], now=1.5)
    [back] = probes(made, [UP, UP], start=2.0)
    assert back.is_usable
    assert made.expire(1000.0) == []
    assert made.next_due() is None


def test_an_endpoint_that_joins_is_usable_since_then() -> None:
    made = book(SERVICE)
    grown = msgspec.structs.replace(SERVICE, endpoints=make_endpoints(5))
    [change] = made.set_services({grown.key: grown}, now=7.0)
    assert (change.endpoint, change.is_usable, change.since) == (grown.endpoints[4].key, True, 7.0)
    assert made.set_services({grown.key: grown}, now=8.0) == []


def test_a_leaving_endpoint_is_taken_out_of_tables() -> None:
    made, table = book(SERVICE), HealthTable()
    table.apply(probes(made, [DOWN]))
    shrunk = msgspec.structs.replace(SERVICE, endpoints=SERVICE.endpoints[1:])
    changes = made.set_services({shrunk.key: shrunk}, now=9.0)
    assert [(change.endpoint, change.reason) for change in changes] == [(A, "removed")]
    assert table.apply(changes) == {SERVICE.key}
    assert table.view(SERVICE.key) is ALL_USABLE
    assert table._entries == {}
    back = made.set_services({SERVICE.key: SERVICE}, now=10.0)
    assert [(change.endpoint, change.is_usable, change.since) for change in back] == [(A, True, 10.0)]


def test_a_removed_service_leaves_nothing_behind() -> None:
    made, table = book(SERVICE), HealthTable()
    table.apply(made.record_outcomes([failures()], now=1.0))
    table.apply(made.set_services({}, now=2.0))
    assert table._entries == {}
    assert made.describe(now=2.0) == {}
    assert made.next_due() is None
    assert made.expire(100.0) == []
    assert made.record_outcomes([failures()], now=3.0) == []
    assert probes(made, [DOWN]) == []


def test_removing_the_active_policy_makes_endpoints_usable_again() -> None:
    made = book(SERVICE)
    probes(made, [DOWN])
    unprobed = msgspec.structs.replace(SERVICE, active=None)
    [change] = made.set_services({unprobed.key: unprobed}, now=4.0)
    assert (change.is_usable, change.reason) == (True, "unchecked")
    assert probes(made, [DOWN]) == []


def test_removing_the_outlier_policy_ends_ejections() -> None:
    made = book(SERVICE)
    made.record_outcomes([failures()], now=1.0)
    unwatched = msgspec.structs.replace(SERVICE, outlier=None)
    [change] = made.set_services({unwatched.key: unwatched}, now=4.0)
    assert change.is_usable
    assert made.record_outcomes([failures()], now=5.0) == []
    assert made.next_due() is None


def test_a_changed_active_policy_keeps_the_state_and_begins_a_new_count() -> None:
    made = book(SERVICE)
    probes(made, [UP, DOWN, DOWN])
    stricter = msgspec.structs.replace(SERVICE, active=ActiveHealthPolicy(unhealthy_threshold=2))
    assert made.set_services({stricter.key: stricter}, now=5.0) == []
    assert probes(made, [DOWN], start=6.0) == []
    assert len(probes(made, [DOWN], start=7.0)) == 1


def test_unknown_services_and_endpoints_are_ignored() -> None:
    made = book(SERVICE)
    stranger = OutcomeBatch(service=ServiceKey("d/x"), endpoint=A, runs=((OutcomeClass.GATEWAY_ERROR, 9),))
    assert made.record_outcomes([stranger, failures(EndpointKey("192.0.2.1:1"))], now=1.0) == []
    assert made.record_probe(SERVICE.key, EndpointKey("192.0.2.1:1"), DOWN, now=1.0) == []


def test_a_table_made_from_all_changes_equals_the_book() -> None:
    made, table = book(SERVICE), HealthTable()
    probes(made, [DOWN])
    made.record_outcomes([failures(B)], now=5.0)
    grown = msgspec.structs.replace(SERVICE, endpoints=make_endpoints(6))
    made.set_services({grown.key: grown}, now=6.0)
    table.reset(made.all_changes())
    for endpoint in grown.endpoints:
        ours, theirs = made.view(SERVICE.key), table.view(SERVICE.key)
        assert ours.is_usable(endpoint.key) == theirs.is_usable(endpoint.key)
        if ours.is_usable(endpoint.key):
            assert ours.usable_since(endpoint.key) == theirs.usable_since(endpoint.key)


def test_applying_changes_twice_touches_nothing_the_second_time() -> None:
    made, table = book(SERVICE), HealthTable()
    changes = probes(made, [DOWN])
    assert table.apply(changes) == {SERVICE.key}
    view = table.view(SERVICE.key)
    assert table.apply(changes) == set()
    assert table.view(SERVICE.key) is view


def test_views_that_were_given_out_never_change() -> None:
    made, table = book(SERVICE), HealthTable()
    table.apply(probes(made, [DOWN]))
    view, of_book = table.view(SERVICE.key), made.view(SERVICE.key)
    table.apply(probes(made, [UP, UP], start=5.0))
    assert not view.is_usable(A)
    assert not of_book.is_usable(A)
    assert table.view(SERVICE.key).is_usable(A)


def test_reset_forgets_what_is_not_in_the_new_truth() -> None:
    made, table = book(SERVICE), HealthTable()
    table.apply(probes(made, [DOWN]))
    assert table.reset([]) == {SERVICE.key}
    assert table.view(SERVICE.key) is ALL_USABLE


def test_batches_and_changes_cross_a_process_border_unchanged() -> None:
    batch = failures()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=OutcomeBatch) == batch
    removed = HealthChange(
        service=SERVICE.key, endpoint=A, is_usable=True, since=ALWAYS, reason=HealthReason.REMOVED.value
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(removed), type=HealthChange) == removed


def test_description_can_be_written_as_json() -> None:
    made = book(SERVICE)
    probes(made, [DOWN])
    made.record_outcomes([failures(B)], now=5.0)
    first, second = msgspec.json.decode(msgspec.json.encode(made.describe(now=10.0)))[SERVICE.key][:2]
    assert (first["state"], first["is_usable"], first["detail"]) == ("unhealthy", False, "connection refused")
    assert (second["breaker"], second["times_ejected"], second["reason"]) == (
        "open",
        1,
        "ejected_consecutive_gateway_errors",
    )


def test_description_says_how_long_ago_and_how_long_still_not_what_a_clock_of_ours_shows() -> None:
    made = book(SERVICE)
    made.record_outcomes([failures(B)], now=5.0)
    untouched, ejected = made.describe(now=15.0)[SERVICE.key][:2]
    assert (untouched.unchanged_s, untouched.ejection_left_s) == (None, None)
    assert (ejected.unchanged_s, ejected.ejection_left_s) == (10.0, 20.0)
    late = made.describe(now=36.0)[SERVICE.key][1]
    assert (late.unchanged_s, late.ejection_left_s) == (31.0, 0.0), "due, but nobody has called expire yet"


def test_a_passing_probe_ends_an_ejection_for_not_answering_but_not_one_for_5xx_answers() -> None:
    for kind, is_back in ((OutcomeClass.GATEWAY_ERROR, True), (OutcomeClass.SERVER_ERROR, False)):
        policy = OutlierPolicy(consecutive_5xx=3, consecutive_gateway_errors=3)
        service = Service(
            key=ServiceKey("n/s"),
            endpoints=(make_endpoint("10.0.0.1", 80), make_endpoint("10.0.0.2", 80)),
            active=ActiveHealthPolicy(),
            outlier=policy,
        )
        book = make_health_book()
        book.set_services({service.key: service}, now=0.0)
        key = service.endpoints[0].key
        (out,) = book.record_outcomes([OutcomeBatch(service=service.key, endpoint=key, runs=((kind, 3),))], now=1.0)
        assert not out.is_usable
        changes = book.record_probe(service.key, key, ProbeResult(is_ok=True), now=2.0)
        assert [change.is_usable for change in changes] == ([True] if is_back else [])
