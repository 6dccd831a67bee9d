"""Conditions on one value: what header and query conditions have in common."""

from __future__ import annotations

from typing import assert_never

from datum_router.model.route import ValueKind, ValueMatch
from datum_router.routing.predicate import RuleProblem, ValueCheck
from datum_router.routing.regex import RegexEngine, RegexProblem, compile_regex


def value_check(condition: ValueMatch, engine: RegexEngine | None, part: str) -> ValueCheck | RuleProblem:
    """Return the check of a value. An absent value satisfies no kind; an inverted condition is the plain negation.

    So `x-tier Exact gold, inverted` holds for every request without `x-tier` as well.
    """
    wanted = condition.value.encode("utf-8", "replace")
    is_inverted = condition.is_inverted
    match condition.kind:
        case ValueKind.EXACT:
            return (lambda value: value != wanted) if is_inverted else (lambda value: value == wanted)
        case ValueKind.PREFIX:
            return lambda value: (value is not None and value.startswith(wanted)) is not is_inverted
        case ValueKind.PRESENT:
            return lambda value: (value is not None) is not is_inverted
        case ValueKind.REGEX:
            compiled = compile_regex(condition.value, engine)
            if isinstance(compiled, RegexProblem):
                return RuleProblem(part, compiled.reason, compiled.message)
            fullmatch = compiled.fullmatch
            return lambda value: (value is not None and fullmatch(value) is not None) is not is_inverted
        case _:
            assert_never(condition.kind)


_VERBS = {
    ValueKind.EXACT: ("is", "is not"),
    ValueKind.PREFIX: ("begins with", "does not begin with"),
    ValueKind.PRESENT: ("is present", "is absent"),
    ValueKind.REGEX: ("matches", "does not match"),
}


def describe_value(condition: ValueMatch) -> str:
    """Return the condition in words, for example `is "gold"`."""
    verb = _VERBS[condition.kind][condition.is_inverted]
    return verb if condition.kind is ValueKind.PRESENT else f'{verb} "{condition.value}"'


def describe_found(value: bytes | None) -> str:
    """Return a value as people read it; bytes that are not UTF-8 are escaped."""
    return "absent" if value is None else '"' + value.decode("utf-8", "backslashreplace") + '"'
