"""A discovery daemon over clusters in memory, in virtual time: what it publishes, and what befalls it."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.discovery.standing import MAX_CALM_S, Phase
from datum_router.errors import ClusterRejected, ClusterUnavailable, ConfigError, SourceError
from datum_router.manifests.meta import ObjectKey
from datum_router.observe.names import DISCOVERY_METRICS
from datum_router.plugins.cluster import LeaseRecord
from datum_router.plugins.protocols import Delete, Emit, Problems, SourceEvent, Synced, Upsert
from datum_router.reasons import Reason
from datum_router.testing.cluster import FakeCluster
from datum_router_galactic import plugin as galactic
from datum_router_runtime import discoveryterm
from datum_router_runtime.clusterreports import MIN_PAUSE_S, MINOR_PAUSE_S
from datum_router_runtime.discovery import Discovery
from datum_router_runtime.discoverysettings import DiscoverySettings
from datum_router_runtime.discoveryterm import Term
from datum_router_runtime.remote import CONNECT_PATIENCE_S
from datum_router_runtime.settings import Address
from tests.controllers import plugin_of, plugins

NAME = "kubernetes"
ORIGIN = Origin(source=NAME)
START_AT = 1_700_000_000.0
PLURALS = {
    "VPCService": "vpcservices",
    "Secret": "secrets",
    "EndpointSlice": "endpointslices",
    "Namespace": "namespaces",
    "VPC": "vpcs",
    "VPCAttachment": "vpcattachments",
}
KINDS = plugins(galactic)


class Api:
    """A cluster in memory as a source; it can be away, and be broken."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.is_silent = False
        self.error: Exception | None = None
        self.runs = 0
        self.counts: Mapping[str, float] = {}
        self._emit: Emit | None = None

    def stats(self) -> Mapping[str, float]:
        return self.counts

    async def run(self, emit: Emit) -> None:
        self.runs += 1
        if self.error is not None:
            raise self.error
        if self.is_silent:
            await trio.sleep_forever()
        send, receive = trio.open_memory_channel[tuple[Mapping[str, Any], bool]](1000)

        def watch(raw: Mapping[str, Any], is_gone: bool) -> None:
            send.send_nowait((raw, is_gone))

        self.cluster.watchers.append(watch)
        self._emit = emit
        try:
            known = [raw for plural in PLURALS.values() for raw in self.cluster.objects(plural)]
            emit([*(Upsert(source=NAME, raw=raw, origin=ORIGIN) for raw in known), Synced(source=NAME)])
            async for raw, is_gone in receive:
                emit([_event(raw, is_gone)])
        finally:
            self.cluster.watchers.remove(watch)
            self._emit = None

    def say(self, message: str, scope: str = "api") -> None:
        """Complain of the API, or not any more."""
        found = Diagnostic(severity=Severity.ERROR, object="source", reason=Reason.SOURCE_FAILED, message=message)
        assert self._emit is not None
        self._emit([Problems(source=NAME, scope=scope, diagnostics=(found,) if message else ())])


def _event(raw: Mapping[str, Any], is_gone: bool) -> SourceEvent:
    if not is_gone:
        return Upsert(source=NAME, raw=raw, origin=ORIGIN)
    meta = raw["metadata"]
    return Delete(source=NAME, key=ObjectKey(kind=raw["kind"], namespace=meta.get("namespace", ""), name=meta["name"]))


class World:
    """Cluster A with the daemon, and remote clusters by the text of their kubeconfig."""

    def __init__(self, **settings: Any) -> None:
        self.a = FakeCluster(namespace="system")
        self.remotes = {name: Api(FakeCluster()) for name in ("b", "c")}
        self.settings = DiscoverySettings(**{"stale_s": 600.0, "removed_s": 60.0, "debounce_s": 0.0, **settings})
        self.writes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.report_writes: Counter[str] = Counter()
        self.report_errors: Counter[str] = Counter()
        self.clock_is_off_s = 0.0
        self.made = 0
        self.local: Api | None = None
        self.term = self.new_term()

    def new_term(self) -> Term:
        return Term(
            self.settings,
            KINDS,
            self.a,
            local=self.local or Api(self.a),
            make_remote=self._make_remote,
            is_leading=lambda: True,
            writes=self.writes,
            errors=self.errors,
            report_writes=self.report_writes,
            report_errors=self.report_errors,
            wall_clock=lambda: START_AT + trio.current_time() + self.clock_is_off_s,
        )

    def _make_remote(self, text: str) -> Api:
        if text not in self.remotes:
            raise ConfigError("kubeconfig: it is no YAML; expected another", reason=Reason.INVALID_KUBECONFIG)
        return self.remotes[text]

    def join(self, name: str, text: str = "", *, namespace: str = "system", label: str = "true") -> None:
        data = {"kubeconfig": base64.b64encode((text or name).encode()).decode()}
        meta = {"name": name, "namespace": namespace, "labels": {"router.datum.net/remote-cluster": label}}
        self.a.put({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data}, plural="secrets")

    def identify(self, cluster: FakeCluster) -> None:
        """Give a cluster the namespace whose uid says which one it is."""
        self.made += 1
        for number in range(self.made):  # uids are counted in each cluster by itself
            raw = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"n{number}", "namespace": "shop"}}
            cluster.put(raw, plural="configmaps")
        cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}, plural="namespaces")

    def report(self, name: str) -> dict[str, tuple[str, str]]:
        """Return status and reason of each condition in a cluster's Lease."""
        record = self.a.leases.get(("system", f"cluster-{name}"))
        if record is None:
            return {}
        found = json.loads(record.annotations["router.datum.net/conditions"])
        return {one["type"]: (one["status"], one["reason"]) for one in found}

    def leave(self, name: str) -> None:
        self.a.remove("secrets", ObjectKey(kind="Secret", namespace="system", name=name))

    def serve(self, where: str, name: str, address: str, **spec: Any) -> None:
        spec = {"endpoints": [{"address": address}], "exportTo": {"clusters": "All"}, **spec}
        put(self.remotes[where].cluster, name, spec)

    def ask(self, name: str = "api") -> None:
        put(self.a, name, {"discovery": {"method": "endpointslice"}})

    @property
    def published(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for item in self.a.objects("endpointslices"):
            raw: Any = item
            addresses = {one["addresses"][0] for one in raw["endpoints"]}
            found.setdefault(raw["metadata"]["labels"]["router.datum.net/source-cluster"], set()).update(addresses)
        return found

    @property
    def stale(self) -> set[str]:
        items: Sequence[Any] = self.a.objects("endpointslices")
        return {item["metadata"]["annotations"].get("router.datum.net/stale-since", "") for item in items}

    def phases(self) -> dict[str, Phase]:
        return {one.name: one.phase for one in self.term.states()}

    def run(self, script: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.term.run)
                await script(self)
                nursery.cancel_scope.cancel()

        trio.run(main, clock=MockClock(autojump_threshold=0))


def put(cluster: FakeCluster, name: str, spec: Mapping[str, Any]) -> None:
    meta = {"name": name, "namespace": "shop"}
    raw = {"apiVersion": "router.datum.net/v1alpha1", "kind": "VPCService", "metadata": meta}
    cluster.put({**raw, "spec": {"port": 80, **spec}}, plural="vpcservices")


def put_vpc(cluster: FakeCluster, name: str, identifier: str) -> None:
    raw = {"apiVersion": "galactic.datumapis.com/v1alpha", "kind": "VPC", "spec": {"networks": ["10.0.0.0/8"]}}
    status = {"ready": True, "identifier": identifier}
    cluster.put({**raw, "metadata": {"name": name, "namespace": "shop"}, "status": status}, plural="vpcs")


@pytest.fixture
def world() -> World:
    made = World()
    made.join("b")
    made.join("c")
    made.serve("b", "api", "10.0.0.1")
    made.serve("c", "api", "10.0.0.2")
    made.ask()
    return made


def test_what_clusters_export_is_published_and_follows_them(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(2)
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        world.serve("b", "api", "10.0.0.3")
        await trio.sleep(2)
        assert world.published == {"b": {"10.0.0.3"}, "c": {"10.0.0.2"}}
        world.serve("c", "api", "10.0.0.2", exportTo={"clusters": "None"})
        await trio.sleep(2)
        assert world.published == {"b": {"10.0.0.3"}}

    world.run(script)


def test_nothing_is_written_at_rest_and_by_resyncs(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(2)
        assert world.writes == {"put": 2}
        await trio.sleep(10 * world.settings.interval_s)
        assert world.writes == {"put": 2}

    world.run(script)


def test_secrets_of_another_namespace_or_label_are_nobodys(world: World) -> None:
    world.join("elsewhere", "b", namespace="shop")
    world.join("unlabelled", "b", label="false")

    async def script(world: World) -> None:
        await trio.sleep(2)
        assert set(world.phases()) == {"b", "c"}

    world.run(script)


def test_clusters_come_and_go_while_it_runs(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(2)
        world.leave("b")
        await trio.sleep(2)
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        assert "" in world.stale
        assert len(world.stale) == 2
        await trio.sleep(56)
        assert "b" in world.published
        await trio.sleep(4)
        assert world.published == {"c": {"10.0.0.2"}}
        assert set(world.phases()) == {"c"}
        world.join("b")
        await trio.sleep(2)
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        assert world.remotes["b"].cluster.watchers, "it is followed again"

    world.run(script)
    assert not world.remotes["b"].cluster.watchers, "nothing is left behind"


def test_an_unreachable_cluster_is_marked_and_comes_back_without_a_change(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(2)
        world.remotes["b"].say("the API does not answer")
        await trio.sleep(2)
        assert world.phases() == {"b": Phase.UNREACHABLE, "c": Phase.READY}
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        assert len(world.stale) == 2
        world.remotes["b"].say("")
        await trio.sleep(2)
        assert world.stale == {""}
        assert world.writes == {"put": 4}
        world.remotes["b"].say("again")
        await trio.sleep(603)
        assert world.published == {"c": {"10.0.0.2"}}, "it is not kept for ever"
        seen = {(one.name, one.type, one.reason) for one in world.a.seen_events("system")}
        assert seen == {("b", "Warning", "ClusterUnreachable"), ("b", "Normal", "Ready")}

    world.run(script)


def test_garbage_dead_hosts_and_broken_sources_hurt_nothing_else(world: World) -> None:
    world.join("garbage", "{]")
    world.join("x" * 64, "b")
    world.remotes["silent"] = silent = Api(FakeCluster())
    silent.is_silent = True
    world.join("silent")
    world.remotes["failing"] = failing = Api(FakeCluster())
    failing.error = SourceError("no credentials")
    world.join("failing")
    world.remotes["broken"] = broken = Api(FakeCluster())
    broken.error = RuntimeError("a fault of ours")
    world.join("broken")

    async def script(world: World) -> None:
        await trio.sleep(CONNECT_PATIENCE_S + 2)
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        states = {one.name: one for one in world.term.states()}
        assert states["garbage"].phase is Phase.INVALID
        assert states["garbage"].reason is Reason.INVALID_KUBECONFIG
        assert "it is no YAML" in states["garbage"].message
        assert "has 64 characters, expected at most 63" in states["x" * 64].message
        assert states["failing"].message == "no credentials"
        assert {states[name].phase for name in ("silent", "failing", "broken")} == {Phase.UNREACHABLE}
        assert failing.runs > 1, "it is tried again"
        failing.error = None
        await trio.sleep(40)
        assert world.phases()["failing"] is Phase.READY

    world.run(script)


def test_a_kubeconfig_that_goes_bad_leaves_the_one_before_in_force(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(2)
        world.join("b", "{]")
        world.serve("b", "api", "10.0.0.9")
        await trio.sleep(2)
        assert world.published["b"] == {"10.0.0.9"}
        (state,) = [one for one in world.term.states() if one.name == "b"]
        assert state.phase is Phase.READY
        assert "it is no YAML" in state.problem
        assert state.message.endswith("the kubeconfig before is used")

    world.run(script)


def test_another_kubeconfig_is_followed_instead_and_endpoints_stay_until_it_is_heard(world: World) -> None:
    world.remotes["moved"] = moved = Api(FakeCluster())
    put(moved.cluster, "api", {"endpoints": [{"address": "10.0.0.5"}], "exportTo": {"clusters": "All"}})
    moved.is_silent = True

    async def script(world: World) -> None:
        await trio.sleep(2)
        world.join("b", "moved")
        await trio.sleep(CONNECT_PATIENCE_S / 2)
        assert world.published["b"] == {"10.0.0.1"}
        assert not world.remotes["b"].cluster.watchers, "the old one is not followed any more"
        await trio.sleep(CONNECT_PATIENCE_S)
        assert world.phases()["b"] is Phase.UNREACHABLE
        assert world.published["b"] == {"10.0.0.1"}

    world.run(script)


def test_a_new_term_takes_nothing_away_before_it_has_heard(world: World) -> None:
    async def first(world: World) -> None:
        await trio.sleep(2)

    world.run(first)
    assert world.writes == {"put": 2}
    world.term = world.new_term()
    world.remotes["b"].is_silent = True

    async def second(world: World) -> None:
        await trio.sleep(CONNECT_PATIENCE_S - 2)
        assert world.writes == {"put": 2}
        await trio.sleep(4)
        assert world.phases()["b"] is Phase.UNREACHABLE
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        assert len(world.stale) == 2

    world.run(second)


def test_writes_that_fail_are_tried_again_and_later_each_time(world: World) -> None:
    world.a.fail("apply", ClusterUnavailable("no answer"), times=6)

    async def script(world: World) -> None:
        await trio.sleep(60)
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        assert world.errors == {"ClusterUnavailable": 6}
        assert world.term.failing == 0

    world.run(script)


def test_a_slice_that_is_refused_for_good_costs_no_other(world: World) -> None:
    refused: list[str] = []
    apply = world.a.apply

    async def picky(raw: Mapping[str, Any], **more: Any) -> Any:
        if raw["endpoints"][0]["addresses"] == ["10.0.0.1"]:
            refused.append("b")
            raise ClusterRejected("no such address", status=422)
        return await apply(raw, **more)

    world.a.apply = picky  # type: ignore[method-assign]

    async def script(world: World) -> None:
        await trio.sleep(100)
        assert world.published == {"c": {"10.0.0.2"}}
        assert 5 < len(refused) < 15

    world.run(script)


def test_a_service_that_asks_no_more_loses_its_slices(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(2)
        world.a.remove("vpcservices", ObjectKey(kind="VPCService", namespace="shop", name="api"))
        await trio.sleep(2)
        assert world.published == {}

    world.run(script)


def test_a_slice_that_somebody_deletes_is_written_again(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(2)
        raw: Any = world.a.objects("endpointslices")[0]
        meta = raw["metadata"]
        world.a.remove(
            "endpointslices", ObjectKey(kind="EndpointSlice", namespace=meta["namespace"], name=meta["name"])
        )
        await trio.sleep(2)
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}

    world.run(script)


# --- which cluster it is ---------------------------------------------------------------------------------------------


def test_a_secret_of_the_own_cluster_is_refused(world: World) -> None:
    world.remotes["mirror"] = Api(world.a)
    world.identify(world.a)
    world.join("mirror")
    world.serve("mirror", "both", "10.9.9.9", discovery={"method": "endpointslice"})

    async def script(world: World) -> None:
        await trio.sleep(10)
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        assert world.phases()["mirror"] is Phase.REFUSED
        assert world.report("mirror")["Accepted"] == ("False", "OwnCluster")
        assert ("mirror", "Warning", "OwnCluster") in {
            (one.name, one.type, one.reason) for one in world.a.seen_events("system")
        }

    world.run(script)


def same(world: World) -> None:
    """Have two Secrets lead to one cluster, the one of a being added later."""
    world.remotes["a"] = Api(world.remotes["b"].cluster)
    world.identify(world.remotes["b"].cluster)
    world.a.clock.advance(60.0)
    world.join("a")


def test_two_secrets_of_one_cluster_do_not_double_it_and_the_second_takes_over(world: World) -> None:
    same(world)

    async def script(world: World) -> None:
        await trio.sleep(10)
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        assert world.report("a")["Accepted"] == ("False", "DuplicateCluster")
        assert world.report("b")["Accepted"] == ("True", "Accepted")
        world.leave("b")
        await trio.sleep(10)
        assert world.published == {"a": {"10.0.0.1"}, "b": set(), "c": {"10.0.0.2"}}
        assert world.report("a")["Accepted"] == ("True", "Accepted")
        await trio.sleep(world.settings.removed_s)
        assert world.published == {"a": {"10.0.0.1"}, "c": {"10.0.0.2"}}

    world.run(script)


def test_a_duplicate_is_known_by_a_daemon_that_starts_while_the_first_is_away(world: World) -> None:
    same(world)

    async def first(world: World) -> None:
        await trio.sleep(10)

    world.run(first)
    world.term = world.new_term()
    world.remotes["b"].is_silent = True

    async def second(world: World) -> None:
        await trio.sleep(2 * CONNECT_PATIENCE_S)
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        assert world.report("a")["Accepted"] == ("False", "DuplicateCluster")

    world.run(second)


def test_a_cluster_that_says_to_be_another_one_later_takes_nobodys_place(world: World) -> None:
    for name in ("b", "c"):
        world.identify(world.remotes[name].cluster)
    kube_system: Any = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}

    async def script(world: World) -> None:
        await trio.sleep(10)
        (raw,) = world.remotes["c"].cluster.objects("namespaces")
        labels = {"it": "changed"}
        kube_system["metadata"] |= {"uid": _raw(raw)["metadata"]["uid"], "labels": labels}
        world.remotes["b"].cluster.put(kube_system, plural="namespaces")
        await trio.sleep(10)
        assert world.phases() == {"b": Phase.READY, "c": Phase.READY}
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}

    world.run(script)


def test_more_secrets_than_clusters_can_be_followed_cost_a_bounded_number_of_leases(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discoveryterm, "MAX_REPORTS", 5)
    world.a.clock.advance(60.0)
    for number in range(40):
        world.join(f"garbage-{number:02}", "{]")

    async def script(world: World) -> None:
        await trio.sleep(10)
        assert len(world.phases()) == 42
        names = [name for _, name in world.a.leases]
        assert names == ["cluster-b", "cluster-c", "cluster-garbage-00", "cluster-garbage-01", "cluster-garbage-02"]

    world.run(script)


def test_a_secret_that_comes_to_lead_to_another_cluster_is_no_duplicate_any_more(world: World) -> None:
    same(world)
    world.remotes["other"] = Api(FakeCluster())
    put(
        world.remotes["other"].cluster, "api", {"endpoints": [{"address": "10.0.0.7"}], "exportTo": {"clusters": "All"}}
    )

    async def script(world: World) -> None:
        await trio.sleep(10)
        world.join("a", "other")
        await trio.sleep(10)
        assert world.published == {"a": {"10.0.0.7"}, "b": {"10.0.0.1"}, "c": {"10.0.0.2"}}

    world.run(script)


def test_a_secret_that_is_renamed_moves_its_endpoints_without_a_gap(world: World) -> None:
    world.identify(world.remotes["b"].cluster)

    async def script(world: World) -> None:
        await trio.sleep(2)
        world.join("renamed", "b")
        world.leave("b")
        for _ in range(100):
            await trio.sleep(0.1)
            assert "10.0.0.1" in set().union(*world.published.values())
        assert world.published["renamed"] == {"10.0.0.1"}
        assert world.published["b"] == set()

    world.run(script)


def test_vpcs_are_matched_by_identifier(world: World) -> None:
    put_vpc(world.a, "mine", "0000000004d2")
    for name, identifier in (("b", "0000000004d2"), ("c", "0000000004d3")):
        cluster = world.remotes[name].cluster
        put_vpc(cluster, "mine" if name == "c" else "theirs", identifier)
    attach(world, "b", "theirs", "10.1.0.5")
    attach(world, "c", "mine", "10.1.0.6")

    async def script(world: World) -> None:
        await trio.sleep(10)
        assert world.published == {"b": {"10.1.0.5"}, "c": set()}
        (item,) = [raw for raw in world.a.objects("endpointslices") if _raw(raw)["endpoints"]]
        assert _raw(item)["metadata"]["annotations"]["router.datum.net/vpc"] == "shop/mine"
        assert world.report("c")["Synced"] == ("False", "ExportConflict")
        put_vpc(world.remotes["c"].cluster, "mine", "0000000004d2")
        await trio.sleep(10)
        assert world.published == {"b": {"10.1.0.5"}, "c": {"10.1.0.6"}}
        assert world.report("c")["Synced"] == ("True", "Synced")

    world.run(script)


def test_vpcs_that_may_not_be_read_here_are_not_taken_as_not_there(world: World) -> None:
    scope = "/apis/galactic.datumapis.com/v1alpha/vpcs"
    put_vpc(world.remotes["b"].cluster, "mine", "0000000004d2")
    attach(world, "b", "mine", "10.1.0.5")
    local = Api(world.a)
    world.local = local
    world.term = world.new_term()

    async def script(world: World) -> None:
        await trio.sleep(2)
        assert world.published["b"] == {"10.1.0.5"}, "there is none here: it is known by its identifier"
        local.say("the right to list vpcs is missing", scope=scope)
        await trio.sleep(MIN_PAUSE_S + 2)
        assert world.published == {"b": set(), "c": {"10.0.0.2"}}
        assert world.report("b")["Synced"] == ("False", "ExportConflict")
        put_vpc(world.a, "mine", "0000000004d2")
        await trio.sleep(2)
        assert world.published["b"] == {"10.1.0.5"}, "what is known stays in force whatever is wrong"

    world.run(script)


def _raw(item: Any) -> Any:
    return item


def attach(world: World, where: str, vpc: str, address: str) -> None:
    cluster = world.remotes[where].cluster
    raw = {"apiVersion": "galactic.datumapis.com/v1alpha", "kind": "VPCAttachment"}
    spec = {"vpc": {"name": vpc, "namespace": "shop"}, "interface": {"addresses": [f"{address}/24"]}}
    meta = {"name": "att", "namespace": "shop"}
    cluster.put(
        {**raw, "metadata": meta, "spec": spec, "status": {"ready": True, "identifier": "002a"}},
        plural="vpcattachments",
    )
    cluster.remove("vpcservices", ObjectKey(kind="VPCService", namespace="shop", name="api"))
    put(cluster, "api", {"vpcAttachmentRef": {"name": "att"}, "exportTo": {"clusters": "All"}})


# --- what is said of clusters ----------------------------------------------------------------------------------------

WELL = {
    "Accepted": ("True", "Accepted"),
    "Ready": ("True", "Ready"),
    "Synced": ("True", "Synced"),
    "Stale": ("False", "Heard"),
}


def test_each_cluster_has_a_lease_with_conditions_that_is_written_when_something_differs(world: World) -> None:
    world.join("garbage", "{]")

    async def script(world: World) -> None:
        await trio.sleep(3 * MINOR_PAUSE_S)
        assert world.report("b") == world.report("c") == WELL
        assert world.report("garbage")["Accepted"] == ("False", "InvalidKubeconfig")
        assert world.report("garbage")["Ready"] == ("False", "InvalidKubeconfig")
        before = dict(world.report_writes)
        await trio.sleep(20 * world.settings.interval_s)
        assert world.report_writes == before, "nothing is written at rest"
        world.remotes["b"].say("the API does not answer")
        await trio.sleep(MIN_PAUSE_S + 1)
        assert world.report("b")["Ready"] == ("False", "ClusterUnreachable")
        assert world.report("b")["Stale"] == ("True", "ClusterStale")
        world.remotes["b"].say("")
        await trio.sleep(MIN_PAUSE_S + 1)
        assert world.report("b") == WELL
        world.leave("garbage")
        await trio.sleep(2)
        assert world.report("garbage") == {}

    world.run(script)


def test_a_cluster_that_flaps_costs_few_writes(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(3 * MINOR_PAUSE_S)
        before, slices_before = world.report_writes["put"], world.writes["put"]
        for number in range(300):
            world.remotes["b"].say("" if number % 2 else f"fault {number}")
            await trio.sleep(0.2)
        assert world.report_writes["put"] - before <= 60 / MIN_PAUSE_S + 1
        assert world.writes["put"] - slices_before <= 3, "marked, heard once, marked"
        world.remotes["b"].say("")
        await trio.sleep(MIN_PAUSE_S + 1)
        assert world.report("b") == {**WELL, "Stale": ("True", "Flapping")}
        world.serve("b", "api", "10.0.0.77")
        await trio.sleep(2)
        assert world.published["b"] == {"10.0.0.77"}, "what it exports is taken as ever"
        await trio.sleep(MAX_CALM_S)
        assert world.report("b") == WELL
        assert world.stale == {""}

    world.run(script)


def test_leases_that_cannot_be_written_are_tried_again_and_endpoints_do_not_wait(world: World) -> None:
    world.a.fail("list_leases", ClusterUnavailable("no answer"))
    world.a.fail("write_lease", ClusterUnavailable("no answer"), times=8)

    async def script(world: World) -> None:
        await trio.sleep(2)
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
        await trio.sleep(60)
        assert world.report("b") == world.report("c") == WELL
        assert world.report_errors == {"ClusterUnavailable": 8}

    world.run(script)


def test_a_lease_that_somebody_changes_is_put_right_and_one_of_somebody_else_is_left(world: World) -> None:
    world.join("d", "{]")
    foreign = LeaseRecord(namespace="system", name="cluster-d", holder="somebody")

    async def script(world: World) -> None:
        await world.a.write_lease(foreign)
        await trio.sleep(3 * MINOR_PAUSE_S)
        assert world.a.leases["system", "cluster-d"].holder == "somebody"
        there = world.a.leases["system", "cluster-b"]
        await world.a.write_lease(msgspec.structs.replace(there, annotations={}))
        orphan = msgspec.structs.replace(there, name="cluster-gone", version="")
        await world.a.write_lease(orphan)
        await trio.sleep(world.settings.interval_s + MINOR_PAUSE_S)
        assert world.report("b") == WELL
        assert ("system", "cluster-gone") not in world.a.leases

    world.run(script)


def test_a_new_term_writes_no_lease_that_is_as_it_should_be(world: World) -> None:
    async def wait(world: World) -> None:
        await trio.sleep(3 * MINOR_PAUSE_S)

    world.run(wait)
    before = dict(world.report_writes)
    assert world.report("b") == WELL
    world.term = world.new_term()
    world.run(wait)
    assert world.report_writes == before
    world.term = world.new_term()
    world.remotes["b"].is_silent = True
    world.run(wait)
    assert world.report("b")["Ready"] == ("False", "ClusterUnreachable")
    assert world.report("c") == WELL


def test_a_cluster_that_is_just_being_read_for_the_first_time_is_told(world: World) -> None:
    world.remotes["b"].is_silent = True

    async def script(world: World) -> None:
        await trio.sleep(2)
        assert world.report("b")["Ready"] == ("Unknown", "Pending")
        await trio.sleep(CONNECT_PATIENCE_S + MIN_PAUSE_S)
        assert world.report("b")["Ready"] == ("False", "ClusterUnreachable")

    world.run(script)


# --- hostile and unlucky ---------------------------------------------------------------------------------------------


def test_clusters_beyond_the_limit_are_told_and_taken_when_there_is_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discoveryterm, "MAX_CLUSTERS", 2)
    world.remotes["late"] = Api(FakeCluster())
    world.a.clock.advance(60.0)
    world.join("late")

    async def script(world: World) -> None:
        await trio.sleep(10)
        assert world.report("late")["Accepted"] == ("False", "TooManyClusters")
        world.leave("b")
        await trio.sleep(10)
        assert world.report("late") == WELL

    world.run(script)


def test_a_clock_that_is_set_takes_no_endpoints_away(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(2)
        world.remotes["b"].say("the API does not answer")
        await trio.sleep(2)
        world.clock_is_off_s = 10 * 86_400.0
        await trio.sleep(60)
        assert "b" in world.published
        world.clock_is_off_s = -10 * 86_400.0
        await trio.sleep(world.settings.stale_s)
        assert "b" not in world.published

    world.run(script)


def test_what_a_remote_cluster_says_steers_no_terminal_and_no_log(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(2)
        world.remotes["b"].say("\x1b[2J\r\nfake line\u202e" + "x" * 5000)
        await trio.sleep(MIN_PAUSE_S + 2)
        (state,) = [one for one in world.term.states() if one.name == "b"]
        assert state.message.isprintable()
        assert len(state.message) <= 500
        assert all(one.note.isprintable() for one in world.a.seen_events("system"))
        record = world.a.leases["system", "cluster-b"]
        assert all(text.isprintable() for text in record.annotations.values())

    world.run(script)


def test_what_the_reading_of_clusters_comes_to_is_counted_over_all_and_kept(world: World) -> None:
    async def script(world: World) -> None:
        world.remotes["b"].counts = {"events/VPCService": 3.0, "events/Pod": 4.0, "lists/Pod": 9.0}
        world.remotes["c"].counts = {"events/Pod": 5.0, "paced_seconds/Pod": 1.5, "stale_seconds": 7.0}
        await trio.sleep(3)
        assert world.term.remote_counts == {"events": 12.0, "errors": 0.0, "paced_seconds": 1.5}
        world.remotes["b"].counts = {"events/VPCService": 8.0, "errors/Pod": 1.0}
        world.leave("b")
        await trio.sleep(3)
        world.remotes["b"].counts = {}
        world.join("b")
        await trio.sleep(3)
        assert world.term.remote_counts == {"events": 13.0, "errors": 1.0, "paced_seconds": 1.5}, "it never goes back"

    world.run(script)


def test_a_label_that_is_taken_away_is_a_cluster_that_left(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(2)
        world.join("b", label="false")
        await trio.sleep(2)
        assert world.phases()["b"] is Phase.REMOVED
        assert world.report("b") == {}
        world.join("b")
        await trio.sleep(10)
        assert world.phases()["b"] is Phase.READY
        assert world.published["b"] == {"10.0.0.1"}

    world.run(script)


def test_objects_that_are_made_anew_with_the_same_content_own_what_belongs_to_them(world: World) -> None:
    async def script(world: World) -> None:
        await trio.sleep(3 * MINOR_PAUSE_S)
        for kind, plural, where, name in (
            ("VPCService", "vpcservices", "shop", "api"),
            ("Secret", "secrets", "system", "b"),
        ):
            world.a.remove(plural, ObjectKey(kind=kind, namespace=where, name=name))
        world.ask()
        world.join("b")
        await trio.sleep(world.settings.interval_s + MINOR_PAUSE_S)
        (service,), secrets = world.a.objects("vpcservices"), world.a.objects("secrets")
        owners = {_raw(one)["metadata"]["ownerReferences"][0]["uid"] for one in world.a.objects("endpointslices")}
        assert owners == {_raw(service)["metadata"]["uid"]}
        uids = {_raw(one)["metadata"]["name"]: _raw(one)["metadata"]["uid"] for one in secrets}
        assert [one.uid for one in world.a.leases["system", "cluster-b"].owners] == [uids["b"]]
        assert world.published == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}

    world.run(script)


# --- as a process ----------------------------------------------------------------------------------------------------


async def get(address: Address, path: str) -> tuple[int, str]:
    """Return status and body."""
    stream = await trio.open_tcp_stream(address.host, address.port)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        answer = b""
        async for part in stream:
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body.decode()


def test_its_pages_tell_what_it_does() -> None:
    any_port = Address(host="127.0.0.1", port=0)
    settings = DiscoverySettings(admin=any_port, probes=any_port, metrics=any_port)
    cluster = FakeCluster(namespace="system")
    daemon = Discovery(settings, plugins=plugins(plugin_of(cluster)))

    async def main() -> None:
        with trio.fail_after(20.0):
            async with trio.open_nursery() as nursery:
                await nursery.start(daemon.run)
                while daemon.term is None or not daemon.term.reader.is_synced:  # noqa: ASYNC110 - the deadline ends it
                    await trio.sleep(0.01)
                admin, metrics = daemon.addresses["admin"], daemon.addresses["metrics"]
                assert (await get(admin, "/healthz"))[0] == 200
                assert (await get(daemon.addresses["probes"], "/readyz"))[0] == 200
                assert json.loads((await get(admin, "/clusters"))[1]) == []
                stats = json.loads((await get(admin, "/stats"))[1])
                assert stats["is_leading"] is True
                families = {
                    family.name for family in text_string_to_metric_families((await get(metrics, "/metrics"))[1])
                }
                assert families == {name.removesuffix("_total") for name in DISCOVERY_METRICS}
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert cluster.writes[-1].method == "write_lease", "the lease is let go of"
