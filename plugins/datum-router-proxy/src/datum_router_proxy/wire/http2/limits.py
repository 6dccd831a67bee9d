"""Name every limit of the HTTP/2 engine; the row of the threat list that each one answers stands beside it."""

from __future__ import annotations

import msgspec

_MAX_WINDOW = 2**31 - 1


class Http2Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the limits of one HTTP/2 connection; validated on creation (ValueError names the field).

    Attributes:
        max_concurrent_streams: Streams the peer may have open, reset-but-unreleased ones included (count; D1, D12).
        stream_window_bytes: Receive window of each stream (bytes, at most 2^31-1; D10).
        connection_window_bytes: Receive window of the connection (bytes, 65,535 to 2^31-1; D10).
        max_frame_bytes: Largest frame payload accepted (bytes, 16,384 to 2^24-1; D19).
        header_list_bytes: Largest decoded header list, 32 added per field (bytes; D4). More is a 431.
        max_fields: Most fields in one header list (count; D4). More is a 431.
        header_table_bytes: Dynamic table the peer's encoder may use (bytes; D4).
        path_bytes: Longest `:path` (bytes; A20). More is a 414.
        continuation_frames: Most CONTINUATION frames after one HEADERS (count; D3).
        header_block_bytes: Largest compressed header block (bytes; D3).
        settings_entries: Most entries in one SETTINGS frame (count; D6).
        control_queue_frames: Control replies waiting to be written (count; D6).
        ping_burst: PING and SETTINGS frames accepted at once (count; D6).
        pings_per_s: Refill of that allowance (frames per second; D6). Each DATA or HEADERS frame we send adds one
            more, because bandwidth estimators (gRPC) ping once per round trip while they receive.
        empty_frames: Consecutive frames without payload and without END_STREAM (count; D7).
        priority_frames_per_stream: PRIORITY and PRIORITY_UPDATE frames per opened stream (count; D8).
        window_update_base: WINDOW_UPDATE frames allowed before any DATA was sent (count; D9).
        window_updates_per_data: Further WINDOW_UPDATE frames per DATA frame sent (count; D9).
        reset_burst: Stream resets caused by the peer, both its own and ours, accepted at once (count; D1, D2).
        resets_per_s: Refill of that allowance (resets per second; D1, D2).
        refused_streams: Streams refused for want of a slot before the connection ends; each stream that
            completes takes one off (count; D12).
        overhead_base_bytes: Bytes that are not payload accepted before any payload (bytes; D21).
        overhead_per_payload: Further such bytes per byte of payload in either direction (factor; D21).
        closed_streams_remembered: Recently closed streams whose manner of closing is known (count; D11).
        interim_responses: Most 1xx responses to one request (count; A16).
        frames_per_round: Frames handled by one call before the caller gets the loop back (count; trap in section J).
        enable_connect_protocol: Advertise extended CONNECT (RFC 8441; B4).
        serve_connect: Report plain CONNECT (RFC 9113 section 8.5) instead of answering it with 405 (A20).
    """

    max_concurrent_streams: int = 100
    stream_window_bytes: int = 65_536
    connection_window_bytes: int = 1_048_576
    max_frame_bytes: int = 16_384
    header_list_bytes: int = 65_536
    max_fields: int = 100
    header_table_bytes: int = 4_096
    path_bytes: int = 8_192
    continuation_frames: int = 8
    header_block_bytes: int = 65_536
    settings_entries: int = 32
    control_queue_frames: int = 1_000
    ping_burst: int = 100
    pings_per_s: float = 20.0
    empty_frames: int = 10
    priority_frames_per_stream: int = 100
    window_update_base: int = 100
    window_updates_per_data: int = 10
    reset_burst: int = 200
    resets_per_s: float = 20.0
    refused_streams: int = 100
    overhead_base_bytes: int = 1_048_576
    overhead_per_payload: int = 8
    closed_streams_remembered: int = 100
    interim_responses: int = 16
    frames_per_round: int = 64
    enable_connect_protocol: bool = True
    serve_connect: bool = False

    def __post_init__(self) -> None:
        bounds = (
            ("max_concurrent_streams", 1, _MAX_WINDOW),
            ("stream_window_bytes", 1, _MAX_WINDOW),
            ("connection_window_bytes", 65_535, _MAX_WINDOW),
            ("max_frame_bytes", 16_384, 2**24 - 1),
            ("header_list_bytes", 1_024, 2**24),
            ("max_fields", 8, 10_000),
            ("header_table_bytes", 0, 65_536),
            ("header_block_bytes", 1_024, 2**24),
            ("closed_streams_remembered", 1, 100_000),
            ("frames_per_round", 1, 100_000),
        )
        for name, least, most in bounds:
            found = getattr(self, name)
            if not least <= found <= most:
                raise ValueError(f"http2 limits: {name}: found {found}, expected {least} to {most}")
