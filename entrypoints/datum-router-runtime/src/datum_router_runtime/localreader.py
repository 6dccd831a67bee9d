"""What a discovery daemon reads of its own cluster: services that ask, slices that it wrote, kubeconfigs, VPCs, and
which cluster it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
import trio

from datum_router.discovery.slices import SLICE, SLICES, PublishedSlice
from datum_router.errors import SourceError
from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.plugins.protocols import Problems, Source, SourceEvent, Synced
from datum_router.registry.store import Store, StoreView
from datum_router_runtime.clusterfacts import NAMESPACE_KIND, VPC_KIND
from datum_router_runtime.turns import Signal

log = logging.getLogger(__name__)

LOCAL_KINDS = frozenset({"VPCService", "Secret", VPC_KIND, NAMESPACE_KIND})
"""Kinds that are read beside its own EndpointSlices."""
FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 30.0


def local_kinds(kinds: KindTable) -> KindTable:
    """Return the kinds that are read, of those that plugins offer; EndpointSlice in our own, narrow form.

    Of all of them it counts which object it is, and not only what it says: what the daemon writes is owned by some of
    them, so that one that was made anew with the same content is another owner.
    """
    own = [_with_identity(kind) for kind in kinds if kind.kind in LOCAL_KINDS]
    row = ResourceKind(group=SLICE.group, version=SLICE.version, kind=SLICE.kind, plural=SLICES, struct=PublishedSlice)
    return KindTable([*own, row])


def _with_identity(kind: ResourceKind) -> ResourceKind:
    def content(manifest: msgspec.Struct) -> object:
        meta = getattr(manifest, "metadata", None)
        mark = (meta.uid, meta.labels, meta.deletion_timestamp) if isinstance(meta, ObjectMeta) else None
        return (mark, kind.content_of(manifest))

    return msgspec.structs.replace(kind, content=content)


class LocalReader:
    """Follow one source; whoever waits for `changed` looks at `view` then.

    Attributes:
        is_synced: Everything that was there at the start has been read.
        complaints: What the source says is wrong with it, by scope.
    """

    def __init__(self, source: Source, kinds: KindTable) -> None:
        self._source = source
        self._kinds = kinds
        self._store = Store(kinds)
        self.changed = Signal()
        self.is_synced = False
        self.complaints: dict[str, str] = {}

    def is_readable(self, kind: str) -> bool:
        """Tell whether nothing is wrong with the reading of a kind: whether what is there of it is all there is."""
        row = self._kinds.named(kind)
        return row is None or not any(scope.partition("?")[0].endswith(f"/{row.plural}") for scope in self.complaints)

    def view(self) -> StoreView:
        """Return what is known now."""
        return self._store.view()

    async def run(self) -> None:
        """Follow until cancelled; a source that fails is started again."""
        backoff = FIRST_BACKOFF_S
        while True:
            started = trio.current_time()
            try:
                await self._source.run(self._emit)
            except SourceError as error:
                if self.complaints.get("") != str(error):
                    log.warning("source failed, will retry", extra={"error": str(error)})
                self.complaints[""] = str(error)
            except Exception as error:
                log.exception("source broke, will retry")
                self.complaints[""] = f"{type(error).__name__}: {error}"
            if trio.current_time() - started > MAX_BACKOFF_S:
                backoff = FIRST_BACKOFF_S
            await trio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_S)

    def _emit(self, events: Sequence[SourceEvent]) -> None:
        for event in events:
            if isinstance(event, Synced):
                self.is_synced = True
                self.complaints.pop("", None)
            else:
                self._store.apply(event)
            if isinstance(event, Problems):
                self._complain(event)
        self.changed.notify()

    def _complain(self, event: Problems) -> None:
        if event.diagnostics:
            text = event.diagnostics[0].message
            if self.complaints.get(event.scope) != text:
                log.error("own cluster cannot be read in part", extra={"why": event.diagnostics[0].render()})
            self.complaints[event.scope] = text
        elif self.complaints.pop(event.scope, None) is not None:
            log.info("own cluster can be read again", extra={"scope": event.scope})
