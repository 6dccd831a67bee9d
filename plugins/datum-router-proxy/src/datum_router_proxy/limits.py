"""Which metric shows that a limit has been reached: the table behind `docs/reference/metrics.md`, walked by a test."""

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
    "max_interim": (Shown(metric=names.ATTEMPT_FAILURES, labels={"reason": Reason.TOO_MANY_INTERIM.value}),),
    "max_connections_per_listener": _TOO_MANY,
    "max_connections": _TOO_MANY,
    "max_connections_per_address": _TOO_MANY,
    "tls_handshake_timeout_s": (_rejected("tls", Reason.TLS_HANDSHAKE),),
    # Whoever goes on sending after a refusal is read no further than this.
    "linger_bytes": (_rejected("h1", Reason.BODY_TOO_LARGE),),
    "linger_s": (_rejected("h1", Reason.BODY_TOO_LARGE),),
    "memory_limit_bytes": (_rejected("h1", Reason.OVERLOADED), _rejected("h2", Reason.OVERLOADED)),
    "moves_per_turn": _UNFAIR,
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
