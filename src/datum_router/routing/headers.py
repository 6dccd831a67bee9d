"""Header predicates.

Several fields of one name count as one value, joined by `, ` in order (RFC 9110 section 5.3), since an upstream may
join them as well. `host` is compared with the authority: request heads carry it there and not among their fields.
"""

from __future__ import annotations

import functools

from datum_router.model.request import RequestHead
from datum_router.model.route import ValueKind, ValueMatch
from datum_router.routing.method import SHARED_CHECKS
from datum_router.routing.predicate import HeadCheck, RuleProblem
from datum_router.routing.regex import RegexEngine
from datum_router.routing.value import value_check


def header_value(head: RequestHead, name: bytes) -> bytes | None:
    """Return the value that a condition on lower-case `name` reads, None if there is none."""
    return head.authority.encode("latin-1", "replace") if name == b"host" else head.headers.get(name)


def header_check(condition: ValueMatch, engine: RegexEngine | None, part: str = "headers") -> HeadCheck | RuleProblem:
    """Return the check of one header condition. The name is compared without regard to case, the value with it."""
    check = value_check(condition, engine, part)
    if isinstance(check, RuleProblem):
        return check
    name = condition.name.lower().encode("latin-1", "replace")
    if name == b"host":
        return lambda head: check(header_value(head, name))
    if condition.kind is ValueKind.EXACT and not condition.is_inverted:  # the common kind: one call less
        return _exact_check(name, condition.value.encode("utf-8", "replace"))
    return lambda head: check(head.headers.get(name))


@functools.lru_cache(maxsize=SHARED_CHECKS)
def _exact_check(name: bytes, wanted: bytes) -> HeadCheck:
    """Return the check of a value; rules with equal conditions share it (`method_check` says why)."""
    return lambda head: head.headers.get(name) == wanted
