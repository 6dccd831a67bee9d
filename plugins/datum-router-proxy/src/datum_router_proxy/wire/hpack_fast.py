"""A header decoder made for this router: same verdicts as the `hpack` package, about a quarter of its time.

Three things make it fast: the dynamic table is a list of the very tuples that are returned; Huffman strings are decoded
a byte at a time through transitions that are worked out when first met; decoded strings are remembered, because
clients repeat themselves. All memory is bounded. It writes no log, so no secret can reach one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

from .hpack_codec import (
    FAR_PAST,
    MAX_SIZE_UPDATES,
    Field,
    HeaderBlockError,
    LineCache,
    NeverIndexedField,
    StaticEncoder,
    check_list,
)

# Index 0 does not exist (RFC 7541 section 6.1).
_STATIC: tuple[Field, ...] = ((b"", b""), *HeaderTable.STATIC_TABLE)
_STATIC_LAST = 61
_EOS = 256

_MEMO_ENTRIES = 4_096
_MEMO_BYTES = 128


class HuffmanDecoder:
    """Decode Huffman strings (RFC 7541 section 5.2 and appendix B); one object serves a whole process.

    A state is a node of the code tree, 0 being its root. `_steps` maps `state * 256 + byte` to the following state and
    the octets completed on the way; at most 65,536 entries can ever arise.
    """

    __slots__ = ("_accepting", "_memo", "_nodes", "_steps")

    def __init__(self) -> None:
        # nodes[n][bit]: a child node if not negative, else -1 - symbol.
        self._nodes: list[list[int]] = [[0, 0]]
        for symbol, (code, length) in enumerate(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)):
            node = 0
            for shift in range(length - 1, 0, -1):
                bit = code >> shift & 1
                if self._nodes[node][bit] == 0:
                    self._nodes.append([0, 0])
                    self._nodes[node][bit] = len(self._nodes) - 1
                node = self._nodes[node][bit]
            self._nodes[node][code & 1] = -1 - symbol
        # Padding is a prefix of EOS, which is all ones, of at most seven bits.
        accepting = {0}
        node = 0
        for _ in range(7):
            node = self._nodes[node][1]
            accepting.add(node)
        self._accepting = frozenset(accepting)
        self._steps: dict[int, tuple[int, bytes]] = {}
        self._memo: dict[bytes, bytes] = {}

    def decode(self, data: bytes) -> bytes:
        """Decode one string.

        Raises:
            HeaderBlockError: It contains EOS, or its padding is longer than seven bits or not all ones.
        """
        known = self._memo.get(data)
        if known is not None:
            return known
        steps = self._steps
        state = 0
        out: list[bytes] = []
        for byte in data:
            key = state << 8 | byte
            step = steps.get(key)
            if step is None:
                step = steps[key] = self._walk(state, byte)
            state, done = step
            if done:
                out.append(done)
        if state not in self._accepting:
            raise HeaderBlockError("header block: Huffman padding is not a short run of ones")
        decoded = b"".join(out)
        if len(data) <= _MEMO_BYTES:
            if len(self._memo) >= _MEMO_ENTRIES:
                self._memo.clear()
            self._memo[data] = decoded
        return decoded

    def _walk(self, state: int, byte: int) -> tuple[int, bytes]:
        done = bytearray()
        for shift in range(7, -1, -1):
            state = self._nodes[state][byte >> shift & 1]
            if state < 0:
                symbol = -1 - state
                if symbol == _EOS:
                    raise HeaderBlockError("header block: Huffman string contains EOS")
                done.append(symbol)
                state = 0
        return state, bytes(done)


@functools.cache
def huffman_decoder() -> HuffmanDecoder:
    """Return the process's decoder, made on first use."""
    return HuffmanDecoder()


class TableCodec:
    """Decode with a list as dynamic table, encode with `StaticEncoder`."""

    __slots__ = ("_encoder", "_entries", "_huffman", "_limit", "_list_bytes", "_max_fields", "_size", "_table_bytes")

    def __init__(self, *, list_bytes: int, max_fields: int, table_bytes: int, cache: LineCache) -> None:
        self._list_bytes = list_bytes
        self._max_fields = max_fields
        self._limit = max(4_096, table_bytes)
        self._table_bytes = 4_096  # what the peer's encoder uses now
        self._entries: list[Field] = []  # newest last
        self._size = 0
        self._huffman = huffman_decoder()
        self._encoder = StaticEncoder(cache)

    def encode(self, fields: Iterable[Field]) -> bytes:
        """Encode one block; see `HeaderCodec.encode`."""
        return self._encoder.encode(fields)

    def set_decoder_table_limit(self, limit: int) -> None:
        """See `HeaderCodec.set_decoder_table_limit`."""
        self._limit = limit

    def set_encoder_table_size(self, size: int) -> None:
        """See `HeaderCodec.set_encoder_table_size`."""
        self._encoder.set_table_size(size)

    def decode(self, block: bytes) -> list[Field]:
        """Decode one block; see `HeaderCodec.decode`."""
        try:
            fields, size = self._decode(block)
        except IndexError:
            raise HeaderBlockError("header block: cut short, or an index past both tables") from None
        if self._table_bytes > self._limit:
            raise HeaderBlockError("header block: the encoder did not shrink its table to the setting")
        check_list(size, len(fields), self._list_bytes, self._max_fields)
        return fields

    def _decode(self, block: bytes) -> tuple[list[Field], int]:
        position, end = 0, len(block)
        fields: list[Field] = []
        size = updates = 0
        most_bytes = self._list_bytes * FAR_PAST
        most_fields = self._max_fields * FAR_PAST
        while position < end:
            first = block[position]
            if first >= 0x80:  # section 6.1
                index = first & 0x7F
                position += 1
                if index == 0x7F:
                    index, position = _integer(block, position, 0x7F)
                field = self._at(index) if index > _STATIC_LAST or not index else _STATIC[index]
            elif first & 0xE0 == 0x20:  # section 6.3
                updates += 1
                if fields or updates > MAX_SIZE_UPDATES:
                    raise HeaderBlockError("header block: table size update after a field, or too many of them")
                position = self._on_size_update(block, position)
                continue
            else:  # section 6.2
                mask = 0x3F if first >= 0x40 else 0x0F
                index = first & mask
                position += 1
                if index:
                    if index == mask:
                        index, position = _integer(block, position, mask)
                    name = self._at(index)[0]
                else:
                    name, position = self._string(block, position, end)
                value, position = self._string(block, position, end)
                field = (name, value)
                if first >= 0x40:
                    self._add(field)
                elif first & 0x10:
                    field = NeverIndexedField(field)
            size += 32 + len(field[0]) + len(field[1])
            fields.append(field)
            if size > most_bytes or len(fields) > most_fields:
                raise HeaderBlockError(
                    f"header block: list far past {self._list_bytes} bytes, {self._max_fields} fields"
                )
        return fields, size

    def _at(self, index: int) -> Field:
        if index <= _STATIC_LAST:
            if not index:
                raise HeaderBlockError("header block: index 0")
            return _STATIC[index]
        return self._entries[_STATIC_LAST - index]

    def _string(self, block: bytes, position: int, end: int) -> tuple[bytes, int]:
        first = block[position]
        length = first & 0x7F
        position += 1
        if length == 0x7F:
            length, position = _integer(block, position, 0x7F)
        stop = position + length
        if stop > end:
            raise HeaderBlockError("header block: string overruns its block")
        data = block[position:stop]
        return (self._huffman.decode(data) if first >= 0x80 else data), stop

    def _on_size_update(self, block: bytes, position: int) -> int:
        size = block[position] & 0x1F
        position += 1
        if size == 0x1F:
            size, position = _integer(block, position, 0x1F)
        if size > self._limit:
            raise HeaderBlockError(f"header block: table size update to {size}, at most {self._limit}")
        self._table_bytes = size
        self._evict()
        return position

    def _add(self, field: Field) -> None:
        # An entry larger than the table empties it (RFC 7541 section 4.4): eviction does that by itself.
        self._entries.append(field)
        self._size += 32 + len(field[0]) + len(field[1])
        if self._size > self._table_bytes:
            self._evict()

    def _evict(self) -> None:
        entries = self._entries
        gone = 0
        while self._size > self._table_bytes:
            name, value = entries[gone]
            self._size -= 32 + len(name) + len(value)
            gone += 1
        del entries[:gone]


def _integer(block: bytes, position: int, value: int) -> tuple[int, int]:
    """Read the octets after a full prefix (RFC 7541 section 5.1), at most five of them."""
    shift = 0
    for index in range(position, position + 5):
        octet = block[index]
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, index + 1
        shift += 7
    raise HeaderBlockError("header block: integer above 32 bits")
