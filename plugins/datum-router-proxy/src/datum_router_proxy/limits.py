"""What a limit counts, and which metric shows that it was reached: the tables behind `docs/reference/settings.md` and
`metrics.md`, walked by tests.

Series are those of the side that faces clients. What an upstream breaks is in `ATTEMPT_FAILURES`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from datum_router.observe import names
from datum_router.observe.names import Metric
from datum_router.reasons import Reason


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A series that grows, or falls, when a limit is reached.

    Attributes:
        labels: Values of the labels that tell it from its siblings, by label name.
    """

    metric: Metric
    labels: Mapping[str, str] = {}

    def __str__(self) -> str:
        inner = ",".join(f'{name}="{value}"' for name, value in self.labels.items())
        return f"{self.metric.name}{{{inner}}}" if inner else self.metric.name


def _rejected(proto: str, reason: Reason) -> Shown:
    return Shown(metric=names.REJECTED, labels={"proto": proto, "reason": reason.value})


def _ended(protocol: str, reason: Reason) -> Shown:
    return Shown(metric=names.REASONS, labels={"protocol": protocol, "reason": reason.value})


def _just(metric: Metric) -> Shown:
    return Shown(metric=metric)


def _lookup(result: str) -> Shown:
    return Shown(metric=names.EGRESS_LOOKUPS, labels={"result": result})


_NOT_READ = (_ended("h1", Reason.WRITE_TIMEOUT), _ended("h2", Reason.WRITE_TIMEOUT))
_FLOW_CONTROL = (_rejected("h2", Reason.FLOW_CONTROL), *_NOT_READ)
_TOO_MANY = (_rejected("tcp", Reason.TOO_MANY_CONNECTIONS), _just(names.TURNED_AWAY))
_UNFAIR = (_just(names.LOOP_LAG),)

SETTINGS: Mapping[str, tuple[Shown, ...]] = {
    "first_byte_timeout_s": (_rejected("tcp", Reason.IDLE_TIMEOUT), _rejected("h1", Reason.IDLE_TIMEOUT)),
    "preface_timeout_s": (_rejected("h2", Reason.BAD_PREFACE),),
    "head_timeout_s": (_rejected("h1", Reason.HEAD_TIMEOUT),),
    "keep_alive_timeout_s": (_rejected("h1", Reason.IDLE_TIMEOUT), _rejected("h2", Reason.IDLE_TIMEOUT)),
    "body_idle_timeout_s": (_rejected("h1", Reason.BODY_TIMEOUT), _rejected("h2", Reason.BODY_TIMEOUT)),
    "body_min_rate": (_rejected("h1", Reason.BODY_TIMEOUT), _rejected("h2", Reason.BODY_TIMEOUT)),
    "write_timeout_s": (*_NOT_READ, _rejected("h2", Reason.WRITE_TIMEOUT)),
    "tcp_idle_timeout_s": (Shown(metric=names.STREAMS_ENDED, labels={"reason": Reason.IDLE_TIMEOUT.value}),),
    "tunnel_idle_timeout_s": (_ended("ws", Reason.IDLE_TIMEOUT),),
    # What is full makes the other side wait; who waits too long ends with these.
    "buffer_bytes": _NOT_READ,
    "stream_window_bytes": _FLOW_CONTROL,
    "connection_window_bytes": _FLOW_CONTROL,
    "connection_output_bytes": _NOT_READ,
    "max_concurrent_streams": (_rejected("h2", Reason.TOO_MANY_STREAMS),),
    "upstream_streams": (_just(names.UPSTREAM_OPENED),),
    "upstream_idle_per_endpoint": (_just(names.UPSTREAM_CLOSED),),
    "pool_wait_s": (_just(names.POOL_OVERFLOW), _ended("h1", Reason.POOL_OVERFLOW), _ended("h2", Reason.POOL_OVERFLOW)),
    "retry_body_bytes": (Shown(metric=names.NOT_RETRIED, labels={"why": "body_not_replayable"}),),
    "max_via_hops": (_rejected("h1", Reason.LOOP_DETECTED), _rejected("h2", Reason.LOOP_DETECTED)),
    "mirror_requests": (Shown(metric=names.FILTERED, labels={"outcome": "dropped_busy"}),),
    "mirror_body_bytes": (Shown(metric=names.FILTERED, labels={"outcome": "dropped_body"}),),
    "mirror_timeout_s": (Shown(metric=names.FILTERED, labels={"outcome": "failed"}),),
    "max_interim": (Shown(metric=names.ATTEMPT_FAILURES, labels={"reason": Reason.TOO_MANY_INTERIM.value}),),
    "max_connections_per_listener": _TOO_MANY,
    "max_connections": _TOO_MANY,
    "max_connections_per_address": _TOO_MANY,
    "max_handshakes_per_address": (_rejected("tls", Reason.TOO_MANY_CONNECTIONS), _just(names.TURNED_AWAY)),
    "tls_handshake_timeout_s": (_rejected("tls", Reason.TLS_HANDSHAKE), _rejected("tcp", Reason.BAD_PROXY_HEADER)),
    # Whoever goes on sending after a refusal is read no further than this.
    "linger_bytes": (_rejected("h1", Reason.BODY_TOO_LARGE),),
    "linger_s": (_rejected("h1", Reason.BODY_TOO_LARGE),),
    "memory_limit_bytes": (_rejected("h1", Reason.OVERLOADED), _rejected("h2", Reason.OVERLOADED)),
    "rate_limit_timeout_s": (
        Shown(metric=names.RATE_LIMIT_DECISIONS, labels={"decision": "failed_open"}),
        Shown(metric=names.RATE_LIMIT_DECISIONS, labels={"decision": "failed_closed"}),
    ),
    "shed_queue_age_s": (_just(names.SHED), _just(names.SHEDDING)),
    "moves_per_turn": _UNFAIR,
    "egress_lookup_timeout_s": (_lookup("timeout"),),
    "egress_lookups": (_lookup("too_many"),),
    "egress_addresses": (_lookup("cut"),),
    # Both are about what need not be asked again.
    "egress_ttl_min_s": (_lookup("cached"),),
    "egress_ttl_max_s": (_lookup("cached"),),
}
"""By field of `ProxySettings`."""

ACCEPT: Mapping[str, tuple[Shown, ...]] = {
    "max_per_listener": _TOO_MANY,
    "max_total": _TOO_MANY,
    "max_per_address": _TOO_MANY,
    "max_handshakes_per_address": (_rejected("tls", Reason.TOO_MANY_CONNECTIONS), _just(names.TURNED_AWAY)),
    "handshake_timeout_s": (_rejected("tls", Reason.TLS_HANDSHAKE),),
    "accept_batch": _UNFAIR,
    "backoff_min_s": (_rejected("tcp", Reason.TOO_MANY_CONNECTIONS),),
    "backoff_max_s": (_rejected("tcp", Reason.TOO_MANY_CONNECTIONS),),
}
"""By field of `AcceptLimits`."""

_H1_HEAD = (_rejected("h1", Reason.HEAD_TOO_LARGE),)
_H2_HEAD = (_rejected("h2", Reason.HEAD_TOO_LARGE),)
_FLOOD = (_rejected("h2", Reason.FLOOD),)

HTTP1: Mapping[str, tuple[Shown, ...]] = {
    "max_empty_lines": (_rejected("h1", Reason.BAD_REQUEST_LINE),),
    "max_target_bytes": (_rejected("h1", Reason.TARGET_TOO_LONG),),
    "max_head_bytes": _H1_HEAD,
    "max_fields": (_rejected("h1", Reason.TOO_MANY_FIELDS),),
    "max_field_bytes": _H1_HEAD,
    "max_chunk_header_bytes": (_rejected("h1", Reason.BAD_CHUNK),),
    "max_chunk_extension_bytes": (_rejected("h1", Reason.BAD_CHUNK),),
    "max_trailer_bytes": (_rejected("h1", Reason.BAD_TRAILER),),
    "max_trailer_fields": (_rejected("h1", Reason.BAD_TRAILER), _rejected("h1", Reason.TOO_MANY_FIELDS)),
    "max_informational": SETTINGS["max_interim"],
    "max_read_ahead_bytes": (),
    "chunk_batch_bytes": (),
}
"""By field of `Http1Limits`; nothing shows what refuses nobody."""

HTTP2: Mapping[str, tuple[Shown, ...]] = {
    "max_concurrent_streams": SETTINGS["max_concurrent_streams"],
    "stream_window_bytes": _FLOW_CONTROL,
    "connection_window_bytes": _FLOW_CONTROL,
    "max_frame_bytes": (_rejected("h2", Reason.BAD_FRAME),),
    "header_list_bytes": (*_H2_HEAD, _rejected("h2", Reason.BAD_HEADER_BLOCK)),
    "max_fields": (*_H2_HEAD, _rejected("h2", Reason.BAD_HEADER_BLOCK)),
    "header_table_bytes": (_rejected("h2", Reason.BAD_HEADER_BLOCK),),
    "path_bytes": (_rejected("h2", Reason.TARGET_TOO_LONG),),
    "continuation_frames": _FLOOD,
    "header_block_bytes": _FLOOD,
    "settings_entries": _FLOOD,
    "control_queue_frames": _FLOOD,
    "ping_burst": _FLOOD,
    "pings_per_s": _FLOOD,
    "empty_frames": _FLOOD,
    "priority_frames_per_stream": _FLOOD,
    "window_update_base": _FLOOD,
    "window_updates_per_data": _FLOOD,
    "reset_burst": _FLOOD,
    "resets_per_s": _FLOOD,
    "refused_streams": _FLOOD,
    "overhead_base_bytes": _FLOOD,
    "overhead_per_payload": _FLOOD,
    "closed_streams_remembered": (),
    "interim_responses": SETTINGS["max_interim"],
    "frames_per_round": _UNFAIR,
}
"""By field of `Http2Limits`; nothing shows what refuses nobody."""

SET_BY: Mapping[str, str] = {
    "max_informational": "max_interim",
    "interim_responses": "max_interim",
    "max_concurrent_streams": "max_concurrent_streams",
    "stream_window_bytes": "stream_window_bytes",
    "connection_window_bytes": "connection_window_bytes",
    "max_per_listener": "max_connections_per_listener",
    "max_total": "max_connections",
    "max_per_address": "max_connections_per_address",
    "max_handshakes_per_address": "max_handshakes_per_address",
    "handshake_timeout_s": "tls_handshake_timeout_s",
}
"""Limit of an engine or of a listener -> field of `ProxySettings` that sets it; the others are fixed."""

_COUNTED: Mapping[str, str] = {
    "accept_batch": "connections",
    "body_min_rate": "bytes/s",
    "closed_streams_remembered": "streams",
    "continuation_frames": "frames",
    "control_queue_frames": "frames",
    "egress_addresses": "addresses",
    "egress_lookups": "names",
    "empty_frames": "frames",
    "frames_per_round": "frames",
    "interim_responses": "responses",
    "max_concurrent_streams": "streams",
    "max_connections": "connections",
    "max_connections_per_address": "connections",
    "max_connections_per_listener": "connections",
    "max_empty_lines": "lines",
    "max_fields": "fields",
    "max_handshakes_per_address": "handshakes",
    "max_informational": "responses",
    "max_interim": "responses",
    "max_per_address": "connections",
    "max_per_listener": "connections",
    "max_total": "connections",
    "max_trailer_fields": "fields",
    "max_via_hops": "routers",
    "mirror_requests": "requests",
    "moves_per_turn": "pieces",
    "overhead_per_payload": "bytes per byte",
    "ping_burst": "frames",
    "pings_per_s": "frames/s",
    "priority_frames_per_stream": "frames",
    "refused_streams": "streams",
    "reset_burst": "resets",
    "resets_per_s": "resets/s",
    "settings_entries": "entries",
    "upstream_idle_per_endpoint": "connections",
    "upstream_streams": "streams",
    "window_update_base": "frames",
    "window_updates_per_data": "frames",
}


def unit_of(name: str) -> str:
    """Return the unit of a limit: seconds or bytes by the end of its name, or what is counted.

    Raises:
        KeyError: The name says neither, and is not in the table of what is counted.
    """
    if name not in _COUNTED and name.endswith(("_s", "_bytes")):
        return "s" if name.endswith("_s") else "bytes"
    return _COUNTED[name]
