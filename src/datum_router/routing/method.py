"""Method and listener predicates: membership in a small closed list."""

from __future__ import annotations

import functools
from typing import Final

from datum_router.routing.predicate import HeadCheck

SHARED_CHECKS: Final = 1024
"""Checks of each sort that are remembered for rules with equal conditions; it costs memory alone, a few 100 KB."""


@functools.lru_cache(maxsize=SHARED_CHECKS)
def method_check(methods: tuple[str, ...]) -> HeadCheck:
    """Return the check of a list of methods; compared exactly, so GET does not take HEAD along (Gateway API).

    Rules with equal lists share it: many rules have few lists among them, and one check stays in the processor's cache.
    """
    if len(methods) == 1:
        only = methods[0]
        return lambda head: head.method == only
    allowed = frozenset(methods)
    return lambda head: head.method in allowed


def listener_check(listeners: tuple[str, ...]) -> HeadCheck:
    """Return the check that the request came in by one of these listeners."""
    allowed = frozenset(listeners)
    return lambda head: head.listener in allowed
