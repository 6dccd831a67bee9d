"""Fixtures of the threat rows: one gateway process per module, one arena per test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.threats.kit import Arena, running


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """One gateway for all rows of a module: what one leaves behind, the next one finds."""
    with running(tmp_path_factory.mktemp("threats") / "manifests") as arena:
        yield arena


@pytest.fixture
def arena(ground: Arena) -> Iterator[Arena]:
    """The gateway, with the ground rules checked around the test."""
    ground.begin()
    yield ground
    ground.end()
