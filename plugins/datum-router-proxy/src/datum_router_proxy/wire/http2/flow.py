"""Flow control (RFC 9113 section 5.2 and 6.9): the receive window that gives credit back in large steps.

Invariant of a receive window: `available + pending + (bytes delivered, not yet consumed) == size`. A peer is stopped
only when `available` is 0; credit waits until it is at least half the window, so small reads never cause one
WINDOW_UPDATE each (D9, seen from our side), and no deadlock can follow: if everything was consumed, more than half of
the window is available.
"""

from __future__ import annotations


class ReceiveWindow:
    """Count what the peer may still send and what it may be given back."""

    __slots__ = ("available", "pending", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.available = size
        self.pending = 0

    def consume(self, amount: int) -> int:
        """Note `amount` bytes as consumed; return the WINDOW_UPDATE increment to send now, or 0 to wait."""
        self.pending += amount
        if self.pending == 0 or self.pending * 2 < self.size:
            return 0
        increment = self.pending
        self.available += increment
        self.pending = 0
        return increment

    def resize(self, size: int) -> None:
        """Follow a change of our own SETTINGS_INITIAL_WINDOW_SIZE; `available` may turn negative."""
        self.available += size - self.size
        self.size = size
