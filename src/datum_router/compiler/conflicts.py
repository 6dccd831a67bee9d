"""Conflicts: two rules that match exactly the same requests. The one first in the total order wins."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from datum_router.compiler.precedence import rule_rank, sort_key
from datum_router.model.route import Match, Rule, RuleId

_Claim = tuple[str, tuple[str, ...], Match]
"""A host name, the listeners and the conditions: all that decides which requests a rule matches."""


class ConflictIndex:
    """Who claims which requests: kept up to date rule by rule.

    A claim belongs to the first of its rules: the one that the matcher finds, which looks under the claim's host name
    alone, whatever other host names its rules have. A rule all of whose claims belong to others is a loser, whose
    winner is the owner of its last one.
    """

    __slots__ = ("_claims", "_losers")

    def __init__(self) -> None:
        self._claims: dict[_Claim, Rule | list[Rule]] = {}  # nearly all have one rule
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

    def _take_out(self, claim: _Claim, rule: Rule, affected: dict[RuleId, Rule]) -> None:
        affected.pop(rule.id, None)
        rules = self._claims[claim]
        if isinstance(rules, Rule):
            del self._claims[claim]
            return
        at = bisect.bisect_left(rules, rule_rank(rule), key=rule_rank)
        del rules[at]
        if at == 0:
            affected.update((other.id, other) for other in rules)
        if len(rules) == 1:
            self._claims[claim] = rules[0]

    def _put_in(self, claim: _Claim, rule: Rule, affected: dict[RuleId, Rule]) -> None:
        rules = self._claims.get(claim)
        if rules is None:
            self._claims[claim] = rule
            return
        if isinstance(rules, Rule):
            rules = self._claims[claim] = [rules]
        affected[rule.id] = rule
        at = bisect.bisect_left(rules, rule_rank(rule), key=rule_rank)
        if at == 0:
            affected.update((other.id, other) for other in rules)
        rules.insert(at, rule)

    def _winner(self, rule: Rule) -> Rule | None:
        winner: Rule | None = None
        for claim in _claims(rule):
            rules = self._claims[claim]
            winner = rules if isinstance(rules, Rule) else rules[0]
            if winner is rule:
                return None
        return winner


def _claims(rule: Rule) -> list[_Claim]:
    if rule.is_preflight:
        return []  # another route may well answer it by the same policy; what the routes are for is no less served
    hosts = rule.hostnames if len(rule.hostnames) == 1 else dict.fromkeys(rule.hostnames) or ("",)
    return [(host, rule.listeners, rule.match) for host in hosts]
