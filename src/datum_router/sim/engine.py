"""A discrete-event simulation: virtual time that jumps from one event to the next.

Nothing here waits, and nothing is random: who needs chance has a generator with a seed of its own. Events of the same
moment happen in the order in which they were scheduled, so that a run is the same each time.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Event = Callable[[], None]


class Simulation:
    """A clock and what is to happen.

    Attributes:
        now: Virtual seconds since the start.
        events: How many have happened.
    """

    __slots__ = ("_heap", "_numbers", "events", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count()

    def at(self, when: float, event: Event) -> None:
        """Let `event` happen at `when`, or now if that is past; O(log n)."""
        heapq.heappush(self._heap, (max(when, self.now), next(self._numbers), event))

    def after(self, delay_s: float, event: Event) -> None:
        """Let `event` happen in `delay_s` seconds."""
        self.at(self.now + delay_s, event)

    def run(self, until: float) -> None:
        """Let everything happen that is due before or at `until`; then it is `until`."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, event = heapq.heappop(heap)
            self.events += 1
            event()
        self.now = max(self.now, until)
