"""Compile user-supplied regular expressions with an engine whose matching time is linear in the text.

Patterns come from tenants. `re` backtracks, so that one pattern such as `(a+)+$` could hold the event loop for hours;
no user pattern ever reaches it. RE2 (the optional extra `datum-router[re2]`) is linear and bounded in memory. Without
it a rule with a pattern does not match anything and is reported with `RegexUnavailable`.

One `RE2::Set` for many patterns would be faster than one after the other, but it reports "no match" when it runs out
of memory; a single pattern falls back to a slower linear automaton instead. Right comes before fast here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Protocol

import msgspec

from datum_router.reasons import Reason

MAX_PATTERN_BYTES = 512
"""Longest pattern that is accepted."""

MAX_PROGRAM_BYTES = 1 << 20
"""Memory budget of one compiled pattern (RE2 `max_mem`), 1 MiB; RE2 refuses patterns whose program needs more."""


class CompiledRegex(Protocol):
    """A compiled pattern that is compared with the whole text."""

    def fullmatch(self, text: bytes, /) -> object | None:
        """Return something that is not None if the pattern matches all of `text`."""
        ...


class RegexEngine(Protocol):
    """Something that compiles patterns to linear-time matchers over bytes."""

    name: str

    def compile(self, pattern: str) -> CompiledRegex | str:
        """Return the compiled pattern, or one sentence that says why it cannot be compiled. Never raises."""
        ...


class RegexProblem(msgspec.Struct, frozen=True, gc=False):
    """Why a pattern cannot be used: `RegexUnavailable` (no engine) or `InvalidValue` (a bad pattern).

    Attributes:
        why: What the engine said, if it was asked.
    """

    reason: Reason
    message: str
    why: str = ""


class Re2Engine:
    """The engine over google-re2. Patterns and texts are bytes: `.` is any one byte, also one that is not UTF-8.

    A text mode that wants valid UTF-8 would let a client slip past an inverted condition by adding a broken byte.
    """

    __slots__ = ("_compile", "name")

    def __init__(self) -> None:
        self.name = "re2"
        self._compile: Callable[[str], CompiledRegex | str] | None = None

    def compile(self, pattern: str) -> CompiledRegex | str:
        """Compile an ASCII pattern; the library is imported for the first one."""
        if self._compile is None:
            try:
                self._compile = _re2_compiler()
            except ImportError as error:
                return f"its library cannot be imported: {error}"
        return self._compile(pattern)


def _re2_compiler() -> Callable[[str], CompiledRegex | str]:
    import re2  # only here: the core runs without it, and where no route has a pattern its 2.5 MB are saved

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.max_mem = MAX_PROGRAM_BYTES
    options.log_errors = False
    options.never_capture = True
    options.dot_nl = True  # a decoded query value may hold a line feed, and must not hide behind it

    def compile_pattern(pattern: str) -> CompiledRegex | str:
        try:
            compiled: CompiledRegex = re2.compile(pattern.encode("ascii"), options)
        except re2.error as error:
            text = error.args[0] if error.args else ""
            return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        return compiled

    return compile_pattern


def load_engine() -> RegexEngine | None:
    """Return the RE2 engine, or None if google-re2 is not installed."""
    return Re2Engine() if importlib.util.find_spec("re2") is not None else None


def compile_regex(pattern: str, engine: RegexEngine | None) -> CompiledRegex | RegexProblem:
    """Return the compiled pattern or why it cannot be used.

    Limits are checked before the engine sees the pattern, and the engine is asked for last, so that a bad length or
    character is reported on machines without RE2 too.
    """
    size = len(pattern.encode("utf-8", "replace"))
    if size > MAX_PATTERN_BYTES:
        return RegexProblem(
            Reason.INVALID_VALUE, f"a pattern of {size} bytes, expected at most {MAX_PATTERN_BYTES} bytes"
        )
    if not pattern.isascii():
        return RegexProblem(
            Reason.INVALID_VALUE,
            r"a non-ASCII character in a pattern, expected its escaped bytes (%C3%A9 in a path, \xC3\xA9 elsewhere)",
        )
    if engine is None:
        return RegexProblem(
            Reason.REGEX_UNAVAILABLE,
            "regular expressions need the optional extra datum-router[re2], not installed here",
        )
    compiled = engine.compile(pattern)
    if isinstance(compiled, str):
        return RegexProblem(
            Reason.INVALID_VALUE, f"a pattern that {engine.name} cannot use: {compiled}", why=compiled or "refused"
        )
    return compiled
