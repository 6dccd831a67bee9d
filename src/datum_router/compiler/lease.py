"""What requests hold while they are under way: the live state of services, and claims on their endpoints."""

from __future__ import annotations

from collections.abc import Mapping

from datum_router.balancing.base import HealthView
from datum_router.balancing.locality import SharedCandidates
from datum_router.balancing.service_balancer import ServiceBalancer
from datum_router.filters.base import Filter
from datum_router.health.breaker import Breaker, Ticket
from datum_router.health.circuit import ServiceLimits, share
from datum_router.health.trial import NO_TRIALS, Trial, TrialDesk, Trials
from datum_router.model.endpoint import Endpoint, EndpointKey
from datum_router.model.outcome import OutcomeClass
from datum_router.model.service import Service


class ServiceState:
    """One service in the process that serves.

    Attributes:
        active: Requests in flight per endpoint; read by least-connections.
        limits: Permits for requests and retries.
        retried: Retries begun since telemetry has last set it back.
        trials: Half-open endpoints; None as long as there is none.
        breaker: Of the service as a whole; None if it has none.
    """

    __slots__ = (
        "_desk", "_workers", "active", "balancers", "breaker", "candidates", "limits", "retried", "service", "trials",
        "view",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        view: HealthView,
        desk: TrialDesk,
        trials: Mapping[EndpointKey, int] = NO_TRIALS,
        *,
        workers: int = 1,
    ) -> None:
        self.service = service
        self.view = view
        self._desk = desk
        self.trials = Trials(desk, service.key, trials) if trials else None
        self.active: dict[EndpointKey, int] = {}
        self._workers = workers
        self.limits = ServiceLimits(share(service.limits, workers))
        self.breaker = Breaker(service.breaker) if service.breaker is not None else None
        self.retried = 0
        self.balancers: dict[ServiceBalancer, None] = {}  # an ordered set
        self.candidates = SharedCandidates()

    def update(self, service: Service) -> None:
        """Take a new version of the service."""
        if service.limits != self.service.limits:
            self.limits.update(share(service.limits, self._workers))
        if service.breaker is None:
            self.breaker = None
        elif self.breaker is None:
            self.breaker = Breaker(service.breaker)
        else:
            self.breaker.update(service.breaker)
        self.service = service
        for balancer in self.balancers:
            balancer.update_service(service, self.view)

    @property
    def is_panicking(self) -> bool:
        """Tell whether a balancer of the service ignores health."""
        return any(balancer.is_panicking for balancer in self.balancers)

    @property
    def is_spilling(self) -> bool:
        """Tell whether a balancer of the service sends requests on to a further place or priority."""
        return any(balancer.is_spilling for balancer in self.balancers)

    def update_health(self, view: HealthView, trials: Mapping[EndpointKey, int]) -> None:
        """Take a new view of the endpoints' health, with those that are half-open and the numbers of their trials."""
        self.view = view
        self.trials = Trials(self._desk, self.service.key, trials) if trials else None
        for balancer in self.balancers:
            balancer.update_health(view)


class Lease:
    """One request's claim on an endpoint: counts as in flight until `release`.

    Nearly all are of this class, and nobody is told how their attempts end; the others are `WatchedLease`s. Reading
    any of the attributes tells which.

    Attributes:
        key: Of the endpoint in its service, which a port override does not change.
        filters: Of the destination that it belongs to.
        trial: What is to be told how the attempt ended if it tries a half-open endpoint; else None.
        ticket: What is to be told the same for circuit breakers; None if there are none.
        is_watched: Anybody is to be told how the attempt ended.
    """

    __slots__ = ("_released", "endpoint", "is_retry", "key", "state")

    # Of the class, so that a lease of a plain rule holds none of them and is made in half the time.
    filters: tuple[Filter, ...] = ()
    trial: Trial | None = None
    ticket: Ticket | None = None
    is_watched = False

    def __init__(self, state: ServiceState, endpoint: Endpoint, key: EndpointKey, *, is_retry: bool) -> None:
        self.state = state
        self.endpoint = endpoint
        self.is_retry = is_retry
        self.key = key
        self._released = False

    def settle(self, kind: OutcomeClass | None) -> None:
        """Tell trial and breakers how the attempt ended, None if that says nothing; further calls do nothing."""

    def release(self) -> None:
        """Give the claim back; a second call does nothing. A trial that was not settled has told nothing."""
        if self._released:
            return
        self._released = True
        active = self.state.active
        left = active.get(self.key, 0) - 1
        if left > 0:
            active[self.key] = left
        else:
            active.pop(self.key, None)
        self.state.limits.release_request(is_retry=self.is_retry)


class WatchedLease(Lease):
    """A claim with filters of its destination, or of whose attempt somebody wants to hear."""

    __slots__ = ("filters", "is_watched", "ticket", "trial")

    def __init__(
        self,
        state: ServiceState,
        endpoint: Endpoint,
        key: EndpointKey,
        *,
        is_retry: bool,
        trial: Trial | None,
        filters: tuple[Filter, ...],
    ) -> None:
        super().__init__(state, endpoint, key, is_retry=is_retry)
        self.trial = trial
        self.ticket = None
        self.filters = filters
        self.is_watched = trial is not None

    def owe(self, breaker: Breaker, turn: int, permits: ServiceLimits | None = None) -> None:
        """Note a breaker that is to be told how the attempt ended; see `Ticket.owe`."""
        if self.ticket is None:
            self.ticket = Ticket(is_retry=self.is_retry)
        self.ticket.owe(breaker, turn, permits)
        self.is_watched = True

    def settle(self, kind: OutcomeClass | None) -> None:
        """See `Lease.settle`."""
        if self.trial is not None:
            self.trial.settle(kind)
        if self.ticket is not None:
            self.ticket.settle(kind)

    def release(self) -> None:
        """See `Lease.release`."""
        if self._released:
            return
        if self.trial is not None:
            self.trial.settle(None)
        if self.ticket is not None:
            self.ticket.end()
        super().release()
