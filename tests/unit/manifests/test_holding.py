"""Endpoints as a status writes them down."""

from __future__ import annotations

import pytest

from datum_router.manifests.holding import parse_endpoint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:80", ("10.0.0.1", 80, "")),
        ("[fd00::1]:8080@prod/shop", ("fd00::1", 8080, "prod/shop")),
        ("[fd00::1]:8080@/jU", ("fd00::1", 8080, "/jU")),
        ("[fd00::1]:8080@jU", None),
        ("[FD00:0::1]:1", ("fd00::1", 1, "")),
        ("10.0.0.1", None),
        ("10.0.0.1:", None),
        ("10.0.0.1:http", None),
        ("10.0.0.1:0", None),
        ("10.0.0.1:65536", None),
        ("shop.example:80", None),
        ("", None),
    ],
)
def test_an_endpoint_is_an_address_and_a_port(text: str, expected: tuple[str, int, str] | None) -> None:
    assert parse_endpoint(text) == expected
