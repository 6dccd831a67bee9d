"""Conflicts: two rules that match exactly the same requests. The one first in the total order wins."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

from datum_router.compiler.precedence import sort_key
from datum_router.model.route import Rule, RuleId


class ConflictIndex:
    """Who claims which requests: kept up to date rule by rule.

    A claim is a host name, listeners and a match. It belongs to the first of its rules in order; a rule all of whose
    claims belong to others is a loser, whose winner is the owner of its last one. Claims are found by hash and then
    compared, so that a collision costs a comparison and nothing else.
    """

    __slots__ = ("_claims", "_losers")

    def __init__(self) -> None:
        self._claims: dict[int, Rule | list[Rule]] = {}
        self._losers: dict[RuleId, tuple[Rule, Rule]] = {}

    def update(self, removed: Iterable[Rule], added: Iterable[Rule]) -> None:
        """Take rules out and put others in. O(log n) a rule, unless the owner of a claim of many rules changes."""
        affected: dict[RuleId, Rule] = {}
        for rule in removed:
            self._losers.pop(rule.id, None)
            for claim in _claims(rule):
                self._take_out(claim, rule, affected)
        for rule in added:
            for claim in _claims(rule):
                self._put_in(claim, rule, affected)
        for rule in affected.values():
            winner = self._winner(rule)
            if winner is None:
                self._losers.pop(rule.id, None)
            else:
                self._losers[rule.id] = (rule, winner)

    def conflicts(self) -> list[tuple[Rule, Rule]]:
        """Return (loser, winner) for every loser, in order."""
        return sorted(self._losers.values(), key=lambda pair: sort_key(pair[0])) if self._losers else []

    def _take_out(self, claim: int, rule: Rule, affected: dict[RuleId, Rule]) -> None:
        affected.pop(rule.id, None)
        rules = self._claims[claim]
        if isinstance(rules, Rule):
            del self._claims[claim]
            return
        at = bisect.bisect_left(rules, sort_key(rule), key=sort_key)
        del rules[at]
        if at == 0:
            affected.update((other.id, other) for other in rules)
        if len(rules) == 1:
            self._claims[claim] = rules[0]

    def _put_in(self, claim: int, rule: Rule, affected: dict[RuleId, Rule]) -> None:
        rules = self._claims.get(claim)
        if rules is None:
            self._claims[claim] = rule
            return
        if isinstance(rules, Rule):
            rules = self._claims[claim] = [rules]
        affected[rule.id] = rule
        at = bisect.bisect_left(rules, sort_key(rule), key=sort_key)
        if at == 0:
            affected.update((other.id, other) for other in rules)
        rules.insert(at, rule)

    def _winner(self, rule: Rule) -> Rule | None:
        winner: Rule | None = None
        for host in _hosts(rule):
            rules = self._claims[_claim(rule, host)]
            if isinstance(rules, Rule):
                return None
            winner = next(other for other in rules if _is_same(other, rule, host))
            if winner is rule:
                return None
        return winner


def _hosts(rule: Rule) -> Iterable[str]:
    return dict.fromkeys(rule.hostnames) or ("",)


def _claim(rule: Rule, host: str) -> int:
    return hash((host, rule.listeners, rule.match))


def _claims(rule: Rule) -> Iterator[int]:
    # A set: two hosts of one rule may, by a collision, have one claim.
    return iter({_claim(rule, host) for host in _hosts(rule)})


def _is_same(other: Rule, rule: Rule, host: str) -> bool:
    return other is rule or (host in _hosts(other) and other.listeners == rule.listeners and other.match == rule.match)
