from __future__ import annotations

import pytest

from datum_router.observe import ledger as module
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.observe.ledger import IDLE_S, MAX_OWN, Ledger
from datum_router.observe.meter import MeterBook, MeterDelta


def one(route: str, service: str, *, protocol: str = "h1", status: int = 200, duration_s: float = 0.02) -> MeterDelta:
    book = MeterBook()
    book.meter(protocol, route, service).ended(status, duration_s, 3, 5)
    (delta,) = book.take()
    return delta


def requests(ledger: Ledger) -> dict[tuple[str, str], int]:
    return {pair: sum(totals.codes) for pair, totals in ledger.routes()}


def test_reports_of_all_workers_add_up() -> None:
    ledger = Ledger()
    for _ in range(3):
        ledger.take([one("ns/a", "ns/x"), one("ns/a", "ns/x", protocol="h2", status=503)], [], now=0)
    assert requests(ledger) == {("ns/a", "ns/x"): 6}
    ((_, totals),) = ledger.routes()
    assert (totals.codes[2], totals.codes[5], sum(totals.buckets)) == (3, 3, 6)
    assert totals.duration_s == pytest.approx(0.12)
    assert (totals.bytes_in, totals.bytes_out) == (18, 30)
    counters = ledger.counters()
    assert counters[(names.PROTOCOL_REQUESTS.name, ("h1", "2xx"))] == 3
    assert counters[(names.PROTOCOL_REQUESTS.name, ("h2", "5xx"))] == 3


def test_tunnels_count_as_requests_and_bytes_but_not_in_the_latencies() -> None:
    ledger = Ledger()
    ledger.take([one("ns/a", "ns/x", protocol="ws", status=101, duration_s=3600.0)], [], now=0)
    ((_, totals),) = ledger.routes()
    assert (totals.codes[1], totals.bytes_in, sum(totals.buckets), totals.duration_s) == (1, 3, 0, 0.0)


def test_a_request_without_route_is_none_and_no_empty_label() -> None:
    ledger = Ledger()
    ledger.take([one("", "", status=404)], [], now=0)
    assert requests(ledger) == {("none", "none"): 1}


def test_counters_add_up_by_labels() -> None:
    ledger = Ledger()
    for count in (1, 2):
        ledger.take([], [Cell(names.REJECTED.name, ("h1", "bad_header"), count)], now=0)
    ledger.add(names.REJECTED, 1, "h1", "bad_header")
    assert dict(ledger.counters()) == {(names.REJECTED.name, ("h1", "bad_header")): 4}


@pytest.mark.parametrize(
    "cell",
    [
        Cell("datum_router_no_such_total", (), 1),
        Cell(names.REJECTED.name, ("h1",), 1),
        Cell(names.REJECTED.name, ("h1", "canary from a client"), 1),
    ],
)
def test_what_no_closed_set_knows_is_left_out(cell: Cell) -> None:
    ledger = Ledger()
    ledger.take([], [cell], now=0)
    assert dict(ledger.counters()) == {}


def test_more_routes_than_have_series_of_their_own_are_other_and_the_sum_stays_exact() -> None:
    ledger = Ledger()
    for index in range(MAX_OWN + 50):
        ledger.take([one(f"ns/route-{index}", "ns/x")], [], now=0)
    ledger.take([one("ns/route-0", "ns/x"), one(f"ns/route-{MAX_OWN + 49}", "ns/x")], [], now=0)
    found = requests(ledger)
    assert len(found) == MAX_OWN + 1
    assert found[("ns/route-0", "ns/x")] == 2
    assert found[("other", "other")] == 51
    assert sum(found.values()) == MAX_OWN + 52
    assert ledger.folded == 50


def test_long_names_use_the_budget_up_sooner() -> None:
    ledger = Ledger()
    for index in range(MAX_OWN):
        ledger.take([one(f"ns/{'r' * 250}-{index}", f"ns/{'s' * 250}-{index}")], [], now=0)
    own = [pair for pair in requests(ledger) if pair != ("other", "other")]
    most = module.ROUTE_BYTES // (module.ROUTE_SERIES * (module.SERIES_BYTES + 508))
    assert most * 0.9 < len(own) <= most


def test_services_beyond_the_limit_are_other() -> None:
    ledger = Ledger()
    cells = [Cell(names.RETRIES.name, (f"ns/service-{index}",), 1) for index in range(MAX_OWN + 10)]
    ledger.take([], cells, now=0)
    counters = ledger.counters()
    assert len(counters) == MAX_OWN + 1
    assert counters[(names.RETRIES.name, ("other",))] == 10


def test_a_gauge_is_folded_like_a_counter() -> None:
    ledger = Ledger()
    for index in range(MAX_OWN):
        ledger.fold((names.UPSTREAM_CONNECTIONS.name, (f"ns/s-{index}",)), now=0)
    assert ledger.fold((names.UPSTREAM_CONNECTIONS.name, ("ns/s-3",)), now=0) == (
        names.UPSTREAM_CONNECTIONS.name,
        ("ns/s-3",),
    )
    assert ledger.fold((names.ENDPOINTS.name, ("ns/late", "healthy")), now=0) == (
        names.ENDPOINTS.name,
        ("other", "healthy"),
    )


def test_series_of_a_deleted_route_stay_until_it_was_quiet_for_long_enough_and_then_make_room() -> None:
    ledger = Ledger()
    for index in range(MAX_OWN):
        ledger.take([one(f"ns/route-{index}", "ns/x")], [], now=0)
    living = {f"ns/route-{index}" for index in range(1, MAX_OWN)}

    def expire(now: float) -> None:
        ledger.expire(routes=living, services={"ns/x"}, listeners=(), now=now)

    expire(IDLE_S - 1)
    assert ("ns/route-0", "ns/x") in requests(ledger)
    ledger.take([one("ns/route-0", "ns/x")], [], now=IDLE_S - 1)
    expire(IDLE_S)
    assert ("ns/route-0", "ns/x") in requests(ledger), "a request that was under way has ended meanwhile"
    expire(2 * IDLE_S - 1)
    assert ("ns/route-0", "ns/x") not in requests(ledger)
    assert len(requests(ledger)) == MAX_OWN - 1, "quiet routes that are in the configuration stay"
    ledger.take([one("ns/new", "ns/x")], [], now=2 * IDLE_S)
    assert requests(ledger)[("ns/new", "ns/x")] == 1


def test_series_of_a_deleted_service_and_listener_go_too() -> None:
    ledger = Ledger()
    cells = [
        Cell(names.RETRIES.name, ("ns/x",), 1),
        Cell(names.RETRIES.name, ("ns/y",), 1),
        Cell(names.ACCEPTED.name, ("plain",), 1),
        Cell(names.REJECTED.name, ("h1", "bad_header"), 1),
    ]
    ledger.take([], cells, now=0)
    ledger.expire(routes=(), services={"ns/y"}, listeners=(), now=IDLE_S)
    assert set(ledger.counters()) == {
        (names.RETRIES.name, ("ns/y",)),
        (names.REJECTED.name, ("h1", "bad_header")),
    }
