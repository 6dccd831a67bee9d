"""Flood budgets of one connection: what a peer may cost us before the connection ends (D1, D2, D6 to D9, D12, D21).

Every method is cheap (a few integer operations) and raises RemoteProtocolError with ENHANCE_YOUR_CALM when its
budget is spent. Time comes in as monotonic seconds; a clock that steps back refills nothing.
"""

from __future__ import annotations

from datum_router.errors import RemoteProtocolError
from datum_router.policy.bucket import TokenBucket
from datum_router.reasons import Reason

from .frames import ErrorCode
from .limits import Http2Limits


def calm(message: str) -> RemoteProtocolError:
    """Return the error that ends a connection whose peer costs too much."""
    return RemoteProtocolError(message, reason=Reason.FLOOD, error_code=ErrorCode.ENHANCE_YOUR_CALM)


class FloodGuard:
    """Keep one connection's budgets."""

    __slots__ = (
        "_limits",
        "data_frames_sent",
        "empty_run",
        "overhead",
        "payload",
        "pings",
        "priorities",
        "refused",
        "resets",
        "streams_opened",
        "unknown_frames",
        "window_updates",
    )

    def __init__(self, limits: Http2Limits) -> None:
        self._limits = limits
        self.resets = TokenBucket(rate=limits.resets_per_s, burst=limits.reset_burst)
        self.pings = TokenBucket(rate=limits.pings_per_s, burst=limits.ping_burst)
        self.streams_opened = 0
        self.data_frames_sent = 0
        self.window_updates = 0
        self.priorities = 0
        self.refused = 0
        self.empty_run = 0
        self.overhead = 0
        self.payload = 0
        self.unknown_frames = 0

    def reset(self, now: float) -> None:
        """Charge a stream that ended early because of the peer, whoever sent the RST_STREAM (D1, D2)."""
        if self.resets.take(now):
            limits = self._limits
            raise calm(f"stream resets: more than {limits.reset_burst} at once and {limits.resets_per_s:g} a second")

    def ping(self, now: float) -> None:
        """Charge a frame that wants a reply: PING or SETTINGS (D6)."""
        if self.pings.take(now):
            limits = self._limits
            raise calm(f"PING and SETTINGS: more than {limits.ping_burst} at once and {limits.pings_per_s:g} a second")

    def sent(self) -> None:
        """Note a DATA or HEADERS frame of ours: one more ping may be answered (see `Http2Limits.pings_per_s`)."""
        pings = self.pings
        if pings.debt_s:  # which is rare, and this is done for every message
            pings.give_back()

    def empty(self) -> None:
        """Charge a frame without payload that ends nothing (D7)."""
        self.empty_run += 1
        if self.empty_run > self._limits.empty_frames:
            raise calm(f"empty frames: more than {self._limits.empty_frames} in a row")

    def priority(self) -> None:
        """Charge a PRIORITY or PRIORITY_UPDATE frame (D8)."""
        self.priorities += 1
        allowed = self._limits.priority_frames_per_stream * (1 + self.streams_opened)
        if self.priorities > allowed:
            raise calm(f"PRIORITY frames: more than {allowed} for {self.streams_opened} streams")

    def window_update(self) -> None:
        """Charge a WINDOW_UPDATE frame (D9)."""
        self.window_updates += 1
        limits = self._limits
        allowed = (
            limits.window_update_base
            + 2 * self.streams_opened  # one to open, one to finish: ordinary clients do this
            + limits.window_updates_per_data * self.data_frames_sent
        )
        if self.window_updates > allowed:
            raise calm(f"WINDOW_UPDATE frames: more than {allowed} for {self.data_frames_sent} DATA frames sent")

    def refuse(self) -> None:
        """Charge a stream opened beyond the advertised number (D12)."""
        self.refused += 1
        if self.refused > self._limits.refused_streams:
            raise calm(f"refused streams: more than {self._limits.refused_streams}")

    def completed(self) -> None:
        """Credit a stream that ran its course."""
        if self.refused:
            self.refused -= 1

    def check_overhead(self) -> None:
        """Compare bytes that carry nothing with bytes that do (D21)."""
        limits = self._limits
        if self.overhead > limits.overhead_base_bytes + limits.overhead_per_payload * self.payload:
            raise calm(f"overhead: {self.overhead} bytes beside {self.payload} bytes of payload")
