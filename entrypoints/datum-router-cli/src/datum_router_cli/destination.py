"""Where a rule sends a request: shares of its destinations, their endpoints, and what stands in the way."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from datum_router.model.endpoint import Endpoint
from datum_router.model.route import Rule
from datum_router.model.service import Service, ServiceKey


class EndpointReport(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint of a destination. `address` is `host:port` with the route's port override applied."""

    address: str
    weight: int
    priority: int
    topology: Mapping[str, str]
    origin: str
    serving: bool


class DestinationReport(msgspec.Struct, frozen=True, kw_only=True):
    """One destination of the winning rule.

    Attributes:
        share_percent: Of the requests of this rule while its priority is used; 0 if it takes none.
        problem: Why its share is answered with 500 or 503, empty if it can be served.
    """

    service: str
    protocol: str
    weight: int
    priority: int
    share_percent: float
    problem: str
    endpoints: tuple[EndpointReport, ...]


def describe_destinations(rule: Rule, services: Mapping[ServiceKey, Service]) -> list[DestinationReport]:
    """Return the destinations of `rule` in the order written. Health is not known here: probes run in a gateway."""
    totals: dict[int, int] = {}
    for ref in rule.destinations:
        totals[ref.priority] = totals.get(ref.priority, 0) + ref.weight
    reports: list[DestinationReport] = []
    for ref in rule.destinations:
        service = services.get(ref.service)
        problem = ref.problem
        if not problem and service is None:
            problem = "VPCServiceNotFound"
        if not problem and service is not None and not any(endpoint.is_serving for endpoint in service.endpoints):
            problem = "NoEndpoints"
        total = totals[ref.priority]
        reports.append(
            DestinationReport(
                service=ref.service,
                protocol=str(service.protocol) if service is not None else "",
                weight=ref.weight,
                priority=ref.priority,
                share_percent=round(100 * ref.weight / total, 2) if total else 0.0,
                problem=problem,
                endpoints=tuple(_endpoint(item, ref.port) for item in service.endpoints) if service is not None else (),
            )
        )
    return reports


def _endpoint(endpoint: Endpoint, port: int | None) -> EndpointReport:
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return EndpointReport(
        address=f"{host}:{endpoint.port if port is None else port}",
        weight=endpoint.weight,
        priority=endpoint.priority,
        topology=dict(endpoint.locality.topology),
        origin=endpoint.origin,
        serving=endpoint.is_serving,
    )


def destination_lines(report: DestinationReport) -> list[str]:
    """Return a destination as lines for people."""
    head = f"{report.share_percent:g}% {report.service} (weight {report.weight}, priority {report.priority}"
    head += f", {report.protocol})" if report.protocol else ")"
    lines = [head + (f": {report.problem}" if report.problem else "")]
    for endpoint in report.endpoints:
        place = ", ".join(f"{key}={value}" for key, value in endpoint.topology.items()) or "unknown place"
        state = "" if endpoint.serving else ", not serving"
        lines.append(
            f"    {endpoint.address} (weight {endpoint.weight}, priority {endpoint.priority}, {place},"
            f" from {endpoint.origin}{state})"
        )
    return lines
