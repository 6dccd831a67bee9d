"""A header decoder made for this router: same verdicts as the `hpack` package, about a tenth of its time.

What makes it fast, with `benchmarks/bench_hpack.py` as the judge:

- The dynamic table is a list of the very tuples that are returned, newest last: an insertion is an `append`, a look-up
  an index from the end.
- Huffman strings are decoded a byte at a time through transitions that are worked out when first met.
- Decoded strings are remembered, because clients repeat themselves.
- So are whole blocks, as long as the dynamic table stays as it was: a client that has sent its fields once sends the
  same indexes again, and a block is then one dictionary look-up.
- The list is measured after decoding, not field by field. That is safe: decoded strings are at most 1.6 times as long
  as the block (the shortest Huffman code has five bits), everything else is a reference.

All memory is bounded. It writes no log, so no secret can reach one; never-indexed literals are not remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

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
from .hpack_tables import HUFFMAN_LENGTHS, STATIC_TABLE, huffman_codes

# Index 0 does not exist (RFC 7541 section 6.1); it is told apart before this is read.
_STATIC: tuple[Field, ...] = ((b"", b""), *STATIC_TABLE)
_STATIC_LAST = 61
# Indexed fields of one octet, by that octet: 0x81 to 0xbd.
_BY_OCTET: tuple[Field, ...] = ((b"", b""),) * 128 + _STATIC
_FIRST_DYNAMIC = 0x80 | (_STATIC_LAST + 1)
_EOS = 256

_MEMO_ENTRIES = 4_096
# Longer codes have a length of several octets, and those strings are not remembered.
_MEMO_BYTES = 126
# Per connection, and only while nothing enters the table: small, so that 10,000 connections stay cheap.
_BLOCKS_ENTRIES = 8
_BLOCK_BYTES = 256


class _State(dict[int, tuple["_State", bytes]]):
    """Map the next byte of a code to the following state and the octets completed on the way; fills itself.

    A state is a node of the code tree; there are 256, each with at most 256 entries.
    """

    __slots__ = ("_decoder", "_node", "is_accepting")

    def __init__(self, decoder: HuffmanDecoder, node: int, is_accepting: bool) -> None:
        super().__init__()
        self._decoder = decoder
        self._node = node
        self.is_accepting = is_accepting

    def __missing__(self, byte: int) -> tuple[_State, bytes]:
        step = self[byte] = self._decoder.walk(self._node, byte)
        return step


class HuffmanDecoder:
    """Decode Huffman strings (RFC 7541 section 5.2 and appendix B); one object serves a whole process.

    Attributes:
        memo: Decoded strings by their code; look there before calling `decode`.
    """

    __slots__ = ("_nodes", "_states", "memo")

    def __init__(self) -> None:
        # nodes[n][bit]: a child node if not negative, else -1 - symbol. The root is node 0.
        self._nodes: list[list[int]] = [[0, 0]]
        for symbol, (code, length) in enumerate(zip(huffman_codes(), HUFFMAN_LENGTHS, strict=True)):
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
        self._states = [_State(self, node, node in accepting) for node in range(len(self._nodes))]
        self.memo: dict[bytes, bytes] = {}

    def decode(self, data: bytes, *, is_secret: bool = False) -> bytes:
        """Decode one string and remember it, unless it is long or a secret.

        Raises:
            HeaderBlockError: It contains EOS, or its padding is longer than seven bits or not all ones.
        """
        state = self._states[0]
        out = bytearray()
        for byte in data:
            state, done = state[byte]
            out += done
        if not state.is_accepting:
            raise HeaderBlockError("header block: Huffman padding is not a short run of ones")
        decoded = bytes(out)
        if len(data) <= _MEMO_BYTES and not is_secret:
            if len(self.memo) >= _MEMO_ENTRIES:
                self.memo.clear()
            self.memo[data] = decoded
        return decoded

    def walk(self, node: int, byte: int) -> tuple[_State, bytes]:
        """Follow the eight bits of a byte from a node of the code tree."""
        done = bytearray()
        for shift in range(7, -1, -1):
            node = self._nodes[node][byte >> shift & 1]
            if node < 0:
                symbol = -1 - node
                if symbol == _EOS:
                    raise HeaderBlockError("header block: Huffman string contains EOS")
                done.append(symbol)
                node = 0
        return self._states[node], bytes(done)

    def forget(self) -> None:
        """Drop what is remembered of earlier texts."""
        self.memo.clear()


@functools.cache
def huffman_decoder() -> HuffmanDecoder:
    """Return the process's decoder, made on first use."""
    return HuffmanDecoder()


class TableCodec:
    """Decode with a list as dynamic table, encode with `StaticEncoder`."""

    __slots__ = (
        "_blocks", "_encoder", "_entries", "_huffman", "_is_plain", "_limit", "_list_bytes", "_max_fields", "_size",
        "_table_bytes",
    )  # fmt: skip

    def __init__(self, *, list_bytes: int, max_fields: int, table_bytes: int, cache: LineCache) -> None:
        self._list_bytes = list_bytes
        self._max_fields = max_fields
        self._limit = max(4_096, table_bytes)
        self._table_bytes = 4_096  # what the peer's encoder uses now
        self._entries: list[Field] = []  # newest last
        self._size = 0
        self._blocks: dict[bytes, list[Field]] = {}  # decoded with the table as it is now
        self._is_plain = True  # the block at hand can be remembered
        self._huffman = huffman_decoder()
        self._encoder = StaticEncoder(cache)

    def encode(self, fields: Iterable[Field]) -> bytes:
        """Encode one block; see `HeaderCodec.encode`."""
        return self._encoder.encode(fields)

    def set_decoder_table_limit(self, limit: int) -> None:
        """See `HeaderCodec.set_decoder_table_limit`."""
        self._limit = limit
        self._blocks.clear()  # what was fine may now lack its size update

    def set_encoder_table_size(self, size: int) -> None:
        """See `HeaderCodec.set_encoder_table_size`."""
        self._encoder.set_table_size(size)

    def decode(self, block: bytes) -> list[Field]:
        """Decode one block; see `HeaderCodec.decode`."""
        known = self._blocks.get(block)
        if known is not None:
            return known
        self._is_plain = True
        try:
            fields = self._decode(block)
        except IndexError:
            raise HeaderBlockError("header block: cut short, or an index past both tables") from None
        if self._table_bytes > self._limit:
            raise HeaderBlockError("header block: the encoder did not shrink its table to the setting")
        self._check(fields, block)
        if self._is_plain and len(block) <= _BLOCK_BYTES:
            if len(self._blocks) >= _BLOCKS_ENTRIES:
                self._blocks.clear()
            self._blocks[block] = fields
        return fields

    def _check(self, fields: list[Field], block: bytes) -> None:
        # No field is longer than the table it came from (61 octets in the static one, and the dynamic one keeps its
        # bound while fields are read) plus its literals, which all together are at most 1.6 times the block. Most
        # blocks end here.
        count = len(fields)
        longest = 93 + (self._size if self._is_plain else self._table_bytes)
        if count <= self._max_fields and count * longest + 2 * len(block) <= self._list_bytes:
            return
        size = 32 * count
        for name, value in fields:
            size += len(name) + len(value)
        if size > self._list_bytes * FAR_PAST:
            raise self._far_past()
        check_list(size, count, self._list_bytes, self._max_fields)

    def _far_past(self) -> HeaderBlockError:
        return HeaderBlockError(f"header block: list far past {self._list_bytes} bytes, {self._max_fields} fields")

    def _decode(self, block: bytes) -> list[Field]:
        # Every field takes an octet at least: a stretch of that length cannot hold more than twice what is allowed,
        # so that fields need not be counted one by one.
        most = self._max_fields * FAR_PAST
        end = len(block)
        fields: list[Field] = []
        position = self._size_updates(block) if block[:1] < b"\x40" else 0
        while position < end:
            position = self._stretch(block, position, min(end, position + most), fields)
            if len(fields) > most:
                raise self._far_past()
        return fields

    def _stretch(self, block: bytes, position: int, pause: int, fields: list[Field]) -> int:
        # One page on purpose: a call per field would cost as much as decoding it.
        end = len(block)
        entries = self._entries
        memo = self._huffman.memo
        append = fields.append
        field: Field
        while position < pause:
            first = block[position]
            position += 1
            if first >= 0x80:  # section 6.1
                if first < _FIRST_DYNAMIC:
                    if first == 0x80:
                        raise HeaderBlockError("header block: index 0")
                    append(_BY_OCTET[first])
                elif first < 0xFF:
                    append(entries[_FIRST_DYNAMIC - 1 - first])
                else:
                    index, position = _integer(block, position, 0x7F)
                    append(entries[_STATIC_LAST - index])
                continue
            if 0x20 <= first < 0x40:
                raise HeaderBlockError("header block: table size update after a field")
            # Section 6.2: 0x40 with indexing, 0x10 never indexed, 0x00 without indexing.
            mask = 0x3F if first >= 0x40 else 0x0F
            index = first & mask
            if index:
                if index == mask:
                    index, position = _integer(block, position, mask)
                name = _STATIC[index][0] if index <= _STATIC_LAST else entries[_STATIC_LAST - index][0]
            else:
                name, position = self._string(block, position, end)
            coding = block[position]
            if coding & 0x7F == 0x7F:
                value, position = self._string(block, position, end)
            else:
                stop = position + 1 + (coding & 0x7F)
                if stop > end:
                    raise HeaderBlockError("header block: string overruns its block")
                value = block[position + 1 : stop]
                position = stop
                if coding >= 0x80:
                    is_secret = first & 0xF0 == 0x10
                    value = memo.get(value) or self._huffman.decode(value, is_secret=is_secret)
            field = (name, value)
            if first >= 0x40:
                self._add(field)
            elif first >= 0x10:
                field = NeverIndexedField(field)
                self._is_plain = False  # a secret is not kept
            append(field)
        return position

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
        if first >= 0x80:
            data = self._huffman.memo.get(data) or self._huffman.decode(data)
        return data, stop

    def _size_updates(self, block: bytes) -> int:
        # Section 6.3: they stand before all fields (section 4.2).
        position = updates = 0
        while position < len(block) and block[position] & 0xE0 == 0x20:
            size = block[position] & 0x1F
            position += 1
            updates += 1
            if size == 0x1F:
                size, position = _integer(block, position, 0x1F)
            if size > self._limit:
                raise HeaderBlockError(f"header block: table size update to {size}, at most {self._limit}")
            if updates > MAX_SIZE_UPDATES:
                raise HeaderBlockError(f"header block: more than {MAX_SIZE_UPDATES} table size updates")
            self._table_bytes = size
            self._evict()
            self._changed()
        return position

    def _add(self, field: Field) -> None:
        # An entry larger than the table empties it (RFC 7541 section 4.4): eviction does that by itself.
        self._entries.append(field)
        self._size += 32 + len(field[0]) + len(field[1])
        if self._size > self._table_bytes:
            self._evict()
        self._changed()

    def _changed(self) -> None:
        self._is_plain = False
        if self._blocks:
            self._blocks.clear()

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
