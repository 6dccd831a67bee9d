"""What sources count, as metrics and as shares of a start."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from datum_router.observe import names
from datum_router_runtime.sourcemetrics import source_values, start_shares, stats_of


class Counting:
    async def run(self, emit: object) -> None: ...

    def stats(self) -> Mapping[str, float]:
        return {
            "lists/VPCRoute": 2.0,
            "list_seconds/VPCRoute": 0.5,
            "list_seconds/VPCService": 0.25,
            "silent_seconds/VPCRoute": 3.0,
            "stale_seconds": 1.5,
            "of another version/VPCRoute": 7.0,
        }


class Silent:
    async def run(self, emit: object) -> None: ...


def feed(*sources: object) -> Any:
    return SimpleNamespace(sources=sources, decode_s=0.125, synced_after_s=2.0, first_decode_s=0.1, first_s=0.3)


def test_what_a_source_counts_is_shown_by_kind() -> None:
    assert dict(source_values(feed(Silent(), Counting()))) == {
        (names.DECODE_SECONDS.name, ()): 0.125,
        (names.SOURCE_LISTS.name, ("VPCRoute",)): 2.0,
        (names.SOURCE_LIST_SECONDS.name, ("VPCRoute",)): 0.5,
        (names.SOURCE_LIST_SECONDS.name, ("VPCService",)): 0.25,
        (names.SOURCE_SILENT.name, ("VPCRoute",)): 3.0,
        (names.SOURCE_STALE.name, ()): 1.5,
    }


def test_a_source_that_counts_nothing_shows_nothing() -> None:
    assert stats_of([Silent()]) == {}  # type: ignore[list-item]
    assert dict(source_values(feed(Silent()))) == {(names.DECODE_SECONDS.name, ()): 0.125}


def test_a_start_is_told_in_shares() -> None:
    assert list(start_shares(feed(Counting())).values()) == [2.0, 0.5, 0.75, 0.1, 0.3]
