"""What differs between two sequences that share most of their objects, found at the speed of C for the shared part."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import compress, count
from typing import TypeVar

T = TypeVar("T")


def differences(old: Sequence[T], new: Sequence[T]) -> tuple[list[int], list[int]]:
    """Return (positions of `old` that are gone, positions of `new` that were added), both ascending.

    All other objects are the same ones in the same order: one that changed its place is gone and added, and perhaps
    all behind it with it. Objects are compared by identity; each may stand in a sequence once.
    """
    gone: list[int] = []
    added: list[int] = []
    at = to = 0
    before, after = iter(old), iter(new)
    while True:
        limit = min(len(old) - at, len(new) - to)
        same = _first_difference(before, after, limit)  # both iterators are behind it now
        at, to = at + same, to + same
        if same == limit:
            return [*gone, *range(at, len(old))], [*added, *range(to, len(new))]
        if limit - same > 1 and old[at + 1] is new[to + 1]:  # one was replaced
            gone.append(at)
            added.append(to)
        elif at + 1 < len(old) and old[at + 1] is new[to]:  # one is gone
            gone.append(at)
            next(before)
            at += 1
        elif to + 1 < len(new) and old[at] is new[to + 1]:  # one was added
            added.append(to)
            next(after)
            to += 1
        else:
            more_gone, more_added = _all_differences(old, new, at, to)
            return gone + more_gone, added + more_added
        at, to = at + 1, to + 1


def _all_differences(old: Sequence[T], new: Sequence[T], at: int, to: int) -> tuple[list[int], list[int]]:
    """Return the differences from these positions on, however many; if objects changed places, all between the ends."""
    same = _first_difference(reversed(old), reversed(new), min(len(old) - at, len(new) - to))
    old_end, new_end = len(old) - same, len(new) - same
    old_ids, new_ids = list(map(id, old[at:old_end])), list(map(id, new[to:new_end]))
    stay, stayed = list(map(set(new_ids).__contains__, old_ids)), list(map(set(old_ids).__contains__, new_ids))
    if list(compress(old_ids, stay)) != list(compress(new_ids, stayed)):
        return list(range(at, old_end)), list(range(to, new_end))
    return list(compress(count(at), map(operator.not_, stay))), list(compress(count(to), map(operator.not_, stayed)))


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
