"""The names that `datum_router` offers: imported on first use, from where type checkers believe they come from."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import datum_router


def test_every_public_name_has_a_home() -> None:
    assert {*datum_router._HOMES, "__version__"} == set(datum_router.__all__)


@pytest.mark.parametrize("name", sorted(datum_router._HOMES))
def test_a_public_name_is_the_one_of_its_home(name: str) -> None:
    home = importlib.import_module(f"datum_router.{datum_router._HOMES[name]}")
    assert getattr(datum_router, name) is getattr(home, name)
    assert name in dir(datum_router)


def test_type_checkers_see_the_same_homes() -> None:
    assert datum_router.__file__ is not None
    tree = ast.parse(Path(datum_router.__file__).read_text())
    seen = {
        alias.name: (node.module or "").removeprefix("datum_router.")
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == datum_router._HOMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'NoSuchName'"):
        datum_router.NoSuchName  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = "import sys, datum_router; print(*[name for name in sys.modules if name.startswith('datum_router.')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == []
