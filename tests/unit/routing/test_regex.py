from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import datum_router
from datum_router.model.route import PathKind, ValueKind
from datum_router.reasons import Reason
from datum_router.routing.matcher import Matcher
from datum_router.routing.regex import (
    MAX_PATTERN_BYTES,
    Re2Engine,
    RegexEngine,
    RegexProblem,
    compile_regex,
    load_engine,
)
from datum_router.testing.factories import make_head, make_rule, value_match


class RecordingEngine:
    name = "recording"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def compile(self, pattern: str) -> str:
        self.seen.append(pattern)
        return "recorded"


@pytest.fixture
def engine() -> RegexEngine:
    pytest.importorskip("re2", reason="patterns need the optional extra datum-router[re2]")
    loaded = load_engine()
    assert loaded is not None
    return loaded


def test_without_an_engine_a_pattern_is_reported() -> None:
    problem = compile_regex("/a.*", None)
    assert isinstance(problem, RegexProblem)
    assert problem.reason is Reason.REGEX_UNAVAILABLE


def test_pattern_at_the_limit_is_taken_and_one_above_is_refused_before_the_engine_sees_it() -> None:
    engine = RecordingEngine()
    compile_regex("a" * MAX_PATTERN_BYTES, engine)
    assert len(engine.seen) == 1
    problem = compile_regex("a" * (MAX_PATTERN_BYTES + 1), engine)
    assert isinstance(problem, RegexProblem)
    assert problem.reason is Reason.INVALID_VALUE
    assert str(MAX_PATTERN_BYTES) in problem.message
    assert len(engine.seen) == 1


def test_non_ascii_pattern_is_refused() -> None:
    engine = RecordingEngine()
    assert isinstance(compile_regex("/é", engine), RegexProblem)
    assert engine.seen == []


def test_what_the_engine_says_reaches_the_message() -> None:
    problem = compile_regex("a", RecordingEngine())
    assert isinstance(problem, RegexProblem)
    assert "recorded" in problem.message


def test_backtracking_engine_of_the_standard_library_sees_no_pattern_of_users() -> None:
    """`re` may be used with literal patterns only, so no other module than these may import it."""
    root = Path(datum_router.__file__).parent
    for path in (*(root / "routing").glob("*.py"), *(root / "filters").glob("*.py")):
        tree = ast.parse(path.read_text())
        if not any(isinstance(node, ast.Import) and any(a.name == "re" for a in node.names) for node in ast.walk(tree)):
            continue
        calls = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
        ]
        inside = {id(call) for fn in ast.walk(tree) if isinstance(fn, ast.FunctionDef) for call in ast.walk(fn)}
        assert calls
        assert not [call for call in calls if id(call) in inside], path


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", r"(?=a)", r"(a)\1", "(?:(?:a{100}){100}){100}"])
def test_bad_or_too_large_patterns_are_reported(engine: RegexEngine, pattern: str) -> None:
    problem = compile_regex(pattern, engine)
    assert isinstance(problem, RegexProblem)
    assert problem.reason is Reason.INVALID_VALUE


def test_program_beyond_the_memory_limit_is_refused(engine: RegexEngine) -> None:
    piece = "[acegikmoqsuwyACEGIKMOQSUWY02468]{1000}"
    assert not isinstance(compile_regex(piece, engine), RegexProblem)
    problem = compile_regex(piece * 12, engine)
    assert len(piece * 12) <= MAX_PATTERN_BYTES
    assert isinstance(problem, RegexProblem)
    assert problem.reason is Reason.INVALID_VALUE
    assert "too large" in problem.message


def test_catastrophic_pattern_is_linear(engine: RegexEngine) -> None:
    compiled = compile_regex("(a+)+$", engine)
    assert not isinstance(compiled, RegexProblem)
    text = b"a" * 65536 + b"b"
    # A backtracking engine needs 2 to the power of 65,536 steps here: the test would not end.
    assert compiled.fullmatch(text) is None


def test_inverted_pattern_cannot_be_evaded_by_broken_utf8_or_line_feeds(engine: RegexEngine) -> None:
    blocked = make_rule(route="header", headers=[value_match("x", ".*evil.*", ValueKind.REGEX, is_inverted=True)])
    assert Matcher([blocked], engine).match(make_head(headers=[("x", b"\xffevil")])) is None
    by_query = make_rule(route="query", query=[value_match("x", ".*evil.*", ValueKind.REGEX, is_inverted=True)])
    assert Matcher([by_query], engine).match(make_head("/?x=%0Aevil")) is None
    assert Matcher([by_query], engine).match(make_head("/?x=good")) is by_query


def test_pattern_compares_the_whole_path(engine: RegexEngine) -> None:
    rule = make_rule("/v[0-9]+/users", PathKind.REGEX)
    matcher = Matcher([rule], engine)
    assert matcher.match(make_head("/v1/users")) is rule
    assert matcher.match(make_head("/v1/users/2")) is None
    assert matcher.match(make_head("/x/v1/users")) is None


def test_longer_pattern_goes_first_and_patterns_stand_between_exact_and_prefix(engine: RegexEngine) -> None:
    rules = [
        make_rule("/a/b/c", route="prefix"),
        make_rule("/a/.*", PathKind.REGEX, route="short"),
        make_rule("/a/[bc]/.*", PathKind.REGEX, route="long"),
        make_rule("/a/b/d", PathKind.EXACT, route="exact"),
    ]
    matcher = Matcher(rules, engine)
    routes = [rule.route if (rule := matcher.match(make_head(p))) else None for p in ("/a/b/c", "/a/b/d", "/a/x")]
    assert routes == ["long", "exact", "short"]


def test_the_library_is_imported_for_the_first_pattern_only() -> None:
    pytest.importorskip("re2", reason="patterns need the optional extra datum-router[re2]")
    code = (
        "import sys; from datum_router.routing.regex import load_engine; engine = load_engine(); "
        "print('re2' in sys.modules); engine.compile('a'); print('re2' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == ["False", "True"]


def test_an_engine_that_is_not_installed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert load_engine() is None


def test_a_library_that_cannot_be_imported_is_said_for_each_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    problem = compile_regex("a", Re2Engine())
    assert isinstance(problem, RegexProblem)
    assert "cannot be imported" in problem.message
