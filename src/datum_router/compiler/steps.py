"""Work that is done in steps, so that a process that serves can do so in between, done in one go."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


def in_one_go(steps: Generator[None, None, T]) -> T:
    """Take all steps; return what they lead to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
