"""The engine stays free of I/O and of the libraries it replaces; its modules stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import datum_router_proxy

WIRE = Path(datum_router_proxy.__file__).parent / "wire"
MODULES = sorted([*(WIRE / "http2").glob("*.py"), *WIRE.glob("hpack_*.py")])
FORBIDDEN = {"trio", "socket", "ssl", "time", "asyncio", "threading", "logging", "random", "h2", "hyperframe", "os"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_module_does_no_io(module: Path) -> None:
    text = module.read_text()
    imported: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add((node.module or "").split(".")[0])
    assert not imported & FORBIDDEN
    assert text.count("\n") <= 600
