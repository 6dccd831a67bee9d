"""What differs between two sequences that share most of their objects, found at the speed of C for the shared part."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import compress, count
from typing import TypeVar

T = TypeVar("T")


def differences(old: Sequence[T], new: Sequence[T]) -> tuple[list[int], list[int]]:
    """Return (positions of `old` that are gone, positions of `new` that were added), both ascending.

    All other objects are the same ones in the same order. Objects are compared by identity; each may stand in a
    sequence once. If objects changed places all between the first and the last difference counts as replaced.
    """
    if old is new:
        return [], []
    start = _first_difference(old, new, min(len(old), len(new)))
    same = _first_difference(reversed(old), reversed(new), min(len(old), len(new)) - start)
    before, after = old[start : len(old) - same], new[start : len(new) - same]
    old_ids, new_ids = set(map(id, before)), set(map(id, after))
    gone = [position for position, item in enumerate(before, start) if id(item) not in new_ids]
    added = [position for position, item in enumerate(after, start) if id(item) not in old_ids]
    kept = [item for item in before if id(item) in new_ids]
    if len(kept) + len(added) != len(after) or any(
        map(operator.is_not, kept, (item for item in after if id(item) in old_ids))
    ):
        return list(range(start, len(old) - same)), list(range(start, len(new) - same))
    return gone, added


def _first_difference(old: Iterable[T], new: Iterable[T], limit: int) -> int:
    return min(limit, next(compress(count(), map(operator.is_not, old, new)), limit))


def splice(old: Sequence[T], gone: Sequence[int], added: Sequence[int], items: Sequence[T]) -> tuple[T, ...]:
    """Return `old` without the positions `gone` and with `items` at the positions `added` of the result.

    Raises:
        ValueError: Positions do not ascend or do not fit.
    """
    kept: list[T] = []
    at = 0
    for position in gone:
        if not at <= position < len(old):
            raise ValueError(f"position {position} of {len(old)} to be taken out")
        kept += old[at:position]
        at = position + 1
    kept += old[at:]
    result: list[T] = []
    at = 0
    for position, item in zip(added, items, strict=True):
        step = position - len(result)
        if step < 0 or at + step > len(kept):
            raise ValueError(f"position {position} to be filled")
        result += kept[at : at + step]
        result.append(item)
        at += step
    result += kept[at:]
    return tuple(result)
