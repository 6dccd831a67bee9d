import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from datum_router.balancing.round_robin import RoundRobin
from datum_router.clock import ManualClock
from datum_router.compiler.lease import Lease
from datum_router.compiler.link import LinkedRule, Snapshot
from datum_router.compiler.linker import Linker
from datum_router.errors import PluginContractError
from datum_router.model.affinity import AffinityPolicy
from datum_router.model.endpoint import Endpoint, EndpointKey, make_endpoint
from datum_router.model.filters import CorsPolicy
from datum_router.model.limits import BreakerPolicy, CircuitPolicy, RateLimitPolicy, RateScope
from datum_router.model.listener import Listener
from datum_router.model.policy import ConnectionLimits
from datum_router.model.request import LocalReply, RequestHead
from datum_router.model.route import BackendRef, BalancingPolicy, HeaderEdit, Rule, RuleId
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import HealthChange
from datum_router.plugins.specs import BalancerSpec
from datum_router.policy.plugin_guard import MAX_FAILURES, PAUSE_S, PluginEvent, PluginHook, PluginWatch
from datum_router.reasons import Reason
from datum_router.routing.matcher import STEP_RULES, Matcher

HEAD = RequestHead(method="GET", authority="a.test", host="a.test", path="/", client_ip="192.0.2.1")
A = ServiceKey("default/a")


def service(*addresses: str, key: ServiceKey = A, **fields: Any) -> Service:
    return Service(key=key, endpoints=tuple(make_endpoint(item, 80) for item in addresses), **fields)


def rule(name: str = "default/r#0", *refs: BackendRef, **fields: Any) -> Rule:
    return Rule(id=RuleId(name), route="default/r", destinations=refs or (BackendRef(service=A),), **fields)


def data(rules: Sequence[Rule], services: Sequence[Service], version: int = 1, **fields: Any) -> SnapshotData:
    table = {item.key: item for item in services}
    return SnapshotData(version=version, rules=tuple(rules), services=table, **fields)


def linked(snapshot: Snapshot, head: RequestHead = HEAD) -> LinkedRule:
    found = snapshot.match(head)
    assert found is not None
    return found


def select(snapshot: Snapshot, head: RequestHead = HEAD, **options: Any) -> Lease | LocalReply:
    return linked(snapshot, head).select(head, rng=random.Random(1), now=100.0, **options)


def picks(snapshot: Snapshot, count: int) -> list[str]:
    found = []
    for _ in range(count):
        lease = select(snapshot)
        assert isinstance(lease, Lease)
        found.append(lease.endpoint.address)
        lease.release()
    return found


@pytest.fixture
def linker(plugins: PluginSet) -> Linker:
    return Linker(plugins)


def test_a_request_is_matched_and_leased_to_an_endpoint(linker: Linker) -> None:
    snapshot = linker.link(data([rule()], [service("10.0.0.1", "10.0.0.2")]))
    assert picks(snapshot, 4) == ["10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2"]


def test_a_lease_counts_as_in_flight_until_it_is_released_once(linker: Linker) -> None:
    snapshot = linker.link(data([rule()], [service("10.0.0.1")]))
    lease = select(snapshot)
    assert isinstance(lease, Lease)
    state = snapshot.services[A]
    assert state.active == {EndpointKey("10.0.0.1:80"): 1}
    lease.release()
    lease.release()
    assert state.active == {}


def test_turns_and_requests_in_flight_survive_a_new_snapshot(linker: Linker) -> None:
    first = linker.link(data([rule()], [service("10.0.0.1", "10.0.0.2")]))
    lease = select(first)
    second = linker.link(data([rule(filters=(HeaderEdit(set=(("x", "y"),)),))], [service("10.0.0.1", "10.0.0.2")], 2))
    assert second is not first
    assert second.services[A].active == {EndpointKey("10.0.0.1:80"): 1}
    assert picks(second, 1) == ["10.0.0.2"]
    assert isinstance(lease, Lease)
    lease.release()
    assert second.services[A].active == {}


def test_unchanged_rules_and_matchers_are_taken_over(linker: Linker) -> None:
    one, two = rule("default/r#0"), rule("default/r#1", hostnames=("b.test",))
    first = linker.link(data([one, two], [service("10.0.0.1")]))
    second = linker.link(data([one, two], [service("10.0.0.1", "10.0.0.2")], 2))
    assert second.rules["default/r#0"] is first.rules["default/r#0"]
    assert second.default is first.default
    third = linker.link(data([one], [service("10.0.0.1")], 3))
    assert third.default is not first.default


def test_new_endpoints_act_at_once_on_requests_that_hold_an_older_snapshot(linker: Linker) -> None:
    old = linker.link(data([rule()], [service("10.0.0.1")]))
    linker.link(data([rule()], [service("10.0.0.2")], 2))
    assert picks(old, 2) == ["10.0.0.2", "10.0.0.2"]


def test_a_removed_service_leaves_nothing_to_pick_for_older_snapshots(linker: Linker) -> None:
    old = linker.link(data([rule()], [service("10.0.0.1")]))
    linker.link(data([], [], 2))
    reply = select(old)
    assert isinstance(reply, LocalReply)
    assert (reply.status, reply.reason) == (503, Reason.NO_HEALTHY_ENDPOINT)


def test_a_removed_service_serves_until_the_rules_that_lead_to_it_are_gone(linker: Linker) -> None:
    b = ServiceKey("default/b")
    old = linker.link(data([rule()], [service("10.0.0.1")]))
    moved = data([rule("default/r#0", BackendRef(service=b))], [service("10.0.0.2", key=b)], 2)
    steps = linker.link_in_steps(moved)
    for _ in steps:  # requests between the steps are matched on the old snapshot
        assert picks(old, 1) == ["10.0.0.1"]
    assert select(old) == select(linker.link(data([rule()], [service(key=A)], 3)))


def test_a_removed_service_is_there_on_if_the_new_rules_cannot_be_linked(linker: Linker) -> None:
    old = linker.link(data([rule()], [service("10.0.0.1")]))
    b = ServiceKey("default/b")
    broken = rule("default/r#0", BackendRef(service=b), balancing=BalancingPolicy(algorithm="none such"))
    with pytest.raises(KeyError):
        linker.link(data([broken], [service("10.0.0.2", key=b)], 2))
    assert picks(old, 1) == ["10.0.0.1"]
    assert picks(linker.link(data([rule()], [service("10.0.0.3")], 3)), 1) == ["10.0.0.3"]


@pytest.mark.parametrize("listeners", [(), ("plain",)])
@pytest.mark.parametrize(("before", "after"), [(2000, 0), (2000, 1000), (3000, 2500), (0, 2000), (2500, 3000)])
def test_no_step_changes_more_rules_than_its_share(
    linker: Linker, monkeypatch: pytest.MonkeyPatch, before: int, after: int, listeners: tuple[str, ...]
) -> None:
    sizes: list[int] = []
    updated = Matcher.updated

    def count(self: Matcher, removed: Sequence[Rule], added: Sequence[Rule]) -> Matcher:
        sizes.append(len(removed) + len(added))
        return updated(self, removed, added)

    monkeypatch.setattr(Matcher, "updated", count)
    rules = [rule(f"default/r#{n}", hostnames=(f"h{n}.test",), listeners=listeners) for n in range(max(before, after))]
    plain = (Listener(name="plain"),)
    linker.link(data(rules[:before], [service("10.0.0.1")], listeners=plain))
    steps = sum(1 for _ in linker.link_in_steps(data(rules[:after], [service("10.0.0.1")], 2, listeners=plain)))
    assert max(sizes, default=0) <= STEP_RULES
    assert steps >= len(sizes)
    snapshot = linker.link(data(rules[:after], [service("10.0.0.1")], 3, listeners=plain))
    for n in (0, after - 1, after, before - 1):
        head = msgspec.structs.replace(HEAD, host=f"h{n}.test", listener="plain")
        assert (snapshot.match(head) is not None) == (0 <= n < after)


def test_health_takes_endpoints_out_and_brings_them_back(linker: Linker) -> None:
    snapshot = linker.link(data([rule()], [service("10.0.0.1", "10.0.0.2")]))

    def change(is_usable: bool) -> HealthChange:
        return HealthChange(service=A, endpoint=EndpointKey("10.0.0.1:80"), is_usable=is_usable, since=1.0)

    linker.apply_health([change(False)])
    assert set(picks(snapshot, 4)) == {"10.0.0.2"}
    linker.apply_health([change(True)])
    assert set(picks(snapshot, 4)) == {"10.0.0.1", "10.0.0.2"}


def test_siblings_in_a_weighted_split_take_the_share_of_a_service_that_is_wholly_out(linker: Linker) -> None:
    """Until one of its endpoints is back; a service without siblings is in a panic instead, and keeps its requests."""
    b, c = ServiceKey("default/b"), ServiceKey("default/c")
    services = [service("10.0.0.1", "10.0.0.2"), service("10.0.1.1", key=b), service("10.0.2.1", key=c)]
    refs = [BackendRef(service=A, weight=80), BackendRef(service=b, weight=15), BackendRef(service=c, weight=5)]
    snapshot = linker.link(data([rule("default/r#0", *refs)], services))

    def change(address: str, *, is_usable: bool) -> HealthChange:
        return HealthChange(service=A, endpoint=EndpointKey(address), is_usable=is_usable, since=1.0)

    def shares() -> Counter[str]:
        rng, found = random.Random(1), Counter[str]()
        for _ in range(2000):
            lease = linked(snapshot).select(HEAD, rng=rng, now=100.0)
            assert isinstance(lease, Lease)
            found[lease.endpoint.address.rpartition(".")[0]] += 1
            lease.release()
        return found

    assert shares()["10.0.0"] == pytest.approx(1600, abs=60)
    linker.apply_health([change("10.0.0.1:80", is_usable=False)])
    assert shares()["10.0.0"] == pytest.approx(1600, abs=60), "one endpoint left takes the whole share"
    linker.apply_health([change("10.0.0.2:80", is_usable=False)])
    assert shares() == {"10.0.1": pytest.approx(1500, abs=60), "10.0.2": pytest.approx(500, abs=60)}
    linker.apply_health([change("10.0.0.2:80", is_usable=True)])
    assert shares()["10.0.0"] == pytest.approx(1600, abs=60)
    alone = linker.link(data([rule("default/r#0", refs[0])], services, version=2))
    linker.apply_health([change("10.0.0.2:80", is_usable=False)])
    assert set(picks(alone, 4)) == {"10.0.0.1", "10.0.0.2"}, "a panic"


def test_health_that_came_before_the_service_counts(linker: Linker) -> None:
    change = HealthChange(service=A, endpoint=EndpointKey("10.0.0.1:80"), is_usable=False, since=1.0)
    linker.reset_health([change])
    snapshot = linker.link(data([rule()], [service("10.0.0.1", "10.0.0.2")]))
    assert set(picks(snapshot, 3)) == {"10.0.0.2"}


def test_excluded_endpoints_are_left_out_and_none_left_is_503(linker: Linker) -> None:
    snapshot = linker.link(data([rule()], [service("10.0.0.1", "10.0.0.2")]))
    first = EndpointKey("10.0.0.1:80")
    lease = select(snapshot, excluded=frozenset({first}))
    assert isinstance(lease, Lease)
    assert lease.endpoint.address == "10.0.0.2"
    reply = select(snapshot, excluded=frozenset({first, EndpointKey("10.0.0.2:80")}))
    assert isinstance(reply, LocalReply)
    assert reply.reason == Reason.NO_HEALTHY_ENDPOINT
    lease.release()
    assert snapshot.services[A].limits.acquire_request() is None


@pytest.mark.parametrize(
    ("ref", "status", "reason"),
    [
        (BackendRef(service=A, weight=0), 500, Reason.NO_WEIGHT),
        (BackendRef(service=ServiceKey("default/x"), problem="VPCServiceNotFound"), 500, Reason.BACKEND_NOT_FOUND),
    ],
)
def test_destinations_that_cannot_serve_say_why(linker: Linker, ref: BackendRef, status: int, reason: Reason) -> None:
    reply = select(linker.link(data([rule("default/r#0", ref)], [service("10.0.0.1")])))
    assert isinstance(reply, LocalReply)
    assert (reply.status, reply.reason) == (status, reason)


def test_a_port_override_dials_another_port_of_the_same_endpoint(linker: Linker) -> None:
    snapshot = linker.link(data([rule("default/r#0", BackendRef(service=A, port=9000))], [service("10.0.0.1")]))
    lease = select(snapshot)
    assert isinstance(lease, Lease)
    assert (lease.endpoint.key, lease.key) == ("10.0.0.1:9000", "10.0.0.1:80")


def test_a_port_override_stays_within_the_vpc(linker: Linker) -> None:
    there = Service(key=A, endpoints=(make_endpoint("10.0.0.1", 80, vpc="prod/shop", cluster="east"),))
    lease = select(linker.link(data([rule("default/r#0", BackendRef(service=A, port=9000))], [there])))
    assert isinstance(lease, Lease)
    assert (lease.endpoint.key, lease.endpoint.vpc) == ("10.0.0.1:9000@prod/shop", "prod/shop")
    assert (lease.key, lease.endpoint.cluster) == ("10.0.0.1:80@prod/shop", "east")


def test_a_full_service_answers_503_with_retry_after(linker: Linker) -> None:
    limits = ConnectionLimits(max_parallel_requests=1)
    snapshot = linker.link(data([rule()], [service("10.0.0.1", limits=limits)]))
    lease = select(snapshot)
    reply = select(snapshot)
    assert isinstance(reply, LocalReply)
    assert (reply.status, reply.reason, reply.headers) == (503, Reason.CIRCUIT_OPEN, ((b"retry-after", b"1"),))
    assert isinstance(lease, Lease)
    lease.release()
    assert isinstance(select(snapshot), Lease)


def test_equal_keys_go_to_equal_endpoints_on_every_worker(plugins: PluginSet) -> None:
    content = data(
        [rule(balancing=BalancingPolicy(algorithm="source-ip"))], [service(*(f"10.0.0.{n}" for n in range(1, 6)))]
    )
    snapshots = [Linker(plugins).link(content) for _ in range(3)]
    for client in ("192.0.2.1", "192.0.2.2", "2001:db8::1"):
        head = msgspec.structs.replace(HEAD, client_ip=client)
        leases = [select(snapshot, head) for snapshot in snapshots]
        assert len({lease.endpoint.address for lease in leases if isinstance(lease, Lease)}) == 1


def test_rules_bound_to_a_listener_serve_there_only(linker: Linker) -> None:
    listeners = (Listener(name="one"), Listener(name="two"))
    rules = [rule("default/r#0", listeners=("one",)), rule("default/r#1")]
    snapshot = linker.link(data(rules, [service("10.0.0.1")], listeners=listeners))
    ids = {name: linked(snapshot, msgspec.structs.replace(HEAD, listener=name)).rule.id for name in ("one", "two")}
    assert ids == {"one": "default/r#0", "two": "default/r#1"}


def test_a_listener_serves_its_own_hosts_only(linker: Linker) -> None:
    listeners = (Listener(name="edge", hostnames=("*.b.test",)),)
    snapshot = linker.link(data([rule()], [service("10.0.0.1")], listeners=listeners))
    assert snapshot.match(msgspec.structs.replace(HEAD, listener="edge")) is None
    inside = msgspec.structs.replace(HEAD, listener="edge", host="x.b.test")
    assert snapshot.match(inside) is not None
    assert not snapshot.serves_host("edge", "a.test")
    assert snapshot.serves_host("other", "a.test")


def test_a_retry_goes_to_a_sibling_when_its_destination_has_nobody_left(linker: Linker) -> None:
    b = ServiceKey("default/b")
    refs = (BackendRef(service=A, weight=1_000_000), BackendRef(service=b, weight=1))
    content = data([rule("default/r#0", *refs)], [service("10.0.0.1"), service("10.0.0.2", key=b)])
    snapshot = linker.link(content)
    lease = select(snapshot, excluded=frozenset({EndpointKey("10.0.0.1:80")}), is_retry=True)
    assert isinstance(lease, Lease)
    assert lease.endpoint.address == "10.0.0.2"


class Telling:
    """A plugin's balancer that raises what it is told to, or picks the first endpoint."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0

    def pick(self, ctx: object, endpoints: Sequence[Endpoint], health: object) -> Endpoint:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return endpoints[0]


def with_balancer(plugins: PluginSet, balancer: Telling) -> PluginSet:
    spec = BalancerSpec(name="mine", create=lambda _policy: balancer)
    authors = {**plugins.authors, PluginHook.BALANCER: {**plugins.authors[PluginHook.BALANCER], "mine": "faulty"}}
    return msgspec.structs.replace(plugins, balancers={**plugins.balancers, "mine": spec}, authors=authors)


def test_a_plugins_balancer_that_breaks_its_promise_costs_its_request_and_no_permit(plugins: PluginSet) -> None:
    mine = Telling()
    events: list[PluginEvent] = []
    clock = ManualClock(100.0)
    linker = Linker(with_balancer(plugins, mine), watch=PluginWatch(clock, events.append))
    limits = ConnectionLimits(max_parallel_requests=1)
    policy = BalancingPolicy(algorithm="mine")
    content = data([rule(balancing=policy)], [service("10.0.0.1", limits=limits)])
    snapshot = linker.link(content)
    mine.error = ValueError("oops")
    for _ in range(MAX_FAILURES):
        with pytest.raises(PluginContractError, match=r"^balancer mine of default/r: raised ValueError: oops"):
            select(snapshot)
    for _ in range(2):
        refused = select(snapshot)
        assert isinstance(refused, LocalReply)
        assert (refused.status, refused.reason) == (500, Reason.PLUGIN_DISABLED)
    assert mine.asked == MAX_FAILURES
    assert events[-1].part.plugin == "faulty"
    mine.error = None
    clock.advance(PAUSE_S)
    assert isinstance(select(snapshot), Lease)


def test_a_new_balancing_policy_gives_a_disabled_balancer_another_try(plugins: PluginSet) -> None:
    mine = Telling()
    linker = Linker(with_balancer(plugins, mine))
    policy = BalancingPolicy(algorithm="mine")
    mine.error = ValueError("oops")
    snapshot = linker.link(data([rule(balancing=policy)], [service("10.0.0.1")]))
    for _ in range(MAX_FAILURES):
        with pytest.raises(PluginContractError):
            select(snapshot)
    mine.error = None
    assert isinstance(select(snapshot), LocalReply)
    changed = msgspec.structs.replace(policy, slow_start_s=1.0)
    snapshot = linker.link(data([rule(balancing=changed)], [service("10.0.0.1")], version=2))
    assert isinstance(select(snapshot), Lease)


def test_the_cores_own_balancers_are_used_as_they_are(linker: Linker) -> None:
    snapshot = linker.link(data([rule()], [service("10.0.0.1")]))
    ((_, balancer),) = linked(snapshot).balancers()
    assert isinstance(balancer._balancer, RoundRobin)


def test_a_rule_dressed_for_a_host_keeps_all_that_holds_for_it(linker: Linker) -> None:
    """What an ingress adds for its hosts must not cost a limit, a breaker or a filter."""
    edit = HeaderEdit(set=(("x-to", "a"),))
    plain = linked(
        linker.link(
            data(
                [
                    rule(
                        "default/r#0",
                        BackendRef(service=A, filters=(edit,)),
                        filters=(edit,),
                        cors=CorsPolicy(origins=("https://a.test",)),
                        rate_limits=(RateLimitPolicy(scope=RateScope.ROUTE, owner="default/r", requests=1, burst=1),),
                        circuit=CircuitPolicy(limits=ConnectionLimits(), breaker=BreakerPolicy()),
                        max_request_body_bytes=7,
                        affinity=AffinityPolicy(name="s"),
                    )
                ],
                [service("192.0.2.1")],
            )
        )
    )
    made = plain.dressed(hsts="max-age=1", is_logged=False)
    own = {"rule", "filters", "response_key", "reply_fields", "is_logged", "meters", "extra"}
    for name in set(LinkedRule.__slots__) - own:
        assert getattr(made, name) == getattr(plain, name), name
    assert made.extra is not None
    assert plain.extra is not None
    assert (made.extra.most_body_bytes, made.extra.cors is None) == (plain.extra.most_body_bytes, False)
    assert made.filters[1:] == plain.filters
    found = made.select(HEAD, rng=random.Random(1), now=1.0)
    assert isinstance(found, Lease)
    assert len(found.filters) == 1
    assert found.ticket is not None
