from __future__ import annotations

import random

import pytest

from datum_router.compiler.lease import Lease
from datum_router.compiler.link import Snapshot
from datum_router.compiler.linker import Linker
from datum_router.model.endpoint import Endpoint, make_endpoint
from datum_router.model.policy import ConnectionLimits
from datum_router.model.request import LocalReply, RequestHead
from datum_router.model.route import BackendRef, Rule, RuleId
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.observe import names
from datum_router.observe.cells import CellKey
from datum_router.observe.services import service_cells
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import HealthChange

A = ServiceKey("default/a")
ENDPOINTS = tuple(make_endpoint(f"192.0.2.{number}", 80) for number in range(1, 5))
HEAD = RequestHead(method="GET", authority="a.test", host="a.test", path="/", client_ip="192.0.2.1")


@pytest.fixture
def linker() -> Linker:
    return Linker(load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)]))


def data(
    *,
    version: int = 1,
    limits: ConnectionLimits = ConnectionLimits(),
    is_there: bool = True,
    endpoints: tuple[Endpoint, ...] = ENDPOINTS,
) -> SnapshotData:
    rule = Rule(id=RuleId("default/r#0"), route="default/r", destinations=(BackendRef(service=A),))
    service = Service(key=A, endpoints=endpoints, limits=limits)
    return SnapshotData(version=version, rules=(rule,), services={A: service} if is_there else {})


def lease(snapshot: Snapshot, *, is_retry: bool = False) -> Lease | LocalReply:
    rule = snapshot.match(HEAD)
    assert rule is not None
    return rule.select(HEAD, rng=random.Random(1), now=1.0, is_retry=is_retry)


def taken(snapshot: Snapshot, *, is_retry: bool = False) -> Lease:
    found = lease(snapshot, is_retry=is_retry)
    assert isinstance(found, Lease)
    return found


def cells(linker: Linker) -> dict[CellKey, float]:
    return {cell.key: cell.value for cell in service_cells(linker.take_states())}


def test_a_quiet_service_says_nothing(linker: Linker) -> None:
    taken(linker.link(data())).release()
    assert cells(linker) == {}


def test_retries_are_counted_once_and_what_is_under_way_is_shown(linker: Linker) -> None:
    snapshot = linker.link(data())
    first, retry = taken(snapshot), taken(snapshot, is_retry=True)
    assert cells(linker) == {
        (names.SERVICE_IN_FLIGHT.name, (A,)): 2,
        (names.RETRIES.name, (A,)): 1,
    }
    assert cells(linker) == {(names.SERVICE_IN_FLIGHT.name, (A,)): 2}
    first.release()
    retry.release()
    assert cells(linker) == {}


def test_a_full_service_is_an_open_circuit_and_refusals_are_counted_by_permit(linker: Linker) -> None:
    snapshot = linker.link(data(limits=ConnectionLimits(max_parallel_requests=2, max_parallel_retries=1)))
    leases = [taken(snapshot), taken(snapshot)]
    assert isinstance(lease(snapshot), LocalReply)
    assert cells(linker) == {
        (names.SERVICE_IN_FLIGHT.name, (A,)): 2,
        (names.CIRCUIT_OPEN.name, (A,)): 1,
        (names.PERMITS_REFUSED.name, (A, "requests")): 1,
    }
    leases.pop().release()
    snapshot = linker.link(data(version=2, limits=ConnectionLimits(max_parallel_retries=0)))
    assert isinstance(lease(snapshot, is_retry=True), LocalReply)
    assert cells(linker)[(names.PERMITS_REFUSED.name, (A, "retries"))] == 1


def test_a_panic_is_shown_until_it_is_over(linker: Linker) -> None:
    linker.link(data())
    down = [HealthChange(service=A, endpoint=one.key, is_usable=False, since=1.0) for one in ENDPOINTS[:3]]
    linker.apply_health(down)
    assert cells(linker) == {(names.PANIC.name, (A,)): 1}
    linker.apply_health([HealthChange(service=A, endpoint=one.key, is_usable=True, since=2.0) for one in ENDPOINTS])
    assert cells(linker) == {}


def test_spilling_is_shown_while_a_further_priority_takes_what_the_first_lacks(linker: Linker) -> None:
    near, standby = ENDPOINTS[:2], make_endpoint("192.0.2.9", 80, priority=1)
    linker.link(data(endpoints=(*near, standby)))
    assert cells(linker) == {}
    linker.apply_health([HealthChange(service=A, endpoint=near[0].key, is_usable=False, since=1.0)])
    assert cells(linker) == {(names.SPILLING.name, (A,)): 1}
    linker.apply_health([HealthChange(service=A, endpoint=near[0].key, is_usable=True, since=2.0)])
    assert cells(linker) == {}


def test_what_a_deleted_service_had_counted_is_told_and_then_it_is_forgotten(linker: Linker) -> None:
    held = taken(linker.link(data()), is_retry=True)
    linker.link(data(version=2, is_there=False))
    assert cells(linker) == {(names.SERVICE_IN_FLIGHT.name, (A,)): 1, (names.RETRIES.name, (A,)): 1}
    held.release()
    assert cells(linker) == {}
    assert len(linker.take_states()) == 0
