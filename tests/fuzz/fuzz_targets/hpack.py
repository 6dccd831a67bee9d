"""Both header codecs against each other.

An input is a list of steps, each one octet and what it asks for: 0 to 250 is the length of a block that follows; 251
is the block before once more; above it is a new table limit. Properties: `HeaderBlockError` and `HeaderListTooLarge`
are the only errors; both codecs give the same verdict and the same fields with the same marks; limits hold; what we
encode the `hpack` package decodes to the same fields.
"""

from __future__ import annotations

import hpack

from datum_router_proxy.wire.hpack_codec import (
    Field,
    HeaderBlockError,
    HeaderCodec,
    HeaderListTooLarge,
    LineCache,
    make_codec,
)

LIST_BYTES = 1_024
MAX_FIELDS = 12
TABLE_LIMITS = (0, 64, 200, 4_096)
_AGAIN = 251

WORDS = (
    b"\x82", b"\x20", b"\x3f\xe1\x1f", b"\x3f\x80\x80\x80\x80\x80", b"\xff\x00", b"\xbe", b"\xbf", b"\x80",
    b"\x40\x01a\x01b", b"\x00\x01a\x01b", b"\x10\x01a\x01b", b"\x44\x01/", b"\x41\x83\x1d\x75\xff", b"\x7f\x00",
    b"\x0f\x00",
    b"\x84\xff\xff\xff\xff", b"\xfb", b"\xfc", b"\xfd",
)  # fmt: skip

_lines = LineCache(entries=64)


def check(data: bytes) -> None:
    """Check one connection's worth of blocks."""
    bounds = {"list_bytes": LIST_BYTES, "max_fields": MAX_FIELDS}
    reference, ours = make_codec("hpack", **bounds), make_codec("table", **bounds, cache=_lines)
    peer = hpack.Decoder()
    position = 0
    block = b""
    while position < len(data):
        step = data[position]
        position += 1
        if step > _AGAIN:
            limit = TABLE_LIMITS[step % len(TABLE_LIMITS)]
            reference.set_decoder_table_limit(limit)
            ours.set_decoder_table_limit(limit)
            continue
        if step < _AGAIN:
            block = data[position : position + step]
            position += step
        expected = verdict(reference, block)
        found = verdict(ours, block)
        assert found == expected, (block.hex(), found, expected)
        if expected is HeaderBlockError:
            return  # the connection ends
        if isinstance(expected, list) and isinstance(found, list):
            assert [type(field) for field in found] == [type(field) for field in expected]
            assert sum(32 + len(name) + len(value) for name, value in found) <= LIST_BYTES
            assert len(found) <= MAX_FIELDS
            assert [tuple(line) for line in peer.decode(ours.encode(found), raw=True)] == [
                tuple(line) for line in found
            ]
        assert ours._size <= 4_096  # type: ignore[attr-defined]  # the dynamic table
        assert len(ours._entries) <= 4_096 // 32  # type: ignore[attr-defined]


def verdict(codec: HeaderCodec, block: bytes) -> list[Field] | type[Exception]:
    """Return the fields, or which of the two declared errors came."""
    try:
        return codec.decode(block)
    except (HeaderBlockError, HeaderListTooLarge) as error:
        return type(error)
