"""Which names are read, and what a signature notices."""

import os
from pathlib import Path

import pytest

from datum_router_files import listing
from datum_router_files.listing import is_manifest_name, list_files
from datum_router_files.scan import read_regular_file


@pytest.mark.parametrize("name", ["a.yaml", "a.yml", "a.json", "a.b.yaml", "-.yaml"])
def test_manifest_names(name: str) -> None:
    assert is_manifest_name(name)


@pytest.mark.parametrize(
    "name",
    [".a.yaml", ".a.yaml.swp", ".#a.yaml", "a.yaml~", "#a.yaml#", "4913", "a.txt", "a.yaml.bak", "..data", "a.YAML"],
)
def test_names_that_editors_leave_are_skipped(name: str) -> None:
    assert not is_manifest_name(name)


@pytest.mark.parametrize("name", ["a.yaml___jb_tmp___", "x___jb_old___.yaml", "x~.yaml~"])
def test_names_that_tools_use_for_a_moment_are_skipped(name: str) -> None:
    assert not is_manifest_name(name)


def test_directories_are_followed_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("a.yaml", "sub/b.yaml", "sub/deep/c.json", ".git/d.yaml", "..2024/e.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = list_files(str(tmp_path)).files
    assert [os.path.relpath(path, tmp_path) for path in found] == ["a.yaml", "sub/b.yaml", "sub/deep/c.json"]


def test_symlink_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text("{}")
    (tmp_path / "sub" / "again").symlink_to(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in list_files(str(tmp_path)).files] == ["sub/a.yaml"]


def test_dangling_symlinks_and_special_files_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    found = list_files(str(tmp_path))
    assert (dict(found.files), dict(found.unreadable)) == ({}, {})


def test_fifo_in_place_of_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(OSError, match="not a regular file"):
        read_regular_file(str(tmp_path / "pipe.yaml"), 10)


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"x" * 100)
    assert len(read_regular_file(str(tmp_path / "a.yaml"), 10)) == 10


def test_signature_sees_rename_with_equal_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    before = list_files(str(tmp_path))
    (tmp_path / "new").write_text("two")
    os.utime(tmp_path / "new", ns=(1, 1))
    os.replace(tmp_path / "new", path)
    after = list_files(str(tmp_path))
    assert (before.files[str(path)].size, before.files[str(path)].mtime_ns) == (3, 1)
    assert before.files[str(path)] != after.files[str(path)]


def test_number_and_total_size_of_files_are_bounded(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.yaml").write_text("0123456789")
    by_number = list_files(str(tmp_path), max_files=3)
    by_size = list_files(str(tmp_path), max_total_bytes=25)
    assert (len(by_number.files), by_number.left_out) == (3, {str(tmp_path / "3.yaml")})
    assert (len(by_size.files), len(by_size.left_out)) == (2, 2)


def test_depth_of_directories_is_bounded_and_reported(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * listing.MAX_DIRECTORY_DEPTH)
    deep.mkdir(parents=True)
    (deep / "a.yaml").write_text("{}")
    (deep.parent / "b.yaml").write_text("{}")
    found = list_files(str(tmp_path))
    assert list(found.files) == [str(deep.parent / "b.yaml")]
    assert list(found.unreadable) == [str(deep)]


def test_one_file_may_stand_for_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "manifest.txt"
    path.write_text("{}")
    assert list(list_files(str(path)).files) == [str(path)]


def test_missing_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list_files(str(tmp_path / "nothing"))
