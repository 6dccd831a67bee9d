"""The feed: sources -> store -> debounce -> compile -> publish.

The first change after a quiet moment is compiled at once; those that follow within `debounce_s` are gathered, for at
most `debounce_max_s` while they keep coming. What is taken away waits for `debounce_s` in any case: often it is about
to come back, as an object that is replaced does, or an endpoint that moves from one EndpointSlice to another.

A large batch is decoded in turns and compiling is done in steps, so that health checks and the admin listener go on;
what changes meanwhile is compiled next. A source that fails is started again with backoff; what it had emitted stays in
force. Nothing is published before every source has said `Synced` once.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import trio

from datum_router.compiler.compiler import Compiler, CompileResult
from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.errors import SourceError, TerminalSourceError
from datum_router.manifests.meta import ObjectKey
from datum_router.plugins.protocols import Delete, Mark, Problems, Source, SourceEvent, Synced, Upsert
from datum_router.reasons import Reason
from datum_router.reconcile.reports import report_key
from datum_router.registry.store import Store, StoreView
from datum_router_runtime.turns import Signal, in_turns

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 30.0

FEW_EVENTS = 50
"""A batch of at most so many is decoded at once: some milliseconds."""
DECODE_TURN_S = 0.005
"""How long a larger one is decoded before others get a turn (seconds), give or take an object."""

Publish = Callable[[CompileResult], None]
Observe = Callable[[CompileResult | None, StoreView, AbstractSet[ObjectKey]], None]


class Feed:
    """Drive sources into published snapshots.

    Args:
        publish: Called with each result whose content or diagnostics changed; must not block.
        seen: Filled by the store with each object of which a version was read; given with `observe`, and emptied here.
        observe: Called whenever what was read is in what was published: with the result if there is a new one, the view
            that says what was read, and the objects that were seen since the last call. Nothing in that view waits to
            be compiled. Must not block.
        wall_clock: Unix seconds, for people only.

    Attributes:
        synced: Every source has said all it knew at its start.
        failures: Compilations that broke.
        faulty: Compilations that found an error in a manifest.
        compilations, total_s, last_s: How many there were, the time they took together, and the last one.
        succeeded_at: Unix seconds of the last one without an error; 0 before it.
        decode_s: Seconds spent in reading what sources said.
        synced_after_s, first_decode_s, first_s: Seconds until all sources were synced, and of decoding and compiling
            until the first result.
        published_view: What was published last was compiled from it; None before that.
        complaints: What sources said was wrong before all were synced, by scope.
        news: Objects have come or gone, whether or not that changed anything.
    """

    __slots__ = (
        "_changed_at",
        "_compiler",
        "_debounce_max_s",
        "_debounce_s",
        "_dirty",
        "_has_changed",
        "_has_failed",
        "_has_published",
        "_has_removed",
        "_inbox",
        "_is_compiling",
        "_marks",
        "_observe",
        "_publish",
        "_published_marks",
        "_seen",
        "_sources",
        "_spread",
        "_started_at",
        "_store",
        "_unsynced",
        "_wall_clock",
        "compilations",
        "complaints",
        "decode_s",
        "failures",
        "faulty",
        "first_decode_s",
        "first_s",
        "last_s",
        "news",
        "published_view",
        "succeeded_at",
        "synced",
        "synced_after_s",
        "total_s",
    )

    def __init__(
        self,
        *,
        sources: Mapping[str, Source],
        store: Store,
        compiler: Compiler,
        publish: Publish,
        debounce_s: float,
        debounce_max_s: float,
        wall_clock: Callable[[], float] = time.time,
        seen: set[ObjectKey] | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._sources = dict(sources)
        self._seen = set() if seen is None else seen
        self._observe = observe
        self._store = store
        self._compiler = compiler
        self._publish = publish
        self._debounce_s = debounce_s
        self._debounce_max_s = debounce_max_s
        self._unsynced = set(self._sources)
        self._dirty = trio.Event()
        self._has_changed = False
        self._is_compiling = False
        self._has_failed = False
        self._has_published = False
        self._has_removed = False  # something may be about to come back
        self._spread = store.spread_kinds()
        self._inbox: deque[Sequence[SourceEvent]] = deque()  # the first one may be taken in in part
        self._marks: dict[str, str] = {}
        self._published_marks: dict[str, str] = {}
        self.news = Signal()
        self.published_view: StoreView | None = None
        self.complaints: dict[str, tuple[Diagnostic, ...]] = {}
        self._changed_at = -math.inf
        self._wall_clock = wall_clock
        self.synced = False
        self.failures = 0
        self.faulty = 0
        self.compilations = 0
        self.last_s = 0.0
        self.total_s = 0.0
        self.succeeded_at = 0.0
        self.decode_s = 0.0
        self._started_at = 0.0
        self.synced_after_s = self.first_decode_s = self.first_s = 0.0

    @property
    def sources(self) -> tuple[Source, ...]:
        """Return all sources."""
        return tuple(self._sources.values())

    async def run(self) -> None:
        """Run until cancelled."""
        self._started_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for name, source in self._sources.items():
                nursery.start_soon(self._run_source, name, source)
            nursery.start_soon(self._compile_loop)

    def emit(self, events: Sequence[SourceEvent]) -> None:
        """Take one batch of a source; all of it comes into force in one compilation."""
        if any(isinstance(event, Upsert | Delete) for event in events):
            self.news.notify()
        if self._inbox or len(events) > FEW_EVENTS:
            self._inbox.append(events)
            self._has_removed |= self._may_remove(events)
            self._changed_at = trio.current_time()
            self._dirty.set()
            return
        started = time.perf_counter()
        for event in events:
            self._apply(event)
        self.decode_s += time.perf_counter() - started
        if self._has_changed:
            self._has_removed |= self._may_remove(events)
            self._changed_at = trio.current_time()
            self._dirty.set()
        else:
            self._tell()

    def _may_remove(self, events: Sequence[SourceEvent]) -> bool:
        """Tell whether something that serves may be missing in these events, which others bring back."""
        return any(
            isinstance(event, Delete) or (isinstance(event, Upsert) and event.kind in self._spread) for event in events
        )

    @property
    def _is_settled(self) -> bool:
        """Tell whether all that was taken in is in what was published last: what changed nothing is at once."""
        return not (self._has_changed or self._inbox or self._is_compiling or self._has_failed)

    def published_marks(self) -> Mapping[str, str]:
        """Return, by `report_key`, the API's version up to which everything is in what was published last."""
        return dict(self._marks if self._is_settled else self._published_marks)

    def _tell(self) -> None:
        """Tell what was seen, if none of it waits to be compiled."""
        if self._observe is None or not self._seen or not self._is_settled or not self._has_published:
            return
        seen = frozenset(self._seen)
        self._seen.clear()
        self._observe(None, self._store.view(), seen)

    def _take_in(self) -> Generator[None, None, None]:
        """Apply what waits, in order, one event a step."""
        inbox = self._inbox
        while inbox:
            for event in inbox[0]:
                started = time.perf_counter()
                self._apply(event)
                self.decode_s += time.perf_counter() - started
                yield
            inbox.popleft()

    def _apply(self, event: SourceEvent) -> None:
        if isinstance(event, Synced):
            self._unsynced.discard(event.source)
            if not self._unsynced and not self.synced:
                self.synced = True
                self.synced_after_s = trio.current_time() - self._started_at
                self.complaints.clear()
                self._has_changed = True
            return
        if isinstance(event, Mark):
            self._marks[report_key(event.kind, event.namespace)] = event.version
            return
        if isinstance(event, Problems) and not self.synced:
            self._complain(event)
        change = self._store.apply(event)
        if change.changed or change.diagnostics_changed:
            self._has_changed = True

    def _complain(self, event: Problems) -> None:
        """Tell why nothing is known yet: diagnostics are published with the first snapshot, which waits for it."""
        for diagnostic in event.diagnostics:
            if diagnostic not in self.complaints.get(event.scope, ()):
                level = logging.ERROR if diagnostic.severity is Severity.ERROR else logging.WARNING
                log.log(level, "source is not synced", extra={"source": event.source, "why": diagnostic.render()})
        self.complaints[event.scope] = event.diagnostics

    async def _run_source(self, name: str, source: Source) -> None:
        backoff = FIRST_BACKOFF_S
        while True:
            started = trio.current_time()
            try:
                await source.run(self.emit)
            except TerminalSourceError as error:
                log.error("source ended for good", extra={"source": name, "error": str(error)})
                self._report_source(name, str(error))
                return
            except SourceError as error:
                log.warning("source failed, will retry", extra={"source": name, "error": str(error)})
                self._report_source(name, str(error))
            except Exception as error:
                log.exception("source broke, will retry", extra={"source": name})
                self._report_source(name, f"{type(error).__name__}: {error}")
            else:
                log.warning("source returned, will be started again", extra={"source": name})
            if trio.current_time() - started > MAX_BACKOFF_S:
                backoff = FIRST_BACKOFF_S
            await trio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_S)

    def _report_source(self, name: str, message: str) -> None:
        diagnostic = Diagnostic(
            severity=Severity.ERROR, object=f"source {name}", reason=Reason.SOURCE_FAILED, message=message
        )
        self.emit([Problems(source=name, scope="", diagnostics=(diagnostic,))])

    async def _compile_loop(self) -> None:
        last = -math.inf
        while True:
            await self._dirty.wait()
            now = trio.current_time()
            if now - last < self._debounce_s:
                await self._gather(until=now + self._debounce_max_s)
            elif self._has_removed:
                await self._gather(until=now + self._debounce_s)
            self._has_removed = False
            self._dirty = trio.Event()
            await in_turns(self._take_in(), DECODE_TURN_S)
            if not (self._has_changed and self.synced):
                self._tell()
                continue
            started = trio.current_time()
            view, marks, seen = self._store.view(), dict(self._marks), frozenset(self._seen)
            self._seen.clear()
            self._has_changed = False
            self._is_compiling = True
            try:
                result = await self._compile(view)
            except Exception:
                # A fault of ours or of a plugin: what is in force stays in force, and the next change is tried again.
                log.exception("compilation failed, the last good snapshot stays in force")
                self.failures += 1
                self._has_failed = True
                self._seen.update(seen)
                last = self._note_compiled(started)
                continue
            finally:
                self._is_compiling = False
            self._note_compiled(started)
            if all(diagnostic.severity is not Severity.ERROR for diagnostic in result.diagnostics):
                self.succeeded_at = self._wall_clock()
            else:
                self.faulty += 1
            log.debug(
                "compiled",
                extra={
                    "version": result.data.version,
                    "rules": len(result.data.rules),
                    "seconds": round(self.last_s, 6),
                },
            )
            self._published_marks, self.published_view = marks, view
            self._has_failed = False
            self._has_published = True
            self._publish(result)
            if self._observe is not None:
                self._observe(result, view, seen)
                self._tell()
            last = trio.current_time()
            await trio.lowlevel.checkpoint()

    async def _compile(self, view: StoreView) -> CompileResult:
        """Compile a view step by step: health and the admin listener go on in between."""
        return await in_turns(self._compiler.compile_in_steps(view))

    def _note_compiled(self, started: float) -> float:
        """Count a compilation that has ended; return when that was."""
        now = trio.current_time()
        self.compilations += 1
        if self.compilations == 1:
            self.first_decode_s, self.first_s = self.decode_s, now - started
        self.last_s = now - started
        self.total_s += self.last_s
        return now

    async def _gather(self, *, until: float) -> None:
        while True:
            wait_s = min(self._changed_at + self._debounce_s, until) - trio.current_time()
            if wait_s <= 0:
                return
            await trio.sleep(wait_s)
