"""The choice between a rule's destinations, by weight and priority."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from datum_router.model.route import BackendRef


class Split:
    """Draw a destination.

    Priority 0 is used as long as any of its destinations is usable, then 1, and so on; if none is usable at all,
    level 0 is drawn from, so that the answer names what should have served. A reference with a problem keeps its
    share (it is answered with 500), or a typo would silently send its traffic elsewhere.
    """

    __slots__ = ("_levels",)

    def __init__(self, refs: Sequence[BackendRef]) -> None:
        levels: dict[int, list[BackendRef]] = {}
        for ref in refs:
            if ref.weight > 0:
                levels.setdefault(ref.priority, []).append(ref)
        self._levels: list[tuple[list[BackendRef], list[int]]] = [
            (level, list(accumulate(ref.weight for ref in level))) for _, level in sorted(levels.items())
        ]

    def choose(self, rng: random.Random, is_usable: Callable[[BackendRef], bool]) -> BackendRef | None:
        """Return a destination, None if every weight is 0."""
        levels = self._levels
        if not levels:
            return None
        chosen = levels[0]
        if len(levels) > 1:
            chosen = next((level for level in levels if any(is_usable(ref) for ref in level[0])), levels[0])
        refs, sums = chosen
        if len(refs) == 1:
            return refs[0]
        return refs[bisect_right(sums, rng.random() * sums[-1])]
