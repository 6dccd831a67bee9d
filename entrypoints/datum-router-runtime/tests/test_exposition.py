"""The page is read by somebody else's parser, and stays within its bounds."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from datum_router.observe import names
from datum_router.observe.cells import Cell, CellKey
from datum_router.observe.ledger import Ledger
from datum_router.observe.meter import DURATION_BOUNDS_S, MeterBook
from datum_router_runtime.exposition import number, render


def parse(page: bytes) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(page.decode())}


def samples(family: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in family.samples}
    assert len(found) == len(family.samples), "a series is there twice"
    return found


def page_of(ledger: Ledger, values: dict[CellKey, float] | None = None) -> bytes:
    return render({**ledger.counters(), **(values or {})}, ledger.routes())


def test_requests_are_a_histogram_that_another_parser_understands() -> None:
    book = MeterBook()
    meter = book.meter("h1", "ns/r", "ns/s")
    for duration_s in (0.0005, 0.003, 0.003, 99.0):
        meter.ended(200, duration_s, 1, 10)
    ledger = Ledger()
    ledger.take(book.take(), [], now=0)
    families = parse(page_of(ledger))
    histogram = families["datum_router_request_duration_seconds"]
    assert histogram.type == "histogram"
    found = samples(histogram)
    pair = (("route", "ns/r"), ("service", "ns/s"))
    name = "datum_router_request_duration_seconds"
    buckets = [
        found[(f"{name}_bucket", (("le", bound), *pair))] for bound in (*(f"{b:g}" for b in DURATION_BOUNDS_S), "+Inf")
    ]
    assert buckets == [1, 1, *[3] * (len(DURATION_BOUNDS_S) - 2), 4]
    assert found[(f"{name}_count", pair)] == 4
    assert found[(f"{name}_sum", pair)] == pytest.approx(99.0065)
    requests = samples(families["datum_router_requests"])
    assert requests == {
        ("datum_router_requests_total", (("code_class", "2xx"), *pair)): 4,
        ("datum_router_requests_total", (("code_class", "5xx"), *pair)): 0,
    }


def test_label_values_are_escaped_and_come_back_as_they_were() -> None:
    name = 'back\\slash, "quotes" and a\nline feed'
    ledger = Ledger()
    ledger.take([], [Cell(names.ACCEPTED.name, (name,), 7)], now=0)
    book = MeterBook()
    book.meter("h1", name, "ns/s").ended(200, 0.1, 0, 0)
    ledger.take(book.take(), [], now=0)
    families = parse(page_of(ledger))
    (sample,) = families["datum_router_connections_accepted"].samples
    assert sample.labels == {"listener": name}
    assert {sample.labels["route"] for sample in families["datum_router_requests"].samples} == {name}


def test_each_metric_is_shown_with_its_type_and_help_once_and_all_are_known() -> None:
    ledger = Ledger()
    values: dict[CellKey, float] = {}
    for metric in names.METRICS.values():
        if metric.kind is not names.Kind.HISTOGRAM:
            labels = tuple(label.values[0] if label.values else "ns/x" for label in metric.labels)
            values[(metric.name, labels)] = 1
    book = MeterBook()
    book.meter("h1", "ns/r", "ns/s").ended(200, 0.1, 0, 0)
    ledger.take(book.take(), [], now=0)
    page = page_of(ledger, values)
    for metric in names.METRICS.values():
        assert page.count(f"# TYPE {metric.name} {metric.kind}\n".encode()) == 1
    families = parse(page)
    assert {family.documentation for family in families.values()} == {one.help for one in names.METRICS.values()}
    assert len(families) == len(names.METRICS)


def test_counters_without_labels_are_there_from_the_beginning() -> None:
    families = parse(render({}, ()))
    shown = {f"{name}_total" for name in families}
    assert shown == {
        metric.name for metric in names.METRICS.values() if metric.kind is names.Kind.COUNTER and not metric.labels
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.0, "3"),
        (2**60, str(2**60)),
        (0.25, "0.25"),
        (1e-7, "1e-07"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
    ],
)
def test_numbers_are_written_so_that_they_read_the_same(value: float, text: str) -> None:
    assert number(value) == text
    assert float(number(value)) == value


def test_k15_the_page_of_the_largest_ledger_stays_within_5_mib_and_1_s() -> None:
    """Every series that could be: 10,000 routes and services with long names, each with every status and reason."""
    ledger = Ledger()
    book = MeterBook()
    for index in range(10_000):
        name = f"team-{index % 37}/some-service-{index}"
        meters = [book.meter(protocol, name, name) for protocol in ("h1", "h2", "ws")]
        for meter in meters:
            for status in (0, 101, 200, 301, 404, 503, 999):
                meter.ended(status, 0.004, 10**9, 10**9)
    ledger.take(book.take(), [], now=0)
    by_service = [
        metric
        for metric in names.METRICS.values()
        if names.SERVICE in metric.labels and metric.labels[0] is names.SERVICE
    ]
    values: dict[CellKey, float] = {}
    for index in range(10_000):
        name = f"team-{index % 37}/some-service-{index}"
        for metric in by_service:
            others = metric.labels[1].values if len(metric.labels) > 1 else ("",)
            for other in others:
                labels = (name, other) if other else (name,)
                key = ledger.fold((metric.name, labels), now=0)
                assert key is not None
                values[key] = values.get(key, 0) + 123456789
    for metric in (names.REASONS, names.REJECTED):
        for first in metric.labels[0].values:
            for second in metric.labels[1].values:
                ledger.add(metric, 123456789, first, second)
    started = time.process_time()
    page = page_of(ledger, values)
    took_s = time.process_time() - started
    assert len(page) <= 5 * 1024 * 1024
    assert took_s <= 1.0
    found = samples(parse(page)["datum_router_requests"])
    assert sum(found.values()) == 10_000 * 3 * 7
