"""The harness is a folder of scripts and no distribution: put it where imports find it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))


@pytest.fixture
def output():
    """Return a reader of what the real tools printed (wrk 4.1.0, h2load 1.52.0, vegeta 12.13.0)."""
    return lambda name: (HERE / "outputs" / name).read_text()
