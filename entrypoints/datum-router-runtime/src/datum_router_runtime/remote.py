"""One remote cluster: its API is read and compiled as a gateway there would, and what it exports is told.

A cluster is heard once everything has been read and compiled. From then on it is gone while its source complains of
anything: that its API does not answer, or that a kind may not be read (any more).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec
import trio

from datum_router.compiler.compiler import CompileOptions, Compiler, CompileResult
from datum_router.compiler.diagnostics import Severity
from datum_router.discovery.export import Export, Name, export_of
from datum_router.discovery.report import plain
from datum_router.discovery.standing import Phase
from datum_router.errors import SourceError
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.table import KindTable
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.service import Service
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import CountingSource, Emit, Problems, Source, SourceEvent
from datum_router.registry.store import Store, StoreView
from datum_router_runtime.clusterfacts import cluster_id, vpc_ids
from datum_router_runtime.feed import Feed

CONNECT_PATIENCE_S = 30.0
"""A cluster of which not everything could be read for so long (seconds) cannot be reached."""
MAX_MESSAGE_CHARS = 500
COUNTED = ("events", "errors", "paced_seconds")
"""What is counted of the reading of remote clusters, as `CountingSource.stats` calls it."""
NOT_READ = frozenset({"VPCRoute", "VPCIngress", "VPCEgress", "Lease", "Secret", "ConfigMap"})
"""Kinds that no endpoint comes from."""

Told = Callable[[Mapping[Name, Export | None], bool], None]
"""Takes what changed in what a cluster exports, None for what it does not any more; True: this is all of it."""


def with_kinds(plugins: PluginSet, kinds: KindTable) -> PluginSet:
    """Return the plugins with other kinds."""
    return msgspec.structs.replace(plugins, kinds=kinds)


def remote_plugins(plugins: PluginSet) -> PluginSet:
    """Return the plugins with those kinds alone that endpoints come from, and Namespace, which says whose they are."""
    return with_kinds(plugins, KindTable([kind for kind in plugins.kinds if kind.kind not in NOT_READ]))


class RemoteCluster:
    """Follow one cluster.

    Attributes:
        is_heard: What it exports is known.
        exports: What it exports, once it is heard.
        vpcs: Identifier (base62) of each of its VPCs by `namespace/name`, once it is heard.
        id: Which cluster it is, once it is heard; empty: that may not be read.
    """

    def __init__(
        self,
        source: Source,
        plugins: PluginSet,
        *,
        source_name: str,
        told: Told,
        changed: Callable[[], None],
        debounce_s: float,
        debounce_max_s: float,
    ) -> None:
        """Make it; nothing is read yet.

        Args:
            plugins: As `remote_plugins` returns them.
            source_name: What the source calls itself in its events.
            changed: Called when `phase` may say something else; must not block.
        """
        self.is_heard = False
        self.exports: dict[Name, Export] = {}
        self.vpcs: Mapping[str, str] = {}
        self.id = ""
        self._kinds = plugins.kinds
        self._source = source
        self._counted: dict[str, float] = {}
        self._told = told
        self._changed = changed
        self._complaints: dict[str, str] = {}
        self._known: dict[Name, tuple[Service, object]] = {}
        self._started_at = trio.current_time()
        seen: set[ObjectKey] = set()
        self._feed = Feed(
            sources={source_name: _Tapped(source, self)},
            store=Store(plugins.kinds, seen=seen),
            compiler=Compiler(plugins, CompileOptions(are_credentials_known=False)),
            publish=lambda _result: None,
            debounce_s=debounce_s,
            debounce_max_s=debounce_max_s,
            seen=seen,
            observe=self._observe,
        )

    async def run(self) -> None:
        """Follow until cancelled; no thread is left behind then."""
        await self._feed.run()

    def new_counts(self) -> Mapping[str, float]:
        """Return what the source has counted since this was last asked, over all kinds; see `COUNTED`."""
        if not isinstance(self._source, CountingSource):
            return {}
        found = dict.fromkeys(COUNTED, 0.0)
        for name, value in self._source.stats().items():
            what, _, kind = name.partition("/")
            if kind and what in found:
                found[what] += value
        news = {what: max(0.0, value - self._counted.get(what, 0.0)) for what, value in found.items()}
        self._counted = found
        return news

    def phase(self) -> tuple[Phase, str]:
        """Return how the cluster is found now, and why."""
        if self._complaints:
            text = "; ".join(dict.fromkeys(self._complaints.values()))
            return Phase.UNREACHABLE, plain(text[:MAX_MESSAGE_CHARS])
        if self.is_heard:
            return Phase.READY, ""
        if trio.current_time() - self._started_at >= CONNECT_PATIENCE_S:
            return Phase.UNREACHABLE, f"not everything could be read within {CONNECT_PATIENCE_S:g} s"
        return Phase.CONNECTING, ""

    def take(self, events: Sequence[SourceEvent]) -> None:
        """Look at what the source says of itself."""
        for event in events:
            if isinstance(event, Problems):
                errors = [one.message for one in event.diagnostics if one.severity is Severity.ERROR]
                self._complain(event.scope, errors[0] if errors else "")

    def failed(self, message: str) -> None:
        """Take that the source has ended; it is started again. An empty message: it runs."""
        self._complain("", message)

    def _complain(self, scope: str, message: str) -> None:
        before = self._complaints.get(scope, "")
        if message:
            self._complaints[scope] = message
        else:
            self._complaints.pop(scope, None)
        if before != message:
            self._changed()

    def _observe(self, result: CompileResult | None, view: StoreView, _seen: AbstractSet[ObjectKey]) -> None:
        if result is None:
            return
        changes: dict[Name, Export | None] = {}
        gone = set(self._known)
        for service in result.data.services.values():
            namespace, _, name = service.key.partition("/")
            where = (namespace, name)
            manifest = view.get("VPCService", namespace, name)
            if not isinstance(manifest, VPCService):
                continue
            gone.discard(where)
            before = self._known.get(where)
            if before is not None and before[0] is service and before[1] is manifest.spec:
                continue
            self._known[where] = (service, manifest.spec)
            changes[where] = export_of(manifest, service)
        for where in gone:
            del self._known[where]
            changes[where] = None
        is_first, self.is_heard = not self.is_heard, True
        if is_first:
            changes = {where: export for where, export in changes.items() if export is not None}
        for where, export in changes.items():
            if export is None:
                self.exports.pop(where, None)
            else:
                self.exports[where] = export
        # Once known it stays: a cluster that said another one each time would take others' place by turns.
        vpcs, self.id = vpc_ids(view, self._kinds), self.id or cluster_id(view)
        is_other, self.vpcs = vpcs != self.vpcs, vpcs
        if changes or is_first or is_other:
            self._told(changes, is_first)
            self._changed()


class _Tapped:
    """A source whose complaints are heard on their way."""

    def __init__(self, source: Source, owner: RemoteCluster) -> None:
        self._source = source
        self._owner = owner

    async def run(self, emit: Emit) -> None:
        def tap(events: Sequence[SourceEvent]) -> None:
            self._owner.take(events)
            emit(events)

        self._owner.failed("")
        try:
            await self._source.run(tap)
        except SourceError as error:
            self._owner.failed(str(error))
            raise
