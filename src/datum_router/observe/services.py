"""What the serving side of each service has to tell: retries, refusals, and how full it is."""

from __future__ import annotations

from collections.abc import Iterable

from datum_router.compiler.link import ServiceState
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
        if state.is_panicking:
            cells.append(Cell(names.PANIC.name, labels, 1))
        if state.is_spilling:
            cells.append(Cell(names.SPILLING.name, labels, 1))
    return cells
