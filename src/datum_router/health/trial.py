"""Trials: the few requests that a half-open endpoint gets, and what they tell.

Theory of operation. The supervisor's `HealthBook` alone says that an endpoint is half-open, under a number that is
never used again. In each worker the service's `Trials` make the next requests that may go to such an endpoint its
trials, as long as `Permits` are left: `half_open_requests` for each number, over all workers. A trial whose end says
something about the endpoint sends one `TrialVerdict` to the book and keeps its permit, since the number is used up;
one that says nothing (the client left, a limit of ours) gives it back. The response head decides: a stream that is
open for hours must not keep its endpoint half-open.

Every other request goes to other endpoints as if this one were still ejected; if there are none it is refused like any
request to a service without endpoints (linkerd fails fast then, too). In a panic health is ignored, so nothing is held
back (Envoy, which knows no half-open state, sends to ejected endpoints in a panic), but trials are made and judged all
the same: they are what ends the panic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec

from datum_router.model.endpoint import Endpoint, EndpointKey
from datum_router.model.outcome import OutcomeClass
from datum_router.model.service import ServiceKey

MAX_KEPT_NUMBERS = 4096
"""Numbers whose permits are remembered; with more endpoints half-open at once than that some get a few more trials."""

NO_TRIALS: Mapping[EndpointKey, int] = MappingProxyType({})


class TrialVerdict(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one trial has told of an endpoint."""

    service: ServiceKey
    endpoint: EndpointKey
    number: int
    is_ok: bool


class Permits(Protocol):
    """Who may try: counts the trials of one number, over all workers if there are several."""

    def claim(self, number: int, limit: int) -> int | None:
        """Take one of `limit` permits and return which (0 to limit - 1), None if all are taken."""
        ...

    def give_back(self, number: int, permit: int) -> None:
        """Let the permit be claimed again."""
        ...


class LocalPermits:
    """Permits within one process: all there is without a supervisor, and the model for shared ones."""

    __slots__ = ("_taken",)

    def __init__(self) -> None:
        self._taken: dict[int, set[int]] = {}

    def claim(self, number: int, limit: int) -> int | None:
        """Take the first free permit of a number."""
        taken = self._taken.setdefault(number, set())
        if len(self._taken) > MAX_KEPT_NUMBERS:
            del self._taken[next(iter(self._taken))]
        for permit in range(limit):
            if permit not in taken:
                taken.add(permit)
                return permit
        return None

    def give_back(self, number: int, permit: int) -> None:
        """Free a permit."""
        self._taken.get(number, set()).discard(permit)


class TrialDesk:
    """What the trials of all services in one process share: permits, and where verdicts go."""

    __slots__ = ("permits", "report")

    def __init__(self, permits: Permits, report: Callable[[TrialVerdict], None]) -> None:
        self.permits = permits
        self.report = report


class Trial:
    """One request that tries an endpoint; `settle` ends it, further calls do nothing."""

    __slots__ = ("_desk", "_is_settled", "_permit", "_service", "endpoint", "number")

    def __init__(self, desk: TrialDesk, service: ServiceKey, endpoint: Endpoint, number: int, permit: int) -> None:
        self.endpoint = endpoint
        self._desk = desk
        self._service = service
        self.number = number
        self._permit = permit
        self._is_settled = False

    def settle(self, kind: OutcomeClass | None) -> None:
        """Take what passive health counts the attempt as; None gives the permit to another request."""
        if self._is_settled:
            return
        self._is_settled = True
        if kind is None:
            self._desk.permits.give_back(self.number, self._permit)
            return
        verdict = TrialVerdict(
            service=self._service,
            endpoint=self.endpoint.key,
            number=self.number,
            is_ok=kind is OutcomeClass.SUCCESS,
        )
        self._desk.report(verdict)


class Trials:
    """The half-open endpoints of one service in one process; there is none for a service without any."""

    __slots__ = ("_desk", "_numbers", "_service")

    def __init__(self, desk: TrialDesk, service: ServiceKey, numbers: Mapping[EndpointKey, int]) -> None:
        self._desk = desk
        self._service = service
        self._numbers = numbers

    def may_begin(self, endpoints: Sequence[Endpoint]) -> bool:
        """Tell whether one of the endpoints is half-open; its permits may be taken."""
        return any(endpoint.key in self._numbers for endpoint in endpoints)

    def begin(self, endpoints: Sequence[Endpoint], limit: int) -> Trial | None:
        """Return a trial of the first of the endpoints that is half-open and has one of `limit` permits left."""
        for endpoint in endpoints:
            number = self._numbers.get(endpoint.key, 0)
            if number:
                permit = self._desk.permits.claim(number, limit)
                if permit is not None:
                    return Trial(self._desk, self._service, endpoint, number, permit)
        return None
