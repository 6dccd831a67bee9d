"""Limits of the HTTP/1.1 engine, all in one place."""

from __future__ import annotations

import msgspec


class Http1Limits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bound what a peer may make the engine hold or do.

    Attributes:
        max_empty_lines: Empty lines ignored before a request line; beyond it 400. RFC 9112 section 2.2 asks for one at
            least, for old clients that end a body with one; nginx ignores any number.
        max_target_bytes: Longest request-target; beyond it 414.
        max_head_bytes: Longest head, start line and final empty line included; beyond it 431.
        max_fields: Most fields in a head; beyond it 431.
        max_field_bytes: Longest field line; beyond it 431.
        max_chunk_header_bytes: Longest chunk header (size, extensions, CRLF); beyond it 400.
        max_chunk_extension_bytes: Most bytes of chunk extensions in one message; beyond it 400.
        max_trailer_bytes: Longest trailer section; beyond it 431.
        max_trailer_fields: Most trailer fields; beyond it 431.
        max_informational: Most 1xx responses for one request; beyond it 502.
        max_read_ahead_bytes: Bytes held of what follows the current message; at or above it `wants_data` is False.
        serve_connect: Say `Signal.CONNECT` where a CONNECT begins, and leave its bytes, in place of 405 (threat A20).
        chunk_batch_bytes: Small chunks are joined into one event until it holds this many bytes.
    """

    max_empty_lines: int = 1
    max_target_bytes: int = 8 * 1024
    max_head_bytes: int = 64 * 1024
    max_fields: int = 100
    max_field_bytes: int = 16 * 1024
    max_chunk_header_bytes: int = 256
    max_chunk_extension_bytes: int = 8 * 1024
    max_trailer_bytes: int = 8 * 1024
    max_trailer_fields: int = 64
    max_informational: int = 16
    max_read_ahead_bytes: int = 16 * 1024
    serve_connect: bool = False
    chunk_batch_bytes: int = 16 * 1024


DEFAULT_LIMITS = Http1Limits()
