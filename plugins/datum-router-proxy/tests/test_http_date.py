"""Dates as HTTP writes them are those of the standard library."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router_proxy.answers import http_date


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(784111777, b"Sun, 06 Nov 1994 08:49:37 GMT"), (0, b"Thu, 01 Jan 1970 00:00:00 GMT")],
)
def test_known_dates(seconds: int, expected: bytes) -> None:
    assert http_date(seconds) == expected  # the first is RFC 9110's own example


@given(st.integers(0, 253_402_300_799))
def test_any_date_is_written_as_the_standard_library_does(seconds: int) -> None:
    assert http_date(seconds) == formatdate(seconds, usegmt=True).encode("ascii")
