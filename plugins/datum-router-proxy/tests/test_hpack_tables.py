"""Our copies of the tables of RFC 7541 are those of the `hpack` package."""

from __future__ import annotations

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

from datum_router_proxy.wire.hpack_codec import encode_line
from datum_router_proxy.wire.hpack_tables import HUFFMAN_LENGTHS, STATIC_TABLE, huffman_codes


def test_static_table_is_that_of_the_package() -> None:
    assert tuple(HeaderTable.STATIC_TABLE) == STATIC_TABLE
    assert len(STATIC_TABLE) == 61


def test_huffman_codes_are_those_of_the_package() -> None:
    assert tuple(REQUEST_CODES_LENGTH) == HUFFMAN_LENGTHS
    assert tuple(REQUEST_CODES) == huffman_codes()


def test_every_static_field_is_encoded_as_its_index() -> None:
    for index, (name, value) in enumerate(STATIC_TABLE, 1):
        assert encode_line(name, value, never_indexed=False) == bytes((0x80 | index,))


def test_a_static_name_with_another_value_is_encoded_by_its_first_index() -> None:
    for name, (index, _) in HeaderTable.STATIC_TABLE_MAPPING.items():
        line = encode_line(name, b"no such value", never_indexed=False)
        head = bytes((index,)) if index < 15 else bytes((15, index - 15))
        assert line.startswith(head + bytes((13,)))
