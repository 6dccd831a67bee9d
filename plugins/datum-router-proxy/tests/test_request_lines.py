"""What is remembered of field lines for HTTP/2 upstreams has been checked, and is no secret."""

from __future__ import annotations

import pytest

from datum_router.errors import LocalProtocolError
from datum_router_proxy.request import RequestLines
from datum_router_proxy.wire.hpack_codec import NeverIndexedField, encode_lines

PLAIN = ((b"accept", b"*/*"), (b"traceparent", b"00-1-2-01"), (b"via", b"2 us"))


def test_lines_are_the_same_whether_they_are_new_or_known() -> None:
    lines = RequestLines()
    for _ in range(2):
        assert lines.encode(PLAIN, 2) == (encode_lines(PLAIN[:2]), encode_lines(PLAIN[2:]))
    lines.clear()
    assert not lines._checked.lines


@pytest.mark.parametrize(
    "field",
    [(b"x", b"a\r\nb"), (b"X", b"a"), (b":path", b"/"), (b"connection", b"close"), (b"x y", b"")],
    ids=repr,
)
def test_a25_what_must_not_be_sent_is_refused_each_time(field: tuple[bytes, bytes]) -> None:
    lines = RequestLines()
    lines.pseudo(((b":path", b"/"),))
    for _ in range(2):
        with pytest.raises(LocalProtocolError):
            lines.encode((*PLAIN, field), 0)


def test_a_second_content_length_is_refused_though_each_was_sent_before() -> None:
    lines = RequestLines()
    length = (b"content-length", b"5")
    lines.encode((*PLAIN, length), 0)
    with pytest.raises(LocalProtocolError):
        lines.encode((length, *PLAIN, length), 0)


def test_secrets_are_not_kept_and_leave_as_never_indexed() -> None:
    lines = RequestLines()
    secrets = ((b"authorization", b"s"), NeverIndexedField((b"accept", b"*/*")))
    lines.encode(PLAIN, 0)
    assert lines.encode(secrets, 0)[1] == encode_lines(secrets) != encode_lines([(b"authorization", b"s"), PLAIN[0]])
    assert set(lines._checked.lines) == set(PLAIN)
