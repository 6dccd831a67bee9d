"""Scans that the system calls for: what wakes them, and what they do not believe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from datum_router.plugins.protocols import Delete, SourceEvent, Upsert
from datum_router_files.scan import Scanner
from datum_router_files.source import FilesSource
from datum_router_files.watch import Watch

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
            return watch._tells(os.read(watch._fd, 65536))
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
