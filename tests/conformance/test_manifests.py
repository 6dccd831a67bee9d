"""The corpus of manifests against `datum-router check`; tests/cluster/test_corpus.py has it against an API server."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType

import pytest
from click.testing import CliRunner

from datum_router.manifests import rules, validate, validate_filters, validate_ingress, validate_route
from datum_router.manifests.cel_rules import RULES
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.schema import crd, field_rows
from datum_router.manifests.served import NOT_SERVED, ONLY_SERVED, SERVED
from datum_router_cli.commands import cli
from tests.conformance.manifest_corpus import ROOT, Case, cases, judge, mutants

GOOD, BAD, OFFLINE_ONLY = cases("good"), cases("bad"), cases("offline-only")
MAX_OFFLINE_ONLY = 8
"""What only one side refuses is to stay an exception."""


def named(one: Case) -> str:
    return one.name


@pytest.mark.parametrize("case", GOOD, ids=named)
def test_what_is_good_is_taken(case: Case) -> None:
    decoded, paths = judge(case.raw)
    assert paths == set(), [item.render() for item in decoded.diagnostics]
    assert decoded.manifest is not None


@pytest.mark.parametrize("case", [*BAD, *OFFLINE_ONLY], ids=named)
def test_what_is_bad_is_refused_and_the_field_named(case: Case) -> None:
    decoded, paths = judge(case.raw)
    assert paths == set(case.expect), [item.render() for item in decoded.diagnostics]
    assert decoded.manifest is None


def test_whatever_breaks_a_type_is_refused_and_the_field_named() -> None:
    made = list(mutants())
    wrong = {case.name: paths for case in made if (paths := judge(case.raw)[1]) != set(case.expect)}
    assert wrong == {}
    assert len(made) > 1000


def check(folder: str) -> tuple[int, list[dict[str, object]]]:
    result = CliRunner().invoke(cli, ["check", str(ROOT / folder), "--output", "json"], prog_name="datum-router")
    return result.exit_code, json.loads(result.output)["diagnostics"]


def test_check_passes_a_directory_of_good_manifests() -> None:
    code, diagnostics = check("good")
    assert (code, [item for item in diagnostics if item["severity"] == "error"]) == (0, [])


@pytest.mark.parametrize("folder", ["bad", "offline-only"])
def test_check_names_file_and_field_of_each_bad_manifest(folder: str) -> None:
    code, diagnostics = check(folder)
    assert code == 2
    named_in: dict[str, set[object]] = {}
    for item in diagnostics:
        if item["severity"] == "error":
            named_in.setdefault(Path(str(item["file"])).stem, set()).add(item["path"])
    assert named_in == {case.name: set(case.expect) for case in cases(folder)}


def test_each_file_says_why_it_is_there() -> None:
    assert [case.name for case in [*GOOD, *BAD, *OFFLINE_ONLY] if not case.comment.endswith(".")] == []
    assert len(OFFLINE_ONLY) <= MAX_OFFLINE_ONLY


# --- nothing is forgotten --------------------------------------------------------------------------------------


def keys(value: object, path: str = "") -> Iterator[str]:
    """Yield the paths of all fields of an object, with `[]` for items."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield f"{path}.{name}"
            yield from keys(member, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from keys(item, f"{path}[]")


@pytest.mark.parametrize("kind", [kind for kind, served in SERVED.items() if served])
def test_each_field_that_is_served_is_in_a_good_manifest(kind: str) -> None:
    used = {path for case in GOOD if case.kind == kind for path in keys(case.raw["spec"], "spec")}
    assert set(SERVED[kind]) - used == set()


def test_each_field_that_is_not_served_is_in_a_bad_manifest() -> None:
    refused = {(case.kind, without_index(path)) for case in BAD for path in case.expect}
    rows = {(kind, entry.path) for kind, entries in NOT_SERVED.items() for entry in entries}
    rows |= {(kind, path) for kind, entries in ONLY_SERVED.items() for path, _, _ in entries}
    assert rows - refused == set()


def without_index(path: str) -> str:
    return "".join("[]" if part.isdigit() else part for part in path.replace("[", "\0").replace("]", "\0").split("\0"))


MODULES: tuple[ModuleType, ...] = (validate, validate_route, validate_filters, rules)
MODULES: tuple[ModuleType, ...] = (validate, validate_ingress, validate_route, rules)


def refusals(module: ModuleType) -> set[tuple[str, int]]:
    """Return file and line of each place of a module that yields an error."""
    file = inspect.getfile(module)
    yields = [node.value for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Yield)]
    calls = [value for value in yields if isinstance(value, ast.Call) and isinstance(value.func, ast.Name)]
    found = {(file, call.lineno) for call in calls if ast.unparse(call.func) in ("invalid", "missing", "exclusive")}
    assert found
    return found


def test_each_rule_of_ours_refuses_a_bad_manifest() -> None:
    places = set().union(*(refusals(module) for module in MODULES))
    files = {file for file, _ in places}
    reached: set[tuple[str, int]] = set()

    def watch_lines(frame: FrameType, event: str, _: object) -> object:
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return watch_lines

    def watch_calls(frame: FrameType, _: str, __: object) -> object:
        return watch_lines if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(watch_calls)
    try:
        for case in [*BAD, *OFFLINE_ONLY]:
            judge(case.raw)
    finally:
        sys.settrace(before)
    assert {f"{Path(file).name}:{line}" for file, line in places - reached} == set()


def test_each_rule_of_the_server_stands_in_a_crd() -> None:
    whole = json.dumps([crd(one) for one in OWN_KINDS])
    missing = [rule.message for said in RULES.values() for rule in said if json.dumps(rule.message) not in whole]
    assert missing == []


def test_fields_of_the_corpus_are_fields_of_the_types() -> None:
    for kind in OWN_KINDS:
        known = {row.path for row in field_rows(kind)}
        for case in GOOD:
            if case.kind == kind.kind:
                used = {path for path in keys(case.raw["spec"], "spec") if not is_of_a_map(path)}
                assert used - known == set(), case.name


def is_of_a_map(path: str) -> bool:
    parents = ("labels", "matchLabels", "sourceLabels", "topology", "annotations", "headers", "queryParams", "config")
    return any(f".{name}." in path for name in parents)
