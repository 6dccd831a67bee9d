"""Whatever happens to a directory: scans that are told what has changed end where a scan of everything does."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from datum_router.compiler.diagnostics import Diagnostic
from datum_router.plugins.protocols import Delete, Problems, SourceEvent, Upsert
from datum_router.reasons import Reason
from datum_router_files.scan import Scanner, read_regular_file
from datum_router_files.source import Touched
from datum_router_files.watch import NOTHING, Watch

DOCUMENT = "apiVersion: router.datum.net/v1alpha1\nspec: {port: %d}\nkind: VPCService\nmetadata: {name: %s}\n"
FILES = ("a.yaml", "b.yaml", "sub/c.yaml", "sub/d.yml", "other/e.yaml", "other/deep/f.yaml", "link.yaml")
FOLDERS = ("sub", "other", "other/deep")


class Told:
    """What the events of a scanner say is in force: object -> port and file; and what is wrong by file."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[object, str]] = {}
        self.problems: dict[str, tuple[Diagnostic, ...]] = {}

    def take(self, events: Sequence[SourceEvent]) -> None:
        """Apply one batch."""
        for event in events:
            if isinstance(event, Upsert):
                metadata, spec = event.raw["metadata"], event.raw["spec"]
                assert isinstance(metadata, dict)
                assert isinstance(spec, dict)
                self.objects[metadata["name"]] = (spec["port"], event.origin.file)
            elif isinstance(event, Delete):
                if self.objects.get(event.key.name, (0, ""))[1] == event.file:
                    del self.objects[event.key.name]
            elif isinstance(event, Problems):
                self.problems[event.scope] = event.diagnostics

    @property
    def broken(self) -> set[str]:
        """Return the files that hold something else than objects that stand in one file or several."""
        return {
            path
            for path, found in self.problems.items()
            if any(one.reason is not Reason.DUPLICATE_OBJECT or f"{path}:" in one.message for one in found)
        }

    @property
    def duplicates(self) -> int:
        """Return how many objects are not used; which of them may depend on what was there before."""
        return sum(map(len, self.problems.values()))


class Directory:
    """A directory to which things happen, and files outside of it that links lead to."""

    def __init__(self, root: Path, outside: Path, seed: int) -> None:
        self.root, self.outside, self.rng = root, outside, random.Random(seed)
        self.edits = 0
        # Of a few names many stand in several files; of many hardly any does.
        self.names = [f"n{number}" for number in range(self.rng.choice((8, 200)))]
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True)
        outside.mkdir()
        for name in FILES[: self.rng.randint(1, 6)]:
            (root / name).write_text(self.text())

    def text(self) -> str:
        """Return some objects, with ports as they never were before."""
        self.edits += 1
        names = self.rng.sample(self.names, self.rng.randint(1, 3))
        return "---\n".join(DOCUMENT % (self.edits * 10 + at, name) for at, name in enumerate(names))

    def happen(self) -> None:
        """Do something; it may fail half-way."""
        path = self.root / self.rng.choice(FILES)
        ways: tuple[Callable[[Path], object], ...] = (
            lambda path: path.write_text(self.text()),
            lambda path: path.write_text(self.text()),
            self._replace,
            self._replace,
            lambda path: path.write_text(self.rng.choice(("kind: [", "", "a: b: c", self.text()[:-9]))),
            lambda path: path.unlink(),
            lambda path: path.rename(self.root / self.rng.choice(FILES)),
            lambda _: self._folder().rename(self._folder("new")),
            lambda _: shutil.rmtree(self._folder()),
            lambda _: self._folder().mkdir(parents=True),
            lambda _: self._link(),
            lambda _: (self.outside / "t.yaml").write_text(self.text()),
            lambda _: self._swap(),
            lambda path: os.link(path, self.root / self.rng.choice(FILES)),
        )
        with contextlib.suppress(OSError):
            self.rng.choice(ways)(path)

    def _folder(self, *more: str) -> Path:
        return self.root / self.rng.choice((*FOLDERS, *more))

    def _replace(self, path: Path) -> None:
        new = path.parent / ".new"
        new.write_text(self.text())
        new.rename(path)

    def _link(self) -> None:
        target, link = self.outside / "t.yaml", self.root / "link.yaml"
        target.write_text(self.text())
        link.unlink(missing_ok=True)
        link.symlink_to(target)

    def _swap(self) -> None:
        """Update a ConfigMap volume."""
        volume, self.edits = self.root / "volume", self.edits + 1
        now = volume / f"..{self.edits}"
        now.mkdir(parents=True)
        (now / "x.yaml").write_text(self.text())
        data = volume / "..data"
        before = os.readlink(data) if data.is_symlink() else None
        (volume / "..tmp").symlink_to(now.name)
        (volume / "..tmp").rename(data)
        if before is None:
            (volume / "x.yaml").symlink_to("..data/x.yaml")
        else:
            shutil.rmtree(volume / before)


class Following:
    """A scanner that is told by the system what has changed, and looks at everything from time to time."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.is_disturbed = False
        self.told = Told()
        self.watch = Watch()
        self._scanner = Scanner(str(directory.root), read=self._read)
        self.poll()

    def _read(self, path: str, limit: int) -> bytes:
        if self.is_disturbed and self._directory.rng.random() < 0.25:
            self._directory.happen()
        data = read_regular_file(path, limit)
        if self.is_disturbed and self._directory.rng.random() < 0.25:
            self._directory.happen()
        return data

    def follow(self) -> None:
        """Scan if the system has told of anything."""
        changes = self.watch.take()
        if changes != NOTHING:
            touched = Touched(self.watch, changes)
            self.told.take(self._scanner.scan(is_early=True, touched=touched))
            if touched.paths is None:
                self.watch.follow(self._scanner.directories())

    def poll(self) -> None:
        """Scan in turn."""
        self.told.take(self._scanner.scan())
        self.watch.follow(self._scanner.directories())


@pytest.fixture
def following(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Directory, Following]]:
    directory = Directory(tmp_path / "root", tmp_path / "outside", request.param)
    following = Following(directory)
    yield directory, following
    following.watch.close()


@pytest.mark.parametrize("following", range(80), indirect=True)
def test_scans_of_what_was_told_end_where_a_scan_of_everything_does(following: tuple[Directory, Following]) -> None:
    directory, scans = following
    rng = directory.rng
    scans.is_disturbed = rng.random() < 0.5
    for _ in range(rng.randint(3, 25)):
        directory.happen()
        kind = rng.random()
        if kind < 0.6:
            scans.follow()
        elif kind < 0.75:
            scans.poll()
    scans.is_disturbed = False

    def settled() -> Told:
        """Return what is told by a new scanner, after everything had time to be believed."""
        for _ in range(6):
            scans.poll()
        told = Told()
        told.take(Scanner(str(directory.root)).scan())
        return told

    while broken := settled().broken:
        Path(min(broken)).unlink()
    fresh = settled()
    assert scans.told.objects.keys() == fresh.objects.keys()
    assert scans.told.duplicates == fresh.duplicates
    while any((fresh := settled()).problems.values()):
        Path(min(path for path, found in fresh.problems.items() if found)).unlink()
    assert scans.told.objects == fresh.objects
    assert scans.told.duplicates == 0
