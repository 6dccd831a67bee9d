"""The header decoder of the `hpack` package behind our protocol: what `hpack_fast` is compared with."""

from __future__ import annotations

from collections.abc import Iterable

from hpack import Decoder, HPACKError, NeverIndexedHeaderTuple

from .hpack_codec import (
    FAR_PAST,
    Field,
    HeaderBlockError,
    LineCache,
    NeverIndexedField,
    StaticEncoder,
    check_list,
    survey,
)


class HpackCodec:
    """Decode with the `hpack` package, encode with `StaticEncoder`: the reference implementation."""

    __slots__ = ("_decoder", "_encoder", "_list_bytes", "_max_fields")

    def __init__(self, *, list_bytes: int, max_fields: int, table_bytes: int, cache: LineCache) -> None:
        self._list_bytes = list_bytes
        self._max_fields = max_fields
        self._decoder = Decoder(max_header_list_size=list_bytes * FAR_PAST)
        # Until our SETTINGS are acknowledged the peer may use the protocol's own 4,096.
        self._decoder.max_allowed_table_size = max(4_096, table_bytes)
        self._encoder = StaticEncoder(cache)

    def decode(self, block: bytes) -> list[Field]:
        """Decode one block; see `HeaderCodec.decode`."""
        # The package bounds the list's size, but neither its length nor leading size updates, and copies the rest of
        # the block for every literal: long blocks are counted first. Short ones cannot hold too many fields.
        if len(block) > self._max_fields * FAR_PAST or (block and block[0] & 0xE0 == 0x20):
            survey(block, max_fields=self._max_fields * FAR_PAST)
        try:
            decoded = self._decoder.decode(block, raw=True)
        except (HPACKError, IndexError, ValueError) as error:
            raise HeaderBlockError(f"header block: {type(error).__name__}") from error
        size = 0
        fields: list[Field] = []
        for line in decoded:
            name, value = line
            size += 32 + len(name) + len(value)
            fields.append(
                NeverIndexedField((name, value)) if isinstance(line, NeverIndexedHeaderTuple) else (name, value)
            )
        check_list(size, len(fields), self._list_bytes, self._max_fields)
        return fields

    def encode(self, fields: Iterable[Field]) -> bytes:
        """Encode one block; see `HeaderCodec.encode`."""
        return self._encoder.encode(fields)

    def set_decoder_table_limit(self, limit: int) -> None:
        """See `HeaderCodec.set_decoder_table_limit`."""
        self._decoder.max_allowed_table_size = limit

    def set_encoder_table_size(self, size: int) -> None:
        """See `HeaderCodec.set_encoder_table_size`."""
        self._encoder.set_table_size(size)
