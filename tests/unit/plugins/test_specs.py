"""Specs create what they name, with what it asks for."""

from __future__ import annotations

from collections.abc import Mapping

from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.table import KindTable
from datum_router.plugins.protocols import CountingSource, Emit
from datum_router.plugins.specs import SourceSpec

KINDS = KindTable(OWN_KINDS)


class Made:
    def __init__(self, *given: object) -> None:
        self.given = given

    async def run(self, emit: Emit) -> None:
        raise AssertionError(emit)


class Counting(Made):
    def stats(self) -> Mapping[str, float]:
        return {"stale_seconds": 0.0}


def test_a_source_is_given_its_settings() -> None:
    made = SourceSpec(name="a", create=Made).make({"path": "x"}, KINDS)
    assert isinstance(made, Made)
    assert made.given == ({"path": "x"},)


def test_a_source_that_needs_kinds_is_given_them_too() -> None:
    made = SourceSpec(name="a", create=Made, needs_kinds=True).make({}, KINDS)
    assert isinstance(made, Made)
    assert made.given == ({}, KINDS)


def test_sources_may_count() -> None:
    assert isinstance(Counting(), CountingSource)
    assert not isinstance(Made(), CountingSource)
