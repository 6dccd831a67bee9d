"""Method and listener predicates: membership in a small closed list."""

from __future__ import annotations

from datum_router.routing.predicate import HeadCheck


def method_check(methods: tuple[str, ...]) -> HeadCheck:
    """Return the check of a list of methods; compared exactly, so GET does not take HEAD along (Gateway API)."""
    if len(methods) == 1:
        only = methods[0]
        return lambda head: head.method == only
    allowed = frozenset(methods)
    return lambda head: head.method in allowed


def listener_check(listeners: tuple[str, ...]) -> HeadCheck:
    """Return the check that the request came in by one of these listeners."""
    allowed = frozenset(listeners)
    return lambda head: head.listener in allowed
