"""The `files` source: scan a directory when it changes, and again and again, and emit what changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Mapping

import trio

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.errors import ConfigError
from datum_router.plugins.protocols import Emit, SourceEvent, Synced
from datum_router.reasons import Reason
from datum_router_files import NAME
from datum_router_files.scan import Scanner
from datum_router_files.watch import Changes, Watch

POLL_INTERVAL_S = 0.25
MIN_POLL_INTERVAL_S = 0.01
MAX_POLL_INTERVAL_S = 60.0
# A directory so large that a scan takes long is scanned less often, so that scanning stays below a fifth of a core,
# but still often enough that a change is in force within a second.
MAX_BUSY_INTERVAL_S = 0.6
_IDLE_FACTOR = 4.0
_MIN_PAUSE_S = 0.02
"""Least time between scans that changes call for, so that a burst of edits is gathered."""

log = logging.getLogger(__name__)


class Touched:
    """What a watch has told of since a scan was called for; ask again and again, it may be more each time.

    Attributes:
        paths: Of files; None: anything may have changed.
    """

    __slots__ = ("_watch", "paths")

    def __init__(self, watch: Watch, paths: Changes) -> None:
        self._watch = watch
        self.paths = paths

    def __call__(self) -> Changes:
        """Return what has changed up to now."""
        if self.paths is not None:
            more = self._watch.take()
            self.paths = None if more is None else self.paths | more
        return self.paths


class FilesSource:
    """Deliver the manifests of a directory; see `datum_router_files.scan` for what is seen when."""

    __slots__ = ("_lock", "_poll_interval_s", "_scanner", "_sleep", "_turn", "_watches")

    def __init__(
        self,
        scanner: Scanner,
        *,
        poll_interval_s: float = POLL_INTERVAL_S,
        sleep: Callable[[float], Awaitable[None]] = trio.sleep,
        watches: bool = False,
    ) -> None:
        """Prepare to run.

        Args:
            watches: Let the system tell of changes, and poll beside it.
        """
        self._scanner = scanner
        self._poll_interval_s = poll_interval_s
        self._sleep = sleep
        self._watches = watches
        self._lock = threading.Lock()
        self._turn = trio.Lock()

    async def run(self, emit: Emit) -> None:
        """Emit everything and `Synced` as one batch, then one batch per scan that found changes, until cancelled.

        Scans block in a worker thread. Cancelling does not wait for a scan that hangs on a dead file system; what
        it would have found is found by the next run, which begins with everything again, deletes included.

        Raises:
            SourceError: The directory is not there at the start.
        """
        watch = self._begin_watching()
        try:
            events = await trio.to_thread.run_sync(self._scan, True, None, watch, abandon_on_cancel=True)
            emit([*events, Synced(source=NAME)])
            async with trio.open_nursery() as nursery:
                if watch is not None:
                    nursery.start_soon(self._follow, watch, emit)
                await self._poll(watch, emit)
        finally:
            if watch is not None:
                watch.close()

    async def _poll(self, watch: Watch | None, emit: Emit) -> None:
        took = 0.0
        while True:
            await self._sleep(max(self._poll_interval_s, min(took * _IDLE_FACTOR, MAX_BUSY_INTERVAL_S)))
            took = await self._look(watch, emit)

    async def _follow(self, watch: Watch, emit: Emit) -> None:
        """Scan when the system tells of a change: the first one after a quiet moment at once, then with pauses."""
        while True:
            touched = Touched(watch, await watch.changed())
            took = await self._look(watch, emit, touched)
            await trio.sleep(max(_MIN_PAUSE_S, took))

    async def _look(self, watch: Watch | None, emit: Emit, touched: Touched | None = None) -> float:
        """Scan, emit what changed, and return how many seconds the scan took; out of turn if files were `touched`."""
        # One after the other until the events are emitted: two scans that end while the loop is busy would come back
        # in any order, and the older version of an object could be taken last.
        async with self._turn:
            started = trio.current_time()
            events = await trio.to_thread.run_sync(self._scan, False, touched, watch, abandon_on_cancel=True)
            took = trio.current_time() - started
            if events:
                emit(events)
        return took

    def _begin_watching(self) -> Watch | None:
        try:
            return Watch() if self._watches else None
        except OSError as error:
            log.info("changes of files are found by polling alone", extra={"error": str(error)})
            return None

    def _scan(self, is_full: bool, touched: Touched | None, watch: Watch | None) -> list[SourceEvent]:
        with self._lock:  # an abandoned scan may still be running when the source is started again
            events = self._scanner.scan(is_full=is_full, is_early=touched is not None, touched=touched)
            # Files that were there before stand in directories that are watched.
            if watch is not None and (touched is None or touched.paths is None):
                watch.follow(self._scanner.directories())
            return events


def create_source(settings: Mapping[str, str]) -> FilesSource:
    """Build the source from text settings: `path` (required) and `poll_interval_s`. Touches no file.

    Raises:
        ConfigError: A setting is missing, unknown or out of range.
    """
    known = ("path", "poll_interval_s")
    for name in settings:
        if name not in known:
            hint = did_you_mean(name, known) or f"known settings: {', '.join(known)}"
            raise ConfigError(f"source {NAME}: unknown setting {name} ({hint})", reason=Reason.UNKNOWN_FIELD)
    path = settings.get("path", "")
    if not path or "\0" in path:
        raise ConfigError(
            f"source {NAME}: setting path: found {path!r}, expected a directory of YAML files",
            reason=Reason.MISSING_FIELD,
        )
    text = settings.get("poll_interval_s", str(POLL_INTERVAL_S))
    try:
        poll_interval_s = float(text)
    except ValueError:
        poll_interval_s = -1.0
    if not MIN_POLL_INTERVAL_S <= poll_interval_s <= MAX_POLL_INTERVAL_S:
        raise ConfigError(
            f"source {NAME}: setting poll_interval_s: found {text!r}, expected seconds from "
            f"{MIN_POLL_INTERVAL_S} to {MAX_POLL_INTERVAL_S}",
            reason=Reason.INVALID_VALUE,
        )
    return FilesSource(Scanner(path, source=NAME), poll_interval_s=poll_interval_s, watches=True)
