"""A thread that follows one collection: reads what its `Follower` says, and hands over batches of events.

Theory of operation. Reading blocks, so each collection has a thread of its own, which hands each page and each batch
of watch events over and waits until it has been taken: what is not taken is not read, and TCP slows the API down.
`stop` ends a thread at once, whatever it waits for, but for a connection that is being opened.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Origin
from datum_router.errors import ClusterError, ClusterNotFound, ClusterUnavailable
from datum_router.manifests.meta import ObjectKey
from datum_router.plugins.protocols import Delete, Problems, SourceEvent, Upsert
from datum_router_kubernetes import NAME, counters
from datum_router_kubernetes.answers import Status, describe, error_of_status, status_of
from datum_router_kubernetes.budget import Budget, Holding
from datum_router_kubernetes.client import ApiClient, Hold, Stream
from datum_router_kubernetes.collection import Collection
from datum_router_kubernetes.counters import Counters
from datum_router_kubernetes.follow import Damaged, Follower, Head, ReadPage, Trouble, Verdict, Wait, Watch
from datum_router_kubernetes.follow import Name as ObjectName

log = logging.getLogger(__name__)

LISTS_AT_ONCE = 4
"""How many collections are listed at a time, of those that are listed whole."""
NAMED_LISTS_AT_ONCE = 8
"""The same for single objects."""
RETURN_SPREAD_S = 0.5
"""When an API is back, those who waited for it ask within so many seconds, not all at once."""

ORIGIN: Final = Origin(source=NAME)


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    token: str | None = msgspec.field(default=None, name="continue")


class _List(msgspec.Struct, frozen=True):
    """A page, its items not yet decoded."""

    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _ItemMeta(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Item(msgspec.Struct, frozen=True):
    metadata: _ItemMeta


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


_LIST: Final = msgspec.json.Decoder(_List)
_ITEM: Final = msgspec.json.Decoder(_Item)
_EVENT: Final = msgspec.json.Decoder(_Event)
_BROKEN: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)


class Stopped(Exception):
    """Report that nobody takes batches any more."""


class Batch(msgspec.Struct, frozen=True):
    """What is handed over at once.

    Attributes:
        version: Everything up to this version of the API was handed over, this batch included; empty: not known.
        is_listed: As the follower's.
    """

    events: list[SourceEvent]
    version: str = ""
    is_listed: bool = False


class Reach:
    """What the threads of one source know together: whether the API answers. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: set[threading.Event] = set()
        self._failing_since = 0.0
        self._error = ""

    def answered(self) -> None:
        """Note an answer: wake who waits for one."""
        with self._lock:
            if self._error:
                self._error = ""
                for one in self._waiting:
                    one.set()

    def failed(self, error: str) -> None:
        """Note a request without an answer."""
        with self._lock:
            if not self._error:
                self._error = error
                self._failing_since = self._clock()

    def failure(self, *, after_s: float) -> str:
        """Return how requests began to fail if there was no answer for so long since; else nothing."""
        with self._lock:
            return self._error if self._error and self._clock() - self._failing_since >= after_s else ""

    @contextlib.contextmanager
    def waiting(self, wake: threading.Event) -> Iterator[None]:
        """Have `wake` set when the API answers, as long as this block lasts."""
        with self._lock:
            self._waiting.add(wake)
        try:
            yield
        finally:
            with self._lock:
                self._waiting.discard(wake)


class ListWatch:
    """Follow one collection in a thread.

    Args:
        hand_over: Takes a batch, from this thread; returns when it has been taken, and raises `Stopped` if nobody
            takes anything any more.
        ended: Called at the thread's very end.

    Attributes:
        answered: Set once it is known what was there at the start.
    """

    def __init__(
        self,
        client: ApiClient,
        collection: Collection,
        follower: Follower,
        *,
        hand_over: Callable[[ListWatch, Batch], None],
        ended: Callable[[ListWatch], None],
        slots: threading.Semaphore,
        reach: Reach,
        counts: Counters,
        watch_idle_s: float,
        rng: random.Random,
        budget: Budget | None = None,
    ) -> None:
        self.collection = collection
        self._budget = budget
        self._holding = None if budget is None else Holding(budget, collection)
        self.answered = threading.Event()
        self._client = client
        self._follower = follower
        self._hand_over = hand_over
        self._ended = ended
        self._slots = slots
        self._reach = reach
        self._counts = counts
        self._watch_idle_s = watch_idle_s
        self._rng = rng
        self._hold = Hold()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._has_slot = False
        self._has_watched = False
        self._heard_at = 0.0
        self._shown: Trouble | None = None
        self._logged = ""
        what = f"{collection.kind}-{collection.name}" if collection.name else collection.kind
        self._thread = threading.Thread(target=self._run, name=f"kubernetes-{what}", daemon=True)

    @property
    def known(self) -> dict[ObjectName, str]:
        """Return what was handed over; changes as long as the thread runs."""
        return self._follower.known

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Have the thread end soon; from any thread, never blocks."""
        self._stopping.set()
        self._hold.close()
        self._wake.set()

    @property
    def is_stopped(self) -> bool:
        """Tell whether `stop` was called."""
        return self._stopping.is_set()

    # --- in the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._go_on()
        except Stopped:
            pass
        finally:
            self._free_slot()
            self._ended(self)

    def _go_on(self) -> None:
        step = self._follower.step()
        if isinstance(step, Wait):
            self._free_slot()
            self._sleep(step)
            return
        opened_at = 0.0
        try:
            if isinstance(step, ReadPage):
                if self._take_slot():
                    self._read_page(step)
            else:
                with self._open(step) as stream:
                    opened_at = self._heard_at = time.monotonic()
                    self._reach.answered()
                    self._counts.heard(self.collection.kind)
                    has_spoken = self._read_events(stream.batches())
                self._follower.ended(lasted_s=time.monotonic() - opened_at, has_spoken=has_spoken)
        except ClusterError as error:
            if not self._stopping.is_set():
                now = time.monotonic()
                self._fail(error, now - opened_at if opened_at else 0.0, now - self._heard_at if opened_at else 0.0)
        except Stopped:
            raise
        except Exception as error:
            log.exception("a collection cannot be followed, it is listed anew", extra=self._about())
            self._fail(Damaged(f"{type(error).__name__}: {error}"))

    def _read_page(self, step: ReadPage) -> None:
        one = self.collection
        asked_at = time.monotonic()
        text = self._client.request(
            "GET", one.path, query=one.list_query(step.token, step.limit), accept=one.list_accept, hold=self._hold
        )
        self._counts.add(counters.LIST_SECONDS, one.kind, time.monotonic() - asked_at)
        self._reach.answered()
        self._counts.heard(one.kind)
        try:
            page = _LIST.decode(text)
            items = page.items or []
            heads = [_head(_ITEM.decode(item)) for item in items]
        except _BROKEN as error:
            raise Damaged(f"the answer is no list: {error}") from error
        if self._holding is not None:
            sizes = {(head.namespace, head.name): len(memoryview(items[at])) for at, head in enumerate(heads)}
            self._holding.take_page(sizes, is_first=not step.token)
        taken = self._follower.take_page(heads, page.metadata.resource_version, page.metadata.token or "")
        events: list[SourceEvent] = [self._upsert(items[index]) for index in taken.news]
        events += [self._delete(name) for name in taken.gone]
        if self._holding is not None and taken.is_last:
            self._holding.let_go(*taken.gone)
        self._counts.add(counters.EVENTS, one.kind, len(events))
        if taken.is_last:
            self._counts.add(counters.LISTS, one.kind)
            if self._follower.lists > 1:
                self._counts.add(counters.RELISTS, one.kind)
            self._free_slot()
        self._tell(events, version=self._follower.version if taken.is_last else "")

    def _open(self, step: Watch) -> Stream:
        one = self.collection
        self._counts.add(counters.WATCHES, one.kind)
        if self._has_watched:
            self._counts.add(counters.WATCH_RESTARTS, one.kind)
        self._has_watched = True
        return self._client.stream(
            one.path,
            query=one.watch_query(step.version, step.timeout_s),
            read_timeout_s=self._watch_idle_s,
            accept=one.watch_accept,
            hold=self._hold,
        )

    def _read_events(self, batches: Iterator[list[bytes]]) -> bool:
        """Take events until the watch ends; tell whether there were any."""
        has_spoken = False
        for lines in batches:
            self._heard_at = time.monotonic()
            self._counts.heard(self.collection.kind)
            events: list[SourceEvent] = []
            try:
                for line in lines:
                    found = self._read_event(line)
                    if found is not None:
                        events.append(found)
                    has_spoken = True
            finally:  # what stands before a broken line is good
                self._counts.add(counters.EVENTS, self.collection.kind, len(events))
                if has_spoken:
                    self._tell(events, version=self._follower.version)
            if self._budget is not None:
                wait_s = self._budget.pace(len(lines), now=time.monotonic())
                if wait_s:
                    self._counts.add(counters.PACED_SECONDS, self.collection.kind, wait_s)
                    self._stopping.wait(wait_s)
        return has_spoken

    def _read_event(self, line: bytes) -> SourceEvent | None:
        try:
            event = _EVENT.decode(line)
            if event.type == "ERROR":
                raise self._error_in(status_of(event.object))
            item = _ITEM.decode(event.object)
        except _BROKEN as error:
            raise Damaged(f"a line of the watch is no event: {error}") from error
        head = _head(item)
        name = (head.namespace, head.name)
        if self._holding is not None and event.type in ("ADDED", "MODIFIED"):
            self._holding.take_event(name, len(memoryview(event.object)))
        verdict = self._follower.take_event(event.type, head)
        if verdict is Verdict.UPSERT:
            return self._upsert(event.object)
        if verdict is Verdict.DELETE:
            if self._holding is not None:
                self._holding.let_go(name)
            return self._delete(name)
        return None

    def _error_in(self, status: Status | None) -> ClusterError:
        if status is None or not status.code:
            return Damaged("an ERROR event holds no Status")
        what = describe("GET", self.collection.path, {"watch": "1"})
        return error_of_status(what, status.code, status)

    def _upsert(self, item: msgspec.Raw) -> Upsert:
        # A copy: as it is, it would keep the whole page in memory as long as it waits to be taken in.
        one = self.collection
        return Upsert(source=NAME, raw=item.copy(), api_version=one.api_version, kind=one.kind, origin=ORIGIN)

    def _delete(self, name: ObjectName) -> Delete:
        return Delete(source=NAME, key=ObjectKey(kind=self.collection.kind, namespace=name[0], name=name[1]))

    def _fail(self, error: ClusterError, lasted_s: float = 0.0, silent_s: float = 0.0) -> None:
        one = self.collection
        self._counts.add(counters.ERRORS, one.kind)
        if not isinstance(error, ClusterUnavailable):
            self._reach.answered()
        elif not error.status:
            self._reach.failed(str(error))
        gone = self._follower.failed(error, lasted_s=lasted_s, silent_s=silent_s)
        if self._holding is not None and gone:
            self._holding.let_go(*gone)
        text = str(error)
        if text != self._logged:
            self._logged = text
            if one.is_optional and isinstance(error, ClusterNotFound):
                log.info("the cluster does not have this kind, it is looked for from time to time", extra=self._about())
            else:
                # What is told as a diagnostic, with what would be right, is logged where that is taken in.
                level = logging.WARNING if self._follower.trouble is None else logging.DEBUG
                message = "a collection of the cluster cannot be read, will retry"
                log.log(level, message, extra={**self._about(), "error": text})
        if not self._follower.is_listing:
            self._free_slot()
        self._tell([self._delete(name) for name in gone])

    def _tell(self, events: list[SourceEvent], version: str = "") -> None:
        """Hand over what there is to tell, be it only that something is known now."""
        follower = self._follower
        if version and self._logged:
            self._logged = ""
            log.info("a collection of the cluster is read again", extra=self._about())
        if follower.trouble != self._shown:
            self._shown = follower.trouble
            events = [*events, self._problems(follower.trouble)]
        is_news = follower.is_listed and not self.answered.is_set()
        if events or version or is_news:
            self._hand_over(self, Batch(events, version, follower.is_listed))
        if is_news:
            self.answered.set()

    def no_problems(self) -> Problems:
        """Return the event that takes back what was reported of this collection."""
        one = self.collection
        return Problems(source=NAME, scope=f"{one.path}?{one.name}" if one.name else one.path)

    def _problems(self, trouble: Trouble | None) -> Problems:
        one = self.collection
        if trouble is None:
            return self.no_problems()
        found = Diagnostic(
            severity=trouble.severity,
            object=f"source {NAME}",
            path=one.resource,
            reason=trouble.reason,
            message=trouble.message,
            hint=trouble.hint,
        )
        return msgspec.structs.replace(self.no_problems(), diagnostics=(found,))

    # --- waiting ---------------------------------------------------------------------------------------------------

    def _sleep(self, wait: Wait) -> None:
        if not wait.is_for_api:
            self._wake.wait(wait.seconds)
        else:
            with self._reach.waiting(self._wake):
                was_woken = self._wake.wait(wait.seconds)
            if was_woken and not self._stopping.is_set():
                self._stopping.wait(self._rng.random() * min(RETURN_SPREAD_S, wait.seconds))
        self._wake.clear()  # whether it was `stop` that woke us is looked at next

    def _take_slot(self) -> bool:
        while not self._has_slot and not self._stopping.is_set():
            self._has_slot = self._slots.acquire(timeout=0.5)
        return self._has_slot and not self._stopping.is_set()

    def _free_slot(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._slots.release()

    def _about(self) -> dict[str, str]:
        one = self.collection
        return {"resource": one.resource, "namespace": one.namespace, **({"object": one.name} if one.name else {})}


def _head(item: _Item) -> Head:
    found = item.metadata
    return Head(found.namespace, found.name, found.resource_version)
