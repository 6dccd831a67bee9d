"""Work that is done in steps while the event loop goes on, and waiting for the next time that something happens."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_turns(steps: Generator[None, None, T], turn_s: float = 0.0) -> T:
    """Take all steps and return what they lead to; others get the loop after each `turn_s` seconds, give or take one.

    0: after each step.
    """
    until = time.monotonic() + turn_s
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if time.monotonic() >= until:
            await trio.lowlevel.checkpoint()
            until = time.monotonic() + turn_s


class Signal:
    """Something that happens again and again; whoever wants to wait for the next time takes `next` first."""

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next = trio.Event()

    def notify(self) -> None:
        """Wake whoever waits for this time."""
        self.next.set()
        self.next = trio.Event()
