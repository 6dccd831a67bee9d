from __future__ import annotations

import json

import pytest

from datum_router.model.route import PathKind, Rule, ValueKind
from datum_router.routing.explain import as_dict, explain_match, render
from datum_router.testing.factories import make_head, make_rule, value_match

HEAD = make_head("/a/b?k=1", method="GET", host="a.x", headers={"x-tier": "gold"}, client_ip="10.0.0.1")


@pytest.mark.parametrize(
    ("rule", "failed", "expected", "found"),
    [
        (make_rule(hosts=("b.x", "*.y")), "hostname", "b.x or *.y", "a.x"),
        (make_rule(listeners=("tls",)), "listener", "tls", "plain"),
        (make_rule("/c"), "path", 'prefix "/c"', "/a/b"),
        (make_rule(grpc_service="p.S"), "grpc", 'prefix "/p.S"', "/a/b"),
        (make_rule(grpc_method="Get"), "grpc", 'method "Get"', "b"),
        (make_rule(methods=("POST", "PUT")), "method", "POST or PUT", "GET"),
        (make_rule(headers={"X-Tier": "silver"}), "header x-tier", 'is "silver"', '"gold"'),
        (make_rule(headers=[value_match("x-no", kind=ValueKind.PRESENT)]), "header x-no", "is present", "absent"),
        (
            make_rule(headers=[value_match("x-tier", "go", ValueKind.PREFIX, is_inverted=True)]),
            "header x-tier",
            'does not begin with "go"',
            '"gold"',
        ),
        (make_rule(query={"k": "2"}), "query k", 'is "2"', '"1"'),
        (make_rule(source_cidrs=("192.0.2.0/24",)), "source", "192.0.2.0/24", "10.0.0.1"),
        (make_rule(source_attachment="a/edge"), "attachment", "a/edge", "no attachment"),
    ],
)
def test_first_condition_that_fails_is_told(rule: Rule, failed: str, expected: str, found: str) -> None:
    explanation = explain_match([rule], HEAD)
    assert explanation.winner is None
    (verdict,) = explanation.candidates
    assert (verdict.failed, verdict.expected, verdict.found) == (failed, expected, found)
    assert render(explanation)[0] == "no route: no rule matches"


def test_too_many_parameters_are_told() -> None:
    head = make_head("/?" + "&".join(["k=1"] * 101))
    (verdict,) = explain_match([make_rule(query={"k": "1"})], head).candidates
    assert verdict.found == "more than 100 parameters"


def test_unusable_rule_is_told() -> None:
    (verdict,) = explain_match([make_rule("/a.*", PathKind.REGEX)], HEAD).candidates
    assert (verdict.failed, verdict.expected) == ("rule", "a usable path")
    assert "re2" in verdict.found


def test_winner_losers_and_failures_stand_in_order() -> None:
    rules = [
        make_rule("/x", route="d/miss"),
        make_rule("/a", route="d/short"),
        make_rule("/a/b", route="d/long"),
        make_rule("/", route="d/host", hosts=("*.x",), methods=("POST",)),
    ]
    explanation = explain_match(rules, HEAD)
    assert explanation.winner is rules[2]
    assert render(explanation) == [
        "d/long#0: wins",
        "d/short#0: lost to d/long#0 because its path prefix is longer (4 characters against 2)",
        "d/host#0: method: expected POST, found GET",
        'd/miss#0: path: expected prefix "/x", found /a/b',
    ]
    plain = json.loads(json.dumps(as_dict(explanation)))
    assert plain["winner"] == "d/long#0"
    assert [item["is_winner"] for item in plain["candidates"]] == [True, False, False, False]
