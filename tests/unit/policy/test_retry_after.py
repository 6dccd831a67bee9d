from __future__ import annotations

import math

import pytest

from datum_router.policy.retry_after import retry_after_s

DATE = (b"date", b"Tue, 15 Nov 1994 08:12:31 GMT")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], None),
        ([(b"retry-after", b"120")], 120.0),
        ([(b"retry-after", b" 0 ")], 0.0),
        ([(b"retry-after", b"1"), (b"retry-after", b"9")], 1.0),
        ([DATE, (b"retry-after", b"Tue, 15 Nov 1994 08:12:41 GMT")], 10.0),
        ([(b"retry-after", b"Tue, 15 Nov 1994 08:12:00 GMT"), DATE], 0.0),
        ([(b"retry-after", b"Tue, 15 Nov 1994 08:12:41 GMT")], None),
        ([DATE, (b"retry-after", b"soon")], None),
        ([DATE, (b"retry-after", b"Tue, 15 Nov 1994 08:12:60 GMT")], 28.0),
        ([DATE, (b"retry-after", b"Tue, 15 Foo 1994 08:12:41 GMT")], None),
        ([DATE, (b"retry-after", b"Tue, 99 Nov 1994 08:12:41 GMT")], None),
        ([DATE, (b"retry-after", b"Tue, 15 Nov 1994 08:12:41 +0100")], None),
        ([DATE, (b"retry-after", b"Tue, 15 Nov \xe9 08:12:41 GMT")], None),
        ([(b"retry-after", b"-1")], None),
        ([(b"retry-after", b"1.5")], None),
        ([(b"retry-after", b"1_0")], None),
        ([(b"retry-after", b"9" * 400)], None),
        ([(b"retry-after", "²".encode())], None),
    ],
)
def test_seconds_and_dates_of_http(fields: list[tuple[bytes, bytes]], expected: float | None) -> None:
    assert retry_after_s(fields) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(b"250", 0.25), (b"0", 0.0), (b"-1", math.inf), (b"never", math.inf), (b"", math.inf)]
)
def test_the_pushback_of_grpc_comes_first_and_can_forbid_any_retry(value: bytes, expected: float) -> None:
    fields = [(b"retry-after", b"7"), (b"grpc-retry-pushback-ms", value)]
    assert retry_after_s(fields, is_grpc=True) == expected
    assert retry_after_s(fields) == 7.0, "it is a word of gRPC"
