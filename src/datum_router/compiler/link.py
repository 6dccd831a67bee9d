"""Link a `SnapshotData` into what serves: matchers, filters, balancers, and the live state of services.

A `Snapshot` never changes: a request keeps the one it began with. What lives across snapshots is `ServiceState`:
requests in flight, limits, health, and the balancers' own state, so that a new version of a route does not begin its
round-robin anew and does not forget how loaded an endpoint is. Endpoints and health of a service act at once on all
snapshots, since no request may be sent to an endpoint that is gone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from datum_router.balancing.base import HealthView, PickContext
from datum_router.balancing.hashkey import hash_key, uses_hash
from datum_router.balancing.service_balancer import ServiceBalancer
from datum_router.balancing.split import Split
from datum_router.errors import PluginContractError
from datum_router.filters.base import CheckedFilter, Filter, build_filter
from datum_router.health.circuit import ServiceLimits
from datum_router.health.view import HealthTable
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, EndpointKey, Locality, make_endpoint
from datum_router.model.listener import Listener
from datum_router.model.policy import RetryPolicy, TimeoutPolicy
from datum_router.model.request import LocalReply, RequestHead
from datum_router.model.route import BackendRef, FilterConfig, HashOn, PluginFilter, Rule
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.observe.meter import RequestMeter
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import HealthChange
from datum_router.reasons import Reason
from datum_router.routing.host import host_matches
from datum_router.routing.matcher import Matcher
from datum_router.routing.regex import RegexEngine

NO_EXCLUSIONS: frozenset[EndpointKey] = frozenset()
_REQUEST_ID = "x-request-id"


class ServiceState:
    """One service in the process that serves.

    Attributes:
        active: Requests in flight per endpoint; read by least-connections.
        limits: Permits for requests and retries.
        retried: Retries begun since telemetry has last set it back.
    """

    __slots__ = ("active", "balancers", "limits", "retried", "service", "view")

    def __init__(self, service: Service, view: HealthView) -> None:
        self.service = service
        self.view = view
        self.active: dict[EndpointKey, int] = {}
        self.limits = ServiceLimits(service.limits)
        self.retried = 0
        self.balancers: list[ServiceBalancer] = []

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

    def update_health(self, view: HealthView) -> None:
        """Take a new view of the endpoints' health."""
        self.view = view
        for balancer in self.balancers:
            balancer.update_health(view)


class Lease:
    """One request's claim on an endpoint: counts as in flight until `release`."""

    __slots__ = ("_key", "_released", "endpoint", "is_retry", "state")

    def __init__(self, state: ServiceState, endpoint: Endpoint, key: EndpointKey, *, is_retry: bool) -> None:
        self.state = state
        self.endpoint = endpoint
        self.is_retry = is_retry
        self._key = key
        self._released = False

    @property
    def key(self) -> EndpointKey:
        """Return the endpoint's key in its service, which a port override does not change."""
        return self._key

    def release(self) -> None:
        """Give the claim back; a second call does nothing."""
        if self._released:
            return
        self._released = True
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
        meters: The data plane's, by protocol and service: they live as long as the rule.
    """

    __slots__ = (
        "_balancers",
        "_refs",
        "_single",
        "_split",
        "_uses_hash",
        "filters",
        "meters",
        "retry",
        "rule",
        "timeouts",
    )

    def __init__(
        self,
        rule: Rule,
        filters: tuple[Filter, ...],
        balancers: Mapping[ServiceKey, tuple[ServiceState, ServiceBalancer]],
    ) -> None:
        self.rule = rule
        self.filters = filters
        self.retry: RetryPolicy = rule.retry
        self.timeouts: TimeoutPolicy = rule.timeouts
        self.meters: dict[tuple[str, str], RequestMeter] = {}
        self._balancers = dict(balancers)
        self._split = Split(rule.destinations)
        self._uses_hash = uses_hash(rule.balancing)
        only = rule.destinations[0] if len(rule.destinations) == 1 else None
        self._single = only if only is not None and only.weight > 0 and not only.problem else None

    @property
    def reads_request_id(self) -> bool:
        """Tell whether picks depend on X-Request-Id, which is new for each request."""
        policy = self.rule.balancing
        return self._uses_hash and policy.hash_on is HashOn.HEADER and policy.hash_name.lower() == _REQUEST_ID

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
            A lease, or the reply to give: 503 if nothing is usable or a limit is reached, 500 if the chosen share
            belongs to a reference that leads nowhere, or every weight is 0 (as the Gateway API has it).

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
        if found is None and excluded:
            # A retry whose destination has nobody left: a sibling that takes traffic at all beats giving up.
            for other in self.rule.destinations:
                if other is not ref and other.weight > 0 and not other.problem and self._is_usable(other):
                    found = self._claim(other, head, rng=rng, now=now, excluded=excluded, is_retry=is_retry)
                    if found is not None:
                        break
        if found is None:
            return LocalReply(
                status=503, reason=Reason.NO_HEALTHY_ENDPOINT, detail="no endpoint of the service can take the request"
            )
        return found

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
        endpoint: object = None
        try:
            endpoint = balancer.pick(context)
        except (Exception, SystemExit) as error:
            raise _broken_balancer(self.rule, f"raised {type(error).__name__}: {error}") from error
        finally:
            if not isinstance(endpoint, Endpoint):  # nobody is left, or a plugin's balancer broke its promise
                state.limits.release_request(is_retry=is_retry)
        if not isinstance(endpoint, Endpoint):
            if endpoint is None:
                return None
            raise _broken_balancer(self.rule, f"returned {type(endpoint).__name__}, expected Endpoint or None")
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
            )
        return Lease(state, target, endpoint.key, is_retry=is_retry)

    def _is_usable(self, ref: BackendRef) -> bool:
        pair = self._balancers.get(ref.service)
        return pair is not None and pair[1].has_candidates


class Snapshot:
    """A linked snapshot: immutable, but for the live state of services that it points to.

    Attributes:
        matches_request_id: A rule has a condition on X-Request-Id, which is new for each request: who remembers
            which rule won for a head must not do so here.
        mark: An object that no other snapshot has; who remembers something of this snapshot keeps the mark beside it,
            which does not keep the snapshot alive.
    """

    __slots__ = (
        "_default",
        "_hosts",
        "_matchers",
        "data",
        "digest",
        "mark",
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
        self._matchers = matchers
        self._default = default
        self._hosts = {listener.name: listener.hostnames for listener in data.listeners if listener.hostnames}

    def match(self, head: RequestHead) -> LinkedRule | None:
        """Return the rule that wins for `head` on its listener, or None."""
        if self._hosts:
            allowed = self._hosts.get(head.listener)
            if allowed is not None and not any(host_matches(name, head.host) for name in allowed):
                return None
        matcher = self._matchers.get(head.listener, self._default) if self._matchers else self._default
        rule = matcher.match(head)
        return None if rule is None else self.rules[rule.id]

    def serves_host(self, listener: str, host: str) -> bool:
        """Tell whether a listener is there for `host` (421 otherwise on TLS listeners)."""
        allowed = self._hosts.get(listener)
        return allowed is None or any(host_matches(name, host) for name in allowed)


class Linker:
    """Make snapshots and carry live state from one to the next. One per serving process, single-threaded."""

    __slots__ = ("_health", "_last", "_locality", "_plugins", "_regex", "_retired", "_states")

    def __init__(
        self, plugins: PluginSet, *, regex: RegexEngine | None = None, gateway_locality: Locality = UNKNOWN_LOCALITY
    ) -> None:
        self._plugins = plugins
        self._regex = regex
        self._locality = gateway_locality
        self._states: dict[ServiceKey, ServiceState] = {}
        self._retired: list[ServiceState] = []
        self._health = HealthTable()
        self._last: Snapshot | None = None

    def link(self, data: SnapshotData) -> Snapshot:
        """Return the serving form of `data`; unchanged rules, matchers and services are taken from the last one."""
        last = self._last
        self._update_services(data)
        old_rules: Mapping[str, LinkedRule] = last.rules if last is not None else {}
        rules: dict[str, LinkedRule] = {}
        for rule in data.rules:
            before = old_rules.get(rule.id)
            if before is not None and before.rule == rule and self._is_current(before):
                rules[rule.id] = before
            else:
                rules[rule.id] = self._link_rule(rule, before)
        self._forget_balancers(rules.values())
        if last is not None and _same_matching(last.data, data):
            matchers, default = last._matchers, last._default
            matches_request_id = last.matches_request_id
        else:
            matchers, default = self._matchers(data)
            matches_request_id = any(
                condition.name.lower() == _REQUEST_ID for rule in data.rules for condition in rule.match.headers
            )
        snapshot = Snapshot(data, rules, dict(self._states), matchers, default, matches_request_id=matches_request_id)
        self._last = snapshot
        return snapshot

    def apply_health(self, changes: Sequence[HealthChange]) -> None:
        """Take changes of endpoints' usability; they act on all snapshots at once."""
        for key in self._health.apply(changes):
            state = self._states.get(key)
            if state is not None:
                state.update_health(self._health.view(key))

    def reset_health(self, changes: Sequence[HealthChange]) -> None:
        """Forget all health and take `changes` as the whole truth."""
        self._health.reset(changes)
        for key, state in self._states.items():
            state.update_health(self._health.view(key))

    def take_states(self) -> list[ServiceState]:
        """Return the state of every service, for telemetry; a deleted one until its last request has ended."""
        states = [*self._states.values(), *self._retired]
        self._retired = [state for state in self._retired if state.limits.requests]
        return states

    def _update_services(self, data: SnapshotData) -> None:
        for key in [key for key in self._states if key not in data.services]:
            # Requests that are under way on an older snapshot still hold it; new ones must find no endpoint.
            state = self._states.pop(key)
            self._retired.append(state)
            state.update(msgspec.structs.replace(state.service, endpoints=()))
        for key, service in data.services.items():
            known = self._states.get(key)
            if known is None:
                self._states[key] = ServiceState(service, self._health.view(key))
            elif known.service is not service and known.service != service:
                known.update(service)

    def _is_current(self, linked: LinkedRule) -> bool:
        pairs = linked._balancers
        return all(
            (pairs[ref.service][0] if ref.service in pairs else None) is self._states.get(ref.service)
            for ref in linked.rule.destinations
        )

    def _link_rule(self, rule: Rule, before: LinkedRule | None) -> LinkedRule:
        filters = tuple(self._filter(config, rule) for config in rule.filters)
        balancers: dict[ServiceKey, tuple[ServiceState, ServiceBalancer]] = {}
        keeps = before is not None and before.rule.balancing == rule.balancing and before.rule.locality == rule.locality
        for ref in rule.destinations:
            state = self._states.get(ref.service)
            if state is None or ref.problem:
                continue
            old = before._balancers.get(ref.service) if keeps and before is not None else None
            if old is not None and old[0] is state:
                balancers[ref.service] = old
                continue
            balancer = ServiceBalancer(
                state.service,
                balancing=rule.balancing,
                locality=rule.locality,
                balancer=self._plugins.balancers[rule.balancing.algorithm].create(rule.balancing),
                gateway_locality=self._locality,
                health=state.view,
            )
            state.balancers.append(balancer)
            balancers[ref.service] = (state, balancer)
        return LinkedRule(rule, filters, balancers)

    def _filter(self, config: FilterConfig, rule: Rule) -> Filter:
        if isinstance(config, PluginFilter):
            return CheckedFilter(self._plugins.filters[config.name].create(config), config.name)
        return build_filter(config, rule)

    def _forget_balancers(self, rules: Iterable[LinkedRule]) -> None:
        """Drop balancers of rules that are gone, so that health changes do not feed the dead."""
        alive: dict[int, list[ServiceBalancer]] = {}
        for linked in rules:
            for state, balancer in linked._balancers.values():
                alive.setdefault(id(state), []).append(balancer)
        for state in self._states.values():
            state.balancers = alive.get(id(state), [])

    def _matchers(self, data: SnapshotData) -> tuple[dict[str, Matcher], Matcher]:
        default = Matcher([rule for rule in data.rules if not rule.listeners], self._regex)
        if all(not rule.listeners for rule in data.rules):
            return {}, default
        matchers: dict[str, Matcher] = {}
        by_rules: dict[tuple[str, ...], Matcher] = {}
        for listener in data.listeners:
            chosen = [rule for rule in data.rules if not rule.listeners or listener.name in rule.listeners]
            ids = tuple(rule.id for rule in chosen)
            if ids not in by_rules:
                by_rules[ids] = Matcher(chosen, self._regex)
            matchers[listener.name] = by_rules[ids]
        return matchers, default


def _broken_balancer(rule: Rule, what: str) -> PluginContractError:
    return PluginContractError(f"balancer {rule.balancing.algorithm} of {rule.route}: {what}", reason=Reason.INTERNAL)


def _same_matching(old: SnapshotData, new: SnapshotData) -> bool:
    """Tell whether matchers of `old` serve `new`: same rules in the same order, same listener names."""
    return (
        len(old.rules) == len(new.rules)
        and all(
            a is b
            or (a.id == b.id and a.match == b.match and a.hostnames == b.hostnames and a.listeners == b.listeners)
            for a, b in zip(old.rules, new.rules, strict=True)
        )
        and _names(old.listeners) == _names(new.listeners)
    )


def _names(listeners: Iterable[Listener]) -> list[str]:
    return [listener.name for listener in listeners]
