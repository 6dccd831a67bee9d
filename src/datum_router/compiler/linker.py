"""Make a serving `Snapshot` of each `SnapshotData`, out of the last one: only what changed is made anew.

Theory of operation. Unchanged rules are the same objects in old and new data, so `compiler.splice` finds the changed
ones at the speed of C; each of them is linked and moved in copies of the tables that hold it, matchers included. The
old snapshot stays as it is: requests that began with it go on. A rule whose service came or went is linked again, too.

Linking may be done in steps, so that a process that serves can do so in between: nothing is in force before the last
step, but endpoints and limits of services that stay, which act on all snapshots at once, are from the first. Services
that are gone lose their endpoints in the last one: until then rules lead to them. If a plugin breaks half-way nothing
else of the new data is left behind.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence

import msgspec

from datum_router.balancing.base import Balancer
from datum_router.balancing.guarded import GuardedBalancer
from datum_router.balancing.service_balancer import ServiceBalancer
from datum_router.compiler.diff import rule_differences
from datum_router.compiler.edgelink import link_edges
from datum_router.compiler.lease import ServiceState
from datum_router.compiler.link import HostLimiters, LinkedRule, Snapshot
from datum_router.compiler.steps import in_one_go
from datum_router.compiler.streamlink import link_streams
from datum_router.filters.base import CheckedFilter, Filter, build_filter
from datum_router.health.breaker import RouteCircuit
from datum_router.health.circuit import share
from datum_router.health.trial import LocalPermits, TrialDesk
from datum_router.health.view import HealthTable
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Locality
from datum_router.model.request import REQUEST_ID
from datum_router.model.route import FilterConfig, PluginFilter, Rule, RuleId, side_services
from datum_router.model.service import ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.observe.services import route_cells
from datum_router.plugins.manager import BUILTIN, PluginSet
from datum_router.plugins.protocols import HealthChange, RateLimitStore
from datum_router.policy.affinity import KEY_BYTES, Affinity
from datum_router.policy.buckets import SECRET_BYTES, BucketTable, local_table
from datum_router.policy.plugin_guard import PluginHook, PluginPart, PluginWatch
from datum_router.policy.ratelimit import RateLimiter
from datum_router.routing.matcher import STEP_RULES, Matcher
from datum_router.routing.regex import RegexEngine

_REBUILD_SHARE = 4
"""If more than one in so many rules changed, tables are built anew rather than changed rule by rule."""

_Matchers = tuple[dict[str, Matcher], Matcher]


class Linker:
    """Make snapshots and carry live state from one to the next. One per serving process, single-threaded."""

    __slots__ = (
        "_bound_rules",
        "_buckets",
        "_circuits",
        "_desk",
        "_health",
        "_is_place_fixed",
        "_last",
        "_locality",
        "_moved",
        "_plugins",
        "_rate_store",
        "_regex",
        "_request_id_rules",
        "_retired",
        "_session_key",
        "_states",
        "_watch",
        "_workers",
    )

    def __init__(
        self,
        plugins: PluginSet,
        *,
        regex: RegexEngine | None = None,
        gateway_locality: Locality = UNKNOWN_LOCALITY,
        desk: TrialDesk | None = None,
        watch: PluginWatch | None = None,
        buckets: BucketTable | None = None,
        rate_store: RateLimitStore | None = None,
        workers: int = 1,
        session_key: bytes = bytes(KEY_BYTES),
    ) -> None:
        """Begin with nothing.

        Args:
            gateway_locality: Where this gateway is whatever snapshots say; unknown = where they say.
            desk: For trials of half-open endpoints. Without one permits count in this process alone and verdicts go
                nowhere: right where nobody says that an endpoint is half-open.
            buckets: Of rate limits; without a table they count in this process alone.
            rate_store: Asked in place of `buckets`.
            workers: Processes that serve the same listeners: limits that are for all of them are shared out.
            session_key: Seals sessions; whoever serves hands one in that nobody can guess.
        """
        self._plugins = plugins
        self._buckets = buckets
        self._workers = workers
        self._session_key = session_key
        # Held by the rules that they are for, so that a route that is gone takes its own along.
        self._circuits: weakref.WeakValueDictionary[str, RouteCircuit] = weakref.WeakValueDictionary()
        self._rate_store = rate_store
        self._desk = desk or TrialDesk(LocalPermits(), lambda _verdict: None)
        self._watch = watch or PluginWatch()
        self._regex = regex
        self._locality = gateway_locality
        self._is_place_fixed = gateway_locality != UNKNOWN_LOCALITY
        self._states: dict[ServiceKey, ServiceState] = {}
        self._moved: set[ServiceKey] = set()  # services that came or went since the last snapshot
        self._retired: list[ServiceState] = []
        self._health = HealthTable()
        self._bound_rules = 0
        self._request_id_rules = 0
        self._last = Snapshot(SnapshotData(), {}, {}, {}, Matcher((), regex))

    def link(self, data: SnapshotData) -> Snapshot:
        """Return the serving form of `data`; unchanged rules, matchers and services are taken from the last one."""
        return in_one_go(self.link_in_steps(data))

    def link_in_steps(self, data: SnapshotData) -> Generator[None, None, Snapshot]:
        """Do as `link` does and yield every few milliseconds. Run one at a time, to its end.

        New endpoints of one service are one step, however many rules lead to it: about 5 us for each of them.
        """
        last = self._last
        yield from self._move(data)
        states = self._update_services(data)
        gone, added = rule_differences(last.data.rules, data.rules)
        old = [last.data.rules[position] for position in gone]
        new = [data.rules[position] for position in added]
        yield
        made: list[tuple[ServiceState, ServiceBalancer]] = []
        try:
            rules = yield from self._link_rules(last, data, states, old, new, made)
            matchers, default = yield from self._matchers(last, data, old, new)
        except BaseException:
            for state, balancer in made:
                state.balancers.pop(balancer, None)
            raise
        yield
        dead = yield from self._dead_balancers(last, rules, old)
        self._retire(states)
        for state, balancer in dead:  # not before: requests on older snapshots must not pick for services that are gone
            state.balancers.pop(balancer, None)
        self._bound_rules += _count_bound(new) - _count_bound(old)
        self._request_id_rules += _count_request_id(new) - _count_request_id(old)
        self._moved.clear()
        snapshot = Snapshot(
            data,
            rules,
            states,
            matchers,
            default,
            matches_request_id=self._request_id_rules > 0,
            limiters=self._host_limiters(data),
            edges=link_edges(data.listeners),
            streams=link_streams(data.listeners, data.rules, self._regex),
        )
        self._last = snapshot
        return snapshot

    def apply_health(self, changes: Sequence[HealthChange]) -> None:
        """Take changes of endpoints' usability; they act on all snapshots at once."""
        for key in self._health.apply(changes):
            state = self._states.get(key)
            if state is not None:
                state.update_health(self._health.view(key), self._health.trials(key))

    def reset_health(self, changes: Sequence[HealthChange]) -> None:
        """Forget all health and take `changes` as the whole truth."""
        self._health.reset(changes)
        for key, state in self._states.items():
            state.update_health(self._health.view(key), self._health.trials(key))

    def take_states(self) -> list[ServiceState]:
        """Return the state of every service, for telemetry; a deleted one until its last request has ended."""
        states = [*self._states.values(), *self._retired]
        self._retired = [state for state in self._retired if state.limits.requests]
        return states

    def take_cells(self) -> list[Cell]:
        """Return what limits have counted since the last call, and how circuits of routes stand."""
        cells = route_cells(self._circuits.values())
        table = self._buckets
        if table is not None and table.forgotten:
            cells.append(Cell(names.RATE_LIMIT_FORGOTTEN.name, (), table.forgotten))
            table.forgotten = 0
        return cells

    # --- place -----------------------------------------------------------------------------------------------------

    def _move(self, data: SnapshotData) -> Generator[None, None, None]:
        """Take the gateway's place from `data`, for the balancers of all snapshots at once; it hardly ever changes."""
        if self._is_place_fixed or data.place == self._locality:
            return
        self._locality = data.place
        for state in list(self._states.values()):
            for balancer in state.balancers:
                balancer.update_place(self._locality)
            yield

    # --- services --------------------------------------------------------------------------------------------------

    def _update_services(self, data: SnapshotData) -> dict[ServiceKey, ServiceState]:
        """Bring services up to date and make new ones; return the states of all in `data`."""
        self._moved.update(key for key in self._states if key not in data.services)
        states: dict[ServiceKey, ServiceState] = {}
        for key, service in data.services.items():
            known = self._states.get(key)
            if known is None:
                known = self._states[key] = ServiceState(
                    service, self._health.view(key), self._desk, self._health.trials(key), workers=self._workers
                )
                self._moved.add(key)
            elif known.service is not service and known.service != service:
                known.update(service)
            states[key] = known
        return states

    def _retire(self, states: Mapping[ServiceKey, ServiceState]) -> None:
        """Let go of services that are not in `states`."""
        for key in [key for key in self._states if key not in states]:
            # Requests that are under way on an older snapshot still hold it; new ones must find no endpoint.
            state = self._states.pop(key)
            self._retired.append(state)
            state.update(msgspec.structs.replace(state.service, endpoints=()))

    # --- rules -----------------------------------------------------------------------------------------------------

    def _link_rules(
        self,
        last: Snapshot,
        data: SnapshotData,
        states: Mapping[ServiceKey, ServiceState],
        old: Sequence[Rule],
        new: Sequence[Rule],
        made: list[tuple[ServiceState, ServiceBalancer]],
    ) -> Generator[None, None, dict[str, LinkedRule]]:
        rules = dict(last.rules)
        for rule in old:
            del rules[rule.id]
        for position, rule in enumerate(new, 1):
            rules[rule.id] = self._link_rule(rule, last.rules.get(rule.id), states, made)
            if position % STEP_RULES == 0:
                yield
        if self._moved:
            known = set(map(id, new))
            for position, rule in enumerate(data.rules, 1):
                if position % (8 * STEP_RULES) == 0:
                    yield
                if id(rule) in known or (
                    all(ref.service not in self._moved for ref in rule.destinations)
                    and not (rule.filters and any(key in self._moved for key, _ in side_services(rule)))
                ):
                    continue
                before = rules[rule.id]
                if not before.uses_states(states):
                    rules[rule.id] = self._link_rule(rule, before, states, made)
        return rules

    def _link_rule(
        self,
        rule: Rule,
        before: LinkedRule | None,
        states: Mapping[ServiceKey, ServiceState],
        made: list[tuple[ServiceState, ServiceBalancer]],
    ) -> LinkedRule:
        filters = tuple([self._filter(config, rule) for config in rule.filters])
        balancers: dict[ServiceKey, tuple[ServiceState, ServiceBalancer]] = {}
        keeps = before is not None and before.rule.balancing == rule.balancing and before.rule.locality == rule.locality
        wanted = [(ref.service, ref.problem) for ref in rule.destinations]
        if rule.filters:
            wanted += side_services(rule)
        for key, problem in wanted:
            state = states.get(key)
            if state is None or problem or key in balancers:
                continue
            balancer = before.balancer_of(key, state) if keeps and before is not None else None
            if balancer is None:
                balancer = ServiceBalancer(
                    state.service,
                    balancing=rule.balancing,
                    locality=rule.locality,
                    balancer=self._balancer(rule),
                    gateway_locality=self._locality,
                    health=state.view,
                    shared=state.candidates,
                )
                state.balancers[balancer] = None
                made.append((state, balancer))
            balancers[key] = (state, balancer)
        destination_filters = {
            position: tuple([self._filter(config, rule) for config in ref.filters])
            for position, ref in enumerate(rule.destinations)
            if ref.filters
        }
        limiter = RateLimiter(rule.rate_limits, self._table(), self._rate_store) if rule.rate_limits else None
        return LinkedRule(
            rule,
            filters,
            balancers,
            destination_filters,
            limiter=limiter,
            circuit=self._circuit(rule),
            affinity=self._affinity(rule),
        )

    def _affinity(self, rule: Rule) -> Affinity | None:
        return None if rule.affinity is None else Affinity(rule.affinity, route=rule.route, key=self._session_key)

    def _circuit(self, rule: Rule) -> RouteCircuit | None:
        """Return the circuit breaker of a rule's route, the same one for all its rules and versions."""
        if rule.circuit is None:
            return None
        policy = msgspec.structs.replace(rule.circuit, limits=share(rule.circuit.limits, self._workers))
        circuit = self._circuits.get(rule.route)
        if circuit is None:
            circuit = self._circuits[rule.route] = RouteCircuit(rule.route, policy)
        else:
            circuit.update(policy)
        return circuit

    def _table(self) -> BucketTable:
        """Return the table of buckets. Whoever serves hands one in, with a secret that nobody can guess."""
        if self._buckets is None:
            self._buckets = local_table(bytes(SECRET_BYTES))
        return self._buckets

    def _host_limiters(self, data: SnapshotData) -> dict[str, HostLimiters]:
        return {
            listener.name: tuple(
                [
                    (item.hostnames, RateLimiter((item.policy,), self._table(), self._rate_store))
                    for item in listener.rate_limits
                ]
            )
            for listener in data.listeners
            if listener.rate_limits
        }

    def _filter(self, config: FilterConfig, rule: Rule) -> Filter:
        if isinstance(config, PluginFilter) and config.name in self._plugins.filters:
            plugin = self._plugins.authors[PluginHook.FILTER][config.name]
            part = PluginPart(plugin=plugin, hook=PluginHook.FILTER, name=config.name, route=rule.route)
            return CheckedFilter(
                self._plugins.filters[config.name].create(config),
                on_request=self._watch.guard(part),
                on_response=self._watch.guard(part),
                name=config.name,
            )
        return build_filter(config, rule)

    def _balancer(self, rule: Rule) -> Balancer:
        name = rule.balancing.algorithm
        made = self._plugins.balancers[name].create(rule.balancing)
        plugin = self._plugins.authors[PluginHook.BALANCER][name]
        if plugin == BUILTIN:
            return made
        part = PluginPart(plugin=plugin, hook=PluginHook.BALANCER, name=name, route=rule.route)
        return GuardedBalancer(made, self._watch.guard(part))

    def _dead_balancers(
        self, last: Snapshot, rules: Mapping[str, LinkedRule], old: Iterable[Rule]
    ) -> Generator[None, None, list[tuple[ServiceState, ServiceBalancer]]]:
        """Return the balancers of rules that are gone, which health changes must not feed any more."""
        replaced: set[str] = {rule.id for rule in old}
        if self._moved:
            replaced.update(key for key, linked in last.rules.items() if rules.get(key) is not linked)
        dead: list[tuple[ServiceState, ServiceBalancer]] = []
        for position, rule_id in enumerate(replaced, 1):
            if position % (4 * STEP_RULES) == 0:
                yield
            now = rules.get(rule_id)
            kept = {balancer for _, balancer in now.balancers()} if now is not None else set()
            dead += (pair for pair in last.rules[rule_id].balancers() if pair[1] not in kept)
        return dead

    # --- matchers --------------------------------------------------------------------------------------------------

    def _matchers(
        self, last: Snapshot, data: SnapshotData, old: Sequence[Rule], new: Sequence[Rule]
    ) -> Generator[None, None, _Matchers]:
        """Return the matcher of each listener, if any rule is bound to some, and that of rules bound to none."""
        old, new = _without_same_match(old, new)
        yield
        bound = self._bound_rules + _count_bound(new) - _count_bound(old)
        names = [listener.name for listener in data.listeners]
        same_names = [listener.name for listener in last.data.listeners] == names
        if bool(bound) != bool(last.matchers) or (bound and not same_names):
            return (yield from self._build_matchers(data, names, is_bound=bound > 0))
        if not old and not new:
            return dict(last.matchers), last.default
        changed = len(old) + len(new)
        if changed > STEP_RULES and changed * _REBUILD_SHARE > len(data.rules):
            return (yield from self._build_matchers(data, names, is_bound=bound > 0))
        known: dict[tuple[int, tuple[RuleId, ...], tuple[RuleId, ...]], Matcher] = {}
        matchers: dict[str, Matcher] = {}
        for name, before in last.matchers.items():
            out, into = _serving(old, name), _serving(new, name)
            index = (id(before), tuple(rule.id for rule in out), tuple(rule.id for rule in into))
            if index not in known:
                known[index] = yield from before.updated_in_steps(out, into)
            matchers[name] = known[index]
        return matchers, (yield from last.default.updated_in_steps(_serving(old), _serving(new)))

    def _build_matchers(
        self, data: SnapshotData, names: Iterable[str], *, is_bound: bool
    ) -> Generator[None, None, _Matchers]:
        default = yield from Matcher.in_steps(_serving(data.rules), self._regex)
        matchers: dict[str, Matcher] = {}
        if not is_bound:
            return matchers, default
        by_rules: dict[tuple[RuleId, ...], Matcher] = {}
        for name in names:
            chosen = _serving(data.rules, name)
            ids = tuple(rule.id for rule in chosen)
            if ids not in by_rules:
                by_rules[ids] = yield from Matcher.in_steps(chosen, self._regex)
            matchers[name] = by_rules[ids]
        return matchers, default


def _serving(rules: Sequence[Rule], listener: str | None = None) -> list[Rule]:
    """Return the rules that are bound to no listener, and those bound to `listener`."""
    return [rule for rule in rules if not rule.listeners or listener in rule.listeners]


def _without_same_match(old: Sequence[Rule], new: Sequence[Rule]) -> tuple[list[Rule], list[Rule]]:
    """Leave out rules whose new version matches the same requests with the same precedence."""
    table = {rule.id: rule for rule in old}
    same = {
        rule.id
        for rule in new
        if (before := table.get(rule.id)) is not None
        and before.match == rule.match
        and (before.hostnames, before.listeners) == (rule.hostnames, rule.listeners)
        and (before.created_at, before.route, before.index) == (rule.created_at, rule.route, rule.index)
    }
    return [rule for rule in old if rule.id not in same], [rule for rule in new if rule.id not in same]


def _count_bound(rules: Iterable[Rule]) -> int:
    return sum(1 for rule in rules if rule.listeners)


def _count_request_id(rules: Iterable[Rule]) -> int:
    return sum(1 for rule in rules if any(item.name.lower() == REQUEST_ID for item in rule.match.headers))
