"""Request meters: what a data plane calls once per request, so they are the one hot path of observation.

Theory of operation. A meter stands for one (protocol, route, service); the data plane gets it once and keeps it beside
the rule it serves, so that ending a request costs no look-up. A meter gathers *deltas*: `MeterBook.take` hands over
what has grown since the last call and sets it back to zero, and only meters that were used are looked at. The book
holds meters weakly: those of a deleted route go when the data plane lets go of the rule and their last delta is taken.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable

import msgspec

DURATION_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of the latency buckets, inclusive, in seconds; what is longer falls into one more bucket."""

CODE_SLOTS = 10
"""Counts by first digit of the status: 0 no response head, 1 to 5 the classes, 6 to 9 what no RFC knows."""


class MeterDelta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What requests of one (protocol, route, service) have added.

    Attributes:
        route, service: Empty if none was chosen.
        codes: `CODE_SLOTS` counts.
        buckets: One count more than `DURATION_BOUNDS_S`, not cumulative.
    """

    protocol: str
    route: str
    service: str
    codes: tuple[int, ...]
    buckets: tuple[int, ...]
    duration_s: float
    bytes_in: int
    bytes_out: int


class RequestMeter:
    """Counts the requests of one protocol, route and service. Single-threaded.

    Args:
        mark: Called with the meter when it is used for the first time since `take`.
    """

    __slots__ = (
        "__weakref__", "_buckets", "_bytes_in", "_bytes_out", "_codes", "_duration_s", "_is_used", "_mark", "protocol",
        "route", "service",
    )  # fmt: skip

    def __init__(self, protocol: str, route: str, service: str, mark: Callable[[RequestMeter], object]) -> None:
        self.protocol = protocol
        self.route = route
        self.service = service
        self._mark = mark
        self._is_used = False
        self._reset()

    def _reset(self) -> None:
        self._codes = [0] * CODE_SLOTS
        self._buckets = [0] * (len(DURATION_BOUNDS_S) + 1)
        self._duration_s = 0.0
        self._bytes_in = 0
        self._bytes_out = 0

    def ended(self, status: int, duration_s: float, bytes_in: int, bytes_out: int) -> None:
        """Count one request at its end: about 0.5 us.

        Args:
            status: 0 to 999; 0 if the client got no response head.
            duration_s: From the complete request head to the last byte of the answer.
            bytes_in, bytes_out: Body bytes from and to the client.
        """
        self._codes[status // 100] += 1
        self._buckets[bisect_left(DURATION_BOUNDS_S, duration_s)] += 1
        self._duration_s += duration_s
        self._bytes_in += bytes_in
        self._bytes_out += bytes_out
        if not self._is_used:
            self._is_used = True
            self._mark(self)

    def take(self) -> MeterDelta:
        """Return what was counted since the last call, and begin anew."""
        delta = MeterDelta(
            protocol=self.protocol,
            route=self.route,
            service=self.service,
            codes=tuple(self._codes),
            buckets=tuple(self._buckets),
            duration_s=self._duration_s,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
        )
        self._is_used = False
        self._reset()
        return delta


class MeterBook:
    """All meters of one process."""

    __slots__ = ("_meters", "_used")

    def __init__(self) -> None:
        self._meters: weakref.WeakValueDictionary[tuple[str, str, str], RequestMeter] = weakref.WeakValueDictionary()
        self._used: list[RequestMeter] = []

    def __len__(self) -> int:
        """Return how many meters somebody holds."""
        return len(self._meters)

    def meter(self, protocol: str, route: str, service: str) -> RequestMeter:
        """Return the one meter for these; the caller keeps it as long as it may use it."""
        key = (protocol, route, service)
        found = self._meters.get(key)
        if found is None:
            found = self._meters[key] = RequestMeter(protocol, route, service, self._used.append)
        return found

    def take(self) -> tuple[MeterDelta, ...]:
        """Return the deltas of the meters that were used since the last call."""
        deltas = tuple(meter.take() for meter in self._used)
        self._used.clear()
        return deltas
