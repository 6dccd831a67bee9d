"""What a discovery daemon does while it leads: reads its own cluster and remote ones, and keeps slices in line.

One task (`run`) does all that decides; sources run beside it and only tell that something has changed. Remote clusters
come and go with their Secrets: one that has a new kubeconfig is followed anew, and what it exported before is kept
until it has been heard again; one whose new kubeconfig is no good goes on with the one before.
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
from datum_router.discovery.slices import PublishedSlice, published
from datum_router.discovery.standing import REASONS, Patience, Phase, Standing
from datum_router.errors import ClusterError, ConfigError
from datum_router.manifests.meta import GroupVersionKind, ObjectKey
from datum_router.manifests.secret import Secret
from datum_router.manifests.vpcservice import VPCService
from datum_router.plugins.cluster import Cluster, ObjectEvent
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import Source
from datum_router.reasons import Reason
from datum_router.registry.store import StoreView
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
MAX_EVENTS_WAITING = 1000
SECRET = GroupVersionKind(group="", version="v1", kind="Secret")
MakeRemote = Callable[[str], Source]
"""Makes the source of a remote cluster from the text of its kubeconfig; raises ConfigError."""


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """One remote cluster, for people.

    Attributes:
        problem: What is wrong with the kubeconfig that is in its Secret now.
        exports: Services that it exports.
        slices: Slices that are published of it.
    """

    name: str
    phase: Phase
    reason: Reason
    since_at: float
    message: str = ""
    problem: str = ""
    exports: int = 0
    slices: int = 0


class _Followed:
    """A cluster with a Secret; `remote` is None if its kubeconfig was never any good."""

    __slots__ = ("fingerprint", "problem", "remote", "scope", "told", "uid")

    def __init__(self) -> None:
        self.fingerprint = b""
        self.problem = ""
        self.remote: RemoteCluster | None = None
        self.scope: trio.CancelScope | None = None
        self.told: tuple[Phase, str] = (Phase.CONNECTING, "")
        self.uid = ""


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
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._plugins = remote_plugins(plugins)
        self._cluster = cluster
        self._make_remote = make_remote
        self._wall_clock = wall_clock
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
        self._followed: dict[str, _Followed] = {}
        self._view: StoreView | None = None
        self._changed = Signal()
        self._is_dirty = True
        self._send_events, self._events = trio.open_memory_channel[ObjectEvent](MAX_EVENTS_WAITING)

    @property
    def failing(self) -> int:
        """Return how many parts could not be written last."""
        return len(self._writer.failing)

    def states(self) -> list[ClusterState]:
        """Return how each remote cluster stands, in order of names. O(slices)."""
        slices = Counter(one.cluster for one in self.book.published())
        found = []
        for name, standing in self.book.clusters.items():
            followed = self._followed.get(name)
            found.append(
                ClusterState(
                    name=name,
                    phase=standing.phase,
                    reason=REASONS[standing.phase],
                    since_at=standing.since_at,
                    message=standing.message,
                    problem="" if followed is None else followed.problem,
                    exports=self.book.exports_of(name),
                    slices=slices[name],
                )
            )
        return found

    async def run(self) -> None:
        """Lead until cancelled. Nothing is written before everything in the own cluster has been read."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.reader.run)
            nursery.start_soon(self._publish_events)
            nursery.start_soon(self._hear_reader)
            while not self.reader.is_synced:
                await self.reader.changed.next.wait()
            resync_at = trio.current_time() + self._settings.interval_s
            while True:
                waiting, self._is_dirty = self._changed.next, False
                self._look(nursery)
                await self._writer.write()
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
        if is_first or "Secret" in changes:
            self._take_secrets(view, nursery)
        now = self._wall_clock()
        for name, followed in self._followed.items():
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
        for name, secret in there.items():
            self._follow(name, secret, nursery)

    def _follow(self, name: str, secret: Secret, nursery: trio.Nursery) -> None:
        text = secret.text(marks.KUBECONFIG_KEY)
        fingerprint = hashlib.sha256((text or "").encode()).digest()
        followed = self._followed.get(name)
        if followed is None:
            followed = self._followed[name] = _Followed()
        elif followed.fingerprint == fingerprint and followed.uid == secret.metadata.uid:
            return
        followed.fingerprint, followed.uid = fingerprint, secret.metadata.uid
        try:
            source = self._source_of(name, text)
        except ConfigError as error:
            followed.problem = str(error)
            log.warning("kubeconfig cannot be used", extra={"cluster": name, "error": followed.problem})
            return
        followed.problem = ""
        if followed.scope is not None:
            followed.scope.cancel()

        def told(changes: Mapping[Name, Export | None], is_whole: bool) -> None:
            if followed.remote is remote:  # not one that has been replaced
                self.book.put_exports(name, changes, is_whole=is_whole)

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
            raise ConfigError(f"{others} clusters are followed already, which is all", reason=Reason.INVALID_KUBECONFIG)
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
        followed.remote = None
        if followed.scope is not None:
            followed.scope.cancel()
        self.book.put_phase(name, Phase.REMOVED, "its Secret is gone", now=self._wall_clock())
        log.info("cluster is removed", extra={"cluster": name, "kept_s": self._settings.removed_s})

    def _take_phase(self, name: str, followed: _Followed, now: float) -> None:
        before = self.book.standing_of(name)
        if followed.remote is None:
            phase, message = Phase.INVALID, followed.problem
        else:
            phase, message = followed.remote.phase()
            if phase is Phase.CONNECTING and before is not None and before.is_gone:
                phase, message = Phase.UNREACHABLE, "it has not been read yet"
            if followed.problem:
                message = f"{followed.problem}; the kubeconfig before is used" + (f"; {message}" if message else "")
        if before is None or (before.phase, before.message) != (phase, message):
            standing = self.book.put_phase(name, phase, message, now=now)
            self._tell(name, followed, standing)

    # --- telling -----------------------------------------------------------------------------------------------------

    def _tell(self, name: str, followed: _Followed, standing: Standing) -> None:
        """Have an event of a cluster's Secret tell how the cluster stands, if that is news to anybody."""
        is_trouble = standing.is_gone or bool(followed.problem)
        said = (standing.phase, followed.problem)
        if standing.phase is Phase.CONNECTING or said == followed.told:
            return
        if not is_trouble and followed.told[0] is Phase.CONNECTING:
            followed.told = said
            log.info("cluster is heard", extra={"cluster": name})
            return
        followed.told = said
        reason = Reason.INVALID_KUBECONFIG if followed.problem else REASONS[standing.phase]
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
