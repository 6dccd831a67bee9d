"""Controllers and a cluster in memory: what tests of status writing share."""

from __future__ import annotations

import copy
import random
import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio
from trio.testing import MockClock

from datum_router.compiler.compiler import CompileOptions, Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.lease import Lease, lease_content
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.table import ResourceKind
from datum_router.plugins import builtin
from datum_router.plugins.cluster import LeaseRecord, ObjectEvent, StatusWrite
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.plugins.protocols import Delete, Emit, SourceEvent, Synced, Upsert
from datum_router.plugins.specs import ClusterSpec, PluginInfo, SourceSpec
from datum_router.reconcile.leases import LEASE_KIND
from datum_router.reconcile.reports import GATEWAY_LABELS, REPORT_ANNOTATION, GatewayReport, encode_report
from datum_router.registry.store import Store, StoreView
from datum_router.testing.cluster import FakeCluster
from datum_router_runtime.feed import Feed
from datum_router_runtime.leader import Leader
from datum_router_runtime.status import StatusWriter

PLURALS = {
    "VPCService": "vpcservices",
    "VPCRoute": "vpcroutes",
    "VPCIngress": "vpcingresses",
    "ServiceBinding": "servicebindings",
    "VPCEgress": "vpcegresses",
}
SOURCE = "kubernetes"


def plugins(*more: object) -> PluginSet:
    """Return the core's own plugins, and others by their modules."""
    candidates = [Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)]
    for number, module in enumerate(more):
        candidates.append(Candidate(entry_point=f"more{number}", distribution="", load=lambda module=module: module))
    return load_plugins(candidates)


PLUGINS = plugins()


class Silent:
    """A source that never says anything."""

    async def run(self, emit: Emit) -> None:
        await trio.sleep_forever()


def plugin_of(cluster: FakeCluster, source: Silent | None = None) -> types.ModuleType:
    """Return a plugin that offers a cluster in memory as source and cluster `kubernetes`, and Leases as manifests."""
    module = types.ModuleType("fake_kubernetes")

    @hookimpl
    def datum_router_plugin_info() -> PluginInfo:
        return PluginInfo(name="fake", version="1", api=1, stability="alpha", posture="no-traffic")

    @hookimpl
    def datum_router_sources() -> Sequence[SourceSpec]:
        return [SourceSpec(name=SOURCE, create=lambda _settings: source or Watch(cluster))]

    @hookimpl
    def datum_router_clusters() -> Sequence[ClusterSpec]:
        return [ClusterSpec(name=SOURCE, create=lambda _settings: cluster)]

    @hookimpl
    def datum_router_resource_kinds() -> Sequence[ResourceKind]:
        return [
            ResourceKind(
                group="coordination.k8s.io",
                version="v1",
                kind=LEASE_KIND,
                plural="leases",
                struct=Lease,
                content=lease_content,
            )
        ]

    for hook in (
        datum_router_plugin_info,
        datum_router_sources,
        datum_router_clusters,
        datum_router_resource_kinds,
    ):
        setattr(module, hook.__name__, hook)
    return module


def key_of(kind: str, name: str) -> ObjectKey:
    return ObjectKey(kind=kind, namespace="default", name=name)


def put(cluster: FakeCluster, kind: str, name: str, spec: Mapping[str, Any]) -> ObjectKey:
    """Create or edit an object as a user would."""
    metadata = {"name": name, "namespace": "default"}
    raw = {"apiVersion": "router.datum.net/v1alpha1", "kind": kind, "metadata": metadata, "spec": dict(spec)}
    cluster.put(raw, plural=PLURALS[kind])
    return key_of(kind, name)


def service(cluster: FakeCluster, name: str = "api", port: int = 80) -> ObjectKey:
    return put(cluster, "VPCService", name, {"port": port, "endpoints": [{"address": "10.0.0.1"}]})


def route(cluster: FakeCluster, name: str, to: str = "api", **spec: Any) -> ObjectKey:
    match = {"pathPrefix": f"/{name}"}
    return put(cluster, "VPCRoute", name, {"match": match, "destinations": [{"vpcServiceRef": {"name": to}}], **spec})


def statuses(cluster: FakeCluster) -> list[StatusWrite]:
    return [write.value for write in cluster.writes if isinstance(write.value, StatusWrite)]


def events(cluster: FakeCluster) -> list[ObjectEvent]:
    return [write.value for write in cluster.writes if isinstance(write.value, ObjectEvent)]


def conditions(cluster: FakeCluster, key: ObjectKey) -> dict[str, str]:
    status = cluster.status_of(PLURALS[key.kind], key)
    found: Any = status.get("conditions", [])
    return {one["type"]: f"{one['status']} {one['reason']}" for one in found}


def report(name: str, version: int, **more: Any) -> LeaseRecord:
    """Return the record of a gateway that has everything up to a version in force."""
    said = GatewayReport(digest="d", versions=dict.fromkeys(PLURALS, str(version)), **more)
    return LeaseRecord(
        namespace="default",
        name=f"gateway-{name}",
        holder=name,
        duration_s=300,
        renewed_at=1.7e9,
        labels=GATEWAY_LABELS,
        annotations={REPORT_ANNOTATION: encode_report(said)},
        version=str(version),
    )


class Watch:
    """A source that says what a cluster holds and what changes in it; may be cut off, and catches up by itself."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.emit: Emit | None = None
        self.is_cut = False
        self.known: dict[ObjectKey, str] = {}
        cluster.watchers.append(self._changed)

    async def run(self, emit: Emit) -> None:
        self.emit = emit
        self.catch_up(Synced(source=SOURCE))
        await trio.sleep_forever()

    def catch_up(self, *more: SourceEvent) -> None:
        """Say all that differs from what was said before, as a relist does."""
        self.is_cut = False
        there = {self._key(raw): raw for plural in PLURALS.values() for raw in self.cluster.objects(plural)}
        told: list[SourceEvent] = [Delete(source=SOURCE, key=key) for key in self.known.keys() - there.keys()]
        told += [self._upsert(raw) for key, raw in there.items() if self.known.get(key) != self._version(raw)]
        self.known = {key: self._version(raw) for key, raw in there.items()}
        assert self.emit is not None
        self.emit([*told, *more])

    def _changed(self, raw: Mapping[str, object], is_gone: bool) -> None:
        if self.emit is None or self.is_cut:
            return
        key = self._key(raw)
        if is_gone:
            self.known.pop(key, None)
            self.emit([Delete(source=SOURCE, key=key)])
        else:
            self.known[key] = self._version(raw)
            self.emit([self._upsert(raw)])

    @staticmethod
    def _key(raw: Mapping[str, Any]) -> ObjectKey:
        return key_of(raw["kind"], raw["metadata"]["name"])

    @staticmethod
    def _version(raw: Mapping[str, Any]) -> str:
        version: str = raw["metadata"]["resourceVersion"]
        return version

    @staticmethod
    def _upsert(raw: Mapping[str, object]) -> Upsert:
        return Upsert(source=SOURCE, raw=copy.deepcopy(dict(raw)), origin=Origin(source=SOURCE))


class Line:
    """What is between one process and the cluster; notes when each call was made there."""

    def __init__(self, cluster: FakeCluster, before: Callable[[str], Awaitable[object]]) -> None:
        self._cluster = cluster
        self._before = before
        self.calls: list[tuple[float, str]] = []

    @property
    def namespace(self) -> str:
        return self._cluster.namespace

    def __getattr__(self, method: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            await self._before(method)
            self.calls.append((trio.current_time(), method))
            return await getattr(self._cluster, method)(*arguments, **options)

        return call


class Process:
    """What a controller process runs: source, feed, election and status writer."""

    def __init__(self, cluster: FakeCluster, name: str = "one", *, api: Any = None, **options: Any) -> None:
        """Make a process.

        Args:
            api: What it writes to, if that is not the cluster itself (a proxy that hangs).
        """
        self.cluster = cluster
        self.records: list[LeaseRecord] = []
        seen: set[ObjectKey] = set()
        self.watch = Watch(cluster)
        self.leader = Leader(
            api or cluster,
            identity=name,
            lease="router-controller",
            rng=random.Random(name),
            clock=trio.current_time,
            wall_clock=self._wall,
        )
        self.writer = StatusWriter(
            api or cluster,
            PLUGINS.kinds,
            is_leading=lambda: self.leader.is_leading,
            rng=random.Random(name),
            reports=self._reports,
            wall_clock=self._wall,
            **options,
        )
        self.feed = Feed(
            sources={SOURCE: self.watch},
            store=Store(PLUGINS.kinds, seen=seen),
            compiler=Compiler(PLUGINS, CompileOptions(are_credentials_known=False)),
            publish=lambda _result: None,
            debounce_s=0.05,
            debounce_max_s=1.0,
            seen=seen,
            observe=self.writer.observe,
        )

    @staticmethod
    def _wall() -> float:
        return 1.7e9 + trio.current_time()

    def _reports(self, _view: StoreView) -> Sequence[LeaseRecord]:
        return self.records

    def say(self, *records: LeaseRecord) -> None:
        """Have gateways report; what others said is gone."""
        self.records = list(records)
        lease = ObjectKey(kind=LEASE_KIND, namespace="default", name="any")
        self.feed._seen.add(lease)
        self.feed._tell()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.feed.run)
            await self.leader.run(self.writer.run)


def simulate(script: Callable[[], Awaitable[None]], *, limit_s: float = 100_000.0) -> None:
    """Run a script on a clock that jumps whenever nothing is left to do."""

    async def main() -> None:
        with trio.fail_after(limit_s):
            await script()

    trio.run(main, clock=MockClock(autojump_threshold=0.0))
