"""Link a `SnapshotData` into what serves: matchers, filters, balancers, and the live state of services.

A `Snapshot` never changes: a request keeps the one it began with. What lives across snapshots is `ServiceState`:
requests in flight, limits, health, and the balancers' own state, so that a new version of a route does not begin its
round-robin anew and does not forget how loaded an endpoint is. Endpoints and health of a service act at once on all
snapshots, since no request may be sent to an endpoint that is gone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from datum_router.balancing.base import HealthView, PickContext
from datum_router.balancing.hashkey import hash_key, uses_hash
from datum_router.balancing.locality import SharedCandidates
from datum_router.balancing.service_balancer import ServiceBalancer
from datum_router.balancing.split import Split
from datum_router.errors import PluginDisabled
from datum_router.filters.base import Filter, are_repeatable, response_key
from datum_router.health.circuit import ServiceLimits
from datum_router.health.trial import NO_TRIALS, Trial, TrialDesk, Trials
from datum_router.model.endpoint import Endpoint, EndpointKey, make_endpoint
from datum_router.model.listener import ClientAuth
from datum_router.model.policy import RetryPolicy, TimeoutPolicy
from datum_router.model.request import REQUEST_ID, LocalReply, RequestHead
from datum_router.model.route import BackendRef, HashOn, Rule
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.observe.meter import RequestMeter
from datum_router.reasons import Reason
from datum_router.routing.client_guard import ClientGuard, make_guard
from datum_router.routing.host import host_matches
from datum_router.routing.matcher import Matcher

_NO_SPLIT = Split(())
NO_EXCLUSIONS: frozenset[EndpointKey] = frozenset()


class ServiceState:
    """One service in the process that serves.

    Attributes:
        active: Requests in flight per endpoint; read by least-connections.
        limits: Permits for requests and retries.
        retried: Retries begun since telemetry has last set it back.
        trials: Half-open endpoints; None as long as there is none.
    """

    __slots__ = ("_desk", "active", "balancers", "candidates", "limits", "retried", "service", "trials", "view")

    def __init__(
        self, service: Service, view: HealthView, desk: TrialDesk, trials: Mapping[EndpointKey, int] = NO_TRIALS
    ) -> None:
        self.service = service
        self.view = view
        self._desk = desk
        self.trials = Trials(desk, service.key, trials) if trials else None
        self.active: dict[EndpointKey, int] = {}
        self.limits = ServiceLimits(service.limits)
        self.retried = 0
        self.balancers: dict[ServiceBalancer, None] = {}  # an ordered set
        self.candidates = SharedCandidates()

    def update(self, service: Service) -> None:
        """Take a new version of the service."""
        if service.limits != self.service.limits:
            self.limits.update(service.limits)
        self.service = service
        for balancer in self.balancers:
            balancer.update_service(service, self.view)

    @property
    def is_panicking(self) -> bool:
        """Tell whether a balancer of the service ignores health."""
        return any(balancer.is_panicking for balancer in self.balancers)

    def update_health(self, view: HealthView, trials: Mapping[EndpointKey, int]) -> None:
        """Take a new view of the endpoints' health, with those that are half-open and the numbers of their trials."""
        self.view = view
        self.trials = Trials(self._desk, self.service.key, trials) if trials else None
        for balancer in self.balancers:
            balancer.update_health(view)


class Lease:
    """One request's claim on an endpoint: counts as in flight until `release`.

    Attributes:
        trial: What is to be told how the attempt ended if it tries a half-open endpoint; else None.
    """

    __slots__ = ("_key", "_released", "endpoint", "is_retry", "state", "trial")

    def __init__(
        self, state: ServiceState, endpoint: Endpoint, key: EndpointKey, trial: Trial | None, *, is_retry: bool
    ) -> None:
        self.state = state
        self.trial = trial
        self.endpoint = endpoint
        self.is_retry = is_retry
        self._key = key
        self._released = False

    @property
    def key(self) -> EndpointKey:
        """Return the endpoint's key in its service, which a port override does not change."""
        return self._key

    def release(self) -> None:
        """Give the claim back; a second call does nothing. A trial that was not settled has told nothing."""
        if self._released:
            return
        self._released = True
        if self.trial is not None:
            self.trial.settle(None)
        active = self.state.active
        left = active.get(self._key, 0) - 1
        if left > 0:
            active[self._key] = left
        else:
            active.pop(self._key, None)
        self.state.limits.release_request(is_retry=self.is_retry)


class LinkedRule:
    """A rule with everything it needs at hand.

    Attributes:
        has_repeatable_filters, response_key: See `filters.base`; True and empty without filters.
        meters: The data plane's, by protocol and service: they live as long as the rule.
    """

    __slots__ = (
        "_balancers",
        "_refs",
        "_single",
        "_split",
        "_uses_hash",
        "filters",
        "has_repeatable_filters",
        "meters",
        "response_key",
        "retry",
        "rule",
        "timeouts",
    )

    def __init__(
        self,
        rule: Rule,
        filters: tuple[Filter, ...],
        balancers: dict[ServiceKey, tuple[ServiceState, ServiceBalancer]],
    ) -> None:
        self.rule = rule
        self.filters = filters
        self.has_repeatable_filters = not filters or are_repeatable(rule.filters)
        self.response_key = response_key(rule.filters) if filters else b""
        self.retry: RetryPolicy = rule.retry
        self.timeouts: TimeoutPolicy = rule.timeouts
        self.meters: dict[tuple[str, str], RequestMeter] = {}
        self._balancers = balancers
        self._uses_hash = uses_hash(rule.balancing)
        only = rule.destinations[0] if len(rule.destinations) == 1 else None
        self._single = only if only is not None and only.weight > 0 and not only.problem else None
        self._split = _NO_SPLIT if self._single is not None else Split(rule.destinations)

    def uses_states(self, states: Mapping[ServiceKey, ServiceState]) -> bool:
        """Tell whether the rule, linked anew, would be linked with the same states of its services."""
        pairs = self._balancers
        return all(
            (pairs[ref.service][0] if ref.service in pairs else None) is states.get(ref.service)
            for ref in self.rule.destinations
            if not ref.problem
        )

    def balancer_of(self, service: ServiceKey, state: ServiceState) -> ServiceBalancer | None:
        """Return the balancer for a destination if it was made for this very state of the service."""
        pair = self._balancers.get(service)
        return pair[1] if pair is not None and pair[0] is state else None

    def balancers(self) -> Iterable[tuple[ServiceState, ServiceBalancer]]:
        """Return all balancers, each with the state of its service."""
        return self._balancers.values()

    @property
    def reads_request_id(self) -> bool:
        """Tell whether picks depend on X-Request-Id, which is new for each request."""
        policy = self.rule.balancing
        return self._uses_hash and policy.hash_on is HashOn.HEADER and policy.hash_name.lower() == REQUEST_ID

    def select(
        self,
        head: RequestHead,
        *,
        rng: random.Random,
        now: float,
        excluded: frozenset[EndpointKey] = NO_EXCLUSIONS,
        is_retry: bool = False,
    ) -> Lease | LocalReply:
        """Choose a destination and an endpoint, and claim it.

        Args:
            excluded: Endpoints that this request has already tried in vain.

        Returns:
            A lease, or the reply to give: 503 if nothing is usable, or not where the route may send it, or a limit is
            reached, 500 if the chosen share belongs to a reference that leads nowhere, or every weight is 0 (as the
            Gateway API has it), or a plugin's balancer is disabled.

        Raises:
            PluginContractError: A plugin's balancer raised, or returned something else than it promises.
        """
        ref = self._single
        if ref is None:
            ref = self._split.choose(rng, self._is_usable)
            if ref is None:
                return LocalReply(
                    status=500, reason=Reason.NO_WEIGHT, detail="all destinations of the route have weight 0"
                )
            if ref.problem:
                return LocalReply(
                    status=500,
                    reason=Reason.BACKEND_NOT_FOUND,
                    detail=f"the route's destination cannot be used: {ref.problem}",
                )
        found = self._claim(ref, head, rng=rng, now=now, excluded=excluded, is_retry=is_retry)
        if found is None:
            # A retry whose destination has nobody left, or one whose half-open endpoint is being tried already:
            # a sibling that takes traffic at all beats giving up.
            for other in self.rule.destinations:
                if other is not ref and other.weight > 0 and not other.problem and self._is_usable(other):
                    found = self._claim(other, head, rng=rng, now=now, excluded=excluded, is_retry=is_retry)
                    if found is not None:
                        break
        if found is None:
            return self._nobody()
        return found

    def _nobody(self) -> LocalReply:
        """Return the reply where no endpoint is left; it says so if there are endpoints that are elsewhere."""
        if any(balancer.candidates.excluded for _, balancer in self._balancers.values()):
            return LocalReply(
                status=503,
                reason=Reason.LOCALITY_REQUIRED,
                detail="no endpoint at a place that the route allows can take the request",
            )
        return LocalReply(
            status=503, reason=Reason.NO_HEALTHY_ENDPOINT, detail="no endpoint of the service can take the request"
        )

    def _claim(
        self,
        ref: BackendRef,
        head: RequestHead,
        *,
        rng: random.Random,
        now: float,
        excluded: frozenset[EndpointKey],
        is_retry: bool,
    ) -> Lease | LocalReply | None:
        """Take a permit and an endpoint of one destination; None if no endpoint is left."""
        pair = self._balancers.get(ref.service)
        if pair is None:
            return LocalReply(
                status=500, reason=Reason.BACKEND_NOT_FOUND, detail="the route's destination is not there"
            )
        state, balancer = pair
        refused = state.limits.acquire_request(is_retry=is_retry)
        if refused is not None:
            return LocalReply(
                status=503,
                reason=refused,
                detail="too many requests are under way for this service",
                headers=((b"retry-after", b"1"),),
            )
        key = hash_key(self.rule.balancing, head) if self._uses_hash else None
        context = PickContext(rng=rng, now=now, hash_key=key, active=state.active, excluded=excluded)
        endpoint: Endpoint | None = None
        trial: Trial | None = None
        if state.trials is not None and not is_retry:  # a retry has failed once: it goes where there is least doubt
            outlier = state.service.outlier
            trial = state.trials.begin(balancer.candidates.unusable, outlier.half_open_requests if outlier else 1)
        try:
            endpoint = balancer.pick(context) if trial is None else trial.endpoint
        except PluginDisabled as error:
            return LocalReply(status=500, reason=error.reason, detail="the balancer of the route is disabled")
        finally:
            if endpoint is None:  # nobody is left, or a plugin's balancer broke its promise
                state.limits.release_request(is_retry=is_retry)
        if endpoint is None:
            return None
        if is_retry:
            state.retried += 1
        state.active[endpoint.key] = state.active.get(endpoint.key, 0) + 1
        target = endpoint
        if ref.port is not None and ref.port != endpoint.port:
            target = make_endpoint(
                endpoint.address,
                ref.port,
                weight=endpoint.weight,
                priority=endpoint.priority,
                locality=endpoint.locality,
                origin=endpoint.origin,
                vpc=endpoint.vpc,
                cluster=endpoint.cluster,
            )
        return Lease(state, target, endpoint.key, trial, is_retry=is_retry)

    def _is_usable(self, ref: BackendRef) -> bool:
        pair = self._balancers.get(ref.service)
        if pair is None:
            return False
        state, balancer = pair
        return balancer.has_candidates or (
            state.trials is not None and state.trials.may_begin(balancer.candidates.unusable)
        )


class Snapshot:
    """A linked snapshot: immutable, but for the live state of services that it points to.

    Attributes:
        matches_request_id: A rule has a condition on X-Request-Id, which is new for each request: who remembers
            which rule won for a head must not do so here.
        guards: Of each listener that asks clients for certificates, what it asks for which host; mostly empty.
        mark: An object that no other snapshot has; who remembers something of this snapshot keeps the mark beside it,
            which does not keep the snapshot alive.
    """

    __slots__ = (
        "_hosts",
        "data",
        "default",
        "digest",
        "guards",
        "mark",
        "matchers",
        "matches_request_id",
        "rules",
        "services",
        "version",
    )

    def __init__(
        self,
        data: SnapshotData,
        rules: Mapping[str, LinkedRule],
        services: Mapping[ServiceKey, ServiceState],
        matchers: Mapping[str, Matcher],
        default: Matcher,
        *,
        matches_request_id: bool = False,
    ) -> None:
        self.data = data
        self.matches_request_id = matches_request_id
        self.mark = object()
        self.version = data.version
        self.digest = data.digest
        self.rules = rules
        self.services = services
        self.matchers = matchers
        self.default = default
        self._hosts = {listener.name: listener.hostnames for listener in data.listeners if listener.hostnames}
        self.guards: dict[str, ClientGuard] = {}
        for listener in data.listeners:
            guard = make_guard(listener)
            if guard is not None:
                self.guards[listener.name] = guard

    def match(self, head: RequestHead) -> LinkedRule | None:
        """Return the rule that wins for `head` on its listener, or None."""
        if self._hosts:
            allowed = self._hosts.get(head.listener)
            if allowed is not None and not any(host_matches(name, head.host) for name in allowed):
                return None
        matcher = self.matchers.get(head.listener, self.default) if self.matchers else self.default
        rule = matcher.match(head)
        return None if rule is None else self.rules[rule.id]

    def admits(self, listener: str, policy: ClientAuth | None, host: str, rule: LinkedRule | None) -> bool:
        """Tell whether a request may be served on a connection whose client was held to `policy` (421 otherwise)."""
        guard = self.guards.get(listener)
        return guard is None or guard.admits(policy, host, () if rule is None else rule.rule.hostnames)

    def serves_host(self, listener: str, host: str) -> bool:
        """Tell whether a listener is there for `host` (421 otherwise on TLS listeners)."""
        allowed = self._hosts.get(listener)
        return allowed is None or any(host_matches(name, host) for name in allowed)
