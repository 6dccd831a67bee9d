"""All rules of a compilation in their total order, with their digests and conflicts, kept up to date rule by rule."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from datum_router.compiler.conflicts import ConflictIndex
from datum_router.compiler.diff import PART_DIGEST_BYTES, part_digest
from datum_router.compiler.precedence import sort_key
from datum_router.model.route import Rule, RuleId

_REBUILD_SHARE = 24
"""If more than one in so many rules changes, sorting all of them is cheaper than finding the place of each."""


class RuleTable:
    """The rules of the last compilation.

    Attributes:
        rules: In precedence order; another object after each change.
        digests: `part_digest` of each rule, side by side in the same order.
    """

    __slots__ = ("_conflicts", "digests", "rules")

    def __init__(self) -> None:
        self.rules: tuple[Rule, ...] = ()
        self.digests = bytearray()
        self._conflicts = ConflictIndex()

    def update(self, removed: Sequence[Rule], added: Sequence[Rule]) -> None:
        """Take out `removed`, objects that are in the table, and put in `added`."""
        if not removed and not added:
            return
        if (len(removed) + len(added)) * _REBUILD_SHARE > len(self.rules):
            self._rebuild(removed, added)
        else:
            self._move(removed, added)
        self._conflicts.update(removed, added)

    def conflicts(self) -> list[tuple[Rule, Rule]]:
        """Return (loser, winner) for every rule that can never win, in order."""
        return self._conflicts.conflicts()

    def _rebuild(self, removed: Sequence[Rule], added: Sequence[Rule]) -> None:
        gone = {rule.id for rule in removed}
        digests: dict[RuleId, bytes] = {}
        kept: list[Rule] = []
        for position, rule in enumerate(self.rules):
            if rule.id not in gone:
                kept.append(rule)
                digests[rule.id] = bytes(
                    self.digests[position * PART_DIGEST_BYTES : (position + 1) * PART_DIGEST_BYTES]
                )
        for rule in added:
            digests[rule.id] = part_digest(rule)
        self.rules = tuple(sorted([*kept, *added], key=sort_key))
        self.digests = bytearray().join(digests[rule.id] for rule in self.rules)

    def _move(self, removed: Sequence[Rule], added: Sequence[Rule]) -> None:
        rules = list(self.rules)
        for rule in removed:
            at = bisect.bisect_left(rules, sort_key(rule), key=sort_key)
            assert rules[at] is rule  # the order is total, and keys depend on the rule alone
            del rules[at]
            del self.digests[at * PART_DIGEST_BYTES : (at + 1) * PART_DIGEST_BYTES]
        for rule in added:
            at = bisect.bisect_left(rules, sort_key(rule), key=sort_key)
            rules.insert(at, rule)
            self.digests[at * PART_DIGEST_BYTES : at * PART_DIGEST_BYTES] = part_digest(rule)
        self.rules = tuple(rules)
