"""Why one rule takes a request and each other one does not: every condition of every rule, asked one by one.

Built from the predicates and the order that the matcher itself is built from, so that the two cannot disagree about a
condition; slow and plain where the matcher is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from datum_router.compiler.precedence import explain_order, sort_key
from datum_router.model.request import RequestHead
from datum_router.model.route import Rule
from datum_router.routing.grpc import called_method, grpc_path
from datum_router.routing.headers import header_check, header_value
from datum_router.routing.host import best_hostname, hostnames_of
from datum_router.routing.path import describe_path, path_check
from datum_router.routing.predicate import RuleProblem
from datum_router.routing.query import MAX_QUERY_PARAMS, parse_query, query_check
from datum_router.routing.regex import RegexEngine
from datum_router.routing.source import source_check
from datum_router.routing.value import describe_found, describe_value

T = TypeVar("T")


class Miss(msgspec.Struct, frozen=True, kw_only=True):
    """One condition that does not hold: which, what the request has, and what the rule expects."""

    part: str
    found: str
    expected: str

    def text(self) -> str:
        """Return the condition in words."""
        return f"{self.part}: found {self.found}, expected {self.expected}"


class Loser(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that does not take the request.

    Attributes:
        misses: The conditions that do not hold; empty if all hold and another rule precedes it.
        precedence: In that case, why the winner precedes it.
    """

    rule: Rule
    misses: tuple[Miss, ...] = ()
    precedence: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Who takes the request; losers in order: those that match, then those that miss the fewest conditions."""

    winner: Rule | None
    losers: tuple[Loser, ...]


def judge(rules: Sequence[Rule], head: RequestHead, engine: RegexEngine | None) -> Verdict:
    """Ask every rule; O(rules x conditions).

    Args:
        engine: None if none is installed; conditions with a pattern then do not hold, as in the gateway.
    """
    misses = {rule.id: tuple(_misses(rule, head, engine)) for rule in rules}
    host = head.host
    matching = sorted(
        (rule for rule in rules if not misses[rule.id]),
        key=lambda rule: sort_key(rule, best_hostname(hostnames_of(rule.hostnames), host)),
    )
    winner = matching[0] if matching else None
    losers = [Loser(rule=rule, precedence=explain_order(matching[0], rule, host=host)) for rule in matching[1:]]
    missing = sorted(
        (Loser(rule=rule, misses=misses[rule.id]) for rule in rules if misses[rule.id]),
        key=lambda loser: (len(loser.misses), sort_key(loser.rule)),
    )
    return Verdict(winner=winner, losers=(*losers, *missing))


def _misses(rule: Rule, head: RequestHead, engine: RegexEngine | None) -> Iterator[Miss]:
    match = rule.match
    if rule.listeners and head.listener not in rule.listeners:
        yield Miss(part="listener", found=head.listener or "none", expected=" or ".join(rule.listeners))
    if best_hostname(hostnames_of(rule.hostnames), head.host) is None:
        yield Miss(part="host", found=head.host, expected=" or ".join(rule.hostnames))
    implied = grpc_path(match)
    for part, path in (("path", match.path), ("gRPC path", implied)):
        if path is not None and (part == "path" or path != match.path):
            expected = describe_path(path)
            yield from _miss(part, path_check(path, engine), head.path, found=head.path, expected=expected)
    if match.grpc_method and implied is None and called_method(head.path) != match.grpc_method:
        yield Miss(part="gRPC method", found=called_method(head.path) or head.path, expected=match.grpc_method)
    if match.methods and head.method not in match.methods:
        yield Miss(part="method", found=head.method, expected=" or ".join(match.methods))
    for condition in match.headers:
        name = condition.name.lower()
        found = describe_found(header_value(head, name.encode("latin-1", "replace")))
        check = header_check(condition, engine)
        yield from _miss(f"header {name}", check, head, found=found, expected=describe_value(condition))
    if match.query:
        params = parse_query(head.query)
        if params is None:
            yield Miss(part="query", found=f"more than {MAX_QUERY_PARAMS} parameters", expected="fewer")
        for condition in match.query if params is not None else ():
            found = describe_found((params or {}).get(condition.name.encode("utf-8", "replace")))
            part = f"query {condition.name}"
            expected = describe_value(condition)
            yield from _miss(part, query_check(condition, engine), params or {}, found=found, expected=expected)
    if match.source_cidrs:
        expected = " or ".join(match.source_cidrs)
        yield from _miss("source", source_check(match.source_cidrs), head, found=head.client_ip, expected=expected)


def _miss(
    part: str, check: Callable[[T], bool] | RuleProblem, subject: T, *, found: str, expected: str
) -> Iterator[Miss]:
    if isinstance(check, RuleProblem):
        yield Miss(part=part, found=check.message, expected="a condition that can be checked")
    elif not check(subject):
        yield Miss(part=part, found=found, expected=expected)
