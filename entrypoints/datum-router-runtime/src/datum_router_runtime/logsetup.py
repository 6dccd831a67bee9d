"""Logging set-up: filters from `DATUM_ROUTER_LOG`, text or JSON lines on standard error, never blocking the router.

Filters are a comma-separated list in the style of RUST_LOG: `info` sets the level of everything, and
`router=debug,datum_router_proxy=trace` sets it below one logger. `router` stands for the project's own loggers. The
longest name that fits a logger decides, so `warn,datum_router_runtime=debug` is quiet but for the runtime.

`RUST_LOG` is not read: a process of another language in the same pod may need it to mean something else.

Records pass a bounded queue to one thread that writes. If the reader of standard error stops reading, lines are
dropped and counted, and traffic goes on; the next line that can be written says how many are missing.
"""

from __future__ import annotations

import atexit
import json
import logging
import queue
import re
import sys
import threading
import time
from collections.abc import Mapping
from typing import Literal, TextIO

import msgspec

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.errors import ConfigError
from datum_router.reasons import Reason

TRACE = 5
OFF = logging.CRITICAL + 10
LEVELS: Mapping[str, int] = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "off": OFF,
}
SYNONYMS: Mapping[str, str] = {"warning": "warn", "critical": "error", "fatal": "error"}
ALIAS = "router"
OWN_PREFIX = "datum_router"
ACCESS_LOGGER = "datum_router.access"
"""Writes one line for each request; no module is called so."""
DEFAULT_FILTER = "info"
QUEUE_LINES = 10_000
"""Lines that may wait for standard error; more are dropped and counted."""
FLUSH_TIMEOUT_S = 1.0

LogFormat = Literal["text", "json"]

_TARGET = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:(?:\.|::|-)[A-Za-z0-9_]+)*")
_STANDARD_FIELDS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}


LEAKING_LOGGERS = ("hpack",)
"""Libraries that log header fields, cookies included, at debug level: never below WARNING, whatever is asked for."""


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Levels by logger name; `default` applies where no name fits. `router` is kept apart as an alias."""

    default: int = logging.INFO
    targets: Mapping[str, int] = {}

    def level_for(self, logger: str) -> int:
        """Return the level in force for a logger: the longest dotted prefix wins, then `router`, then the default."""
        name = logger
        while name:
            if name in self.targets:
                return self.targets[name]
            name = name.rpartition(".")[0]
        if ALIAS in self.targets and is_own_logger(logger):
            return self.targets[ALIAS]
        return self.default


def is_own_logger(name: str) -> bool:
    """Tell whether a logger is the project's own: `datum_router` or `datum_router_<part>`, and what is below."""
    head = name.partition(".")[0]
    return head == OWN_PREFIX or head.startswith(OWN_PREFIX + "_")


def parse_filter(text: str, *, name: str = "DATUM_ROUTER_LOG") -> LogFilter:
    """Read a filter such as `info`, `router=debug` or `warn,datum_router_proxy=trace`; empty means `info`.

    Level names may have any case; `::` and `-` in a logger name are read as `.` and `_`. Of two settings of the
    same name the last one counts.

    Args:
        name: What the value is called in errors.

    Raises:
        ConfigError: An unknown level, or a part that is neither LEVEL nor LOGGER=LEVEL.
    """
    default = LEVELS[DEFAULT_FILTER]
    targets: dict[str, int] = {}
    has_default = False
    for part in text.split(","):
        part = part.strip()
        if not part:
            continue
        target, separator, level = (piece.strip() for piece in part.partition("="))
        if not separator:
            if _is_level(part):
                default, has_default = _level(part, name), True
            elif is_own_logger(_dotted(part)) or part == ALIAS:
                targets[_dotted(part)] = TRACE  # a name alone means everything of it
            else:
                _level(part, name)
            continue
        if not _TARGET.fullmatch(target):
            raise ConfigError(
                f"{name}: found {part!r}, expected LEVEL or LOGGER=LEVEL such as router=debug",
                reason=Reason.INVALID_VALUE,
            )
        targets[_dotted(target)] = _level(level, name)
    if targets and not has_default:
        # As with RUST_LOG: naming some loggers silences the rest, here down to warnings, which are never noise.
        default = logging.WARNING
    return LogFilter(default=default, targets=targets)


def _dotted(target: str) -> str:
    return target.replace("::", ".").replace("-", "_")


def _is_level(text: str) -> bool:
    folded = text.lower()
    return folded in LEVELS or folded in SYNONYMS


def _level(text: str, name: str) -> int:
    folded = SYNONYMS.get(text.lower(), text.lower())
    if folded not in LEVELS:
        hint = did_you_mean(folded, (*LEVELS, *SYNONYMS, ALIAS))
        raise ConfigError(
            f"{name}: unknown level {text!r}, expected one of {', '.join(LEVELS)}" + (f" ({hint})" if hint else ""),
            reason=Reason.INVALID_VALUE,
        )
    return LEVELS[folded]


# --- lines -----------------------------------------------------------------------------------------------------------


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the key-values that a call gave in `extra`, in the order given."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}


def level_name(level: int) -> str:
    """Return the lower-case name of the highest known level that is not above `level`."""
    return max((number, name) for name, number in LEVELS.items() if number <= max(level, TRACE))[1]


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def _time(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"

    def _traceback(self, record: logging.LogRecord) -> str:
        parts = []
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return "\n".join(parts)


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, message, then the key-values; `traceback` if there is one.

    A key-value that has the name of one of these four gets an underscore behind it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its line end; never raises on a value that JSON does not know."""
        line: dict[str, object] = {
            "time": self._time(record),
            "level": level_name(record.levelno),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in fields_of(record).items():
            line[f"{key}_" if key in ("time", "level", "logger", "message", "traceback") else key] = value
        traceback = self._traceback(record)
        if traceback:
            line["traceback"] = traceback
        try:
            return json.dumps(line, ensure_ascii=False, default=str, allow_nan=False)
        except (TypeError, ValueError):  # a NaN, a key that is no text, a circle: shown as text rather than lost
            return json.dumps(
                {key: value if isinstance(value, str | int) else str(value) for key, value in line.items()}
            )


class TextFormatter(_Formatter):
    """`TIME LEVEL logger: message key=value ...`; control characters are escaped so that one record is one line.

    A traceback follows on lines of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines if there is a traceback, without the last line end."""
        parts = [f"{self._time(record)} {level_name(record.levelno).upper():5} {record.name}: "]
        parts.append(_one_line(record.getMessage()))
        parts += [f" {key}={_shown(value)}" for key, value in fields_of(record).items()]
        traceback = self._traceback(record)
        if traceback:
            parts.append("\n" + traceback)
        return "".join(parts)


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _shown(value: object) -> str:
    text = _one_line(str(value))
    return json.dumps(text, ensure_ascii=False) if text == "" or any(c in text for c in ' "=') else text


# --- writing ---------------------------------------------------------------------------------------------------------


class LineWriter(logging.Handler):
    """Hand formatted lines to one writing thread through a bounded queue; drop and count what does not fit.

    The thread is started with the first record, so that a process may fork after set-up and before it logs.
    """

    def __init__(self, stream: TextIO, *, max_lines: int = QUEUE_LINES) -> None:
        super().__init__()
        self._stream = stream
        self._queue: queue.Queue[str | threading.Event] = queue.Queue(max_lines)
        self._thread: threading.Thread | None = None
        self._reported = 0
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Format in the calling thread (the record's values may change later) and queue; never blocks or raises."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a value whose __str__ raises must not end a request
            line = f"log record of {record.name} cannot be formatted: {type(error).__name__}"
        if self._thread is None:
            self._start()
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self.dropped += 1  # under the handler's lock: logging.Handler.handle takes it

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._write, name="log-writer", daemon=True)
        self._thread.start()
        atexit.register(self.drain)

    def _write(self) -> None:
        while True:
            line = self._queue.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            missing = self.dropped - self._reported
            try:
                if missing:
                    self._stream.write(f"{self._missing(missing)}\n")
                    self._reported += missing
                self._stream.write(f"{line}\n")
                if self._queue.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # a closed pipe, a full disk: the line is lost, the router goes on
                self.dropped += 1

    def _missing(self, count: int) -> str:
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, "log lines dropped", None, None)
        record.__dict__["lines"] = count
        return self.format(record)

    def drain(self, timeout_s: float = FLUSH_TIMEOUT_S) -> bool:
        """Wait until what was queued is written, at most `timeout_s` seconds; return whether it was. Blocks."""
        if self._thread is None or not self._thread.is_alive():
            return self._queue.empty()
        written = threading.Event()
        deadline = time.monotonic() + timeout_s
        try:
            self._queue.put(written, timeout=timeout_s)
        except queue.Full:
            return False
        return written.wait(max(0.0, deadline - time.monotonic()))


def dropped_lines() -> int:
    """Return how many lines this process has given up since its handler was installed."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LineWriter))


class _LevelFilter(logging.Filter):
    """Apply a LogFilter to records; remembers the answer for each logger name (loggers are modules: bounded)."""

    def __init__(self, levels: LogFilter) -> None:
        super().__init__()
        self._levels = levels
        self._known: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        level = self._known.get(record.name)
        if level is None:
            level = self._known[record.name] = self._levels.level_for(record.name)
        return record.levelno >= level


def setup_logging(
    environ: Mapping[str, str],
    *,
    log_format: LogFormat | None = None,
    stream: TextIO | None = None,
    default: str = DEFAULT_FILTER,
) -> LineWriter:
    """Install the one handler of this process at the root logger, replacing what an earlier call installed.

    Loggers get levels of their own, so that `log.isEnabledFor(DEBUG)` on the request path answers without a handler.

    Args:
        environ: `DATUM_ROUTER_LOG` (filters) and `DATUM_ROUTER_LOG_FORMAT` (`text` or `json`).
        log_format: Wins over the environment; text if neither says anything.
        default: The filter if the environment has none.

    Raises:
        ConfigError: Filters or format that cannot be read.
    """
    levels = parse_filter(environ.get("DATUM_ROUTER_LOG", "") or default)
    chosen = log_format or environ.get("DATUM_ROUTER_LOG_FORMAT", "") or "text"
    formatters: dict[str, type[_Formatter]] = {"text": TextFormatter, "json": JsonFormatter}
    if chosen not in formatters:
        hint = did_you_mean(chosen, formatters)
        raise ConfigError(
            f"DATUM_ROUTER_LOG_FORMAT: found {chosen!r}, expected text or json" + (f" ({hint})" if hint else ""),
            reason=Reason.INVALID_VALUE,
        )
    logging.addLevelName(TRACE, "TRACE")
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, LineWriter):
            root.removeHandler(handler)
            handler.drain()
    writer = LineWriter(stream or sys.stderr)
    writer.setFormatter(formatters[chosen]())
    writer.addFilter(_LevelFilter(levels))
    root.addHandler(writer)
    # A plugin's loggers may come to be later and then inherit from the root: so it must let pass what `router` asks
    # for, and the filter on the handler has the last word.
    root.setLevel(min(levels.default, levels.targets.get(ALIAS, levels.default)))
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and is_own_logger(name):
            logger.setLevel(levels.level_for(name))
    for target, level in levels.targets.items():
        if target != ALIAS:
            logging.getLogger(target).setLevel(level)
    for name in LEAKING_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, levels.level_for(name)))
    return writer
