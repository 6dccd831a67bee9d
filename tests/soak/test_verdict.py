"""The verdict excuses a failure only for a reason of its own, never for its time alone."""

from __future__ import annotations

from typing import Any

import pytest

from datum_soak.outcomes import Address, Cause, Kind, Ledger, Record
from datum_soak.verdict import Excuse, Facts, Window, by_window, excuse, judge_failures, request_checks

HELD: Address = ("127.0.0.1", 40001)
OTHER: Address = ("127.0.0.1", 40002)
FACTS = Facts(
    killed={HELD: 10.0},
    exhausted=(Window(name="descriptors exhausted", start_s=20.0, end_s=25.0),),
    going_away=(Window(name="rolling restart", start_s=30.0, end_s=40.0),),
)


def failure(
    cause: Cause,
    *,
    kind: Kind = Kind.H1_GET,
    started_s: float = 9.9,
    ended_s: float = 10.1,
    local: Address | None = OTHER,
    is_reused: bool = True,
    has_answer_begun: bool = False,
    status: int = 0,
    reason: str = "",
) -> Record:
    return Record(
        kind=kind,
        started_s=started_s,
        ended_s=ended_s,
        cause=cause,
        local=local,
        is_reused=is_reused,
        has_answer_begun=has_answer_begun,
        status=status,
        reason=reason,
    )


@pytest.mark.parametrize("cause", [Cause.CUT_BODY, Cause.STREAM_RESET])
def test_a_cut_body_is_excused_only_if_the_upstream_was_to_cut_it(cause: Cause) -> None:
    assert excuse(failure(cause, kind=Kind.H2_CUT, has_answer_begun=True), FACTS) is Excuse.CUT_BY_UPSTREAM
    assert excuse(failure(cause, kind=Kind.H1_GET, has_answer_begun=True), FACTS) is None
    assert excuse(failure(cause, kind=Kind.H1_CUT, has_answer_begun=False), FACTS) is None


@pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.STATUS, Cause.CORRUPT, Cause.MIXED_UP, Cause.CLOSED])
def test_a_marked_request_may_fail_by_the_cut_only(cause: Cause) -> None:
    assert excuse(failure(cause, kind=Kind.H1_CUT, has_answer_begun=True), FACTS) is None


@pytest.mark.parametrize("cause", [Cause.RESET, Cause.CLOSED, Cause.CUT_BODY])
def test_a_killed_worker_excuses_what_its_own_connections_lost(cause: Cause) -> None:
    assert excuse(failure(cause, local=HELD), FACTS) is Excuse.WORKER_KILLED
    assert excuse(failure(cause, local=OTHER), FACTS) is None
    assert excuse(failure(cause, local=None), FACTS) is None


def test_a_killed_worker_excuses_nothing_that_ended_before_it_was_killed() -> None:
    assert excuse(failure(Cause.RESET, local=HELD, started_s=8.0, ended_s=9.0), FACTS) is None


def test_a_killed_worker_excuses_nothing_on_a_later_connection_from_the_same_port() -> None:
    assert excuse(failure(Cause.RESET, local=HELD, started_s=11.5, ended_s=11.6), FACTS) is None


@pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.REFUSED, Cause.STATUS, Cause.CORRUPT, Cause.CLIENT])
def test_a_killed_worker_excuses_no_other_cause(cause: Cause) -> None:
    assert excuse(failure(cause, local=HELD), FACTS) is None


def test_short_descriptors_excuse_new_connections_in_that_time_only() -> None:
    during = {"started_s": 21.0, "ended_s": 21.5}
    assert excuse(failure(Cause.RESET, is_reused=False, **during), FACTS) is Excuse.NO_DESCRIPTORS
    assert excuse(failure(Cause.RESET, is_reused=True, **during), FACTS) is None
    assert excuse(failure(Cause.RESET, is_reused=False, has_answer_begun=True, **during), FACTS) is None
    assert excuse(failure(Cause.RESET, is_reused=False, started_s=25.1, ended_s=25.2), FACTS) is None
    assert excuse(failure(Cause.STATUS, status=502, is_reused=False, **during), FACTS) is None


def test_short_descriptors_excuse_an_answer_that_says_so_in_that_time_only() -> None:
    said: dict[str, Any] = {"status": 503, "reason": "local_resources"}
    assert excuse(failure(Cause.STATUS, started_s=21.0, ended_s=21.5, **said), FACTS) is Excuse.NO_UPSTREAM_DESCRIPTOR
    assert excuse(failure(Cause.STATUS, started_s=9.0, ended_s=9.5, **said), FACTS) is None
    other = failure(Cause.STATUS, started_s=21.0, ended_s=21.5, status=503, reason="connect_failed")
    assert excuse(other, FACTS) is None


def test_a_restart_excuses_a_websocket_message_that_crossed_the_close_frame_and_nothing_else() -> None:
    during = {"started_s": 39.0, "ended_s": 39.1}
    assert excuse(failure(Cause.GOING_AWAY, kind=Kind.WEBSOCKET, **during), FACTS) is Excuse.TUNNEL_CLOSED
    assert excuse(failure(Cause.GOING_AWAY, kind=Kind.WEBSOCKET, started_s=50.0, ended_s=50.1), FACTS) is None
    for cause in set(Cause) - {Cause.GOING_AWAY, Cause.ANSWERED}:
        assert excuse(failure(cause, **during), FACTS) is None


def test_answered_requests_need_no_excuse() -> None:
    with pytest.raises(ValueError, match="only failures"):
        excuse(failure(Cause.ANSWERED), FACTS)


def test_failures_are_either_excused_or_listed() -> None:
    bad = failure(Cause.RESET, local=OTHER)
    excused, unexcused = judge_failures([failure(Cause.RESET, local=HELD), bad], FACTS)
    assert excused == {str(Excuse.WORKER_KILLED): 1}
    assert unexcused == [bad]


def test_a_failure_counts_in_each_window_that_it_overlaps_and_else_as_quiet() -> None:
    windows = [Window(name="a", start_s=0.0, end_s=5.0), Window(name="b", start_s=4.0, end_s=6.0)]
    both = failure(Cause.RESET, started_s=4.5, ended_s=4.6)
    none = failure(Cause.STATUS, status=503, reason="pool_overflow", started_s=7.0, ended_s=8.0)
    assert by_window([both, none], windows) == {
        "a": {"h1 get: reset": 1},
        "b": {"h1 get: reset": 1},
        "quiet": {"h1 get: 503 pool_overflow": 1},
    }


def checks(**given: object) -> dict[str, bool]:
    arguments: dict[str, object] = {
        "sent": {Kind.H1_GET: 10, Kind.H1_CUT: 1},
        "answered": {Kind.H1_GET: 10},
        "failures": [failure(Cause.CUT_BODY, kind=Kind.H1_CUT, has_answer_begun=True)],
        "facts": FACTS,
        "pending": 0,
        "not_sent": 0,
    }
    return {check.name: check.is_met for check in request_checks(**{**arguments, **given})}  # type: ignore[arg-type]


def test_a_soak_whose_only_failures_are_marked_ones_meets_every_check() -> None:
    assert all(checks().values())


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"failures": [failure(Cause.RESET)]}, "failures without excuse"),
        ({"failures": [failure(Cause.STATUS, status=404, reason="no_route")]}, "404 flicker under edits"),
        ({"answered": {Kind.H1_GET: 10, Kind.H1_CUT: 1}}, "marked bodies that arrived whole"),
        ({"answered": {}}, "kinds of request never answered"),
        ({"sent": {}, "answered": {}, "failures": []}, "kinds of request never answered"),
        ({"pending": 1}, "requests without an end"),
        ({"not_sent": 1}, "due requests not sent (generator behind)"),
    ],
)
def test_each_check_can_fail(given: dict[str, object], name: str) -> None:
    assert checks(**given)[name] is False


def test_the_ledger_counts_every_request_once() -> None:
    ledger = Ledger()
    for cause in (Cause.ANSWERED, Cause.RESET):
        ledger.begin(Kind.H1_GET)
        ledger.end(failure(cause))
    ledger.begin(Kind.H1_GET)
    assert ledger.pending == 1
    assert (ledger.answered[Kind.H1_GET], len(ledger.failures)) == (1, 1)
    assert (ledger.seconds[10].answered, ledger.seconds[10].failed) == (1, 1)


def test_the_label_of_an_error_status_names_the_gateways_reason() -> None:
    assert failure(Cause.STATUS, status=503, reason="pool_overflow").label == "503 pool_overflow"
    assert failure(Cause.TIMEOUT).label == "timeout"
