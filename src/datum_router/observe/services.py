"""What the serving side of each service has to tell: retries, refusals, and how full it is."""

from __future__ import annotations

from collections.abc import Iterable

from datum_router.compiler.lease import ServiceState
from datum_router.health.breaker import RouteCircuit
from datum_router.health.outlier import BreakerState
from datum_router.observe import names
from datum_router.observe.cells import Cell


def service_cells(states: Iterable[ServiceState]) -> list[Cell]:
    """Return counters since the last call, and gauges; a quiet service has no cells. O(services)."""
    cells: list[Cell] = []
    for state in states:
        limits = state.limits
        labels = (state.service.key,)
        if limits.requests:
            cells.append(Cell(names.SERVICE_IN_FLIGHT.name, labels, limits.requests))
            if limits.is_full:
                cells.append(Cell(names.CIRCUIT_OPEN.name, labels, 1))
        if state.retried:
            cells.append(Cell(names.RETRIES.name, labels, state.retried))
            state.retried = 0
        if limits.refused_requests:
            cells.append(Cell(names.PERMITS_REFUSED.name, (*labels, "requests"), limits.refused_requests))
            limits.refused_requests = 0
        if limits.refused_retries:
            cells.append(Cell(names.PERMITS_REFUSED.name, (*labels, "retries"), limits.refused_retries))
            limits.refused_retries = 0
        if state.breaker is not None and state.breaker.state is not BreakerState.CLOSED:
            cells.append(Cell(names.SERVICE_CIRCUIT.name, (*labels, str(state.breaker.state)), 1))
        if state.is_panicking:
            cells.append(Cell(names.PANIC.name, labels, 1))
        if state.is_spilling:
            cells.append(Cell(names.SPILLING.name, labels, 1))
    return cells


def route_cells(circuits: Iterable[RouteCircuit]) -> list[Cell]:
    """Return gauges of routes whose circuit is not closed, or which have as much under way as they may."""
    cells: list[Cell] = []
    for circuit in circuits:
        if circuit.limits.is_full:
            cells.append(Cell(names.ROUTE_CIRCUIT.name, (circuit.route, names.FULL), 1))
        if circuit.breaker.state is not BreakerState.CLOSED:
            cells.append(Cell(names.ROUTE_CIRCUIT.name, (circuit.route, str(circuit.breaker.state)), 1))
    return cells
