"""gRPC at a gateway: threat row D23."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router_proxy.wire import grammar, grpc
from datum_router_proxy.wire.grpc import GrpcStatus


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"Application/GRPC+json; charset=utf-8", True),
        (b"application/grpc;x", True),
        (b"application/grpc-web", False),
        (b"application/grpc-web+proto", False),
        (b"application/grpcx", False),
        (b"application/json", False),
        (b"", False),
        (None, False),
    ],
)
def test_content_types(content_type: bytes | None, expected: bool) -> None:
    assert grpc.is_grpc(content_type) is expected


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"250m", 0.25),
        (b"5u", 5e-6),
        (b"7n", 7e-9),
        (b"0S", 0.0),
        (b"99999999H", 99999999 * 3600.0),
        (b"00000001S", 1.0),
    ],
)
def test_d23_timeouts(value: bytes, seconds: float) -> None:
    assert grpc.parse_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"S",
        b"1",
        b"1s",
        b"1h",
        b"-1S",
        b"+1S",
        b"1.5S",
        b"1_0S",
        b" 1S",
        b"1S ",
        b"1S\n",
        b"123456789S",
        b"1SS",
        b"\xb2S",
    ],
)
def test_d23_malformed_timeouts(value: bytes) -> None:
    assert grpc.parse_timeout(value) is None


@settings(max_examples=200, deadline=None)
@given(seconds=st.floats(min_value=0, max_value=1e9))
def test_d23_time_left_is_never_rounded_up(seconds: float) -> None:
    encoded = grpc.encode_timeout(seconds)
    parsed = grpc.parse_timeout(encoded)
    assert parsed is not None
    assert parsed <= seconds * (1 + 1e-12)
    assert parsed >= seconds * 0.99 - 1e-9


def test_d23_overdue_and_endless_timeouts_stay_in_the_grammar() -> None:
    assert grpc.encode_timeout(-5) == b"0n"
    assert grpc.encode_timeout(1e15) == b"99999999H"


@pytest.mark.parametrize(
    ("status", "from_http", "from_local"),
    [
        (400, 13, 13),
        (401, 16, 16),
        (403, 7, 7),
        (404, 12, 12),
        (408, 2, 4),
        (413, 2, 8),
        (429, 14, 14),
        (500, 2, 13),
        (502, 14, 14),
        (503, 14, 14),
        (504, 14, 4),
        (418, 2, 2),
        (200, 2, 2),
    ],
)
def test_d23_status_mapping(status: int, from_http: int, from_local: int) -> None:
    assert grpc.status_from_http(status) == from_http
    assert grpc.status_from_local_reply(status) == from_local


@settings(max_examples=200, deadline=None)
@given(message=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_messages_are_valid_field_values_and_decode_to_themselves(message: str) -> None:
    encoded = grpc.encode_message(message)
    assert grammar.is_valid_field_value(encoded)
    assert unquote(encoded.decode("ascii"), errors="strict") == message.strip()


def test_long_messages_are_cut_between_characters() -> None:
    encoded = grpc.encode_message("é" * 2000)
    decoded = unquote(encoded.decode("ascii"), errors="strict")
    assert decoded == "é" * (grpc.MAX_MESSAGE_BYTES // 2)


def test_local_reply_is_trailers_only() -> None:
    assert grpc.local_reply_fields(GrpcStatus.UNAVAILABLE, "no healthy endpoint: 100%") == [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"14"),
        (b"grpc-message", b"no healthy endpoint: 100%25"),
    ]
    assert grpc.status_fields(GrpcStatus.OK) == [(b"grpc-status", b"0")]
