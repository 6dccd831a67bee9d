"""The source around the scanner: batches, `Synced`, polling, settings."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from datum_router.errors import ConfigError, SourceError
from datum_router.plugins.protocols import SourceEvent, Synced, Upsert
from datum_router_files import plugin
from datum_router_files.scan import Scanner
from datum_router_files.source import FilesSource, create_source

MANIFEST = "apiVersion: v1\nkind: Thing\nmetadata: {name: x}\nspec: {port: %d}\n"


class Steps:
    """A sleep that hands control to the test between scans."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.asked = trio.Semaphore(0)
        self.allowed = trio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        self.asked.release()
        await self.allowed.acquire()

    async def one_scan(self) -> None:
        self.allowed.release()
        await self.asked.acquire()


def test_everything_and_synced_are_one_batch_then_changes_follow(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MANIFEST % 80)
    batches: list[Sequence[SourceEvent]] = []

    async def main() -> None:
        steps = Steps()
        source = FilesSource(Scanner(str(tmp_path)), sleep=steps.sleep)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, batches.append)
            await steps.asked.acquire()
            assert [type(event) for event in batches[0]] == [Upsert, Synced]
            await steps.one_scan()
            assert len(batches) == 1
            (tmp_path / "a.yaml").write_text(MANIFEST % 81)
            await steps.one_scan()
            assert [type(event) for event in batches[1]] == [Upsert]
            assert len(batches) == 2
            assert min(steps.delays) >= 0.25
            assert max(steps.delays) <= 0.6
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_second_run_begins_with_everything_again(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MANIFEST % 80)
    source = create_source({"path": str(tmp_path)})

    async def one_run() -> Sequence[SourceEvent]:
        batches: list[Sequence[SourceEvent]] = []
        async with trio.open_nursery() as nursery:

            def emit(events: Sequence[SourceEvent]) -> None:
                batches.append(events)
                nursery.cancel_scope.cancel()

            nursery.start_soon(source.run, emit)
        return batches[0]

    first, second = trio.run(one_run), trio.run(one_run)
    assert [type(event) for event in first] == [Upsert, Synced]
    assert first == second


def test_directory_absent_at_start_is_a_source_error(tmp_path: Path) -> None:
    source = create_source({"path": str(tmp_path / "nothing")})
    with pytest.raises(SourceError, match="not found; create it"):
        trio.run(source.run, lambda _events: None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "setting path: found '', expected a directory of YAML files"),
        ({"path": "a\0b"}, "setting path: found"),
        ({"paht": "x"}, "unknown setting paht (did you mean path?)"),
        ({"path": "x", "verbosity": "1"}, "unknown setting verbosity (known settings: path, poll_interval_s)"),
        ({"path": "x", "poll_interval_s": "soon"}, "found 'soon', expected seconds from 0.01 to 60.0"),
        ({"path": "x", "poll_interval_s": "nan"}, "found 'nan'"),
        ({"path": "x", "poll_interval_s": "0"}, "found '0'"),
    ],
)
def test_settings_that_cannot_be_used_say_what_would_be_right(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_source(settings)
    assert message in str(caught.value)


def test_plugin_offers_the_source_by_name() -> None:
    info = plugin.datum_router_plugin_info()
    assert (info.name, info.api, info.posture) == ("datum-router-files", 1, "no-traffic")
    (spec,) = plugin.datum_router_sources()
    assert spec.name == "files"
    assert isinstance(spec.create({"path": "somewhere"}), FilesSource)
