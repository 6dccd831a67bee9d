"""All rules of a compilation in their total order, with their digests and conflicts, kept up to date rule by rule."""

from __future__ import annotations

import bisect
import operator
from collections.abc import Generator, Sequence

from datum_router.compiler.conflicts import ConflictIndex
from datum_router.compiler.diff import PART_DIGEST_BYTES, part_digest
from datum_router.compiler.precedence import SortKey, sort_key
from datum_router.model.route import Rule

STEP_RULES = 500
"""Rules that are ordered, hashed or compared in one step: a few milliseconds."""
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
        for _ in self.update_in_steps(removed, added):
            pass

    def update_in_steps(self, removed: Sequence[Rule], added: Sequence[Rule]) -> Generator[None, None, None]:
        """Do as `update` does and yield every few milliseconds. Abandoned half-way the table is of no use any more."""
        if not removed and not added:
            return
        if (len(removed) + len(added)) * _REBUILD_SHARE > len(self.rules):
            yield from self._rebuild(removed, added)
        else:
            self._move(removed, added)
        for start in range(0, len(removed), STEP_RULES):
            yield
            self._conflicts.update(removed[start : start + STEP_RULES], ())
        for start in range(0, len(added), STEP_RULES):
            yield
            self._conflicts.update((), added[start : start + STEP_RULES])

    def conflicts(self) -> list[tuple[Rule, Rule]]:
        """Return (loser, winner) for every rule that can never win, in order."""
        return self._conflicts.conflicts()

    def _rebuild(self, removed: Sequence[Rule], added: Sequence[Rule]) -> Generator[None, None, None]:
        gone = {rule.id for rule in removed}
        keyed: list[tuple[SortKey, Rule, bytes]] = []
        for position, rule in enumerate(self.rules):
            if position % STEP_RULES == STEP_RULES - 1:
                yield
            if rule.id not in gone:
                digest = self.digests[position * PART_DIGEST_BYTES : (position + 1) * PART_DIGEST_BYTES]
                keyed.append((sort_key(rule), rule, bytes(digest)))
        for position, rule in enumerate(added):
            if position % STEP_RULES == STEP_RULES - 1:
                yield
            keyed.append((sort_key(rule), rule, part_digest(rule)))
        yield
        keyed.sort(key=operator.itemgetter(0))
        self.rules = tuple(rule for _, rule, _ in keyed)
        self.digests = bytearray().join(digest for _, _, digest in keyed)

    def _move(self, removed: Sequence[Rule], added: Sequence[Rule]) -> None:
        rules = list(self.rules)
        pending = {rule.id: rule for rule in added}
        for rule in removed:
            key = sort_key(rule)
            at = bisect.bisect_left(rules, key, key=sort_key)
            assert rules[at] is rule  # the order is total, and keys depend on the rule alone
            place = slice(at * PART_DIGEST_BYTES, (at + 1) * PART_DIGEST_BYTES)
            edited = pending.get(rule.id)
            if edited is not None and sort_key(edited) == key:  # as most edits leave it
                rules[at] = pending.pop(rule.id)
                self.digests[place] = part_digest(edited)
            else:
                del rules[at]
                del self.digests[place]
        for rule in pending.values():
            at = bisect.bisect_left(rules, sort_key(rule), key=sort_key)
            rules.insert(at, rule)
            self.digests[at * PART_DIGEST_BYTES : at * PART_DIGEST_BYTES] = part_digest(rule)
        self.rules = tuple(rules)
