"""The `kubernetes` source: every kind of the plugin set, followed by list and watch, and the Secrets they name.

Theory of operation. A thread for each collection (`listwatch`) hands over batches; what follows runs in trio's thread,
so nothing here needs a lock. A batch is emitted as it comes, with a `Mark` of the version up to which its kind is
known. `Synced` follows once every collection has been listed, and every Secret and ConfigMap that is named by then has
been looked for.

Secrets and ConfigMaps are read one by one, by name, since a right on all of them is more than a gateway should have.
An object that names one that is not read yet is held back until that one is known, for `HOLD_BACK_S` at most, so that
both come into force together; one that is named no more is let go of after the object that named it has changed.

What was emitted is remembered beyond `run`: when the source is started again, it emits everything again, and what is
gone as deletes.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import trio

from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.errors import ConfigError, SourceError
from datum_router.manifests.credentials import REFERRING_KINDS, references
from datum_router.manifests.decode import decode_json
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.table import KindTable
from datum_router.plugins.protocols import Delete, Emit, Mark, Problems, SourceEvent, Synced, Upsert
from datum_router.reasons import Reason
from datum_router_kubernetes import NAME
from datum_router_kubernetes.budget import Budget
from datum_router_kubernetes.client import ApiClient, make_client
from datum_router_kubernetes.collection import Collection, collections_of, named_collection
from datum_router_kubernetes.config import ClusterSettings, Role, read_settings
from datum_router_kubernetes.counters import Counters
from datum_router_kubernetes.follow import Follower, Name
from datum_router_kubernetes.listwatch import (
    LISTS_AT_ONCE,
    NAMED_LISTS_AT_ONCE,
    ORIGIN,
    Batch,
    ListWatch,
    Reach,
    Stopped,
)
from datum_router_kubernetes.wanted import MAX_NAMED_WATCHES, Change, Wanted

log = logging.getLogger(__name__)

HOLD_BACK_S = 2.0
"""How long an object waits for the Secrets and ConfigMaps that it names for the first time (seconds)."""
DECODED_AT_ONCE = 64
"""Manifests of a batch that are decoded in one turn of trio's loop, to see what they name: a millisecond or two."""
STOP_S = 8.0
"""How long the end waits for threads (seconds): longer than opening a connection may take."""
UNREACHABLE_S = 10.0
"""An API that does not answer for so long (seconds) is reported."""
_LOOK_S = 2.0
UNBOUNDED = 2**62


class KubernetesSource:
    """Deliver what a cluster's API holds."""

    def __init__(
        self,
        settings: Mapping[str, str],
        kinds: KindTable,
        *,
        make: Callable[[Mapping[str, str]], ApiClient] = make_client,
        max_named_watches: int = MAX_NAMED_WATCHES,
        seed: int | None = None,
    ) -> None:
        """Check the settings.

        Raises:
            ConfigError: A setting is unknown or wrong.
        """
        self.settings: ClusterSettings = read_settings(settings)
        self.kinds = kinds
        self.max_named_watches = max_named_watches
        self.counts = Counters()
        self.rng = random.Random(seed)  # waits are spread by it, nothing else
        self.known: dict[Collection, dict[Name, str]] = {}
        self._raw_settings = dict(settings)
        self._make = make

    def stats(self) -> Mapping[str, float]:
        """Return counts and ages; see `Counters.stats`. From any thread."""
        return self.counts.stats()

    async def run(self, emit: Emit) -> None:
        """Emit everything, `Synced` and then changes, until cancelled; no thread is left behind then.

        Raises:
            SourceError: The configuration of the cluster is missing or wrong. (An API that does not answer is no
                reason to end: it is tried for ever.)
        """
        try:
            client = await trio.to_thread.run_sync(self._make, self._raw_settings, abandon_on_cancel=True)
        except ConfigError as error:
            raise SourceError(str(error), reason=error.reason) from error
        run = _Run(self, client, emit, trio.lowlevel.current_trio_token())
        try:
            run.start()
            await run.watch_over()
        finally:
            with trio.CancelScope(shield=True):
                await run.stop()


class _Run:
    """One run of a source. Everything happens in trio's thread but what is said to be called by others."""

    def __init__(self, source: KubernetesSource, client: ApiClient, emit: Emit, token: trio.lowlevel.TrioToken) -> None:
        self._source = source
        self._client = client
        self._emit = emit
        self._token = token
        self._kinds = source.kinds
        self._reach = Reach()
        self._slots = threading.Semaphore(LISTS_AT_ONCE)
        self._named_slots = threading.Semaphore(NAMED_LISTS_AT_ONCE)
        self._is_over = False
        self._threads: set[ListWatch] = set()  # that have not ended
        self._all_ended = trio.Event()
        self._marks: dict[Collection, str] = {}
        self._waited_for: set[Collection] = set()  # whose first answer `Synced` waits for
        self._is_synced = False
        self._wanted = Wanted(source.max_named_watches)
        self._named: dict[ObjectKey, ListWatch] = {}
        self._named_now: dict[ListWatch, dict[ObjectKey, tuple[ObjectKey, ...]]] = {}  # by batches under way
        self._left_out = ""
        self._unreachable = ""
        self._collections = collections_of(self._kinds, source.settings, client.namespace)
        most = source.settings
        self._budget: Budget | None = None
        if most.max_objects or most.max_bytes:
            self._budget = Budget(max_objects=most.max_objects or UNBOUNDED, max_bytes=most.max_bytes or UNBOUNDED)

    def start(self) -> None:
        """Start a thread for each collection."""
        self._waited_for.update(self._collections)
        for index, one in enumerate(self._collections):
            self._follow(one, self._slots, is_scout=index == 0)

    async def watch_over(self) -> None:
        """Report an API that does not answer, until cancelled."""
        while True:
            await trio.sleep(_LOOK_S)
            found = self._reach.failure(after_s=UNREACHABLE_S)
            if bool(found) != bool(self._unreachable):
                self._unreachable = found
                message = f"the API does not answer, what was known before stays in force: {found}" if found else ""
                self._emit([_report("api", message, "")])

    async def stop(self) -> None:
        """End all threads; those that are just connecting are left to end by themselves after `STOP_S`."""
        self._is_over = True
        for one in list(self._threads):
            one.stop()
        if self._threads:
            with trio.move_on_after(STOP_S):
                await self._all_ended.wait()

    def _follow(self, collection: Collection, slots: threading.Semaphore, *, is_scout: bool = False) -> ListWatch:
        source = self._source
        rng = random.Random(source.rng.getrandbits(64))
        before = source.known.get(collection, {})
        known = source.known[collection] = dict.fromkeys(before, "")  # to be emitted again, or as deletes
        follower = Follower(collection, known=known, rng=rng, page_size=source.settings.page_size, is_scout=is_scout)
        made = ListWatch(
            self._client,
            collection,
            follower,
            hand_over=self._hand_over,
            ended=self._ended,
            slots=slots,
            reach=self._reach,
            counts=source.counts,
            watch_idle_s=source.settings.watch_idle_s,
            rng=rng,
            budget=self._budget,
        )
        made.start()
        self._threads.add(made)  # not before: its end, which is told from this very thread, is waited for
        return made

    # --- called by threads -----------------------------------------------------------------------------------------

    def _hand_over(self, thread: ListWatch, batch: Batch) -> None:
        """Have a batch taken; wait for the Secrets that it names, unless the thread is stopped."""
        try:
            if self._source.settings.role is Role.GATEWAY and thread.collection.kind in REFERRING_KINDS:
                # A whole page would keep whoever else is in that thread from going on for more than 10 ms.
                for at in range(0, len(batch.events), DECODED_AT_ONCE):
                    some = batch.events[at : at + DECODED_AT_ONCE]
                    trio.from_thread.run_sync(self._note_named, thread, some, trio_token=self._token)
            awaited = trio.from_thread.run_sync(self._take, thread, batch, trio_token=self._token)
            if awaited:
                _wait_for(awaited, thread)
                trio.from_thread.run_sync(self._pass_on, thread, batch, trio_token=self._token)
        except trio.RunFinishedError:
            raise Stopped from None

    def _ended(self, thread: ListWatch) -> None:
        def note() -> None:
            self._threads.discard(thread)
            if not self._threads:
                self._all_ended.set()

        with contextlib.suppress(trio.RunFinishedError):  # then there is nobody left who waits
            self._token.run_sync_soon(note)

    # --- in trio's thread ------------------------------------------------------------------------------------------

    def _take(self, thread: ListWatch, batch: Batch) -> list[ListWatch]:
        """Emit a batch, or return the Secrets and ConfigMaps that must be known before."""
        if self._is_dropped(thread, batch):
            return []
        awaited = self._read_named(thread) if thread in self._named_now else []
        if not awaited:
            self._pass_on(thread, batch)
        return awaited

    def _pass_on(self, thread: ListWatch, batch: Batch) -> None:
        """Emit a batch."""
        if self._is_dropped(thread, batch):
            return
        one = thread.collection
        events = list(batch.events)
        if batch.version:
            events += self._mark(one, batch.version)
        named_now = self._named_now.pop(thread, {})
        for referrer, named in named_now.items():
            events += self._read_and_drop(self._wanted.put(referrer, named))
        if named_now:
            events += self._tell_left_out()
        if batch.is_listed:
            self._waited_for.discard(one)
        events += self._synced()
        if events:
            self._emit(events)

    def _is_dropped(self, thread: ListWatch, batch: Batch) -> bool:
        """Tell whether a batch comes too late; then another run must tell of what is gone by it."""
        if not (self._is_over or thread.is_stopped):
            return False
        for event in batch.events:
            if isinstance(event, Delete):
                thread.known[event.key.namespace, event.key.name] = ""
        return True

    def _mark(self, one: Collection, version: str) -> list[SourceEvent]:
        """Return up to which version a kind is known in the namespaces of a collection, if that is news."""
        if one.name or self._marks.get(one) == version:  # one object's says nothing of its kind
            return []
        self._marks[one] = version
        return [Mark(source=NAME, kind=one.kind, version=version, namespace=one.namespace)]

    def _synced(self) -> list[SourceEvent]:
        """Return what is to be said when all that was there at the start is known; once."""
        if self._is_synced or self._waited_for:
            return []
        self._is_synced = True
        known = self._source.known
        followed = {*self._collections, *(thread.collection for thread in self._named.values())}
        events: list[SourceEvent] = []
        for one in [one for one in known if one not in followed]:  # of an earlier run
            events += _deletes(one, known.pop(one))
        log.info("everything in the cluster is known", extra={"collections": len(followed)})
        return [*events, Synced(source=NAME)]

    # --- Secrets and ConfigMaps --------------------------------------------------------------------------------------

    def _note_named(self, thread: ListWatch, events: Sequence[SourceEvent]) -> None:
        """Note what some of the manifests of a batch name."""
        if self._is_over or thread.is_stopped:
            return
        named_now = self._named_now.setdefault(thread, {})
        for event in events:
            if isinstance(event, Delete):
                named_now[event.key] = ()
            elif isinstance(event, Upsert):
                assert not isinstance(event.raw, Mapping)
                found = decode_json(event.raw, ORIGIN, self._kinds, api_version=event.api_version, kind=event.kind)
                if found.manifest is not None and found.key is not None:  # of a bad one, the last good one counts
                    named_now[found.key] = tuple(references(found.manifest))

    def _read_named(self, thread: ListWatch) -> list[ListWatch]:
        """Begin to read what manifests name, beside what they named before; return what is not known yet of it."""
        named_now = self._named_now[thread]
        awaited = {}
        dropped: list[SourceEvent] = []
        for referrer, named in named_now.items():
            dropped += self._read_and_drop(self._wanted.put(referrer, [*self._wanted.named_by(referrer), *named]))
        if dropped:  # they gave way to those of other namespaces
            self._emit(dropped)
        for named in named_now.values():
            for key in named:
                one = self._named.get(key)
                if one is not None and not one.answered.is_set():
                    awaited[key] = one
        return list(awaited.values())

    def _read_one(self, key: ObjectKey) -> None:
        kind = self._kinds.named(key.kind)
        if kind is None:
            return
        collection = named_collection(kind, key)
        if not self._is_synced:
            self._waited_for.add(collection)
        self._named[key] = self._follow(collection, self._named_slots)

    def _read_and_drop(self, change: Change) -> list[SourceEvent]:
        """Read what is wanted now, let go of what is not; return what there is to say of the latter."""
        events: list[SourceEvent] = []
        for key in change.removed:
            thread = self._named.pop(key, None)
            if thread is not None:
                thread.stop()
                self._waited_for.discard(thread.collection)
                # Whether or not it was there: its thread may be just about to tell, and will not be heard any more.
                self._source.known.pop(thread.collection, None)
                events += [Delete(source=NAME, key=key), thread.no_problems()]
        for key in change.added:
            self._read_one(key)
        return events

    def _tell_left_out(self) -> list[SourceEvent]:
        events: list[SourceEvent] = []
        left_out = self._wanted.left_out()
        if left_out != self._left_out:
            self._left_out = left_out
            hint = "name fewer, or share them" if left_out else ""
            events.append(_report("credentials", left_out, hint))
        return events


def _wait_for(awaited: Sequence[ListWatch], thread: ListWatch) -> None:
    deadline = time.monotonic() + HOLD_BACK_S
    for one in awaited:
        while not one.answered.wait(0.05):
            if thread.is_stopped or one.is_stopped or time.monotonic() > deadline:
                break


def _deletes(collection: Collection, known: Mapping[Name, str]) -> list[SourceEvent]:
    return [
        Delete(source=NAME, key=ObjectKey(kind=collection.kind, namespace=namespace, name=name))
        for namespace, name in sorted(known)
    ]


def _report(scope: str, message: str, hint: str) -> Problems:
    if not message:
        return Problems(source=NAME, scope=scope)
    found = Diagnostic(
        severity=Severity.ERROR,
        object=f"source {NAME}",
        reason=Reason.SOURCE_FAILED,
        message=message,
        hint=hint,
    )
    return Problems(source=NAME, scope=scope, diagnostics=(found,))


def create_source(settings: Mapping[str, str], kinds: KindTable) -> KubernetesSource:
    """Build the source from text settings (see `config.ClusterSettings`); asks no API.

    Raises:
        ConfigError: A setting is unknown or wrong, or no cluster is configured.
    """
    from datum_router_kubernetes.access import locate

    source = KubernetesSource(settings, kinds)
    locate(settings)
    return source
