"""What a source counts of its dealings with the API; read by the runtime, written by the threads that watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

LISTS = "lists"
WATCHES = "watches"
EVENTS = "events"
ERRORS = "errors"
RELISTS = "relists"
WATCH_RESTARTS = "watch_restarts"
LIST_SECONDS = "list_seconds"
PACED_SECONDS = "paced_seconds"
NAMES = (LISTS, LIST_SECONDS, RELISTS, WATCHES, WATCH_RESTARTS, EVENTS, ERRORS)


class Counters:
    """Counts by kind, and when the API was last heard of. Thread-safe.

    - `lists`: whole lists; `relists`: those of them that another one went before; `list_seconds`: how long the API
      took to answer them, all pages together.
    - `watches`: watches that were opened; `watch_restarts`: those of them that went on where another one broke off,
      fell silent or ended.
    - `events`: objects that came, changed or went, by lists and watches.
    - `paced_seconds`: for how long nothing was read since events came too fast (see `budget`).
    - `errors`: requests that failed, and answers that could not be understood.
    """

    __slots__ = ("_clock", "_counts", "_heard", "_lock")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], float] = {}
        self._heard: dict[str, float] = {}

    def add(self, name: str, kind: str, count: float = 1) -> None:
        """Count something."""
        with self._lock:
            index = (name, kind)
            self._counts[index] = self._counts.get(index, 0) + count

    def heard(self, kind: str) -> None:
        """Note that the API said something of a kind just now, be it that nothing happens."""
        with self._lock:
            self._heard[kind] = self._clock()

    def stats(self) -> Mapping[str, float]:
        """Return all counts as `name/kind`, `silent_seconds/kind` for each kind, and `stale_seconds` for the API.

        `stale_seconds` is the least silence of all kinds: how long ago the API said anything at all; it is not there
        before it ever did.
        """
        with self._lock:
            now = self._clock()
            found: dict[str, float] = {f"{name}/{kind}": float(count) for (name, kind), count in self._counts.items()}
            for kind, at in self._heard.items():
                found[f"silent_seconds/{kind}"] = now - at
            if self._heard:
                found["stale_seconds"] = now - max(self._heard.values())
            return found
