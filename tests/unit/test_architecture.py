"""The import rules of the design: entrypoints -> runtime -> core, plugins -> core, wire -> nothing that does I/O."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from datum_router.plugins.manager import PluginSet

REPOSITORY = Path(__file__).resolve().parents[2]
CORE = REPOSITORY / "src" / "datum_router"
PLUGINS = sorted(path for path in (REPOSITORY / "plugins").glob("*/src/*") if path.is_dir())
ENTRYPOINTS = sorted(path for path in (REPOSITORY / "entrypoints").glob("*/src/*") if path.is_dir())
RUNTIME = "datum_router_runtime"

CORE_MAY_IMPORT = {"msgspec", "pluggy", "datum_router"}
TEST_KIT_MAY_IMPORT = CORE_MAY_IMPORT | {"pytest", "hypothesis"}
OPTIONAL_IN = {CORE / "routing" / "regex.py": {"re2"}}
IMPURE = {"socket", "ssl", "threading", "multiprocessing", "subprocess", "asyncio", "selectors", "signal", "time", "os"}
# The socket type is named in a protocol's signature; nothing is opened.
IMPURE_ALLOWED = {CORE / "plugins" / "protocols.py": {"socket"}}
# A kit for tests, installed by the extra `test`: manifests have to come to a gateway as they do for users, from YAML.
KITS_MAY_IMPORT = {"testing_manifests.py": {"datum_router_files"}}
WIRE_FORBIDDEN = {"trio", "socket", "ssl", "time", "asyncio", "threading"}


def modules(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


RUNNING_CORE = [path for path in modules(CORE) if (CORE / "testing") not in path.parents]


def imports(path: Path) -> set[str]:
    """Return every absolute module name that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".", 1)[0] for name in imports(path)}


@pytest.mark.parametrize("path", modules(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_core_imports_only_the_standard_library_msgspec_and_pluggy(path: Path) -> None:
    allowed = TEST_KIT_MAY_IMPORT if (CORE / "testing") in path.parents else CORE_MAY_IMPORT
    allowed = allowed | OPTIONAL_IN.get(path, set())
    assert not {name for name in tops(path) if name not in sys.stdlib_module_names} - allowed


@pytest.mark.parametrize("path", RUNNING_CORE, ids=lambda path: str(path.relative_to(CORE)))
def test_core_opens_no_socket_reads_no_clock_starts_no_thread(path: Path) -> None:
    assert not tops(path) & IMPURE - IMPURE_ALLOWED.get(path, set())


@pytest.mark.parametrize("path", RUNNING_CORE, ids=lambda path: str(path.relative_to(CORE)))
def test_core_never_calls_global_randomness_or_wall_clocks(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = {
        f"{node.func.value.id}.{node.func.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }
    forbidden = {call for call in calls if call.startswith("random.") and call != "random.Random"}
    forbidden |= calls & {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    assert not forbidden


@pytest.mark.parametrize("package", PLUGINS, ids=lambda path: path.name)
def test_plugins_import_neither_runtime_nor_entrypoints_nor_each_other(package: Path) -> None:
    others = {path.name for path in (*PLUGINS, *ENTRYPOINTS)} - {package.name}
    for path in modules(package):
        assert not tops(path) & others - KITS_MAY_IMPORT.get(path.name, set()), path


@pytest.mark.parametrize("package", ENTRYPOINTS, ids=lambda path: path.name)
def test_entrypoints_import_runtime_and_core_but_never_a_plugin(package: Path) -> None:
    plugins = {path.name for path in PLUGINS}
    others = {path.name for path in ENTRYPOINTS} - {package.name, RUNTIME}
    for path in modules(package):
        assert not tops(path) & (plugins | others), path


def test_wire_engines_import_no_io() -> None:
    wire = REPOSITORY / "plugins" / "datum-router-proxy" / "src" / "datum_router_proxy" / "wire"
    assert wire.is_dir()
    for path in modules(wire):
        assert not tops(path) & WIRE_FORBIDDEN, path


def test_a_data_path_module_imports_no_library_that_is_for_probes_only() -> None:
    proxy = REPOSITORY / "plugins" / "datum-router-proxy" / "src" / "datum_router_proxy"
    for path in modules(proxy):
        if path.name != "prober.py" and not path.name.startswith("testing"):
            assert not tops(path) & {"h11", "h2", "httpcore"}, path


def test_only_the_reference_codec_imports_the_hpack_package() -> None:
    proxy = REPOSITORY / "plugins" / "datum-router-proxy" / "src" / "datum_router_proxy"
    importers = {path.name for path in modules(proxy) if "hpack" in tops(path)}
    assert {name for name in importers if not name.startswith("testing")} == {"hpack_reference.py"}


@pytest.mark.parametrize("path", modules(CORE) + [m for p in (*PLUGINS, *ENTRYPOINTS) for m in modules(p)], ids=str)
def test_modules_keep_to_the_line_limit(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


def test_requirements_list_every_distribution_once() -> None:
    lines = (REPOSITORY / "requirements-dev.txt").read_text().splitlines()
    listed = sorted(line.removeprefix("-e ./") for line in lines if line.startswith("-e ./"))
    there = sorted(
        str(path.parent.relative_to(REPOSITORY))
        for pattern in ("plugins/*/pyproject.toml", "entrypoints/*/pyproject.toml")
        for path in REPOSITORY.glob(pattern)
    )
    assert listed == there


def test_constraints_hold_only_pins() -> None:
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        name, separator, version = line.partition("==")
        assert separator, line
        assert name, line
        assert version, line


@pytest.mark.parametrize("offer", PluginSet.__struct_fields__)
def test_what_hooks_offer_is_asked_for(offer: str) -> None:
    """A hook whose answers nothing reads looks to a plugin's author as if it worked (ADR 3)."""
    manager = CORE / "plugins" / "manager.py"
    readers = [path for root in (CORE, *ENTRYPOINTS) for path in modules(root) if path != manager]
    assert any(re.search(rf"\b_?plugins\.{offer}\b", path.read_text()) for path in readers)


def slots(path: Path) -> list[tuple[str, list[str]]]:
    """Return the classes of a module that have `__slots__`, and their names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "__slots__":
                named = ast.literal_eval(part.value)
                found.append((node.name, [named] if isinstance(named, str) else list(named)))
    return found


def test_no_slot_is_named_twice() -> None:
    found = [(path, *one) for root in (CORE, *PLUGINS, *ENTRYPOINTS) for path in modules(root) for one in slots(path)]
    assert len(found) > 100
    assert [(path.name, name) for path, name, named in found if len(set(named)) < len(named)] == []
