"""What the lab takes as right and as wrong when a cloud is cut off, from made-up records."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from lab import chart, verdict
from lab.traffic import Answer
from lab.verdict import Logged, Outage, SliceSeen

DEAD = ("10.1.2.10:", "[fd10:1:2::10]:")
OUTAGE = Outage(
    began=0.0,
    cutting_at=3.0,
    cut_at=3.1,
    out_at=5.0,
    stale_at=25.0,
    joined_at=30.0,
    back_at=32.0,
    heard_at=33.0,
    ended_at=40.0,
)
GOOD = [
    Answer(1.0, 1.1, 200, "gcp"),
    Answer(2.0, 2.1, 200, "prem"),
    Answer(4.0, 4.6, 200, "prem"),
    Answer(10.0, 10.1, 200, "prem"),
    Answer(39.0, 39.1, 200, "gcp"),
]
LOGGED = [
    Logged(1.0, 200, "10.1.2.10:8080@blue/net", 1),
    Logged(4.0, 200, "10.1.3.10:8080@blue/net", 2),
    Logged(10.0, 200, "10.1.3.10:8080@blue/net", 1),
]


def answers(*more: Answer) -> list[str]:
    return verdict.judge_answers([*GOOD, *more], OUTAGE, other="prem")


def test_nothing_is_wrong_where_all_is_well() -> None:
    assert answers() == []
    assert verdict.judge_log(LOGGED, OUTAGE, dead=DEAD) == []


@pytest.mark.parametrize(
    ("status", "began", "told"),
    [
        (504, 6.5, "504 at t=+3.40 s"),
        (0, 35.0, "no answer at t=+31.90 s"),
        (503, 0.5, "503 at t=-2.60 s"),
    ],
)
def test_what_fails_without_having_been_in_flight_is_told(status: int, began: float, told: str) -> None:
    found = answers(Answer(began, began + 0.1, status))
    assert found[0] == f"1 requests failed that were not in flight at the cut: {told}"


def test_what_was_in_flight_at_the_cut_may_fail() -> None:
    assert answers(Answer(2.9, 5.0, 504), Answer(3.05, 3.5, 0)) == []


def test_an_answer_of_a_cloud_that_is_out_is_told() -> None:
    assert answers(Answer(6.5, 6.6, 200, "gcp")) == [
        "while the cloud was out, 1 of 2 requests were answered by Counter({'gcp': 1})"
    ]


def test_without_a_request_in_the_outage_nothing_is_proved() -> None:
    assert verdict.judge_answers(GOOD[:3], OUTAGE, other="prem") == [
        "no request was sent while the cloud was out, so nothing is known of it"
    ]
    (told,) = verdict.judge_log(LOGGED[:2], OUTAGE, dead=DEAD)
    assert told.startswith("0 of 0 requests went to the cloud")


@pytest.mark.parametrize(
    "entry",
    [Logged(6.5, 200, "[fd10:1:2::10]:8080@blue/net", 1), Logged(6.5, 200, "10.1.3.10:8080@blue/net", 2)],
)
def test_a_request_that_was_sent_to_a_cloud_that_is_out_is_told(entry: Logged) -> None:
    (told,) = verdict.judge_log([*LOGGED, entry], OUTAGE, dead=DEAD)
    assert told == f"1 of 2 requests went to the cloud after its probes had failed: [{entry}]"


def test_a_failure_with_the_other_cloud_is_told_but_for_what_was_before_the_step() -> None:
    entry = Logged(7.0, 502, "10.1.3.10:8080@blue/net", 1)
    assert verdict.judge_log([*LOGGED, entry], OUTAGE, dead=DEAD) == [
        f"1 requests failed that were with another cloud, the first: {entry}"
    ]
    assert verdict.judge_log([*LOGGED, dataclasses.replace(entry, began=-1.0)], OUTAGE, dead=DEAD) == []


# --- slices --------------------------------------------------------------------------------------------------------


def event(kind: str = "MODIFIED", *, stale: str = "", addresses: tuple[str, ...] = ("10.1.2.10",)) -> dict[str, Any]:
    notes = {"router.datum.net/vpc-service": "shop", "router.datum.net/vpc": "blue/net", "other": "x"}
    if stale:
        notes["router.datum.net/stale-since"] = stale
    return {
        "type": kind,
        "object": {
            "metadata": {"name": "shop-1", "labels": {"router.datum.net/source-cluster": "gcp"}, "annotations": notes},
            "endpoints": [{"addresses": [one], "conditions": {"ready": True}} for one in addresses],
        },
    }


SINCE = "2026-01-02T03:04:05Z"


def test_a_mark_that_comes_and_goes_once_is_right() -> None:
    assert verdict.judge_slices([event("ADDED"), event(stale=SINCE), event(stale=SINCE), event()], "gcp") == []


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([event("ADDED"), event(stale=SINCE), event(), event(stale=SINCE), event()], "True, False, True, False]"),
        ([event("ADDED")], "on each slice: {'shop-1': [False]}"),
        ([], "on each slice: no slice"),
        ([event("ADDED"), event(stale=SINCE), event("DELETED"), event()], "slice shop-1 was deleted"),
        (
            [event("ADDED"), event(stale=SINCE, addresses=()), event()],
            "slice shop-1: endpoints (('10.1.2.10', True),) became ()",
        ),
    ],
)
def test_what_flickers_is_told(events: list[dict[str, Any]], told: str) -> None:
    (found,) = verdict.judge_slices(events, "gcp")
    assert told in found


def test_slices_of_other_clusters_and_of_others_do_not_count() -> None:
    good = [event("ADDED"), event(stale=SINCE), event()]
    other, foreign = event("DELETED"), event("DELETED")
    other["object"]["metadata"]["labels"] = {"router.datum.net/source-cluster": "prem"}
    foreign["object"]["metadata"]["labels"] = {}
    assert verdict.judge_slices([*good, other, foreign], "gcp") == []


def test_a_slice_is_read() -> None:
    found = verdict.slice_of(event(stale=SINCE)["object"])
    notes = {"vpc-service": "shop", "vpc": "blue/net", "stale-since": SINCE}
    assert found == SliceSeen("shop-1", "shop", "gcp", (("10.1.2.10", True),), notes)
    assert found is not None
    assert found.stale_since == SINCE


def test_a_watch_is_read_up_to_what_is_cut() -> None:
    text = json.dumps(event("ADDED"), indent=4) + "\n" + json.dumps(event()) + '\n{"type": "MOD'
    assert [one["type"] for one in verdict.read_events(text)] == ["ADDED", "MODIFIED"]
    assert list(verdict.read_events("")) == []


# --- the return ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "is_right"),
    [
        ([0.0, 0.0, 0.1, 0.2, 0.4, 0.5, 0.5], True),
        ([0.0, 0.5, 0.5, 0.5, 0.5], False),  # at once
        ([0.0, 0.2, 0.33, 0.33, 0.5, 0.5], False),  # one endpoint at once within a second, then the other
        ([0.0, 0.1, 0.1, 0.1, 0.1], False),  # never what it was
        ([0.29, 0.29, 0.5, 0.5], True),
        ([0.29, 0.31, 0.5, 0.5], False),
        ([0.0, 0.0], False),
    ],
)
def test_a_share_that_grows_to_what_it_was_is_a_return(shares: list[float], is_right: bool) -> None:
    assert (verdict.judge_return(shares) == []) is is_right


def test_a_share_is_that_of_the_requests_that_began_in_a_time() -> None:
    some = [Answer(1.0, 9.0, 200, "gcp"), Answer(1.5, 1.6, 200, "prem"), Answer(2.0, 2.1, 200, "prem")]
    assert verdict.share(some, 1.0, 2.0, "gcp") == 0.5
    assert verdict.share(some, 5.0, 6.0, "gcp") == 0.0


# --- the chart -----------------------------------------------------------------------------------------------------


def test_a_chart_has_a_column_a_second_with_shares_and_failures() -> None:
    some = [
        *(Answer(0.1 * number, 1.0, 200, ("gcp", "prem")[number % 2]) for number in range(8)),
        *(Answer(1.0 + 0.1 * number, 2.0, 200, "prem") for number in range(7)),
        Answer(1.9, 2.0, 504, ""),
        Answer(3.0, 3.1, 200, "gcp"),
    ]
    lines = chart.draw(some, ("gcp", "prem"), {"C": 1.0, "P": 1.5, "B": 9.0}, start=0.0, end=4.0)
    assert lines == [
        " 100% |.x #",
        "  88% |.. #",
        "  75% |.. #",
        "  62% |.. #",
        "  50% |#. #",
        "  38% |#. #",
        "  25% |#. #",
        "  12% |#. #",
        "      +-CPB",
        "       a column: 1 s; # gcp, . prem, x failed",
    ]


def test_a_long_time_has_columns_of_several_seconds() -> None:
    lines = chart.draw([Answer(0.5, 0.6, 200, "gcp")], ("gcp",), {}, start=0.0, end=250.0)
    assert lines[-1] == "       a column: 3 s; # gcp, x failed"
    assert len(lines[0]) == len("  100% |") - 1 + 83


def test_few_failures_are_seen_nevertheless() -> None:
    some = [Answer(0.001 * number, 1.0, 200, "prem") for number in range(500)]
    lines = chart.draw([*some, Answer(0.9, 1.0, 503)], ("gcp", "prem"), {}, start=0.0, end=1.0)
    assert [line[-1] for line in lines[: chart.ROWS]] == ["x", *"......."]
