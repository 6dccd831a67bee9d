"""What the supervisor knows of one worker process, and the queue of what it has to say to it."""

from __future__ import annotations

import collections
from collections.abc import Mapping

import msgspec
import trio

from datum_router.observe.cells import CellKey
from datum_router_runtime.ipc import ControlChannel, Drain, Message


class WorkerLink:
    """What the supervisor knows of one worker process."""

    __slots__ = (
        "answered",
        "cells",
        "channel",
        "drain_begun",
        "ended",
        "gauges",
        "has_successor",
        "index",
        "is_up",
        "outbox",
        "pid",
        "process",
        "programmed",
        "version",
        "wake",
    )

    def __init__(self, index: int, channel: ControlChannel, process: trio.Process) -> None:
        self.index = index
        self.channel = channel
        self.process = process
        self.pid = process.pid
        self.is_up = False
        self.has_successor = False
        self.version = 0
        self.programmed = trio.Event()
        self.drain_begun = trio.Event()
        self.ended = trio.Event()
        self.outbox: collections.deque[tuple[Message | bytes, int | None]] = collections.deque()
        self.wake = trio.Event()
        self.answered = 0
        self.cells: dict[CellKey, float] = {}
        self.gauges: dict[str, int] = {}

    def put(self, message: Message | bytes, *, fd: int | None = None) -> None:
        """Queue a message; never blocks."""
        self.outbox.append((message, fd))
        self.wake.set()

    def drain(self, *, lameduck_s: float, grace_s: float) -> None:
        """Tell it to finish gracefully; it gets no more listeners, not even those that wait for it here."""
        self.drain_begun.set()
        self.outbox = collections.deque(entry for entry in self.outbox if entry[1] is None)
        self.put(Drain(lameduck_s=lameduck_s, grace_s=grace_s))


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, for the admin listener."""

    index: int
    pid: int
    is_up: bool
    version: int
    gauges: Mapping[str, int]
