"""Path predicates: exact, prefix by whole segments, regular expression; and how specific each is."""

from __future__ import annotations

from typing import assert_never

from datum_router.model.route import PathKind, PathMatch
from datum_router.reasons import Reason
from datum_router.routing.normalize import BadPath, is_canonical, normalize_rule_path
from datum_router.routing.predicate import PathCheck, RuleProblem
from datum_router.routing.regex import CompiledRegex, RegexEngine, RegexProblem, compile_regex

PathRank = tuple[int, int, int]

RANK_GRPC_METHOD: PathRank = (2, -1, -1)
"""A gRPC method without a service: just above the prefix `/`."""

MATCH_ALL = "/"


def path_rank(kind: PathKind, value: str) -> PathRank:
    """Return how specific a path condition is; smaller goes first: exact, longer pattern, longer prefix."""
    match kind:
        case PathKind.EXACT:
            return (0, 0, 0)
        case PathKind.REGEX:
            return (1, -len(value), 0)
        case PathKind.PREFIX:
            return (2, -len(value), 0)
        case _:
            assert_never(kind)


def canonical_value(path: PathMatch) -> str | BadPath:
    """Return the value as requests are compared with it: normalised, a prefix without trailing slash.

    A pattern stays as it is. `*` is refused: it is not a path.
    """
    text = path.value
    if path.kind is PathKind.REGEX or text == MATCH_ALL or (text[-1:] != "/" and is_canonical(text)):
        return text
    value = normalize_rule_path(text)
    if isinstance(value, BadPath):
        return value
    if value == "*":
        return BadPath("an asterisk, expected a path that begins with a slash")
    if path.kind is PathKind.PREFIX and value[-1] == "/":
        return value[:-1] or MATCH_ALL
    return value


def prefix_matches(prefix: str, path: str) -> bool:
    """Tell whether `path` is `prefix` or lies below it by whole segments; `prefix` is canonical."""
    return prefix == MATCH_ALL or path == prefix or (path.startswith(prefix) and path[len(prefix)] == "/")


def path_regex(pattern: str, engine: RegexEngine | None) -> CompiledRegex | RuleProblem:
    """Return the compiled pattern of a path; it is compared with the whole path, without the query."""
    compiled = compile_regex(pattern, engine)
    return RuleProblem("path", compiled.reason, compiled.message) if isinstance(compiled, RegexProblem) else compiled


def path_problem(path: PathMatch, engine: RegexEngine | None) -> RuleProblem | None:
    """Return why a path condition cannot be checked, None if it can."""
    value = canonical_value(path)
    if isinstance(value, BadPath):
        return RuleProblem("path", Reason.INVALID_VALUE, value.detail)
    if path.kind is not PathKind.REGEX:
        return None
    compiled = path_regex(value, engine)
    return compiled if isinstance(compiled, RuleProblem) else None


def path_check(path: PathMatch, engine: RegexEngine | None) -> PathCheck | RuleProblem:
    """Return the check of one path condition."""
    value = canonical_value(path)
    if isinstance(value, BadPath):
        return RuleProblem("path", Reason.INVALID_VALUE, value.detail)
    match path.kind:
        case PathKind.EXACT:
            return lambda text: text == value
        case PathKind.PREFIX:
            return lambda text: prefix_matches(value, text)
        case PathKind.REGEX:
            compiled = path_regex(value, engine)
            if isinstance(compiled, RuleProblem):
                return compiled
            fullmatch = compiled.fullmatch
            return lambda text: fullmatch(text.encode("latin-1", "replace")) is not None
        case _:
            assert_never(path.kind)


def describe_path(path: PathMatch) -> str:
    """Return the condition in words, for example `prefix "/api"`."""
    return f'{path.kind} "{path.value}"'
