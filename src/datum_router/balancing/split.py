"""Weighted choice between a rule's destinations, with priorities.

The lowest priority level that holds a usable destination gets the request. Within it:
- weight 0 takes nothing;
- a destination without a usable endpoint passes its share on to the usable ones of its level;
- a destination with a `problem` (service not found, reference not permitted) keeps its share, which is answered with
  500: hiding a typing error behind its neighbours would hide it for good (Gateway API HTTPRoute backendRefs).
If no level has a usable destination, the lowest level with weight is split as it is written and the caller learns
from the balancer that nothing is there (or sends to it in a panic).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import groupby

from datum_router.model.route import BackendRef


class Split:
    """The destinations of one rule, arranged for choosing."""

    __slots__ = ("_levels",)

    def __init__(self, destinations: Sequence[BackendRef]) -> None:
        weighted = sorted((ref for ref in destinations if ref.weight > 0), key=lambda ref: ref.priority)
        self._levels = tuple(
            (tuple(refs), sum(ref.weight for ref in refs))
            for refs in (list(group) for _, group in groupby(weighted, key=lambda ref: ref.priority))
        )

    def choose(self, rng: random.Random, is_usable: Callable[[BackendRef], bool]) -> BackendRef | None:
        """Return the destination for one request, None if every weight is 0 (the caller answers 500).

        Args:
            is_usable: Tells whether a destination has a usable endpoint; asked for destinations without a problem only.
        """
        for refs, total in self._levels:
            usable = [ref for ref in refs if not ref.problem and is_usable(ref)]
            if not usable:
                continue
            if len(usable) == len(refs):
                return _choose(rng, refs, total)
            takers = [ref for ref in refs if ref.problem or ref in usable]
            return _choose(rng, takers, sum(ref.weight for ref in takers))
        return _choose(rng, *self._levels[0]) if self._levels else None


def _choose(rng: random.Random, refs: Sequence[BackendRef], total: int) -> BackendRef:
    if len(refs) == 1:
        return refs[0]
    at = rng.random() * total
    for ref in refs:
        at -= ref.weight
        if at < 0:
            return ref
    return refs[-1]
