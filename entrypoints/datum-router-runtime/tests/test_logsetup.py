"""Log filters, line formats, and a writer that never blocks."""

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest

from datum_router.errors import ConfigError
from datum_router_runtime.logsetup import (
    OFF,
    TRACE,
    JsonFormatter,
    LineWriter,
    TextFormatter,
    is_own_logger,
    parse_filter,
    setup_logging,
)


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: log.level for name, log in root.manager.loggerDict.items() if isinstance(log, logging.Logger)}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, log in root.manager.loggerDict.items():
        if isinstance(log, logging.Logger):
            log.setLevel(levels.get(name, logging.NOTSET))


def record(message: str = "snapshot swapped", level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    return logging.getLogger("datum_router_runtime.feed").makeRecord(
        "datum_router_runtime.feed", level, "", 0, message, (), None, extra=extra
    )


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("", {"datum_router.x": logging.INFO, "trio": logging.INFO}),
        ("info", {"datum_router.x": logging.INFO, "trio": logging.INFO}),
        ("WARN", {"datum_router": logging.WARNING}),
        ("warning", {"datum_router": logging.WARNING}),
        ("off", {"datum_router": OFF}),
        ("router=debug", {"datum_router": 10, "datum_router_proxy.x": 10, "trio": 30, "datum_routers": 30}),
        (
            "router=debug,datum_router_proxy=trace,warn",
            {
                "datum_router_proxy.wire.http1": TRACE,
                "datum_router.compiler": 10,
                "datum_router_proxy2": 10,
                "trio": 30,
            },
        ),
        ("info,datum_router_proxy.wire=error", {"datum_router_proxy.wire.x": 40, "datum_router_proxy.wires": 20}),
        ("datum-router-proxy::wire=trace", {"datum_router_proxy.wire.http2": TRACE}),
        ("datum_router_proxy", {"datum_router_proxy.x": TRACE, "datum_router_files": 30}),
        ("router=info,router=debug", {"datum_router": 10}),
        (" , info , ", {"datum_router": 20}),
    ],
)
def test_filters_choose_the_level_of_each_logger(text: str, levels: dict[str, int]) -> None:
    found = parse_filter(text)
    assert {name: found.level_for(name) for name in levels} == levels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dbug", "unknown level 'dbug', expected one of trace, debug, info, warn, error, off (did you mean debug?)"),
        ("ruoter", "warn, error, off (did you mean router?)"),
        ("router=verbose", "unknown level 'verbose'"),
        ("router=", "unknown level ''"),
        ("=debug", "expected LEVEL or LOGGER=LEVEL"),
        ("a b=debug", "found 'a b=debug', expected LEVEL or LOGGER=LEVEL such as router=debug"),
    ],
)  # fmt: skip
def test_bad_filters_say_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_filter(text)
    assert message in str(caught.value)


def test_own_loggers_are_told_from_similar_names() -> None:
    assert is_own_logger("datum_router")
    assert is_own_logger("datum_router.routing.matcher")
    assert is_own_logger("datum_router_proxy")
    assert not is_own_logger("datum_routers")
    assert not is_own_logger("x.datum_router")


def test_json_lines_hold_message_and_key_values() -> None:
    line = json.loads(JsonFormatter().format(record(version=42, name_="x", nan=float("nan"), thing={1}, time="clash")))
    assert line["message"] == "snapshot swapped"
    assert line["level"] == "info"
    assert line["logger"] == "datum_router_runtime.feed"
    assert line["version"] in (42, "42")
    assert line["time_"] == "clash"
    assert line["time"].endswith("Z")


def test_json_keeps_numbers_as_numbers() -> None:
    line = json.loads(JsonFormatter().format(record(version=42, seconds=0.5)))
    assert (line["version"], line["seconds"]) == (42, 0.5)


def test_text_lines_cannot_be_forged_by_values() -> None:
    text = TextFormatter().format(record(path="/x\n2026-01-01 ERROR forged: y", empty="", port=80))
    assert text.count("\n") == 0
    assert text.endswith(' path="/x\\\\n2026-01-01 ERROR forged: y" empty="" port=80')
    assert " INFO  datum_router_runtime.feed: snapshot swapped" in text


def test_traceback_goes_with_the_record() -> None:
    try:
        raise ValueError("inner")
    except ValueError as error:
        item = record()
        item.exc_info = (type(error), error, error.__traceback__)
    assert "ValueError: inner" in json.loads(JsonFormatter().format(item))["traceback"]
    assert TextFormatter().format(item).splitlines()[-1] == "ValueError: inner"


class BlockedStream(io.StringIO):
    """A reader that has stopped reading, until `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = threading.Event()
        self.is_waiting = threading.Event()

    def write(self, text: str) -> int:
        self.is_waiting.set()
        assert self.is_open.wait(10)
        return super().write(text)


def test_full_queue_drops_and_counts_and_says_so_later() -> None:
    stream = BlockedStream()
    writer = LineWriter(stream, max_lines=3)
    writer.handle(record("first"))
    assert stream.is_waiting.wait(10)  # one line is being written, three fit the queue
    for number in range(10):
        writer.handle(record(f"line {number}"))
    assert writer.dropped == 7
    stream.is_open.set()
    assert writer.drain(10)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "first"
    assert "log lines dropped" in lines[1]
    assert lines[2:] == ["line 0", "line 1", "line 2"]


def test_value_that_cannot_be_shown_does_not_raise() -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

    stream = io.StringIO()
    writer = LineWriter(stream)
    writer.setFormatter(TextFormatter())
    writer.handle(record(value=Hostile()))
    assert writer.drain(10)
    assert "cannot be formatted: RuntimeError" in stream.getvalue()


def test_broken_stream_does_not_end_the_writer() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream)
    stream.close()
    writer.handle(record())
    assert writer.drain(10)
    assert writer.dropped == 1


def test_setup_applies_filters_also_to_loggers_made_later() -> None:
    stream = io.StringIO()
    writer = setup_logging({"DATUM_ROUTER_LOG": "router=debug", "DATUM_ROUTER_LOG_FORMAT": "json"}, stream=stream)
    logging.getLogger("datum_router_made_later.x").debug("seen", extra={"n": 1})
    logging.getLogger("somebody_else").debug("not seen")
    logging.getLogger("somebody_else").info("not seen either")
    logging.getLogger("somebody_else").warning("a warning is seen")
    assert writer.drain(10)
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["seen", "a warning is seen"]


def test_setup_twice_leaves_one_handler_and_the_last_levels() -> None:
    first = setup_logging({"DATUM_ROUTER_LOG": "datum_router_proxy=trace"}, stream=io.StringIO())
    second = setup_logging({}, stream=io.StringIO())
    handlers = logging.getLogger().handlers
    assert second in handlers
    assert first not in handlers
    assert not logging.getLogger("datum_router_proxy").isEnabledFor(logging.DEBUG)
    assert logging.getLogger("datum_router_proxy").isEnabledFor(logging.INFO)


def test_unknown_format_is_refused_with_near_miss() -> None:
    with pytest.raises(ConfigError, match=r"found 'jsno', expected text or json \(did you mean json\?\)"):
        setup_logging({"DATUM_ROUTER_LOG_FORMAT": "jsno"})


def test_rust_log_is_not_read() -> None:
    setup_logging({"RUST_LOG": "trace"}, stream=io.StringIO())
    assert not logging.getLogger("datum_router").isEnabledFor(logging.DEBUG)
