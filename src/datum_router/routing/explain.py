"""Say why a rule won and every other one lost: the slow, obvious evaluation behind `datum-router explain`.

Every condition of every rule is evaluated by the same predicates that the matcher compiles, one by one and without
any index, so that what is told here is what happens there; a property test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from datum_router.compiler.precedence import explain_order, sort_key
from datum_router.model.request import RequestHead
from datum_router.model.route import Rule, RuleId
from datum_router.routing.grpc import called_method, grpc_method_check, grpc_path, is_call
from datum_router.routing.headers import header_check, header_value
from datum_router.routing.host import best_hostname, hostnames_of
from datum_router.routing.matcher import rule_problems
from datum_router.routing.method import listener_check, method_check
from datum_router.routing.path import describe_path, path_check
from datum_router.routing.predicate import RuleProblem
from datum_router.routing.query import MAX_QUERY_PARAMS, Params, parse_query, query_check
from datum_router.routing.regex import RegexEngine
from datum_router.routing.source import source_check
from datum_router.routing.value import describe_found, describe_value

T = TypeVar("T")


class CandidateVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one rule.

    Attributes:
        is_match: All conditions hold; of these rules the first in order is the winner.
        failed: Name of the first condition that does not hold (`hostname`, `listener`, `path`, `grpc`, `method`,
            `header x`, `query x`, `source`), or `rule` if the rule cannot be used at all; empty for a match.
        expected, found: What that condition wants and what the request has.
        lost_because: For a match that did not win: who won and why.
    """

    rule_id: RuleId
    route: str
    is_winner: bool = False
    is_match: bool = False
    failed: str = ""
    expected: str = ""
    found: str = ""
    lost_because: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Who won, and a verdict on every rule.

    Matches come first, then the others, those that nearly matched before those of other paths, hosts and listeners;
    each kind in order of precedence.
    """

    winner: Rule | None
    candidates: tuple[CandidateVerdict, ...]


# How far from a match a rule is by the first condition that fails; all others come last and are the nearest, 0.
_FAR_OFF = {"path": 1, "grpc": 1, "hostname": 2, "listener": 2}


class _Failure(msgspec.Struct, frozen=True):
    name: str
    expected: str
    found: str


def explain_match(rules: Sequence[Rule], head: RequestHead, regex: RegexEngine | None = None) -> Explanation:
    """Evaluate every rule for `head`. O(rules x conditions): for people, not for traffic."""
    params = parse_query(head.query)
    matches: list[tuple[Rule, str]] = []
    losers: list[tuple[Rule, _Failure]] = []
    for rule in rules:
        hostname = best_hostname(hostnames_of(rule.hostnames), head.host)
        failure = next(_failures(rule, head, params, regex, hostname), None)
        if failure is not None:
            losers.append((rule, failure))
        else:
            assert hostname is not None
            matches.append((rule, hostname))
    matches.sort(key=lambda item: sort_key(*item))
    losers.sort(key=lambda item: (_FAR_OFF.get(item[1].name, 0), sort_key(item[0])))
    winner = matches[0][0] if matches else None
    verdicts = [
        CandidateVerdict(
            rule_id=rule.id,
            route=rule.route,
            is_winner=position == 0,
            is_match=True,
            lost_because="" if position == 0 else _why_lost(winner, rule, head.host),
        )
        for position, (rule, _) in enumerate(matches)
    ]
    verdicts.extend(
        CandidateVerdict(
            rule_id=rule.id,
            route=rule.route,
            failed=failure.name,
            expected=failure.expected,
            found=failure.found,
        )
        for rule, failure in losers
    )
    return Explanation(winner=winner, candidates=tuple(verdicts))


def _why_lost(winner: Rule | None, rule: Rule, host: str) -> str:
    assert winner is not None
    return f"lost to {winner.id} because {explain_order(winner, rule, host=host)}"


def _failures(
    rule: Rule, head: RequestHead, params: Params | None, regex: RegexEngine | None, hostname: str | None
) -> Iterator[_Failure]:
    """Yield the conditions of a rule that do not hold, in the order in which people think of them."""
    for problem in rule_problems(rule, regex):
        yield _Failure("rule", f"a usable {problem.part}", problem.message)
    if hostname is None:
        yield _Failure("hostname", " or ".join(rule.hostnames), head.host)
    if rule.listeners and not listener_check(rule.listeners)(head):
        yield _Failure("listener", " or ".join(rule.listeners), head.listener)
    match = rule.match
    if not _holds(path_check(match.path, regex), head.path):
        yield _Failure("path", describe_path(match.path), head.path)
    implied = grpc_path(match)
    if implied is not None and not _holds(path_check(implied, regex), head.path):
        yield _Failure("grpc", describe_path(implied), head.path)
    if implied is None and match.grpc_method and not grpc_method_check(match.grpc_method)(head.path):
        yield _Failure("grpc", f'method "{match.grpc_method}"', called_method(head.path) or "no gRPC method")
    if match.is_grpc_call and not is_call(head.path):
        yield _Failure("grpc", "a path of two segments", head.path)
    if match.methods and not method_check(match.methods)(head):
        yield _Failure("method", " or ".join(match.methods), head.method)
    for condition in match.headers:
        name = condition.name.lower()
        if not _holds(header_check(condition, regex), head):
            found = describe_found(header_value(head, name.encode("latin-1", "replace")))
            yield _Failure(f"header {name}", describe_value(condition), found)
    for condition in match.query:
        if params is None:
            found = f"more than {MAX_QUERY_PARAMS} parameters"
        elif not _holds(query_check(condition, regex), params):
            found = describe_found(params.get(condition.name.encode("utf-8", "replace")))
        else:
            continue
        yield _Failure(f"query {condition.name}", describe_value(condition), found)
    if match.source_cidrs and not _holds(source_check(match.source_cidrs), head):
        yield _Failure("source", " or ".join(match.source_cidrs), head.client_ip or "unknown")
    if match.source_attachment and match.source_attachment != head.attachment:
        yield _Failure("attachment", match.source_attachment, head.attachment or "no attachment")


def _holds(check: Callable[[T], bool] | RuleProblem, value: T) -> bool:
    return not isinstance(check, RuleProblem) and check(value)


def render(explanation: Explanation) -> list[str]:
    """Return one line for each rule, winner first."""
    lines = []
    if explanation.winner is None:
        lines.append("no route: no rule matches")
    for verdict in explanation.candidates:
        if verdict.is_winner:
            lines.append(f"{verdict.rule_id}: wins")
        elif verdict.is_match:
            lines.append(f"{verdict.rule_id}: {verdict.lost_because}")
        else:
            lines.append(f"{verdict.rule_id}: {verdict.failed}: expected {verdict.expected}, found {verdict.found}")
    return lines


def as_dict(explanation: Explanation) -> dict[str, object]:
    """Return the explanation as plain data for JSON: the winner's id and the verdicts."""
    winner = explanation.winner
    return {
        "winner": None if winner is None else winner.id,
        "candidates": [msgspec.to_builtins(verdict) for verdict in explanation.candidates],
    }
