"""Scans that the system calls for: what wakes them, and what they do not believe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from datum_router.plugins.protocols import Delete, SourceEvent, Upsert
from datum_router_files.listing import Listing, list_files, relist
from datum_router_files.scan import Scanner
from datum_router_files.source import FilesSource
from datum_router_files.watch import NOTHING, Changes, Watch

MANIFEST = "apiVersion: router.datum.net/v1alpha1\nkind: VPCService\nmetadata: {name: %s}\nspec: {port: %d}\n"


def kinds(events: Sequence[SourceEvent]) -> list[type]:
    return [type(event) for event in events]


@pytest.fixture
def scanner(tmp_path: Path) -> Scanner:
    (tmp_path / "a.yaml").write_text(MANIFEST % ("x", 80))
    scanner = Scanner(str(tmp_path))
    scanner.scan()
    return scanner


def test_what_looks_unfinished_is_not_believed_by_scans_out_of_turn(scanner: Scanner, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: [")
    for _ in range(5):
        assert scanner.scan(is_early=True) == []
    assert scanner.scan() == []
    assert scanner.scan(is_early=True) == []
    assert len(scanner.scan()) == 1  # the problem: the second scan in turn saw the same


def test_a_file_that_is_gone_is_not_believed_by_scans_out_of_turn(scanner: Scanner, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").unlink()
    for _ in range(5):
        assert scanner.scan(is_early=True) == []
    assert scanner.scan() == []
    assert scanner.scan(is_early=True) == []
    assert kinds(scanner.scan()) == [Delete]


def test_a_file_that_was_missed_for_a_moment_is_read_again(scanner: Scanner, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").rename(tmp_path / ".a")
    assert scanner.scan(is_early=True) == scanner.scan() == []
    (tmp_path / ".a").rename(tmp_path / "a.yaml")
    assert scanner.scan(is_early=True) == scanner.scan() == scanner.scan() == []
    (tmp_path / "a.yaml").write_text(MANIFEST % ("x", 81))
    assert kinds(scanner.scan(is_early=True)) == [Upsert]


def test_a_renamed_file_keeps_its_objects_at_once(scanner: Scanner, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    (event,) = scanner.scan(is_early=True)
    assert isinstance(event, Upsert)
    assert event.origin.file.endswith("b.yaml")
    assert scanner.scan() == scanner.scan() == []


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Callable[[], bool]]:
    """Give a function that returns whether what happened since the last call calls for a scan."""
    (tmp_path / "sub").mkdir()
    watch = Watch()
    watch.follow([str(tmp_path), str(tmp_path / "sub")])

    def ask() -> bool:
        try:
            return watch._told(os.read(watch._fd, 65536)) != NOTHING
        except BlockingIOError:
            return False

    yield ask
    watch.close()


def test_manifests_and_directories_call_for_a_scan(told: Callable[[], bool], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x")
    assert told()
    (tmp_path / "a.yaml").rename(tmp_path / "b.yml")
    assert told()
    (tmp_path / "sub" / "c.json").write_text("x")
    assert told()
    (tmp_path / "new").mkdir()
    assert told()
    (tmp_path / "..data").symlink_to(tmp_path / "new")
    (tmp_path / "..new").symlink_to(tmp_path / "sub")
    told()
    os.rename(tmp_path / "..new", tmp_path / "..data")
    assert told()
    (tmp_path / "b.yml").unlink()
    assert told()


def test_other_files_call_for_none(told: Callable[[], bool], tmp_path: Path) -> None:
    (tmp_path / ".a.yaml.tmp").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "a.yaml~").write_text("x")
    assert not told()
    with (tmp_path / "a.yaml").open("w"):
        assert not told(), "an empty file that is still open"
    assert told()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    (tmp_path / "sub").mkdir()
    watch = Watch()
    watch.follow([str(tmp_path), str(tmp_path / "sub")])
    yield watch
    watch.close()


def test_files_that_have_changed_are_named(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x")
    (tmp_path / ".new").write_text("x")
    (tmp_path / ".new").rename(tmp_path / "sub" / "b.yaml")
    assert watch.take() == {str(tmp_path / "a.yaml"), str(tmp_path / "sub" / "b.yaml")}
    assert watch.take() == NOTHING


def test_anything_may_have_changed_when_directories_have(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x")
    (tmp_path / "new").mkdir()
    assert watch.take() is None
    (tmp_path / "sub").rename(tmp_path / "other")
    assert watch.take() is None


def test_of_a_directory_with_two_names_no_file_is_named(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(tmp_path / "sub")
    watch.follow([str(tmp_path), str(tmp_path / "sub"), str(tmp_path / "again")])
    watch.take()
    (tmp_path / "sub" / "b.yaml").write_text("x")
    assert watch.take() is None
    (tmp_path / "a.yaml").write_text("x")
    assert watch.take() == {str(tmp_path / "a.yaml")}


class Counting:
    """A scanner of a directory that counts how often everything is listed."""

    def __init__(self, root: Path, **options: Callable[[str, int], bytes]) -> None:
        self.listed = 0
        self.scanner = Scanner(str(root), list_root=self._list, **options)

    def _list(self, root: str, max_files: int, max_total_bytes: int) -> Listing:
        self.listed += 1
        return list_files(root, max_files=max_files, max_total_bytes=max_total_bytes)

    def scan(self, *touched: Path) -> list[SourceEvent]:
        """Scan out of turn, told of some files."""
        self.listed = 0
        paths = frozenset(str(path) for path in touched)
        return self.scanner.scan(is_early=True, touched=lambda: paths)


def test_only_files_that_have_changed_are_looked_at(tmp_path: Path) -> None:
    paths = [tmp_path / f"f{number}.yaml" for number in range(5)]
    for path in paths:
        path.write_text(MANIFEST % (path.stem, 80))
    counting = Counting(tmp_path)
    counting.scanner.scan()
    for path in paths[:3]:
        path.write_text(MANIFEST % (path.stem, 81))
    assert [event.raw["spec"] for event in counting.scan(*paths[:2]) if isinstance(event, Upsert)] == [{"port": 81}] * 2
    assert not counting.listed
    assert kinds(counting.scanner.scan()) == [Upsert], "what nobody told of is found in turn"
    assert counting.scanner.scan() == []


@pytest.mark.parametrize("what", ["new", "gone", "link", "directory", "unknown"])
def test_whatever_is_not_a_known_plain_file_has_everything_listed(tmp_path: Path, what: str) -> None:
    path, target = tmp_path / "a.yaml", tmp_path / ".target"
    path.write_text(MANIFEST % ("x", 80))
    (tmp_path / "sub").mkdir()
    target.write_text(MANIFEST % ("x", 82))
    counting = Counting(tmp_path)
    counting.scanner.scan()
    expected: list[type] = [Upsert]
    if what == "new":
        path = tmp_path / "b.yaml"
        path.write_text(MANIFEST % ("y", 80))
    elif what == "gone":
        path.unlink()
        expected = []
    elif what == "link":
        path.unlink()
        path.symlink_to(target)
    elif what == "directory":
        path.unlink()
        path.mkdir()
        expected = []
    else:
        path.write_text(MANIFEST % ("x", 81))
        path = tmp_path / "elsewhere.yaml"
    assert kinds(counting.scan(path)) == expected
    assert counting.listed


def test_what_changes_while_a_told_file_is_read_comes_with_it(tmp_path: Path) -> None:
    """An edit of two files at once is one batch, as it is where everything is listed."""
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    for path in (first, second):
        path.write_text(MANIFEST % (path.stem, 80))
    told: list[set[str]] = []

    def read(path: str, limit: int) -> bytes:
        data = Path(path).read_bytes()
        if told == [{str(first)}]:
            second.write_text(MANIFEST % ("b", 81))
            told.append({str(first), str(second)})
        return data

    counting = Counting(tmp_path, read=read)
    counting.scanner.scan()
    counting.listed = 0
    first.write_text(MANIFEST % ("a", 81))
    told.append({str(first)})
    events = counting.scanner.scan(is_early=True, touched=lambda: told[-1])
    assert [event.raw["spec"] for event in events if isinstance(event, Upsert)] == [{"port": 81}] * 2
    assert not counting.listed


def test_a_file_that_appears_while_a_told_one_is_read_is_not_lost(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.yaml" for name in "abc")
    for path in (first, third):
        path.write_text(MANIFEST % (path.stem, 80))
    told: list[Changes] = []

    def read(path: str, limit: int) -> bytes:
        data = Path(path).read_bytes()
        if told == [{str(first)}]:
            second.write_text(MANIFEST % ("b", 80))
            told.append(None)
        elif told and told[-1] is None:
            third.write_text(MANIFEST % ("c", 81))
            told.append(frozenset({str(third)}))
        return data

    counting = Counting(tmp_path, read=read)
    counting.scanner.scan()
    first.write_text(MANIFEST % ("a", 81))
    told.append(frozenset({str(first)}))
    events = counting.scanner.scan(is_early=True, touched=lambda: told[-1])
    found = {str(event.raw["metadata"]): event.raw["spec"] for event in events if isinstance(event, Upsert)}
    assert found == {"{'name': 'a'}": {"port": 81}, "{'name': 'b'}": {"port": 80}, "{'name': 'c'}": {"port": 81}}


def test_more_files_or_bytes_than_the_limit_have_everything_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(MANIFEST % ("x", 80))
    size = path.stat().st_size
    listing = list_files(str(tmp_path), max_total_bytes=size + 1)
    assert relist(listing, {str(path)}, max_total_bytes=size + 1) == listing
    path.write_text(MANIFEST % ("x", 80) + "##")
    assert relist(listing, {str(path)}, max_total_bytes=size + 1) is None
    cut = list_files(str(tmp_path), max_files=0)
    assert cut.left_out
    assert relist(cut, {str(path)}) is None


@pytest.mark.parametrize("is_file", [False, True])
def test_an_edit_is_emitted_without_waiting_for_a_poll(tmp_path: Path, is_file: bool) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(MANIFEST % ("x", 80))
    sender, receiver = trio.open_memory_channel[Sequence[SourceEvent]](10)

    async def never(_seconds: float) -> None:
        await trio.sleep_forever()

    source = FilesSource(Scanner(str(path if is_file else tmp_path)), sleep=never, watches=True)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, sender.send_nowait)
            await receiver.receive()
            for port in (81, 82, 83):
                new = tmp_path / ".new"
                new.write_text(MANIFEST % ("x", port))
                new.rename(path)
                with trio.fail_after(10):
                    (event,) = await receiver.receive()
                assert isinstance(event, Upsert)
                assert event.raw["spec"] == {"port": port}
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_without_inotify_polling_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_watch: Watch) -> None:
        raise OSError(24, "too many inotify instances")

    monkeypatch.setattr(Watch, "__init__", refuse)
    (tmp_path / "a.yaml").write_text(MANIFEST % ("x", 80))
    sender, receiver = trio.open_memory_channel[Sequence[SourceEvent]](10)
    source = FilesSource(Scanner(str(tmp_path)), poll_interval_s=0.01, watches=True)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, sender.send_nowait)
            await receiver.receive()
            (tmp_path / "a.yaml").write_text(MANIFEST % ("x", 81))
            with trio.fail_after(10):
                assert kinds(await receiver.receive()) == [Upsert]
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_what_an_earlier_scan_found_is_emitted_before_a_later_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loop that was busy for a moment could take the older version of an object last, and keep it."""
    (tmp_path / "a.yaml").write_text(MANIFEST % ("x", 80))
    ports: list[object] = []
    is_held, is_over = trio.Event(), trio.Event()
    polls = trio.Semaphore(0)

    async def run_sync(scan: Callable[..., list[SourceEvent]], *args: object, abandon_on_cancel: bool) -> object:
        found = scan(*args)
        if any(isinstance(event, Upsert) and event.raw["spec"] == {"port": 81} for event in found):
            is_held.set()
            await is_over.wait()  # the thread has ended, but the loop has not come round to it
        return found

    def emit(events: Sequence[SourceEvent]) -> None:
        ports.extend(event.raw["spec"] for event in events if isinstance(event, Upsert))

    async def sleep(_seconds: float) -> None:
        await polls.acquire()

    async def main() -> None:
        source = FilesSource(Scanner(str(tmp_path)), sleep=sleep, watches=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, emit)
            await trio.testing.wait_all_tasks_blocked()
            (tmp_path / "a.yaml").write_text(MANIFEST % ("x", 81))
            with trio.fail_after(10):
                await is_held.wait()
            (tmp_path / "a.yaml").write_text(MANIFEST % ("x", 82))
            polls.release()
            await trio.testing.wait_all_tasks_blocked()
            is_over.set()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    trio.run(main)
    assert ports == [{"port": 80}, {"port": 81}, {"port": 82}]
