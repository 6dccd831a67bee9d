"""Link a `SnapshotData` into what serves: matchers, filters, balancers, and the live state of services.

A `Snapshot` never changes: a request keeps the one it began with. What lives across snapshots is `ServiceState`:
requests in flight, limits, health, and the balancers' own state, so that a new version of a route does not begin its
round-robin anew and does not forget how loaded an endpoint is. Endpoints and health of a service act at once on all
snapshots, since no request may be sent to an endpoint that is gone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from datum_router.balancing.base import PickContext
from datum_router.balancing.hashkey import hash_key, uses_hash
from datum_router.balancing.service_balancer import ServiceBalancer
from datum_router.balancing.split import Split
from datum_router.compiler.lease import Lease, ServiceState, WatchedLease
from datum_router.errors import PluginDisabled
from datum_router.filters.base import Filter, are_repeatable, build_filter, response_key
from datum_router.filters.extra import extra_of
from datum_router.health.breaker import RouteCircuit, tripped
from datum_router.health.circuit import ServiceLimits
from datum_router.health.trial import Trial
from datum_router.model.endpoint import Endpoint, EndpointKey, make_endpoint
from datum_router.model.listener import ClientAuth
from datum_router.model.policy import RetryPolicy, TimeoutPolicy
from datum_router.model.request import REQUEST_ID, LocalReply, RequestHead
from datum_router.model.route import BackendRef, HashOn, HeaderEdit, Rule, side_services
from datum_router.model.service import ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.observe.meter import RequestMeter
from datum_router.policy.affinity import Affinity
from datum_router.policy.hedge import is_hedged
from datum_router.policy.ratelimit import RateLimiter
from datum_router.policy.timeout import NO_DEADLINE, first_limit, has_try_limits
from datum_router.reasons import Reason
from datum_router.routing.client_guard import ClientGuard, make_guard
from datum_router.routing.host import host_matches
from datum_router.routing.matcher import Matcher

HostLimiters = tuple[tuple[tuple[str, ...], RateLimiter], ...]
"""Host names and the rate limits of what comes in for them; the first that fits counts."""
if TYPE_CHECKING:
    from datum_router.compiler.edgelink import Edge

_NO_SPLIT = Split(())
NO_FILTERS: Mapping[int, tuple[Filter, ...]] = {}
_NO_SIDES: Mapping[ServiceKey, BackendRef] = {}
NO_EXCLUSIONS: frozenset[EndpointKey] = frozenset()


class LinkedRule:
    """A rule with everything it needs at hand.

    Attributes:
        has_repeatable_filters, response_key: See `filters.base`; True and empty without filters.
        has_try_limits, first_limit_s, first_reason: See `policy.timeout`, said once for all requests; a limit is
            infinity if there is none, so that a deadline is a sum.
        states_timeout: Upstreams are told how long a request may take, whoever sent it.
        extra: What it has beside plain filters; a rule that has any keeps off the fast lanes.
        limiter: Rate limits of the route; None if there are none.
        circuit: Its circuit breaker; likewise.
        affinity: Its sessions; likewise.
        needs_pipeline: Something has to be looked at for each request that no fast lane looks at.
        is_simple: Nothing of it keeps requests off the fast lanes: neither that, nor `extra`, nor a choice of endpoints
            by X-Request-Id, which is new for each request.
        may_hedge: Some of its requests may be hedged; see `hedges`.
        meters: The data plane's, by protocol and service: they live as long as the rule.
        is_logged: False keeps its requests out of the access log.
        reply_fields: On answers that the router makes itself, too.
    """

    __slots__ = (
        "_balancers",
        "_filters",
        "_is_guarded",
        "_is_watched",
        "_sides",
        "_single",
        "_split",
        "_uses_hash",
        "affinity",
        "circuit",
        "extra",
        "filters",
        "first_limit_s",
        "first_reason",
        "has_repeatable_filters",
        "has_try_limits",
        "is_logged",
        "is_simple",
        "limiter",
        "may_hedge",
        "meters",
        "needs_pipeline",
        "reply_fields",
        "response_key",
        "retry",
        "rule",
        "states_timeout",
        "timeouts",
    )

    def __init__(
        self,
        rule: Rule,
        filters: tuple[Filter, ...],
        balancers: dict[ServiceKey, tuple[ServiceState, ServiceBalancer]],
        destination_filters: Mapping[int, tuple[Filter, ...]] = NO_FILTERS,
        *,
        limiter: RateLimiter | None = None,
        circuit: RouteCircuit | None = None,
        affinity: Affinity | None = None,
    ) -> None:
        """Join the parts.

        Args:
            destination_filters: By the position of their destination.
        """
        self.rule = rule
        self.limiter = limiter
        self.circuit = circuit
        self.affinity = affinity
        self.needs_pipeline = limiter is not None or affinity is not None or rule.balancing.cookie is not None
        self.filters = filters
        self.has_repeatable_filters = not filters or are_repeatable(rule.filters)
        self.response_key = response_key(rule.filters) if filters else b""
        self.extra = extra_of(rule)
        self.retry: RetryPolicy = rule.retry
        self.timeouts: TimeoutPolicy = rule.timeouts
        self.states_timeout = rule.timeouts.propagates and rule.timeouts.request_s > 0
        self.has_try_limits = has_try_limits(rule.timeouts)
        first_limit_s, self.first_reason = first_limit(rule.timeouts)
        self.first_limit_s = first_limit_s or NO_DEADLINE
        self.meters: dict[tuple[str, str], RequestMeter] = {}
        self.is_logged = True
        self.reply_fields: tuple[tuple[bytes, bytes], ...] = ()
        self._balancers = balancers
        # There are many rules, and few have either: an empty dict of its own would cost each 64 bytes.
        self._filters = (
            {id(rule.destinations[at]): filters for at, filters in destination_filters.items()}
            if destination_filters
            else NO_FILTERS
        )
        self._sides = (
            {key: BackendRef(service=key, problem=why) for key, why in side_services(rule)} or _NO_SIDES
            if rule.filters
            else _NO_SIDES
        )
        self._uses_hash = uses_hash(rule.balancing)
        self._is_guarded = circuit is not None or affinity is not None
        self._is_watched = circuit is not None or bool(self._filters)
        reads_id = self._uses_hash and _reads_request_id(rule)
        self.is_simple = not (self.needs_pipeline or self.extra is not None or reads_id)
        self.may_hedge = rule.retry.hedge_delay_s > 0 and self.hedges("GET")
        only = rule.destinations[0] if len(rule.destinations) == 1 else None
        self._single = only if only is not None and only.weight > 0 and not only.problem else None
        self._split = _NO_SPLIT if self._single is not None else Split(rule.destinations)

    def dressed(self, *, hsts: str, is_logged: bool) -> LinkedRule:
        """Return the rule with what a VPCIngress wants for its hosts, and with the same balancers.

        Args:
            hsts: Value of Strict-Transport-Security on every answer; empty = none.
        """
        rule, filters = self.rule, self.filters
        if hsts:
            edit = HeaderEdit(is_response=True, set=(("strict-transport-security", hsts),))
            rule = msgspec.structs.replace(rule, filters=(edit, *rule.filters))
            filters = (build_filter(edit, rule), *filters)
        mine = {at: self._filters[id(ref)] for at, ref in enumerate(rule.destinations) if id(ref) in self._filters}
        made = LinkedRule(
            rule,
            filters,
            self._balancers,
            mine,
            limiter=self.limiter,
            circuit=self.circuit,
            affinity=self.affinity,
        )
        made.is_logged = is_logged
        made.reply_fields = ((b"strict-transport-security", hsts.encode("ascii")),) if hsts else ()
        return made

    def has_other(self, excluded: frozenset[EndpointKey]) -> bool:
        """Tell whether a retry could be given an endpoint that is not among `excluded`; O(n).

        One that may not be used, for where it is or how it is, is none, nor is one that only a filter's calls go to.
        """
        return any(
            endpoint.key not in excluded
            for _, balancer in self._destinations()
            for level in balancer.candidates.levels
            for endpoint in level.endpoints
        )

    def _destinations(self) -> Iterator[tuple[ServiceState, ServiceBalancer]]:
        """Yield state and balancer of each destination that takes traffic; services that filters ask are none."""
        for ref in self.rule.destinations:
            pair = self._balancers.get(ref.service)
            if pair is not None and ref.weight > 0 and not ref.problem:
                yield pair

    def hedges(self, method: str) -> bool:
        """Tell whether requests with `method` may be hedged, which the express lane cannot do; see `may_hedge`."""
        return is_hedged(self.retry, method, has_body=False, is_tunnel=False, is_retry=False)

    def uses_states(self, states: Mapping[ServiceKey, ServiceState]) -> bool:
        """Tell whether the rule, linked anew, would be linked with the same states of its services."""
        pairs = self._balancers
        return all(
            (pairs[ref.service][0] if ref.service in pairs else None) is states.get(ref.service)
            for ref in (*self.rule.destinations, *self._sides.values())
            if not ref.problem
        )

    def balancer_of(self, service: ServiceKey, state: ServiceState) -> ServiceBalancer | None:
        """Return the balancer for a destination if it was made for this very state of the service."""
        pair = self._balancers.get(service)
        return pair[1] if pair is not None and pair[0] is state else None

    def balancers(self) -> Iterable[tuple[ServiceState, ServiceBalancer]]:
        """Return all balancers, each with the state of its service."""
        return self._balancers.values()

    def select(
        self,
        head: RequestHead,
        *,
        rng: random.Random,
        now: float,
        excluded: frozenset[EndpointKey] = NO_EXCLUSIONS,
        is_retry: bool = False,
        is_admitted: bool = False,
        tag: bytes = b"",
    ) -> Lease | LocalReply:
        """Choose a destination and an endpoint, and claim it.

        Args:
            excluded: Endpoints that this request has already tried in vain.
            is_admitted: The circuit breaker of the route has been asked.
            tag: Of a session of `affinity`: its endpoint is taken if it may be; empty if there is none.

        Returns:
            A lease, or the reply to give: 503 if nothing is usable, or not where the route may send it, or a limit is
            reached, 500 if the chosen share belongs to a reference that leads nowhere, or every weight is 0 (as the
            Gateway API has it), or a plugin's balancer is disabled.

        Raises:
            PluginContractError: A plugin's balancer raised, or returned something else than it promises.
        """
        if self._is_guarded:
            if self.circuit is not None and not is_admitted:
                return self._select_within(
                    self.circuit, head, rng=rng, now=now, excluded=excluded, is_retry=is_retry, tag=tag
                )
            if tag and self.affinity is not None:
                kept = self._keep(self.affinity, tag, head, rng=rng, now=now, excluded=excluded, is_retry=is_retry)
                if kept is not None:
                    return kept
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
            return self._nobody(now)
        return found

    def retry_limits(self, state: ServiceState) -> tuple[ServiceLimits, ...]:
        """Return all that count a retry at a service of this rule, each of which has to have room for it."""
        return (state.limits,) if self.circuit is None else (state.limits, self.circuit.limits)

    def has_retry_budget(self, state: ServiceState) -> bool:
        """Tell whether one more retry at a service of this rule may start now."""
        percent = self.retry.budget_percent
        return all(limits.has_retry_budget(percent) for limits in self.retry_limits(state))

    def select_side(self, service: ServiceKey, head: RequestHead, *, rng: random.Random, now: float) -> Lease | None:
        """Claim an endpoint of a service that a filter of the rule needs; None if there is none, or a limit is reached.

        Raises:
            PluginContractError: As `select`.
        """
        ref = self._sides.get(service)
        if ref is None or ref.problem:
            return None
        found = self._claim(ref, head, rng=rng, now=now, excluded=NO_EXCLUSIONS, is_retry=False)
        return found if isinstance(found, Lease) else None

    def _select_within(
        self,
        circuit: RouteCircuit,
        head: RequestHead,
        *,
        rng: random.Random,
        now: float,
        excluded: frozenset[EndpointKey],
        is_retry: bool,
        tag: bytes,
    ) -> Lease | LocalReply:
        """Do as `select` does if the route's circuit breaker lets it."""
        turn = circuit.acquire(now, is_retry=is_retry, budget_percent=self.retry.budget_percent)
        if isinstance(turn, Reason):
            if turn is Reason.CIRCUIT_TRIPPED:
                return tripped(circuit.breaker, "route", now)
            return LocalReply(
                status=503,
                reason=turn,
                detail="too many requests are under way for this route",
                headers=((b"retry-after", b"1"),),
            )
        found: Lease | LocalReply | None = None
        try:
            found = self.select(head, rng=rng, now=now, excluded=excluded, is_retry=is_retry, is_admitted=True, tag=tag)
        finally:
            if not isinstance(found, Lease):
                circuit.give_back(turn, is_retry=is_retry)
        if isinstance(found, Lease):
            assert isinstance(found, WatchedLease)  # as every one of a rule with a circuit breaker
            found.owe(circuit.breaker, turn, circuit.limits)
        return found

    def _keep(
        self,
        affinity: Affinity,
        tag: bytes,
        head: RequestHead,
        *,
        rng: random.Random,
        now: float,
        excluded: frozenset[EndpointKey],
        is_retry: bool,
    ) -> Lease | LocalReply | None:
        """Claim the endpoint of a session; None if it is gone, takes no requests now, or was tried in vain."""
        for ref in self.rule.destinations:
            pair = self._balancers.get(ref.service)
            if pair is None or not ref.weight or ref.problem:
                continue
            state, balancer = pair
            endpoint = affinity.endpoint(state.service, tag)
            if endpoint is None:
                continue
            key = endpoint.key
            levels = balancer.candidates.levels
            if key in excluded or not any(one.key == key for level in levels for one in level.endpoints):
                return None
            return self._claim(ref, head, rng=rng, now=now, excluded=excluded, is_retry=is_retry, chosen=endpoint)
        return None

    def _nobody(self, now: float) -> LocalReply:
        """Return the reply where no endpoint is left; it says if a circuit is open, or if there are some elsewhere."""
        for state, _ in self._destinations():
            if state.breaker is not None and state.breaker.retry_after_s(now):
                return tripped(state.breaker, "service", now)
        if any(balancer.candidates.excluded for _, balancer in self._destinations()):
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
        chosen: Endpoint | None = None,
    ) -> Lease | LocalReply | None:
        """Take a permit and an endpoint of one destination; None if no endpoint is left."""
        pair = self._balancers.get(ref.service)
        if pair is None:
            return LocalReply(
                status=500, reason=Reason.BACKEND_NOT_FOUND, detail="the route's destination is not there"
            )
        state, balancer = pair
        if is_retry:
            refused = state.limits.acquire_request(is_retry=True, budget_percent=self.retry.budget_percent)
        else:
            refused = state.limits.acquire_request()
        if refused is not None:
            return LocalReply(
                status=503,
                reason=refused,
                detail="too many requests are under way for this service",
                headers=((b"retry-after", b"1"),),
            )
        breaker = state.breaker
        if breaker is not None:
            turn = breaker.admit(now)
            if turn is None:
                state.limits.release_request(is_retry=is_retry)
                return None
        key = hash_key(self.rule.balancing, head) if self._uses_hash else None
        context = PickContext(rng=rng, now=now, hash_key=key, active=state.active, excluded=excluded)
        endpoint: Endpoint | None = None
        trial: Trial | None = None
        # A retry has failed once: it goes where there is least doubt.
        if state.trials is not None and not is_retry and chosen is None:
            outlier = state.service.outlier
            trial = state.trials.begin(balancer.candidates.unusable, outlier.half_open_requests if outlier else 1)
        try:
            endpoint = chosen or (balancer.pick(context) if trial is None else trial.endpoint)
        except PluginDisabled as error:
            return LocalReply(status=500, reason=error.reason, detail="the balancer of the route is disabled")
        finally:
            if endpoint is None:  # nobody is left, or a plugin's balancer broke its promise
                state.limits.release_request(is_retry=is_retry)
                if breaker is not None and turn is not None:
                    breaker.settle(turn, None)
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
        if trial is None and breaker is None and not self._is_watched:
            return Lease(state, target, endpoint.key, is_retry=is_retry)
        filters = self._filters.get(id(ref), ())
        lease = WatchedLease(state, target, endpoint.key, is_retry=is_retry, trial=trial, filters=filters)
        if breaker is not None and turn is not None:
            lease.owe(breaker, turn)
        return lease

    def _is_usable(self, ref: BackendRef) -> bool:
        pair = self._balancers.get(ref.service)
        if pair is None:
            return False
        state, balancer = pair
        return balancer.has_candidates or (
            state.trials is not None and state.trials.may_begin(balancer.candidates.unusable)
        )


def _reads_request_id(rule: Rule) -> bool:
    """Tell whether picks, which depend on a hash, depend on X-Request-Id, which is new for each request."""
    policy = rule.balancing
    return policy.hash_on is HashOn.HEADER and policy.hash_name.lower() == REQUEST_ID


class Snapshot:
    """A linked snapshot: immutable, but for the live state of services that it points to.

    Attributes:
        matches_request_id: A rule has a condition on X-Request-Id, which is new for each request: who remembers
            which rule won for a head must not do so here.
        guards: Of each listener that asks clients for certificates, what it asks for which host; mostly empty.
        has_limiters: Some listener has rate limits; see `limiter`.
        mark: An object that no other snapshot has; who remembers something of this snapshot keeps the mark beside it,
            which does not keep the snapshot alive.
    """

    __slots__ = (
        "_edges",
        "_hosts",
        "_limiters",
        "_streams",
        "data",
        "default",
        "digest",
        "guards",
        "has_limiters",
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
        limiters: Mapping[str, HostLimiters] = {},
        edges: Mapping[str, Edge] | None = None,
        streams: Mapping[str, Matcher] | None = None,
    ) -> None:
        self.data = data
        self._limiters = limiters
        self.has_limiters = bool(limiters)
        self._streams = streams or {}
        self._edges = edges or {}
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
        if self._edges:
            return self._match_within(self._edges.get(head.listener), matcher, head)
        rule = matcher.match(head)
        return None if rule is None else self.rules[rule.id]

    def _match_within(self, edge: Edge | None, matcher: Matcher, head: RequestHead) -> LinkedRule | None:
        redirect = None if edge is None else edge.redirect(head)
        if redirect is not None:
            return redirect
        rule = matcher.match(head)
        if rule is None:
            return None
        linked = self.rules[rule.id]
        return linked if edge is None else edge.dress(linked, head)

    def match_stream(self, head: RequestHead) -> LinkedRule | None:
        """Return the rule for a connection whose bytes are carried on, None if there is none; see `streamlink`."""
        matcher = self._streams.get(head.listener)
        rule = None if matcher is None else matcher.match(head)
        if rule is None:
            return None
        edge = self._edges.get(head.listener)
        return self.rules[rule.id] if edge is None else edge.dress(self.rules[rule.id], head)

    def limiter(self, listener: str, host: str) -> RateLimiter | None:
        """Return the rate limits of a listener for `host`, which come before those of routes."""
        for hostnames, limiter in self._limiters.get(listener, ()) if self._limiters else ():
            if any(host_matches(name, host) for name in hostnames):
                return limiter
        return None

    def admits(self, listener: str, policy: ClientAuth | None, host: str, rule: LinkedRule | None) -> bool:
        """Tell whether a request may be served on a connection whose client was held to `policy` (421 otherwise)."""
        guard = self.guards.get(listener)
        return guard is None or guard.admits(policy, host, () if rule is None else rule.rule.hostnames)

    def serves_host(self, listener: str, host: str, identity: str = "") -> bool:
        """Tell whether a connection to a listener is there for `host` (421 otherwise on TLS listeners).

        Args:
            identity: Of the binding that the connection's TLS handshake was made with; hosts of another one are not
                served on it, since they may ask more of clients (threat F3).
        """
        allowed = self._hosts.get(listener)
        if allowed is not None and not any(host_matches(name, host) for name in allowed):
            return False
        edge = self._edges.get(listener) if self._edges else None
        return edge is None or not edge.is_misdirected(host, identity)
