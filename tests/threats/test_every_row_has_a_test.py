"""Every row of the threat list that this folder answers for has a test of its own name.

A test carries the rows that it is for in front: `test_a1_...`, or `test_a6_a9_...` for two.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECTIONS = {"a": 25, "b": 8, "c": 12, "d": 23, "e": 10, "u": 14, "p": 9, "g": 6}
"""How many rows each section has: HTTP/1 framing, hop-by-hop, paths, HTTP/2, slow peers, upstreams, the process; last
the ground rules, which the kit checks around every test."""
LATER: dict[str, str] = {}
"""Rows whose subject the product does not have yet. Rows F (TLS, identity) and K (Kubernetes) are tested elsewhere."""
_PREFIX = re.compile(r"::test_((?:[a-z]\d{1,2}_)+)")


@pytest.fixture(scope="module")
def tested() -> set[str]:
    """The rows in the names of the tests that pytest collects in this folder."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(HERE),
    ]
    listing = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100, cwd=HERE.parents[1])
    assert listing.returncode == 0, listing.stdout[-2000:]
    return {row for prefix in _PREFIX.findall(listing.stdout) for row in prefix.strip("_").split("_")}


@pytest.mark.parametrize("section", ["a", "b", "c", "d", "e", "u", "p"])
def test_every_row_has_a_test(section: str, tested: set[str]) -> None:
    rows = {f"{section}{number}" for number in range(1, SECTIONS[section] + 1)}
    assert sorted(rows - tested - set(LATER)) == []


def test_no_test_is_for_a_row_that_is_not_there(tested: set[str]) -> None:
    rows = {f"{section}{number}" for section, count in SECTIONS.items() for number in range(1, count + 1)}
    assert sorted(tested - rows) == []
    assert sorted(tested & set(LATER)) == [], "a row that has a test is no longer one for later"
