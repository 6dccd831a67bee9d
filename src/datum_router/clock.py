"""Clocks as values: the core never reads one, callers pass monotonic seconds."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Give monotonic seconds."""

    def __call__(self) -> float:
        """Return monotonic seconds; never goes back."""
        ...


class ManualClock:
    """A clock that moves only when told to, for tests and simulations."""

    __slots__ = ("now",)

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the current moment, in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds` (>= 0; ValueError otherwise)."""
        if seconds < 0:
            raise ValueError(f"seconds: found {seconds}, expected a value >= 0")
        self.now += seconds
