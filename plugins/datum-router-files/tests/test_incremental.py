"""Whatever is done to files, scans end with what a scanner says that sees only the last state of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datum_router.compiler.compiler import Compiler
from datum_router.compiler.diagnostics import Origin, Severity, has_errors
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.plugins.protocols import Problems, SourceEvent
from datum_router.reasons import Reason
from datum_router.registry.store import Store
from datum_router_files.scan import Scanner

SERVICE = "apiVersion: router.datum.net/v1alpha1\nkind: VPCService\nmetadata:\n  name: {0}\n"
ROUTE = "apiVersion: router.datum.net/v1alpha1\nkind: VPCRoute\nmetadata: {{name: {0}}}\n"
DOCUMENTS = [
    text.format(name)
    for name in "vwxy"
    for text in (
        SERVICE + "spec:\n  port: 80\n",
        SERVICE + "spec:\n  port: 81\n  endpoints: [&e {{address: 10.0.0.1}}]\n",
        SERVICE + "spec: {{port: 80, wrong: 1}}\n",
        SERVICE + "spec:\n  port: 80\n  labels:\n    text: |\n      ---\n      a: b\n\n    kind: 'it''s\n      long'\n",
        ROUTE + "spec:\n  destinations:\n  - vpcServiceRef: {{name: x}}\n  matches: [{{pathPrefix: /a}}]\n",
        ROUTE + "spec: &s\n  destinations: [&d {{vpcServiceRef: {{name: gone}}}}, *d]\n",
        "apiVersion: v1\nkind: List\nitems:\n- " + SERVICE.replace("\n", "\n  ") + "spec: {{port: 82}}\n",
        "apiVersion: serving.knative.dev/v1\nkind: VPCService\nmetadata: {{name: {0}}}\n",
        'apiVersion: v1\nkind: "Odd\\u200bKind"\nmetadata: {{name: {0}}}\n',
        "apiVersion: router.datum.net/v1alpha1\nkind: VPCService\nspec: {{}}\n",
        "kind: Kustomization\n",
        "# nothing but a comment\n",
        "",
    )
] + ["spec: {\n", "a: 'b\n", "\tx: 1\n", "a: *none\n", "a: 1\na: 2\n", "- 1\n", "text\n", "a: 1\n...\n", "%YAML 1.2\n"]
SEPARATORS = ("---\n", "---\n", "--- # next\n", "---\t\n", "---\r\n", "---\n# comment\n\n", "---\n---\n")
FILES = ("a.yaml", "b.yml", "sub/c.yaml")


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(("", "", "---\n", "# head\n", "\ufeff")))
    for number, document in enumerate(draw(st.lists(st.sampled_from(DOCUMENTS), max_size=4))):
        text += (draw(st.sampled_from(SEPARATORS)) if number else "") + document
    data = text.encode()
    if draw(st.integers(0, 5)) == 0:
        data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return data


steps = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(FILES), texts()),
    st.tuples(st.just("replace"), st.sampled_from(FILES), texts()),
    st.tuples(st.just("cut"), st.sampled_from(FILES), st.integers(0, 300)),
    st.tuples(st.just("lines"), st.sampled_from(FILES), st.integers(0, 30)),
    st.tuples(st.just("remove"), st.sampled_from(FILES), st.none()),
    st.tuples(st.just("move"), st.sampled_from(FILES), st.sampled_from(FILES)),
    st.tuples(st.just("swap"), st.just("map"), st.dictionaries(st.sampled_from(("d.yaml", "e.yaml")), texts())),
    st.tuples(st.just("early"), st.none(), st.none()),
    st.tuples(st.just("scan"), st.none(), st.none()),
)


class Directory:
    """Files, edited as people, editors and Kubernetes do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._swaps = 0
        (path / "sub").mkdir()

    def do(self, what: str, name: str, value: object) -> None:
        path = self.path / name
        if what == "write":
            assert isinstance(value, bytes)
            path.write_bytes(value)
        elif what == "replace":
            assert isinstance(value, bytes)
            (self.path / ".new").write_bytes(value)
            os.replace(self.path / ".new", path)
        elif what in ("cut", "lines") and path.exists():
            assert isinstance(value, int)
            data = path.read_bytes()
            path.write_bytes(data[:value] if what == "cut" else b"# line\n" * value + data)
        elif what == "remove":
            path.unlink(missing_ok=True)
        elif what == "move" and path.exists():
            os.replace(path, self.path / str(value))
        elif what == "swap":
            assert isinstance(value, dict)
            self._swap(value)

    def _swap(self, files: dict[str, bytes]) -> None:
        """Publish `files` as the kubelet does: a new directory, and `..data` renamed over to point to it."""
        root = self.path / "map"
        root.mkdir(exist_ok=True)
        self._swaps += 1
        old = os.readlink(root / "..data") if (root / "..data").is_symlink() else None
        new = root / f"..{self._swaps}"
        new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
        (root / "..tmp").symlink_to(new.name)
        os.replace(root / "..tmp", root / "..data")
        for name in files:
            if not (root / name).is_symlink():
                (root / name).symlink_to(f"..data/{name}")
        for path in root.iterdir():
            if not path.name.startswith("..") and path.name not in files:
                path.unlink()
        if old is not None:
            shutil.rmtree(root / old)


def places(origin: Origin) -> dict[str, int]:
    return {path: origin.locate(path) for path in origin.lines}


class Process:
    """A scanner and what is made of its events."""

    def __init__(self, plugins: PluginSet, root: Path) -> None:
        self.scanner = Scanner(str(root))
        self.store = Store(plugins.kinds)
        self.compiler = Compiler(plugins)
        self.problems: dict[str, object] = {}

    def scan(self, *, is_early: bool = False) -> None:
        self.take(self.scanner.scan(is_early=is_early))

    def take(self, events: list[SourceEvent]) -> None:
        for event in events:
            self.store.apply(event)
            if isinstance(event, Problems):
                self.problems[event.scope] = event.diagnostics

    def texts(self) -> dict[object, object]:
        """Return what every object in force was read as, and from which line each of its fields."""
        return {
            identity: (document.raw, document.origin.file, document.origin.line, places(document.origin))
            for identity, document in self.scanner._emitted.items()
        }

    def seen(self) -> object:
        result = self.compiler.compile(self.store.view())
        return (
            self.texts(),
            result.data.rules,
            dict(result.data.services),
            result.data.digest,
            sorted(map(repr, result.diagnostics)),
            {scope: found for scope, found in self.problems.items() if found},
            dict(self.store.view().skipped()),
        )


@pytest.fixture(scope="module")
def plugins() -> PluginSet:
    return load_plugins([Candidate(entry_point="builtin", distribution="", load=lambda: builtin)])


def bad_files(process: Process) -> set[str]:
    """Return the files with something in them that leaves an earlier version in force, which a new process lacks."""
    found = {path for path, file in (process.scanner._files or {}).items() if has_errors(file.diagnostics)}
    return found | {
        one.file
        for one in process.store.view().diagnostics()
        if one.severity is Severity.ERROR and one.reason is not Reason.DUPLICATE_OBJECT
    }


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(steps, max_size=14))
def test_scans_of_changing_files_end_with_what_a_new_scanner_says(
    plugins: PluginSet, tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, str, object]]
) -> None:
    directory = Directory(tmp_path_factory.mktemp("manifests"))
    process = Process(plugins, directory.path)
    process.scan()
    for what, name, value in drawn:
        if what in ("early", "scan"):
            process.scan(is_early=what == "early")
        else:
            directory.do(what, name, value)
    while True:
        for _ in range(5):
            process.scan()
        fresh = Process(plugins, directory.path)
        fresh.scan()
        bad = bad_files(fresh)
        if not bad:
            break
        for path in bad:
            os.unlink(path)
    assert process.seen() == fresh.seen()
