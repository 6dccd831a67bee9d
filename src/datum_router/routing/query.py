"""Query-parameter predicates and the bounded parser they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from datum_router.model.route import ValueMatch
from datum_router.routing.predicate import RuleProblem
from datum_router.routing.regex import RegexEngine
from datum_router.routing.value import value_check

MAX_QUERY_PARAMS = 100
"""Most parameters that are looked at. With more, no condition on the query holds, not even an inverted one."""

Params: TypeAlias = Mapping[bytes, bytes]
ParamsCheck: TypeAlias = Callable[[Params], bool]
"""Tells whether one condition holds for the parsed query."""


def parse_query(query: str | None) -> Params | None:
    """Return the decoded parameters, or None if there are more than MAX_QUERY_PARAMS.

    Parts are separated by `&`; a part without `=` has an empty value; empty parts are skipped but counted. `+` is a
    blank, escapes are decoded once, a broken escape stays text (WHATWG URL, application/x-www-form-urlencoded). Of
    several parameters with one name the first counts (Gateway API HTTPRoute).
    """
    if not query:
        return {}
    if query.count("&") >= MAX_QUERY_PARAMS:
        return None
    params: dict[bytes, bytes] = {}
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            params.setdefault(_decode(name), _decode(value))
    return params


def _decode(text: str) -> bytes:
    if "+" in text:
        text = text.replace("+", " ")
    return unquote_to_bytes(text) if "%" in text else text.encode("utf-8", "replace")


def query_check(condition: ValueMatch, engine: RegexEngine | None, part: str = "query") -> ParamsCheck | RuleProblem:
    """Return the check of one query condition. Name and value are compared decoded and with regard to case."""
    check = value_check(condition, engine, part)
    if isinstance(check, RuleProblem):
        return check
    name = condition.name.encode("utf-8", "replace")
    return lambda params: check(params.get(name))
