"""The matcher, the explanation and a slow oracle agree; the order in which rules arrive never matters."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.precedence import sort_key
from datum_router.model.request import RequestHead
from datum_router.model.route import Rule
from datum_router.routing.explain import explain_match
from datum_router.routing.matcher import Matcher
from datum_router.routing.regex import MAX_PROGRAM_BYTES, RegexEngine, load_engine
from datum_router.testing.oracle import oracle_match
from datum_router.testing.strategies import heads, rule_sets

EXAMPLES = 200
requests = st.lists(heads(), min_size=1, max_size=8)


def rule_id(rule: Rule | None) -> str | None:
    return None if rule is None else rule.id


@settings(max_examples=EXAMPLES, deadline=None)
@given(rules=rule_sets(), heads=requests)
def test_matcher_and_explanation_agree_with_the_oracle(rules: list[Rule], heads: list[RequestHead]) -> None:
    matcher = Matcher(rules)
    assert matcher.problems == ()
    for head in heads:
        expected = rule_id(oracle_match(rules, head))
        assert rule_id(matcher.match(head)) == expected
        explanation = explain_match(rules, head)
        assert rule_id(explanation.winner) == expected
        assert [verdict.rule_id for verdict in explanation.candidates if verdict.is_winner] == (
            [] if expected is None else [expected]
        )
        assert len(explanation.candidates) == len(rules)


@settings(max_examples=EXAMPLES, deadline=None)
@given(rules=rule_sets(), heads=requests, seed=st.integers(0, 2**32))
def test_order_of_arrival_never_matters(rules: list[Rule], heads: list[RequestHead], seed: int) -> None:
    shuffled = list(rules)
    random.Random(seed).shuffle(shuffled)
    assert sorted(shuffled, key=sort_key) == sorted(rules, key=sort_key)
    first, second = Matcher(rules), Matcher(shuffled)
    for head in heads:
        assert rule_id(first.match(head)) == rule_id(second.match(head))


@settings(max_examples=EXAMPLES, deadline=None)
@given(rules=rule_sets(max_size=6, with_patterns=True), heads=requests)
def test_rules_with_patterns_match_nothing_without_an_engine(rules: list[Rule], heads: list[RequestHead]) -> None:
    matcher = Matcher(rules)
    unusable = {rule for rule, _ in matcher.problems}
    usable = [rule for rule in rules if rule.id not in unusable]
    for head in heads:
        expected = rule_id(oracle_match(usable, head))
        assert rule_id(matcher.match(head)) == expected
        assert rule_id(explain_match(rules, head).winner) == expected


@pytest.fixture(scope="module")
def engine() -> RegexEngine:
    pytest.importorskip("re2", reason="patterns need the optional extra datum-router[re2]")
    loaded = load_engine()
    assert loaded is not None
    return loaded


@settings(max_examples=EXAMPLES, deadline=None)
@given(rules=rule_sets(with_patterns=True), heads=requests)
def test_matcher_with_patterns_agrees_with_the_oracle(
    engine: RegexEngine, rules: list[Rule], heads: list[RequestHead]
) -> None:
    import re2

    def fullmatch(pattern: str, text: bytes) -> bool:
        options = re2.Options()
        options.max_mem = MAX_PROGRAM_BYTES
        return re2.compile(pattern, options).fullmatch(text.decode()) is not None

    matcher = Matcher(rules, engine)
    assert matcher.problems == ()
    for head in heads:
        expected = rule_id(oracle_match(rules, head, fullmatch))
        assert rule_id(matcher.match(head)) == expected
        assert rule_id(explain_match(rules, head, engine).winner) == expected
