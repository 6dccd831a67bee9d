"""Header compression (RFC 7541) behind one protocol, so that the engine does not know who does it.

Decoding follows the peer's dynamic table. Encoding never uses a dynamic table of ours: a field line then has one
encoding for ever, which is kept in a bounded cache that all connections of a process may share, and no secret can be
guessed through table hits (RFC 7541 section 7.1). The first block after the peer shrank its table says so with one
table size update to 0.

Two bounds guard the decoder. A list over `list_bytes` or `max_fields` is still decoded, so that the table stays in
step, and raises `HeaderListTooLarge` (the stream can be answered with 431). Far past them (four times) decoding
stops with `HeaderBlockError`, which ends the connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason

from .hpack_tables import STATIC_TABLE

Field = tuple[bytes, bytes]

_COMPRESSION_ERROR = 0x9
FAR_PAST = 4
# RFC 7541 section 4.2 lets an encoder send two; some send every change of their setting.
MAX_SIZE_UPDATES = 8
NEVER_INDEXED = frozenset((b"authorization", b"cookie", b"set-cookie", b"proxy-authorization"))
"""Names whose values leave as never-indexed literals (RFC 7541 section 7.1.3)."""


class HeaderBlockError(RemoteProtocolError):
    """Report a header block that cannot be decoded; the connection must end with COMPRESSION_ERROR."""

    __slots__ = ()

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.BAD_HEADER_BLOCK, status_hint=400, error_code=_COMPRESSION_ERROR)


class HeaderListTooLarge(RemoteProtocolError):
    """Report a decoded header list over its limit; the decoder is still in step and the stream can be answered."""

    __slots__ = ()

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.HEAD_TOO_LARGE, status_hint=431, error_code=0)


class NeverIndexedField(tuple[bytes, bytes]):
    """Mark a field that came as a never-indexed literal and has to leave as one (RFC 7541 section 6.2.3).

    It equals no field without the mark, so that what is remembered of the one is never used for the other.
    """

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return type(other) is NeverIndexedField and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


class HeaderCodec(Protocol):
    """Compress and decompress the header blocks of one connection; one object per connection."""

    def decode(self, block: bytes) -> list[Field]:
        """Decode one block. The list may be the one that an equal block gave before: it must not be changed.

        Raises:
            HeaderBlockError: The block is broken; nothing can be decoded after it.
            HeaderListTooLarge: The list is over its limit; later blocks can be decoded.
        """
        ...

    def encode(self, fields: Iterable[Field]) -> bytes:
        """Encode fields in their order. Names must be lower case; nothing is validated here."""
        ...

    def set_decoder_table_limit(self, limit: int) -> None:
        """Set the dynamic table (bytes) that the peer's encoder may use, once it acknowledged our SETTINGS."""
        ...

    def set_encoder_table_size(self, size: int) -> None:
        """Follow the peer's SETTINGS_HEADER_TABLE_SIZE (bytes)."""
        ...


class LineCache:
    """Keep encoded field lines. May be shared by all connections of one thread; memory is bounded.

    Args:
        entries: Lines kept (count); when full, all are dropped, which is cheaper than order.
        line_bytes: Longest line kept (bytes, name and value together).
    """

    __slots__ = ("_entries", "_line_bytes", "lines")

    def __init__(self, *, entries: int = 2_048, line_bytes: int = 256) -> None:
        self._entries = entries
        self._line_bytes = line_bytes
        self.lines: dict[Field, bytes] = {}

    def encode(self, fields: Iterable[Field]) -> bytes:
        """Return the lines of fields whose names are lower case; a tenth of the time if they are known."""
        lines = self.lines
        out: list[bytes] = []
        for field in fields:
            line = lines.get(field)
            # A never-indexed field is equal to a plain one that may be known, but its line is another.
            if line is None or type(field) is not tuple:
                line = self._encode_new(field)
            out.append(line)
        return b"".join(out)

    def _encode_new(self, field: Field) -> bytes:
        name, value = field
        if isinstance(field, NeverIndexedField) or name in NEVER_INDEXED:
            return encode_line(name, value, never_indexed=True)
        line = encode_line(name, value, never_indexed=False)
        if type(field) is tuple:
            self.add(field, line)
        return line

    def add(self, field: Field, line: bytes) -> None:
        """Keep one encoded line unless it is too long."""
        if len(field[0]) + len(field[1]) > self._line_bytes:
            return
        if len(self.lines) >= self._entries:
            self.lines.clear()
        self.lines[field] = line


class StaticEncoder:
    """Encode with the static table only (RFC 7541 appendix A); literals are plain octets, without indexing."""

    __slots__ = ("_announce_empty_table", "_cache", "_table_bytes")

    def __init__(self, cache: LineCache) -> None:
        self._cache = cache
        self._table_bytes = 4_096
        self._announce_empty_table = False

    def encode(self, fields: Iterable[Field]) -> bytes:
        """Encode one block."""
        if not self._announce_empty_table:
            return self._cache.encode(fields)
        self._announce_empty_table = False
        return b"\x20" + self._cache.encode(fields)

    def set_table_size(self, size: int) -> None:
        """Announce an empty table in the next block if the peer's limit fell under what it believes we use."""
        if size < self._table_bytes:
            self._table_bytes = 0
            self._announce_empty_table = True


def encode_integer(value: int, prefix_bits: int, first: int) -> bytes:
    """Encode an integer (RFC 7541 section 5.1) whose first octet carries the bits of `first` above the prefix."""
    mask = (1 << prefix_bits) - 1
    if value < mask:
        return bytes((first | value,))
    out = bytearray((first | mask,))
    value -= mask
    while value >= 0x80:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_INDEXED: dict[Field, bytes] = {field: encode_integer(index, 7, 0x80) for index, field in enumerate(STATIC_TABLE, 1)}
# Names that are there several times go by their first index.
_NAME_INDEX: dict[bytes, int] = {name: index for index, (name, _) in reversed(list(enumerate(STATIC_TABLE, 1)))}
_PLAIN_NAME = {name: encode_integer(index, 4, 0x00) for name, index in _NAME_INDEX.items()}
_SECRET_NAME = {name: encode_integer(index, 4, 0x10) for name, index in _NAME_INDEX.items()}
_LENGTH = tuple(bytes((length,)) for length in range(127))


def encode_line(name: bytes, value: bytes, *, never_indexed: bool) -> bytes:
    """Encode one field line: indexed if the static table holds it whole, else a literal without indexing."""
    if not (never_indexed and value):
        line = _INDEXED.get((name, value))
        if line is not None:
            return line
    head = (_SECRET_NAME if never_indexed else _PLAIN_NAME).get(name)
    if head is None:
        head = (b"\x10" if never_indexed else b"\x00") + _length(len(name)) + name
    return head + _length(len(value)) + value


def encode_lines(fields: Iterable[Field]) -> bytes:
    """Encode several field lines; names in `NEVER_INDEXED` and marked fields as never-indexed literals."""
    return b"".join(
        encode_line(field[0], field[1], never_indexed=isinstance(field, NeverIndexedField) or field[0] in NEVER_INDEXED)
        for field in fields
    )


def _length(length: int) -> bytes:
    return _LENGTH[length] if length < 127 else encode_integer(length, 7, 0)


def check_list(size: int, count: int, list_bytes: int, max_fields: int) -> None:
    """Raise HeaderListTooLarge if a decoded list is over one of its two limits."""
    if size > list_bytes:
        raise HeaderListTooLarge(f"header list: {size} bytes, at most {list_bytes} are accepted")
    if count > max_fields:
        raise HeaderListTooLarge(f"header list: {count} fields, at most {max_fields} are accepted")


def survey(block: bytes, *, max_fields: int) -> None:
    """Walk a block without decoding it and raise HeaderBlockError if it holds too many instructions. Linear time."""
    position, end = 0, len(block)
    fields = updates = 0
    while position < end:
        first = block[position]
        if first & 0x80:
            position = _skip_integer(block, position, 0x7F)
            fields += 1
        elif first & 0xE0 == 0x20:
            position = _skip_integer(block, position, 0x1F)
            updates += 1
        else:
            mask = 0x3F if first & 0x40 else 0x0F
            if first & mask:
                position = _skip_integer(block, position, mask)
            else:
                position = _skip_string(block, position + 1)
            position = _skip_string(block, position)
            fields += 1
        if fields > max_fields or updates > MAX_SIZE_UPDATES:
            raise HeaderBlockError(
                f"header block: more than {max_fields} fields or {MAX_SIZE_UPDATES} table size updates"
            )


def _skip_integer(block: bytes, position: int, mask: int) -> int:
    if block[position] & mask != mask:
        return position + 1
    for index in range(position + 1, min(position + 6, len(block))):
        if block[index] < 0x80:
            return index + 1
    raise HeaderBlockError("header block: integer overruns its block or 32 bits")


def _skip_string(block: bytes, position: int) -> int:
    if position >= len(block):
        raise HeaderBlockError("header block: string overruns its block")
    length = block[position] & 0x7F
    if length < 0x7F:
        return position + 1 + length
    shift = 0
    for index in range(position + 1, min(position + 6, len(block))):
        octet = block[index]
        length += (octet & 0x7F) << shift
        shift += 7
        if octet < 0x80:
            return index + 1 + length
    raise HeaderBlockError("header block: integer overruns its block or 32 bits")


CODECS = ("table", "hpack")
"""Names of the implementations, the default first."""


def make_codec(
    name: str = CODECS[0],
    *,
    list_bytes: int = 65_536,
    max_fields: int = 100,
    table_bytes: int = 4_096,
    cache: LineCache | None = None,
) -> HeaderCodec:
    """Make the codec of one connection.

    Args:
        name: Which implementation: "table" (ours, several times faster) or "hpack" (the reference).
        list_bytes: Largest decoded list (bytes, 32 added per field).
        max_fields: Most fields in a list (count).
        table_bytes: Dynamic table the peer's encoder may use (bytes).
        cache: Encoded lines, shared with other connections of this thread; None makes a small private one.

    Raises:
        ValueError: No implementation has that name.
    """
    lines = cache if cache is not None else LineCache(entries=128)
    if name == "hpack":
        from .hpack_reference import HpackCodec  # only here: the package costs every worker 2.5 MB

        return HpackCodec(list_bytes=list_bytes, max_fields=max_fields, table_bytes=table_bytes, cache=lines)
    if name == "table":
        from .hpack_fast import TableCodec

        return TableCodec(list_bytes=list_bytes, max_fields=max_fields, table_bytes=table_bytes, cache=lines)
    raise ValueError(f"header codec {name!r}: unknown, expected 'table' or 'hpack'")
