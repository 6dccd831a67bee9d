"""What a discovery daemon does while it leads: reads its own cluster and remote ones, and keeps slices in line.

One task (`run`) does all that decides; sources run beside it and only tell that something has changed. Remote clusters
come and go with their Secrets: one that has a new kubeconfig is followed anew, and what it exported before is kept
until it has been heard again; one whose new kubeconfig is no good goes on with the one before. What a cluster exports
counts once it is known which cluster it is: nothing of the own one is published, nor of one that another Secret leads
to.

Time is the wall clock's at the beginning of the term, and the monotonic one's from there on: a clock that is set while
the daemon runs neither keeps endpoints nor takes them away.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec
import trio

from datum_router.discovery import marks
from datum_router.discovery.book import Book
from datum_router.discovery.export import Export, Name, import_of
from datum_router.discovery.identity import Joined, Refusal, refusals
from datum_router.discovery.report import ClusterReport, Facts, report_of
from datum_router.discovery.slices import PublishedSlice, published
from datum_router.discovery.standing import REASONS, Patience, Phase, Standing
from datum_router.discovery.vpcs import OWN
from datum_router.errors import ClusterError, ConfigError
from datum_router.manifests.meta import GroupVersionKind, ObjectKey
from datum_router.manifests.secret import Secret
from datum_router.manifests.vpcservice import VPCService
from datum_router.plugins.cluster import Cluster, ObjectEvent
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import Source
from datum_router.reasons import Reason
from datum_router.registry.store import StoreView
from datum_router_runtime.clusterfacts import VPC_KIND, cluster_id, vpc_ids
from datum_router_runtime.clusterreports import ClusterReports
from datum_router_runtime.discoverysettings import DiscoverySettings
from datum_router_runtime.localreader import LocalReader, local_kinds
from datum_router_runtime.remote import RemoteCluster, remote_plugins
from datum_router_runtime.slicewriter import SliceWriter
from datum_router_runtime.turns import Signal

log = logging.getLogger(__name__)

MAX_CLUSTERS = 256
"""Remote clusters that are followed; others are told that they are too many."""
LOOK_S = 1.0
"""How often (seconds) it is looked how clusters stand, even if nothing was heard."""
MAX_REPORTS = 2 * MAX_CLUSTERS
"""Clusters that have a Lease; of those beyond `MAX_CLUSTERS` some, so that it is seen why they are not followed."""
MAX_EVENTS_WAITING = 1000
SECRET = GroupVersionKind(group="", version="v1", kind="Secret")
MakeRemote = Callable[[str], Source]
"""Makes the source of a remote cluster from the text of its kubeconfig; raises ConfigError."""


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """One remote cluster, for people.

    Attributes:
        problem: Why its Secret cannot be used as it is now.
        exports: Services that it exports.
        slices: Slices that are published of it.
        conflicts: Services of whose export something is left out.
        report: Conditions, as its Lease says them.
    """

    name: str
    phase: Phase
    reason: Reason
    since_at: float
    message: str = ""
    problem: str = ""
    exports: int = 0
    slices: int = 0
    conflicts: int = 0
    report: ClusterReport | None = None


class _Followed:
    """A cluster with a Secret; `remote` is None if its kubeconfig was never any good."""

    __slots__ = (
        "_remembered_id",
        "fingerprint",
        "is_barred",
        "is_whole",
        "news",
        "problem",
        "refusal",
        "remote",
        "scope",
        "since",
        "told",
        "uid",
        "version",
    )

    def __init__(self) -> None:
        self.fingerprint = b""
        self.problem: tuple[Reason, str] | None = None
        self.remote: RemoteCluster | None = None
        self.scope: trio.CancelScope | None = None
        self.told: tuple[Phase, tuple[Reason, str] | None] = (Phase.CONNECTING, None)
        self.uid = ""
        self.since = ""
        self.version = ""
        self.refusal: Refusal | None = None
        self.is_barred = False  # the book was told that it exports nothing
        self.news: dict[Name, Export | None] = {}  # which the book was not told yet
        self.is_whole = False
        self._remembered_id = ""

    @property
    def id(self) -> str:
        """Return which cluster it is; empty if that is not known."""
        found = "" if self.remote is None else self.remote.id
        return found or self._remembered_id

    @property
    def is_waiting_for_room(self) -> bool:
        """Tell whether nothing is wrong but that too many clusters are followed."""
        return self.problem is not None and self.problem[0] is Reason.TOO_MANY_CLUSTERS

    def is_same(self, fingerprint: bytes, secret: Secret) -> bool:
        """Tell whether this is the Secret that is followed, with the same kubeconfig."""
        return (self.fingerprint, self.uid) == (fingerprint, secret.metadata.uid)

    def renew(self, fingerprint: bytes, secret: Secret, before: ClusterReport | None) -> None:
        """Take that there is another kubeconfig, or another Secret of the same name."""
        meta = secret.metadata
        self.fingerprint, self.uid, self.version = fingerprint, meta.uid, meta.resource_version
        self.since = meta.creation_timestamp or ""
        is_known = before is not None and before.secret is not None and before.secret.uid == meta.uid
        self._remembered_id = before.id if is_known and before and before.version == self.version else ""

    def take_news(self, changes: Mapping[Name, Export | None], is_whole: bool) -> None:
        """Keep what the book is to be told."""
        if is_whole:
            self.news, self.is_whole = dict(changes), True
        else:
            self.news.update(changes)


class Term:
    """One term of leading.

    Attributes:
        book: What is known.
        reader: What is read of the own cluster.
    """

    def __init__(
        self,
        settings: DiscoverySettings,
        plugins: PluginSet,
        cluster: Cluster,
        *,
        local: Source,
        make_remote: MakeRemote,
        is_leading: Callable[[], bool],
        writes: Counter[str],
        errors: Counter[str],
        report_writes: Counter[str] | None = None,
        report_errors: Counter[str] | None = None,
        remote_counts: Counter[str] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._plugins = remote_plugins(plugins)
        self._kinds = plugins.kinds
        self._cluster = cluster
        self._make_remote = make_remote
        self._wall_clock = wall_clock
        self._epoch_at = 0.0  # Unix seconds of the loop's clock at zero
        self._namespace = cluster.namespace
        self.book = Book(Patience(stale_s=settings.stale_s, removed_s=settings.removed_s))
        self.reader = LocalReader(local, local_kinds(plugins.kinds))
        self._writer = SliceWriter(
            cluster,
            self.book,
            is_leading=is_leading,
            concurrency=settings.concurrent_writes,
            max_backoff_s=settings.interval_s,
            writes=writes,
            errors=errors,
        )
        self.reports = ClusterReports(
            cluster,
            is_leading=is_leading,
            wall_clock=self._now,
            interval_s=settings.interval_s,
            writes=Counter() if report_writes is None else report_writes,
            errors=Counter() if report_errors is None else report_errors,
        )
        self.remote_counts: Counter[str] = Counter() if remote_counts is None else remote_counts
        self._followed: dict[str, _Followed] = {}
        self._view: StoreView | None = None
        self._are_vpcs_known = True
        self._changed = Signal()
        self._is_dirty = True
        self._send_events, self._events = trio.open_memory_channel[ObjectEvent](MAX_EVENTS_WAITING)

    @property
    def failing(self) -> int:
        """Return how many parts could not be written last."""
        return len(self._writer.failing)

    def _now(self) -> float:
        """Return Unix seconds, by a clock that is never set."""
        return self._epoch_at + trio.current_time()

    def states(self) -> list[ClusterState]:
        """Return how each remote cluster stands, in order of names. O(clusters + parts that failed)."""
        failing = self._failing()
        found = []
        for name, standing in self.book.clusters.items():
            followed = self._followed.get(name)
            facts = None if followed is None else self._facts(name, followed, standing, failing.get(name, []))
            problem = None if facts is None else facts.refused
            found.append(
                ClusterState(
                    name=name,
                    phase=standing.phase,
                    reason=REASONS[standing.phase] if facts is None else facts.reason,
                    since_at=standing.since_at,
                    message=standing.message,
                    problem="" if problem is None else problem[1],
                    exports=self.book.exports_of(name),
                    slices=self.book.slices_of(name),
                    conflicts=len(self.book.conflicts_of(name)),
                    report=None
                    if facts is None
                    else report_of(facts, self.reports.remembered(name), now=standing.since_at),
                )
            )
        return found

    def _failing(self) -> dict[str, list[Name]]:
        found: dict[str, list[Name]] = {}
        for service, cluster in self._writer.failing:
            found.setdefault(cluster, []).append(service)
        return found

    def _facts(self, name: str, followed: _Followed, standing: Standing, failing: list[Name]) -> Facts:
        refusal = followed.refusal
        refused = followed.problem if refusal is None else (refusal.reason, refusal.message)
        reason = REASONS[standing.phase]
        if refused is not None and standing.phase in (Phase.INVALID, Phase.REFUSED):
            reason = refused[0]
        return Facts(
            name=name,
            phase=standing.phase,
            reason=reason,
            message=standing.message,
            since_at=standing.since_at,
            kept_until_at=standing.expires_at(self.book.patience),
            calm_at=standing.calm_at,
            refused=refused,
            exports=self.book.exports_of(name),
            slices=self.book.slices_of(name),
            conflicts=dict(self.book.conflicts_of(name)),
            failing=failing,
            id=followed.id,
            version=followed.version,
            uid=followed.uid,
        )

    def _report(self) -> None:
        """Have what is known of all joined clusters written, as far as it differs."""
        failing = self._failing()
        standings = self.book.clusters
        told = [(name, one) for name, one in self._followed.items() if name in standings]
        told.sort(key=lambda item: (item[1].since, item[0]))
        self.reports.want(
            self._facts(name, followed, standings[name], failing.get(name, [])) for name, followed in told[:MAX_REPORTS]
        )

    async def run(self) -> None:
        """Lead until cancelled. Nothing is written before everything in the own cluster has been read."""
        self._epoch_at = self._wall_clock() - trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.reader.run)
            nursery.start_soon(self._publish_events)
            nursery.start_soon(self._hear_reader)
            await self.reports.load()  # what it knew before is worth a try, and not worth waiting for
            while not self.reader.is_synced:
                await self.reader.changed.next.wait()
            nursery.start_soon(self.reports.run)
            resync_at = trio.current_time() + self._settings.interval_s
            while True:
                waiting, self._is_dirty = self._changed.next, False
                self._look(nursery)
                await self._writer.write()
                self._report()
                now = trio.current_time()
                if now >= resync_at:
                    resync_at = now + self._settings.interval_s
                    self.book.touch_everything()
                    continue
                if self._is_dirty:
                    await trio.sleep(self._settings.debounce_s)
                    continue
                until = min(now + LOOK_S, resync_at, self._writer.wake_at())
                with trio.move_on_at(until):
                    await waiting.wait()

    def _note(self) -> None:
        self._is_dirty = True
        self._changed.notify()

    async def _hear_reader(self) -> None:
        while True:
            await self.reader.changed.next.wait()
            self._note()

    # --- deciding ----------------------------------------------------------------------------------------------------

    def _look(self, nursery: trio.Nursery) -> None:
        """Take up what has changed: in the own cluster, in how clusters stand, and by the passing of time."""
        view = self.reader.view()
        changes = view.changes(self._view)
        is_first, self._view = self._view is None, view
        for namespace, name in changes.get("EndpointSlice", {}):
            self._take_slice(view, namespace, name)
        for namespace, name in changes.get("VPCService", {}):
            manifest = view.get("VPCService", namespace, name)
            wanted = import_of(manifest) if isinstance(manifest, VPCService) else None
            self.book.put_import((namespace, name), wanted)
        # That they may not be read does not mean that there are none; those that were read stay in force.
        are_known = bool(view.list(VPC_KIND)) or self.reader.is_readable(VPC_KIND)
        if is_first or VPC_KIND in changes or are_known != self._are_vpcs_known:
            self._are_vpcs_known = are_known
            self.book.put_vpcs(OWN, vpc_ids(view, self._kinds) if are_known else None)
        if is_first or "Secret" in changes:
            self._take_secrets(view, nursery)
        self._take_refusals(cluster_id(view))
        now = self._now()
        for name, followed in self._followed.items():
            self._take_news(name, followed)
            self._count(followed)
            self._take_phase(name, followed, now)
        for name in self.book.published_clusters() - self.book.clusters.keys():
            self.book.put_phase(name, Phase.REMOVED, "it has no Secret", now=now)
        self.book.expire(now=now)

    def _take_slice(self, view: StoreView, namespace: str, name: str) -> None:
        manifest = view.get("EndpointSlice", namespace, name)
        found = published(manifest) if isinstance(manifest, PublishedSlice) else None
        if found is None or not isinstance(manifest, PublishedSlice):
            self.book.removed(namespace, name)
        else:
            self.book.observe(found, manifest.metadata.resource_version)

    def _take_secrets(self, view: StoreView, nursery: trio.Nursery) -> None:
        there: dict[str, Secret] = {}
        for found in view.list("Secret"):
            if not isinstance(found, Secret) or found.metadata.namespace != self._namespace:
                continue
            if (found.metadata.labels or {}).get(marks.REMOTE_LABEL) == "true":
                there[found.metadata.name] = found
        for name in [name for name in self._followed if name not in there]:
            self._drop(name)
        oldest_first = sorted(there.items(), key=lambda item: (item[1].metadata.creation_timestamp or "", item[0]))
        for name, secret in oldest_first:
            self._follow(name, secret, nursery)

    def _follow(self, name: str, secret: Secret, nursery: trio.Nursery) -> None:
        text = secret.text(marks.KUBECONFIG_KEY)
        fingerprint = hashlib.sha256((text or "").encode()).digest()
        followed = self._followed.get(name)
        if followed is None:
            followed = self._followed[name] = _Followed()
        elif followed.is_same(fingerprint, secret) and not followed.is_waiting_for_room:
            return
        followed.renew(fingerprint, secret, self.reports.remembered(name))
        try:
            source = self._source_of(name, text)
        except ConfigError as error:
            found = (error.reason or Reason.INVALID_KUBECONFIG, str(error))
            if followed.problem != found:
                log.warning("kubeconfig cannot be used", extra={"cluster": name, "error": found[1]})
            followed.problem = found
            return
        followed.problem = None
        self._count(followed)
        if followed.scope is not None:
            followed.scope.cancel()

        def told(changes: Mapping[Name, Export | None], is_whole: bool) -> None:
            if followed.remote is remote:  # not one that has been replaced
                followed.take_news(changes, is_whole)

        remote = RemoteCluster(
            source,
            self._plugins,
            source_name=self._settings.source,
            told=told,
            changed=self._note,
            debounce_s=self._settings.debounce_s,
            debounce_max_s=self._settings.debounce_max_s,
        )
        followed.remote, followed.scope = remote, trio.CancelScope()
        nursery.start_soon(self._run_remote, remote, followed.scope)
        log.info("cluster is followed", extra={"cluster": name})

    def _source_of(self, name: str, text: str | None) -> Source:
        if len(name) > marks.MAX_CLUSTER_NAME_CHARS:
            what = f"its Secret's name has {len(name)} characters, expected at most {marks.MAX_CLUSTER_NAME_CHARS}"
            raise ConfigError(what, reason=Reason.INVALID_KUBECONFIG)
        if text is None:
            what = f"its Secret has no text under the key {marks.KUBECONFIG_KEY}, expected a kubeconfig there"
            raise ConfigError(what, reason=Reason.INVALID_KUBECONFIG)
        others = sum(1 for other, one in self._followed.items() if one.remote is not None and other != name)
        if others >= MAX_CLUSTERS:
            what = f"{others} clusters are followed already, expected no more than that; delete Secrets of others"
            raise ConfigError(what, reason=Reason.TOO_MANY_CLUSTERS)
        return self._make_remote(text)

    async def _run_remote(self, remote: RemoteCluster, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await remote.run()
            except Exception as error:
                log.exception("following a cluster broke; others go on")
                remote.failed(f"{type(error).__name__}: {error}")

    def _drop(self, name: str) -> None:
        followed = self._followed.pop(name)
        self._count(followed)
        followed.remote = None
        if followed.scope is not None:
            followed.scope.cancel()
        self.book.put_phase(name, Phase.REMOVED, "its Secret is gone", now=self._now())
        log.info("cluster is removed", extra={"cluster": name, "kept_s": self._settings.removed_s})

    def _count(self, followed: _Followed) -> None:
        if followed.remote is not None:
            for what, value in followed.remote.new_counts().items():
                self.remote_counts[what] += value  # type: ignore[assignment]  # seconds are no whole numbers

    def _take_refusals(self, own_id: str) -> None:
        """Find out which clusters may not be followed since they are the own one, or one that is followed already."""
        joined = [
            Joined(name=name, since=one.since, id=one.id)
            for name, one in self._followed.items()
            if one.remote is not None
        ]
        found = refusals(own_id, joined)
        for name, followed in self._followed.items():
            followed.refusal = found.get(name)

    def _take_news(self, name: str, followed: _Followed) -> None:
        """Tell the book what a cluster exports: nothing, if it may not be followed."""
        remote = followed.remote
        if followed.refusal is not None:
            if not followed.is_barred:
                self.book.put_exports(name, {}, is_whole=True)
            followed.is_barred = True
            followed.news.clear()
        elif remote is not None and remote.is_heard:
            self.book.put_vpcs(name, remote.vpcs)
            if followed.is_barred:
                self.book.put_exports(name, remote.exports, is_whole=True)
            elif followed.news or followed.is_whole:
                self.book.put_exports(name, followed.news, is_whole=followed.is_whole)
            followed.is_barred = followed.is_whole = False
            followed.news.clear()

    def _take_phase(self, name: str, followed: _Followed, now: float) -> None:
        before = self.book.standing_of(name)
        problem = followed.problem
        if followed.refusal is not None:
            phase, message = Phase.REFUSED, followed.refusal.message
        elif followed.remote is None:
            phase, message = Phase.INVALID, "" if problem is None else problem[1]
        else:
            phase, message = followed.remote.phase()
            if phase is Phase.CONNECTING and before is not None and before.is_gone:
                phase, message = Phase.UNREACHABLE, "it has not been read yet"
            if problem is not None:
                message = f"{problem[1]}; the kubeconfig before is used" + (f"; {message}" if message else "")
        if before is None or (before.phase, before.message) != (phase, message):
            standing = self.book.put_phase(name, phase, message, now=now)
            self._tell(name, followed, standing)

    # --- telling -----------------------------------------------------------------------------------------------------

    def _tell(self, name: str, followed: _Followed, standing: Standing) -> None:
        """Have an event of a cluster's Secret tell how the cluster stands, if that is news to anybody."""
        is_trouble = standing.is_gone or followed.problem is not None or followed.refusal is not None
        said = (standing.phase, followed.problem)
        if standing.phase is Phase.CONNECTING or said == followed.told:
            return
        if not is_trouble and followed.told[0] is Phase.CONNECTING:
            followed.told = said
            log.info("cluster is heard", extra={"cluster": name})
            return
        followed.told = said
        reason = REASONS[standing.phase]
        if followed.refusal is not None:
            reason = followed.refusal.reason
        elif followed.problem is not None:
            reason = followed.problem[0]
        note = standing.message or "everything in it has been read"
        log.log(
            logging.WARNING if is_trouble else logging.INFO,
            "cluster stands otherwise",
            extra={"cluster": name, "phase": standing.phase.value, "why": note},
        )
        event = ObjectEvent(
            gvk=SECRET,
            key=ObjectKey(kind=SECRET.kind, namespace=self._namespace, name=name),
            uid=followed.uid,
            type="Warning" if is_trouble else "Normal",
            reason=reason,
            action="Discover",
            note=note[:1024],
        )
        try:
            self._send_events.send_nowait(event)
        except trio.WouldBlock:
            log.warning("too many events wait, one is dropped", extra={"cluster": name})

    async def _publish_events(self) -> None:
        async for event in self._events:
            try:
                await self._cluster.publish(event)
            except ClusterError as error:
                log.warning("event cannot be written", extra={"error": str(error)})
