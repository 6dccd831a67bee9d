"""What a scan says about a directory that people and tools change."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datum_router.compiler.diagnostics import Diagnostic
from datum_router.errors import SourceError
from datum_router.plugins.protocols import Delete, Problems, SourceEvent, Upsert
from datum_router.reasons import Reason
from datum_router_files.listing import list_files
from datum_router_files.scan import ScanLimits, Scanner, read_regular_file

BROKEN = "apiVersion: v1\nkind: [\n"


def manifest(*names: str, port: int = 80, kind: str = "VPCService", version: str = "router.datum.net/v1alpha1") -> str:
    return "---\n".join(
        f"apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n  port: {port}\n" for name in names
    )


def show(events: Sequence[SourceEvent]) -> list[str]:
    lines: list[str] = []
    for event in events:
        if isinstance(event, Upsert):
            metadata, spec = event.raw["metadata"], event.raw.get("spec")
            assert isinstance(metadata, dict)
            assert isinstance(spec, dict)
            lines.append(f"+{metadata['name']}:{spec['port']} {os.path.basename(event.origin.file)}")
        elif isinstance(event, Delete):
            lines.append(f"-{event.key.name} {os.path.basename(event.file)}")
        elif isinstance(event, Problems):
            reasons = ",".join(diagnostic.reason for diagnostic in event.diagnostics)
            lines.append(f"!{os.path.basename(event.scope)} {reasons}".rstrip())
    return sorted(lines, key=lambda line: "-+!".index(line[0]))


class Directory:
    """A directory with a scanner on it."""

    def __init__(self, path: Path, limits: ScanLimits | None = None) -> None:
        self.path = path
        self.scanner = Scanner(str(path), limits=limits)

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def scan(self) -> list[str]:
        return show(self.scanner.scan())


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def test_first_scan_gives_everything_and_the_next_ones_nothing(directory: Directory) -> None:
    directory.write("b.yaml", manifest("x", "y"))
    directory.write("a.yaml", manifest("z"))
    assert directory.scan() == ["+z:80 a.yaml", "+x:80 b.yaml", "+y:80 b.yaml"]
    assert directory.scan() == []
    assert directory.scan() == []


def test_nothing_is_read_again_when_nothing_changed(tmp_path: Path) -> None:
    reads: list[str] = []

    def read(path: str, limit: int) -> bytes:
        reads.append(os.path.basename(path))
        return read_regular_file(path, limit)

    (tmp_path / "a.yaml").write_text(manifest("x"))
    (tmp_path / "b.yaml").write_text(manifest("y"))
    scanner = Scanner(str(tmp_path), read=read)
    for _ in range(5):
        scanner.scan()
    assert reads == ["a.yaml", "b.yaml"] * 2  # the second time confirms what was new
    (tmp_path / "b.yaml").write_text(manifest("y", port=81))
    reads.clear()
    for _ in range(5):
        scanner.scan()
    assert reads == ["b.yaml"] * 2


def test_editor_save_by_write_and_rename(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x"))
    directory.scan()
    directory.write(".a.yaml.swp", "junk: [")
    directory.write("a.yaml~", manifest("x"))
    directory.write("4913", "")
    directory.write("new", manifest("x", port=81))
    os.replace(directory.path / "new", directory.path / "a.yaml")
    assert directory.scan() == ["+x:81 a.yaml"]


def test_editor_that_renames_the_old_file_away_first_deletes_nothing(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x"))
    directory.scan()
    os.replace(directory.path / "a.yaml", directory.path / "a.yaml~")
    assert directory.scan() == []
    directory.write("a.yaml", manifest("x", port=81))
    assert directory.scan() == ["+x:81 a.yaml"]


def test_truncate_and_write_passes_through_no_deletes(directory: Directory) -> None:
    text = manifest("x", "y")
    directory.write("a.yaml", text)
    directory.scan()
    directory.write("a.yaml", "")
    assert directory.scan() == []
    directory.write("a.yaml", text[: len(text) // 3])
    assert directory.scan() == []
    directory.write("a.yaml", text.replace("80", "81"))
    assert directory.scan() == ["+x:81 a.yaml", "+y:81 a.yaml"]


def test_content_that_never_settles_is_taken_after_the_hold_limit(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x"))
    directory.scan()
    seen: list[str] = []
    for number in range(ScanLimits().max_hold_rounds):
        directory.write("a.yaml", BROKEN + "#" * number)
        seen = directory.scan()
    assert seen == ["!a.yaml InvalidSyntax"]


def test_same_size_rewrite_within_one_clock_tick_is_seen(directory: Directory) -> None:
    path = directory.path / "a.yaml"
    signature = list_files(str(directory.path))
    directory.write("a.yaml", manifest("x", port=80))
    frozen = list_files(str(directory.path))
    scanner = Scanner(str(directory.path), list_root=lambda *_: frozen)
    assert show(scanner.scan()) == ["+x:80 a.yaml"]
    path.write_text(manifest("x", port=81))
    assert show(scanner.scan()) == ["+x:81 a.yaml"]
    assert signature != frozen


def test_configmap_swap_is_one_batch(directory: Directory) -> None:
    def volume(stamp: str, port: int) -> None:
        data = directory.path / stamp
        data.mkdir()
        for name in ("a.yaml", "b.yaml"):
            (data / name).write_text(manifest(name[0], port=port))
            os.utime(data / name, ns=(1, 1))

    volume("..2024_01", 80)
    (directory.path / "..data").symlink_to("..2024_01")
    for name in ("a.yaml", "b.yaml"):
        (directory.path / name).symlink_to(f"..data/{name}")
    assert directory.scan() == ["+a:80 a.yaml", "+b:80 b.yaml"]
    assert directory.scan() == []
    volume("..2024_02", 81)
    (directory.path / "..data_tmp").symlink_to("..2024_02")
    os.replace(directory.path / "..data_tmp", directory.path / "..data")
    for name in ("a.yaml", "b.yaml"):
        (directory.path / "..2024_01" / name).unlink()
    assert directory.scan() == ["+a:81 a.yaml", "+b:81 b.yaml"]
    assert directory.scan() == []


def test_swap_in_the_middle_of_a_scan_is_never_seen_half(tmp_path: Path) -> None:
    for stamp, port in (("old", 80), ("new", 81)):
        (tmp_path / stamp).mkdir()
        for name in ("a.yaml", "b.yaml"):
            (tmp_path / stamp / name).write_text(manifest(name[0], port=port))
    root = tmp_path / "current"
    root.symlink_to("old")
    reads: list[str] = []

    def read(path: str, limit: int) -> bytes:
        data = read_regular_file(path, limit)
        reads.append(path)
        if len(reads) == 1:
            (tmp_path / "next").symlink_to("new")
            os.replace(tmp_path / "next", root)
        return data

    events = show(Scanner(str(root), read=read).scan())
    assert events == ["+a:81 a.yaml", "+b:81 b.yaml"]


def test_file_that_vanishes_between_listing_and_reading_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(manifest("x"))
    (tmp_path / "b.yaml").write_text(manifest("y"))

    def read(path: str, limit: int) -> bytes:
        if path.endswith("b.yaml") and os.path.exists(path):
            os.unlink(path)
        return read_regular_file(path, limit)

    assert show(Scanner(str(tmp_path), read=read).scan()) == ["+x:80 a.yaml"]


def test_removed_file_deletes_its_objects_on_the_second_scan(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x"))
    directory.write("b.yaml", manifest("y"))
    directory.scan()
    (directory.path / "a.yaml").unlink()
    assert directory.scan() == []
    assert directory.scan() == ["-x a.yaml"]
    assert directory.scan() == []


def test_removed_document_deletes_its_object_when_the_file_is_quiet(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x", "y"))
    directory.scan()
    directory.write("a.yaml", manifest("x", port=81))
    assert directory.scan() == []
    assert directory.scan() == ["-y a.yaml", "+x:81 a.yaml"]


@pytest.mark.parametrize(("old", "new"), [("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")])
def test_object_moved_to_another_file_is_never_deleted(directory: Directory, old: str, new: str) -> None:
    directory.write(old, manifest("rest", "x"))
    directory.scan()
    directory.write(old, manifest("rest"))
    directory.write(new, manifest("x", port=81))
    assert directory.scan() == [f"+x:81 {new}"]
    assert directory.scan() == []
    assert directory.scan() == []


def test_renamed_file_keeps_its_objects(directory: Directory) -> None:
    directory.write("b.yaml", manifest("x"))
    directory.scan()
    os.replace(directory.path / "b.yaml", directory.path / "c.yaml")
    assert directory.scan() == ["+x:80 c.yaml"]
    assert directory.scan() == []


def test_broken_file_keeps_its_objects_and_says_so_once(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x", "y"))
    directory.scan()
    directory.write("a.yaml", manifest("x", port=81) + "---\n" + BROKEN)
    assert directory.scan() == []
    assert directory.scan() == ["+x:81 a.yaml", "!a.yaml InvalidSyntax"]
    assert directory.scan() == []
    directory.write("a.yaml", manifest("x", "y", port=82))
    assert directory.scan() == ["+x:82 a.yaml", "+y:82 a.yaml", "!a.yaml"]


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("VPCServise", "router.datum.net/v1alpha1"),
        ("vpcservice", "router.datum.net/v1alpha1"),
        ("VPCService", "router.datum.nt/v1alpha1"),
    ],
)
def test_misspelt_kind_or_group_keeps_the_object(directory: Directory, kind: str, version: str) -> None:
    directory.write("a.yaml", manifest("one"))
    directory.scan()
    directory.write("a.yaml", manifest("one", port=81, kind=kind, version=version))
    directory.scan()
    assert directory.scan() == ["+one:81 a.yaml", "!a.yaml UnknownKind"]
    directory.write("a.yaml", manifest("one", port=82, kind=kind, version=version))
    directory.scan()
    assert directory.scan() == ["+one:82 a.yaml"]
    directory.write("a.yaml", manifest("one", port=83))
    directory.scan()
    assert directory.scan() == ["-one a.yaml", "+one:83 a.yaml", "!a.yaml"]


@pytest.mark.parametrize(("kind", "name"), [("VPCRoute", "one"), ("Widget", "one"), ("VPCServise", "two")])
def test_another_kind_or_name_is_another_object(directory: Directory, kind: str, name: str) -> None:
    directory.write("a.yaml", manifest("one"))
    directory.scan()
    directory.write("a.yaml", manifest(name, kind=kind))
    directory.scan()
    assert directory.scan() == ["-one a.yaml", f"+{name}:80 a.yaml"]


def test_error_names_file_as_typed_line_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf").mkdir()
    Path("conf/a.yaml").write_text("kind: VPCRoute\nmetadata:\n\tname: x\n")
    (problems,) = Scanner("conf").scan()
    assert isinstance(problems, Problems)
    assert [diagnostic.render() for diagnostic in problems.diagnostics] == [
        "conf/a.yaml:3: error: a tab stands where YAML allows only spaces (column 1) [InvalidSyntax]"
        " (indent with spaces)"
    ]


def test_broken_file_removed_takes_its_objects_and_its_problem_along(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x"))
    directory.scan()
    directory.write("a.yaml", BROKEN)
    directory.scan()
    assert directory.scan() == ["!a.yaml InvalidSyntax"]
    (directory.path / "a.yaml").unlink()
    directory.scan()
    assert directory.scan() == ["-x a.yaml", "!a.yaml"]


def test_object_in_two_files_is_taken_from_the_first_at_the_start(directory: Directory) -> None:
    directory.write("b.yaml", manifest("x", port=82))
    directory.write("a.yaml", manifest("x", port=81))
    assert directory.scan() == ["+x:81 a.yaml", "!b.yaml DuplicateObject"]
    assert directory.scan() == []


@pytest.mark.parametrize("other", ["a.yaml", "c.yaml"], ids=["earlier", "later"])
def test_a_newcomer_never_takes_over_from_the_file_that_is_in_force(directory: Directory, other: str) -> None:
    directory.write("b.yaml", manifest("x", port=82))
    assert directory.scan() == ["+x:82 b.yaml"]
    directory.write(other, "# comment\n" + manifest("x", port=81))
    problems, *more = directory.scanner.scan()
    assert not more
    assert isinstance(problems, Problems)
    assert [diagnostic.render() for diagnostic in problems.diagnostics] == [
        f"{directory.path / other}:2: error: vpcservice default/x: the object is also defined in "
        f"{directory.path / 'b.yaml'}:1, which is used [DuplicateObject] (remove one of them)"
    ]
    assert directory.scan() == []
    directory.write("b.yaml", manifest("x", port=83))
    assert directory.scan() == ["+x:83 b.yaml"]
    directory.write("b.yaml", "")  # it may be about to be written
    assert directory.scan() == []
    directory.write("b.yaml", manifest("x", port=84))
    assert directory.scan() == ["+x:84 b.yaml"]
    (directory.path / "b.yaml").unlink()
    assert directory.scan() == []
    assert directory.scan() == [f"+x:81 {other}", f"!{other}"]
    assert directory.scan() == []


def test_a_newcomer_serves_while_the_file_in_force_is_in_doubt_and_no_longer(directory: Directory) -> None:
    directory.write("b.yaml", manifest("x", "y", port=82))
    directory.scan()
    directory.write("b.yaml", manifest("y", port=82))  # as if x moved to a.yaml
    directory.write("a.yaml", manifest("x", port=81))
    assert directory.scan() == ["+x:81 a.yaml"]
    directory.write("b.yaml", manifest("y", "x", port=82))  # but it did not
    assert directory.scan() == ["+x:82 b.yaml", "+y:82 b.yaml", "!a.yaml DuplicateObject"]


def test_a_second_document_of_a_file_does_not_take_over_by_standing_first(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x"))
    directory.scan()
    directory.write("a.yaml", manifest("x", port=81) + "---\n" + manifest("x"))
    directory.scan()  # a file with an error is believed at the second look
    events = directory.scanner.scan()
    assert show(events) == ["+x:80 a.yaml", "!a.yaml DuplicateObject"]  # at its new line
    (problems,) = (event for event in events if isinstance(event, Problems))
    assert [(item.line, "a.yaml:8, which is used" in item.message) for item in problems.diagnostics] == [(1, True)]


def test_duplicate_says_where_the_other_one_is(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x", "x"))
    problems, _ = directory.scanner.scan()
    assert isinstance(problems, Problems)
    path = directory.path / "a.yaml"
    assert [diagnostic.render() for diagnostic in problems.diagnostics] == [
        f"{path}:8: error: vpcservice default/x: the object is also defined in {path}:1, which is used "
        "[DuplicateObject] (remove one of them)"
    ]


def test_kinds_of_one_name_in_two_groups_are_no_duplicates(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x", kind="Service", version="v1"))
    directory.write("b.yaml", manifest("x", kind="Service", version="serving.knative.dev/v1"))
    assert directory.scan() == ["+x:80 a.yaml", "+x:80 b.yaml"]
    (directory.path / "b.yaml").unlink()
    directory.scan()
    assert directory.scan() == ["-x b.yaml", "+x:80 a.yaml"]


def test_kinds_of_other_tools_are_passed_along(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x", kind="Deployment", version="apps/v1"))
    directory.write("kustomization.yaml", "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n")
    events = directory.scanner.scan()
    assert show(events) == ["+x:80 a.yaml", "!kustomization.yaml MissingField"]
    problems = [event for event in events if isinstance(event, Problems)]
    assert [str(diagnostic.severity) for diagnostic in problems[0].diagnostics] == ["warning"]


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("kind: VPCRoute\nmetadata: {name: x}\n", "apiVersion", Reason.MISSING_FIELD),
        ("apiVersion: router.datum.net/v1alpha1\nmetadata: {name: x}\n", "kind", Reason.MISSING_FIELD),
        ("apiVersion: router.datum.net/v1alpha1\nkind: VPCRoute\n", "metadata.name", Reason.MISSING_FIELD),
        (
            "apiVersion: router.datum.net/v1alpha1\nkind: VPCRoute\nmetadata: {name: 7}\n",
            "metadata.name",
            Reason.INVALID_VALUE,
        ),
        (
            "apiVersion: router.datum.net/v1alpha1\nkind: VPCRoute\nmetadata: {name: x, namespace: [a]}\n",
            "metadata.namespace",
            Reason.INVALID_VALUE,
        ),
    ],
)
def test_object_without_identity_is_a_problem_of_its_file(
    directory: Directory, text: str, path: str, reason: Reason
) -> None:
    directory.write("a.yaml", text)
    (problems,) = directory.scanner.scan()
    assert isinstance(problems, Problems)
    assert [(diagnostic.path, diagnostic.reason) for diagnostic in problems.diagnostics] == [(path, reason)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Bad_Name", "found 'Bad_Name', expected a DNS-1123 name: lower-case letters, digits, - and ."),
        ("x\n", "found 'x\\n', expected a DNS-1123 name"),
        ("x" * 254, "expected a DNS-1123 name"),
    ],
)
def test_bad_name_is_a_problem_of_its_file_until_mended(directory: Directory, name: str, message: str) -> None:
    text = manifest("PLACE").replace("PLACE", json.dumps(name))
    directory.write("a.yaml", text)
    (problems,) = directory.scanner.scan()
    assert isinstance(problems, Problems)
    assert [diagnostic.path for diagnostic in problems.diagnostics] == ["metadata.name"]
    assert message in problems.diagnostics[0].message
    directory.write("a.yaml", manifest("good"))
    assert directory.scan() == ["+good:80 a.yaml", "!a.yaml"]


@pytest.mark.parametrize(
    ("field", "written", "path", "hint"),
    [
        ("apiVersion", "apiversion", "apiVersion", "write apiVersion in place of apiversion"),
        ("kind", "Kind", "kind", "write kind in place of Kind"),
        ("metadata", "metdata", "metadata.name", "write metadata in place of metdata"),
        ("  name", "  nam", "metadata.name", "write name in place of nam"),
        ("  name", "  namespace", "metadata.name", "every object needs it"),
        ("kind", "sort", "kind", "every object needs it"),
        (
            "apiVersion",
            "sort",
            "apiVersion",
            "every object needs it; those of the router have router.datum.net/v1alpha1",
        ),
    ],
)
def test_a_missing_field_names_the_one_that_looks_like_it(
    directory: Directory, field: str, written: str, path: str, hint: str
) -> None:
    directory.write("a.yaml", manifest("x").replace(f"{field}:", f"{written}:"))
    (problems,) = directory.scanner.scan()
    assert isinstance(problems, Problems)
    assert [(one.path, one.hint) for one in problems.diagnostics] == [(path, hint)]


def test_free_names_of_rbac_are_no_problem(directory: Directory) -> None:
    directory.write("a.yaml", manifest('"system:x"', kind="ClusterRole", version="rbac.authorization.k8s.io/v1"))
    assert directory.scan() == []


def test_comment_above_an_object_moves_its_lines(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x"))
    directory.scan()
    directory.write("a.yaml", "# new\n" + manifest("x"))
    (event,) = directory.scanner.scan()
    assert isinstance(event, Upsert)
    assert (event.origin.line, event.origin.lines["spec.port"]) == (2, 7)


def test_touch_alone_says_nothing(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x"))
    directory.scan()
    os.utime(directory.path / "a.yaml", ns=(5, 5))
    assert directory.scan() == []


def test_directory_absent_at_start_says_what_to_create(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        Scanner(str(tmp_path / "conf")).scan()
    assert str(caught.value) == (
        f"directory {tmp_path}/conf: not found; create it and put the manifests there as *.yaml, *.yml or *.json files"
    )


def test_directory_that_vanishes_for_a_time_keeps_everything(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x"))
    directory.scan()
    away = directory.path.with_name("away")
    os.replace(directory.path, away)
    assert directory.scan() == [f"!{directory.path.name} SourceFailed"]
    assert directory.scan() == []
    os.replace(away, directory.path)
    assert directory.scan() == [f"!{directory.path.name}"]
    directory.write("a.yaml", manifest("x", port=81))
    assert directory.scan() == ["+x:81 a.yaml"]


def failing(error: OSError, name: str) -> Callable[[str, int], bytes]:
    def read(path: str, limit: int) -> bytes:
        if path.endswith(name):
            raise error
        return read_regular_file(path, limit)

    return read


def test_file_that_cannot_be_read_is_reported_and_the_others_are_used(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(manifest("x"))
    (tmp_path / "b.yaml").write_text(manifest("y"))
    scanner = Scanner(str(tmp_path), read=failing(PermissionError(13, "Permission denied"), "b.yaml"))
    assert show(scanner.scan()) == ["+x:80 a.yaml", "!b.yaml SourceFailed"]
    assert scanner.scan() == []


def test_unreadable_subdirectory_keeps_what_was_read_from_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text(manifest("x"))
    (tmp_path / "b.yaml").write_text(manifest("y"))
    full = list_files(str(tmp_path))
    sub = str(tmp_path / "sub")
    partial = type(full)(
        files={path: signature for path, signature in full.files.items() if not path.startswith(sub)},
        unreadable={sub: "Permission denied"},
    )
    state = [full]
    scanner = Scanner(str(tmp_path), list_root=lambda *_: state[0])
    assert show(scanner.scan()) == ["+y:80 b.yaml", "+x:80 a.yaml"]
    state[0] = partial
    assert show(scanner.scan()) == ["!sub SourceFailed"]
    assert scanner.scan() == []
    state[0] = full
    assert show(scanner.scan()) == ["!sub"]


def test_files_beyond_the_limit_are_reported_and_known_ones_stay(tmp_path: Path) -> None:
    directory = Directory(tmp_path, ScanLimits(max_files=2))
    directory.write("b.yaml", manifest("x"))
    directory.write("c.yaml", manifest("y"))
    directory.scan()
    directory.write("a.yaml", manifest("z"))
    assert directory.scan() == ["+z:80 a.yaml", f"!{tmp_path.name} SourceFailed"]
    assert directory.scan() == []
    assert directory.scan() == []


def test_full_scan_says_everything_again_and_deletes_what_went_meanwhile(directory: Directory) -> None:
    directory.write("a.yaml", manifest("x"))
    directory.write("b.yaml", manifest("y"))
    directory.scan()
    (directory.path / "b.yaml").unlink()
    directory.scan()
    assert show(directory.scanner.scan(is_full=True)) == ["-y b.yaml", "+x:80 a.yaml"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a.yaml", "b.yaml", "c.yaml"]),
        st.one_of(
            st.none(),
            st.tuples(st.lists(st.sampled_from("xyz"), unique=True, max_size=3), st.integers(80, 83)),
            st.just("broken"),
        ),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_what_was_emitted_converges_to_the_directory(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object, bool]]
) -> None:
    """However files change between scans, good files end in force exactly, and broken ones lose nothing by breaking."""
    directory = Directory(tmp_path_factory.mktemp("manifests"))
    emitted: dict[str, int] = {}
    problems: dict[str, tuple[Diagnostic, ...]] = {}

    def scan() -> None:
        for event in directory.scanner.scan():
            if isinstance(event, Upsert):
                metadata, spec = event.raw["metadata"], event.raw["spec"]
                assert isinstance(metadata, dict)
                assert isinstance(spec, dict)
                emitted[metadata["name"]] = spec["port"]
            elif isinstance(event, Delete):
                del emitted[event.key.name]
            elif isinstance(event, Problems):
                problems[event.scope] = event.diagnostics

    scan()
    good: dict[str, tuple[list[str], int]] = {}
    for name, content, is_scanned in steps:
        path = directory.path / name
        if content is None:
            path.unlink(missing_ok=True)
            good.pop(name, None)
        elif isinstance(content, tuple):
            path.write_text(manifest(*content[0], port=content[1]))
            good[name] = content
        else:
            for _ in range(3):
                scan()
            before = dict(emitted)
            path.write_text(BROKEN)
            for _ in range(3):
                scan()
            assert emitted == before
            path.write_text("")
            good[name] = ([], 0)
        if is_scanned:
            scan()
    for _ in range(4):
        scan()
    held: dict[str, list[int]] = {}
    for keys, port in good.values():
        for key in keys:
            held.setdefault(key, []).append(port)
    assert emitted.keys() == held.keys()
    assert all(emitted[key] in ports for key, ports in held.items())
    reported = sorted(diagnostic.object for found in problems.values() for diagnostic in found)
    assert reported == sorted(f"vpcservice default/{key}" for key, ports in held.items() for _ in ports[1:])
    assert {diagnostic.reason for found in problems.values() for diagnostic in found} <= {Reason.DUPLICATE_OBJECT}
