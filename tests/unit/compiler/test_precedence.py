from __future__ import annotations

import itertools

import pytest

from datum_router.compiler.precedence import explain_order, sort_key
from datum_router.model.route import PathKind, Rule
from datum_router.testing.factories import make_rule

LADDER: list[tuple[Rule, str]] = [
    (make_rule("/z", hosts=("b.a.x",)), "an exact hostname precedes a wildcard hostname"),
    (make_rule("/z", hosts=("*.a.x",)), "its wildcard hostname is longer"),
    (make_rule("/z", hosts=("*.x",)), "a wildcard hostname precedes no hostname"),
    (make_rule("/a", PathKind.EXACT), "an exact path precedes a path pattern"),
    (make_rule("/a.*", PathKind.REGEX), "its path pattern is longer (4 characters against 3)"),
    (make_rule("/.*", PathKind.REGEX), "a path pattern precedes a path prefix"),
    (make_rule("/a/b"), "its path prefix is longer (4 characters against 2)"),
    (make_rule("/a"), "a path prefix precedes a gRPC method"),
    (make_rule(grpc_method="Get"), "a gRPC method precedes the path prefix /"),
    (make_rule(methods=("GET",), headers={"a": "1"}), "it has more header conditions (1 against 0)"),
    (make_rule(methods=("GET",), query={"a": "1"}), "it has more query conditions (1 against 0)"),
    (make_rule(methods=("GET",)), "it has a method condition"),
    (make_rule(headers={"a": "1", "b": "1"}), "it has more header conditions (2 against 1)"),
    (make_rule(headers={"a": "1"}), "it has more header conditions (1 against 0)"),
    (make_rule(query={"a": "1"}), "it has more query conditions (1 against 0)"),
    (
        make_rule(source_attachment="a/b", source_cidrs=("10.0.0.0/8",)),
        "its longest source network is narrower (/8 against /0)",
    ),
    (make_rule(source_attachment="a/b", source_cidrs=("0.0.0.0/0",)), "it has a source network"),
    (make_rule(source_attachment="a/b"), "it has a source attachment"),
    (make_rule(source_cidrs=("10.0.0.0/8", "10.1.0.0/16")), "its longest source network is narrower (/16 against /0)"),
    (make_rule(source_cidrs=("0.0.0.0/0",)), "it has a source network"),
    (make_rule(created_at=1.0), "it is older"),
    (make_rule(created_at=2.0), "its age is known, and an unknown age counts as newest"),
    (make_rule(route="a/b"), "its name a/b sorts before a/c"),
    (make_rule(route="a/c", index=0), "it stands earlier in a/c (position 0 against 1)"),
    (make_rule(route="a/c", index=1), ""),
]


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise(range(len(LADDER)))))
def test_each_step_of_the_order_and_its_reason(first: int, second: int) -> None:
    before, reason = LADDER[first]
    after = LADDER[second][0]
    assert sort_key(before) < sort_key(after)
    assert explain_order(before, after) == reason
    assert explain_order(after, before).startswith("it does not: ")


def test_whole_ladder_is_a_total_order() -> None:
    rules = [rule for rule, _ in LADDER]
    backwards = rules[::-1]
    assert sorted(backwards, key=sort_key) == rules


def test_rule_competes_with_each_of_its_hostnames() -> None:
    several = make_rule(hosts=("*.y", "a.x"))
    assert sort_key(several) == sort_key(several, "a.x")
    assert sort_key(several, "a.x") < sort_key(several, "*.y")
    other = make_rule(hosts=("b.y",), route="a/other")
    assert explain_order(other, several, host="b.y") == "an exact hostname precedes a wildcard hostname"


def test_grpc_service_and_method_count_as_their_paths() -> None:
    exact = make_rule(grpc_service="p.S", grpc_method="Get")
    assert sort_key(exact)[1][0] == sort_key(make_rule("/p.S/Get", PathKind.EXACT))[1][0]
    assert sort_key(make_rule(grpc_service="p.S"))[1][0] == sort_key(make_rule("/p.S"))[1][0]


def test_trailing_slash_of_a_prefix_gives_no_precedence() -> None:
    assert sort_key(make_rule("/a/")) == sort_key(make_rule("/a"))


def test_same_rule() -> None:
    assert explain_order(make_rule(), make_rule()) == "they are the same rule"
