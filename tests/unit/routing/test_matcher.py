from __future__ import annotations

import pytest

from datum_router.model.route import PathKind, Rule, ValueKind
from datum_router.reasons import Reason
from datum_router.routing.matcher import Matcher, rule_problems
from datum_router.routing.query import MAX_QUERY_PARAMS
from datum_router.testing.factories import make_head, make_rule, value_match


def winner(rules: list[Rule], *args: object, **kwargs: object) -> str | None:
    rule = Matcher(rules).match(make_head(*args, **kwargs))  # type: ignore[arg-type]  # passed through to the builder
    return None if rule is None else rule.route


def named(name: str, path: str = "/", kind: PathKind = PathKind.PREFIX, **conditions: object) -> Rule:
    return make_rule(path, kind, route=name, **conditions)  # type: ignore[arg-type]  # passed through to the builder


def test_no_rules_match_nothing() -> None:
    assert Matcher([]).match(make_head("/")) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api", "api"),
        ("/api/", "api"),
        ("/api/x/y", "api"),
        ("/apiary", None),
        ("/ap", None),
        ("/x/api", None),
        ("*", None),
        ("/", None),
    ],
)
def test_prefixes_match_whole_segments(path: str, expected: str | None) -> None:
    assert winner([named("api", "/api")], path) == expected


def test_trailing_slash_of_a_prefix_does_not_count() -> None:
    assert winner([named("api", "/api/")], "/api") == "api"


def test_exact_path_is_exact() -> None:
    rules = [named("exact", "/a", PathKind.EXACT)]
    assert winner(rules, "/a") == "exact"
    assert winner(rules, "/a/") is None


def test_paths_of_rules_are_compared_normalised() -> None:
    assert winner([named("cafe", "/café", PathKind.EXACT)], "/caf%C3%A9") == "cafe"


def test_root_prefix_matches_everything() -> None:
    assert winner([named("root")], "*", method="OPTIONS") == "root"
    assert winner([named("root")], "/a/b") == "root"


def test_longest_prefix_wins_and_shorter_ones_are_the_fallback() -> None:
    rules = [named("a", "/a"), named("abc", "/a/b/c", methods=("POST",)), named("root"), named("ab", "/a/b")]
    assert winner(rules, "/a/b/c/d", method="POST") == "abc"
    assert winner(rules, "/a/b/c/d") == "ab"
    assert winner(rules, "/a/bc") == "a"
    assert winner(rules, "/z") == "root"


def test_very_long_path_with_many_segments_is_cut_to_the_longest_prefix() -> None:
    assert winner([named("a", "/a/a")], "/a" * 4000) == "a"
    assert winner([named("b", "/b/a")], "/a" * 4000) is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("a.x", "exact"),
        ("b.x", "wild"),
        ("c.b.x", "longer"),
        ("d.c.b.x", "longer"),
        ("x", "any"),
        (".x", "any"),
        ("bx", "any"),
        ("[::1]", "v6"),
    ],
)
def test_most_specific_hostname_wins(host: str, expected: str) -> None:
    rules = [
        named("any"),
        named("wild", hosts=("*.x",)),
        named("longer", hosts=("*.b.x",)),
        named("exact", hosts=("A.x.",)),
        named("v6", hosts=("[::1]",)),
    ]
    assert winner(rules, host=host) == expected


def test_wildcard_never_matches_its_own_suffix() -> None:
    assert winner([named("wild", hosts=("*.x",))], host="x") is None


def test_less_specific_hostname_serves_what_the_specific_one_does_not() -> None:
    rules = [
        named("exact", "/only", hosts=("a.x",)),
        named("wild", "/w", hosts=("*.x",)),
        named("any", "/any"),
    ]
    assert winner(rules, "/only", host="a.x") == "exact"
    assert winner(rules, "/w", host="a.x") == "wild"
    assert winner(rules, "/any", host="a.x") == "any"
    assert winner(rules, "/none", host="a.x") is None


def test_hostname_outranks_path() -> None:
    rules = [named("exact-path", "/a/b", PathKind.EXACT, hosts=("*.x",)), named("exact-host", "/", hosts=("a.x",))]
    assert winner(rules, "/a/b", host="a.x") == "exact-host"


def test_rule_competes_with_each_of_its_hostnames() -> None:
    rules = [named("both", hosts=("a.x", "*.y")), named("y", hosts=("b.y",)), named("x", "/p", hosts=("a.x",))]
    assert winner(rules, "/p", host="a.x") == "x"
    assert winner(rules, "/", host="a.x") == "both"
    assert winner(rules, "/", host="b.y") == "y"
    assert winner(rules, "/", host="c.y") == "both"


def test_rule_is_bound_to_its_listeners() -> None:
    rules = [named("tls", "/a", listeners=("tls",)), named("all", "/")]
    assert winner(rules, "/a", listener="tls") == "tls"
    assert winner(rules, "/a", listener="plain") == "all"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/pkg.S/Get", "method"),
        ("/pkg.S/Put", "service"),
        ("/pkg.T/Get", "any-service"),
        ("/pkg.T/Put", "root"),
        ("/a/b/Get", "root"),
        ("/Get", "root"),
    ],
)
def test_grpc_service_and_method(path: str, expected: str) -> None:
    rules = [
        named("root"),
        named("any-service", grpc_method="Get"),
        named("service", grpc_service="pkg.S"),
        named("method", grpc_service="pkg.S", grpc_method="Get"),
    ]
    assert winner(rules, path, method="POST") == expected


def test_grpc_and_path_conditions_both_hold() -> None:
    rules = [named("both", "/pkg.S/Get", PathKind.EXACT, grpc_service="pkg.S", grpc_method="Put")]
    assert winner(rules, "/pkg.S/Get") is None
    assert winner([named("p", "/pkg.S", grpc_method="Get")], "/pkg.S/Get") == "p"
    assert winner([named("p", "/pkg.S", grpc_method="Get")], "/pkg.T/Get") is None


def test_several_fields_of_one_name_count_as_joined() -> None:
    rules = [named("joined", headers={"X-Role": "user, admin"})]
    assert winner(rules, headers=[("x-role", "user"), ("x-role", "admin")]) == "joined"
    assert winner(rules, headers=[("x-role", "admin")]) is None


@pytest.mark.parametrize(
    ("kind", "value", "is_inverted", "given", "expected"),
    [
        (ValueKind.EXACT, "gold", False, "gold", True),
        (ValueKind.EXACT, "gold", False, "Gold", False),
        (ValueKind.EXACT, "gold", False, None, False),
        (ValueKind.EXACT, "gold", True, "silver", True),
        (ValueKind.EXACT, "gold", True, None, True),
        (ValueKind.PREFIX, "go", False, "gold", True),
        (ValueKind.PREFIX, "", False, None, False),
        (ValueKind.PREFIX, "go", True, "gold", False),
        (ValueKind.PRESENT, "", False, "", True),
        (ValueKind.PRESENT, "", False, None, False),
        (ValueKind.PRESENT, "", True, None, True),
    ],
)
def test_header_condition_kinds(
    kind: ValueKind, value: str, is_inverted: bool, given: str | None, expected: bool
) -> None:
    rules = [named("r", headers=[value_match("x-tier", value, kind, is_inverted=is_inverted)])]
    fields = [] if given is None else [("x-tier", given)]
    assert (winner(rules, headers=fields) == "r") is expected


def test_host_condition_reads_the_authority() -> None:
    rules = [named("r", headers={"Host": "a.x:8080"})]
    assert winner(rules, host="a.x", authority="a.x:8080") == "r"
    assert winner(rules, host="a.x") is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?k=a+b", True),
        ("?k=a%20b", True),
        ("?x=1&&k=a+b", True),
        ("?k=a+b&k=c", True),
        ("?k=c&k=a+b", False),
        ("?k=a%2520b", False),
        ("?K=a+b", False),
        ("?k", False),
        ("", False),
    ],
)
def test_query_conditions(query: str, expected: bool) -> None:
    assert (winner([named("r", query={"k": "a b"})], "/" + query) == "r") is expected


def test_no_query_condition_holds_beyond_the_limit_of_parameters() -> None:
    rules = [named("not-evil", query=[value_match("evil", "1", is_inverted=True)]), named("rest")]
    at_limit = "&".join(["a=1"] * MAX_QUERY_PARAMS)
    assert winner(rules, "/?" + at_limit) == "not-evil"
    assert winner(rules, f"/?{at_limit}&evil=1") == "rest"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.1.2.3", "narrow"),
        ("10.2.2.3", "wide"),
        ("::ffff:10.1.2.3", "narrow"),
        ("fd00::1%eth0", "six"),
        ("192.0.2.1", "rest"),
        ("", "rest"),
        ("unknown", "rest"),
    ],
)
def test_narrowest_source_network_wins(address: str, expected: str) -> None:
    rules = [
        named("rest"),
        named("wide", source_cidrs=("10.0.0.0/8",)),
        named("narrow", source_cidrs=("10.1.0.0/16", "10.9.9.9")),
        named("six", source_cidrs=("fd00::/8",)),
    ]
    assert winner(rules, client_ip=address) == expected


def test_rule_that_cannot_be_checked_matches_nothing_and_is_listed() -> None:
    rules = [
        make_rule("/a.*", PathKind.REGEX, route="pattern"),
        make_rule("/a", route="cidr", source_cidrs=("10.0.0.0/33",)),
        make_rule("/a%2fb", PathKind.EXACT, route="path"),
        make_rule("/a", route="header", headers=[value_match("x", "a+", ValueKind.REGEX, is_inverted=True)]),
        make_rule("/", route="rest"),
    ]
    matcher = Matcher(rules)
    found = matcher.match(make_head("/a"))
    assert found is rules[-1]
    reasons = {rule_id: problem.reason for rule_id, problem in matcher.problems}
    assert reasons == {
        "pattern#0": Reason.REGEX_UNAVAILABLE,
        "cidr#0": Reason.INVALID_VALUE,
        "path#0": Reason.INVALID_VALUE,
        "header#0": Reason.REGEX_UNAVAILABLE,
    }
    assert [problem.part for problem in rule_problems(rules[1], None)] == ["sourceCidrs[0]"]
    assert [problem.part for problem in rule_problems(rules[3], None)] == ["headers[0]"]
    assert rule_problems(rules[-1], None) == ()
