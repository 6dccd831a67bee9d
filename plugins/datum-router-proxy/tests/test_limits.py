"""Every limit of the data plane has a metric that shows it at work."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from datum_router.errors import RemoteProtocolError
from datum_router.observe import names
from datum_router_proxy.limits import ACCEPT, HTTP1, HTTP2, SET_BY, SETTINGS, Shown, unit_of
from datum_router_proxy.server.listener import AcceptLimits
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.wire.http1 import NEED_DATA, Http1Connection, Http1Limits, Role
from datum_router_proxy.wire.http2 import Http2Limits

TABLES = [(ProxySettings, SETTINGS), (AcceptLimits, ACCEPT), (Http1Limits, HTTP1), (Http2Limits, HTTP2)]

REFUSE_NOBODY = {"max_read_ahead_bytes", "chunk_batch_bytes", "closed_streams_remembered"}


@pytest.mark.parametrize(("struct", "table"), TABLES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_limit_is_in_the_table_and_nothing_else(
    struct: type[msgspec.Struct], table: Mapping[str, tuple[Shown, ...]]
) -> None:
    # A text chooses between ways to do the same, a truth value offers something or not; only numbers are limits.
    fields = msgspec.structs.fields(struct)
    assert sorted(table) == sorted(field.name for field in fields if field.type not in (str, bool))
    assert {name for name, shown in table.items() if not shown} <= REFUSE_NOBODY
    assert all(unit_of(name) for name in table)


def test_settings_that_set_a_limit_of_an_engine_have_its_default() -> None:
    defaults = [
        {field.name: field.default for field in msgspec.structs.fields(struct)}
        for struct in (AcceptLimits, Http1Limits, Http2Limits)
    ]
    for name, setting in SET_BY.items():
        assert {table[name] for table in defaults if name in table} == {getattr(ProxySettings(), setting)}


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("name", "most", "raw"),
    [
        ("max_empty_lines", 1, b"\r\n\r\nGET / HTTP/1.1\r\n"),
        ("max_target_bytes", 10, b"GET /aaaaaaaaaa HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("max_head_bytes", 40, b"GET / HTTP/1.1\r\nHost: a\r\nx: 0123456789\r\n\r\n"),
        ("max_fields", 2, b"GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\ny: 1\r\n\r\n"),
        ("max_field_bytes", 20, b"GET / HTTP/1.1\r\nHost: a\r\nx: 01234567890123456789\r\n\r\n"),
        ("max_chunk_header_bytes", 10, CHUNKED + b"1;aaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n"),
        ("max_chunk_extension_bytes", 10, CHUNKED + b"1;aaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n"),
        ("max_trailer_bytes", 10, CHUNKED + b"0\r\nx: 01234567890123456789\r\n\r\n"),
        ("max_trailer_fields", 2, CHUNKED + b"0\r\nx: 1\r\ny: 1\r\nz: 1\r\n\r\n"),
        ("max_trailer_fields", 2, CHUNKED + b"0\r\nx: 1\r\ny: 1\r\nz: 1\r\n"),
    ],
)
def test_who_breaks_a_limit_of_http1_is_counted_where_the_table_says(name: str, most: int, raw: bytes) -> None:
    connection = Http1Connection(Role.SERVER, msgspec.structs.replace(Http1Limits(), **{name: most}))
    connection.receive_data(raw)
    with pytest.raises(RemoteProtocolError) as caught:
        _read_all(connection)
    assert str(caught.value.reason) in {shown.labels["reason"] for shown in HTTP1[name]}


def _read_all(connection: Http1Connection) -> None:
    while connection.next_event() is not NEED_DATA:
        pass


@pytest.mark.parametrize(
    "shown", {str(one): one for _, table in TABLES for row in table.values() for one in row}.values(), ids=str
)
def test_what_shows_a_limit_is_a_series_that_can_be(shown: Shown) -> None:
    assert names.METRICS[shown.metric.name] is shown.metric
    labels = {label.name: label for label in shown.metric.labels}
    for name, value in shown.labels.items():
        assert value in labels[name].values
