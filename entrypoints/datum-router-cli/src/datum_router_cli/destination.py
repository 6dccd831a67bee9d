"""Where a rule sends a request: shares of its destinations, their endpoints, and what stands in the way."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from datum_router.balancing.base import ALL_USABLE, HealthView
from datum_router.balancing.explain import (
    LocalityReport,
    counts_places,
    describe_panic,
    explain_locality,
    priority_lines,
    report_lines,
)
from datum_router.health.active import describe_active
from datum_router.health.breaker import describe_circuit
from datum_router.health.outlier import describe_outlier
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, EndpointKey, Locality
from datum_router.model.route import Rule, side_services
from datum_router.model.service import Service, ServiceKey, UpstreamProtocol
from datum_router.reasons import Reason
from datum_router_cli.identity import describe_upstream_tls


class EndpointReport(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint of a destination. `address` is `host:port` with the route's port override applied."""

    address: str
    weight: int
    priority: int
    topology: Mapping[str, str]
    origin: str
    serving: bool
    vpc: str


class DestinationReport(msgspec.Struct, frozen=True, kw_only=True):
    """One destination of the winning rule.

    Attributes:
        share_percent: Of the requests of this rule while its priority is used; 0 if it takes none.
        problem: Why its share is answered with 500 or 503, empty if it can be served.
        circuit: Its circuit breaker in words; empty if it has none.
        health: How the health of its endpoints is found out, and when it is ignored; empty if the service is not there.
        connect_s: One dial, with what the route says of it; None if the service is not there.
        idle_s: How long a connection without requests is kept; None also if none is kept, its protocol being TCP.
        tls: How TLS is spoken to it, and whom it is taken for; empty if it is not.
        locality: What the places of its endpoints do; None if the route does not look at places, and all endpoints are
            supposed to be usable.
        has_places: The route looks at places.
    """

    service: str
    protocol: str
    weight: int
    priority: int
    share_percent: float
    problem: str
    endpoints: tuple[EndpointReport, ...]
    tls: str = ""
    locality: LocalityReport | None = None
    has_places: bool = False
    circuit: str = ""
    health: tuple[str, ...] = ()
    connect_s: float | None = None
    idle_s: float | None = None


class Down:
    """Health as it is supposed to be: all endpoints are usable but those at some addresses.

    Args:
        addresses: `ADDRESS`, or `ADDRESS:PORT` as `explain` shows it without a route's port override, or either with
            `@VPC`, which two VPCs with equal addresses need.
    """

    __slots__ = ("_addresses",)

    def __init__(self, addresses: Collection[str]) -> None:
        self._addresses = frozenset(addresses)

    def is_usable(self, key: EndpointKey) -> bool:
        """Tell whether the endpoint is not among those that are down."""
        return self._addresses.isdisjoint(_names(key))

    def unknown(self, services: Iterable[Service]) -> list[str]:
        """Return the addresses at which no service has an endpoint."""
        if not self._addresses:
            return []
        known = {name for service in services for endpoint in service.endpoints for name in _names(endpoint.key)}
        return sorted(self._addresses - known)

    def usable_since(self, key: EndpointKey) -> float:
        """Return that it has always been."""
        return ALL_USABLE.usable_since(key)


def _names(key: EndpointKey) -> tuple[str, ...]:
    where, at, vpc = key.partition("@")
    names = (where, where.rpartition(":")[0].strip("[]"))
    return (*names, *(f"{name}@{vpc}" for name in names)) if at else names


def left_out_sides(
    rule: Rule, services: Mapping[ServiceKey, Service], *, gateway: Locality, health: HealthView
) -> list[str]:
    """Return what is to be said of services that filters of `rule` ask, if the rule's places leave nobody of them."""
    if not counts_places(rule.locality):
        return []
    return [
        f"{key} gets nothing of its filters: no endpoint of it at a place that the route allows"
        for key in dict.fromkeys(key for key, problem in side_services(rule) if not problem)
        if key in services
        and explain_locality(services[key], rule.locality, gateway, health).outcome == Reason.LOCALITY_REQUIRED
    ]


def describe_destinations(
    rule: Rule,
    services: Mapping[ServiceKey, Service],
    *,
    gateway: Locality = UNKNOWN_LOCALITY,
    health: HealthView = ALL_USABLE,
) -> list[DestinationReport]:
    """Return the destinations of `rule` in the order written.

    Args:
        gateway: Where the gateway is.
        health: As it is supposed to be: it is not known here, probes run in a gateway.
    """
    has_places = counts_places(rule.locality)
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
        report = DestinationReport(
            service=ref.service,
            protocol="",
            weight=ref.weight,
            priority=ref.priority,
            share_percent=round(100 * ref.weight / total, 2) if total else 0.0,
            problem=problem,
            endpoints=(),
        )
        if service is not None:
            report = msgspec.structs.replace(
                report,
                protocol=str(service.protocol),
                endpoints=tuple(_endpoint(item, ref.port) for item in service.endpoints),
                circuit=describe_circuit("service", service.limits, service.breaker) if service.breaker else "",
                health=_describe_health(service),
                connect_s=rule.timeouts.connect_s or service.connect_timeout_s,
                idle_s=None if service.protocol is UpstreamProtocol.TCP else service.idle_timeout_s,
                tls=describe_upstream_tls(service),
                locality=explain_locality(service, rule.locality, gateway, health)
                if has_places or not all(health.is_usable(endpoint.key) for endpoint in service.endpoints)
                else None,
                has_places=has_places,
            )
        reports.append(report)
    return reports


def _describe_health(service: Service) -> tuple[str, ...]:
    return (
        describe_active(service.active),
        describe_outlier(service.outlier),
        describe_panic(service.panic_threshold_percent),
    )


def _endpoint(endpoint: Endpoint, port: int | None) -> EndpointReport:
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return EndpointReport(
        address=f"{host}:{endpoint.port if port is None else port}",
        weight=endpoint.weight,
        priority=endpoint.priority,
        topology=dict(endpoint.locality.topology),
        origin=endpoint.origin,
        serving=endpoint.is_serving,
        vpc=endpoint.vpc,
    )


def destination_lines(reports: Iterable[DestinationReport]) -> list[str]:
    """Return destinations as lines for people. Of one for which the same holds as for another it is only said so."""
    lines: list[str] = []
    told: dict[tuple[object, ...], str] = {}
    for report in reports:
        terms = (report.health, report.connect_s, report.idle_s)
        lines += _lines(report, told.get(terms, ""))
        if report.health:
            told.setdefault(terms, report.service)
    return lines


def _lines(report: DestinationReport, alike: str) -> list[str]:
    head = f"{report.share_percent:g}% {report.service} (weight {report.weight}, priority {report.priority}"
    head += f", {report.protocol})" if report.protocol else ")"
    lines = [head + (f": {report.problem}" if report.problem else "")]
    if report.tls:
        lines.append(f"    {report.tls}")
    for endpoint in report.endpoints:
        place = ", ".join(f"{key}={value}" for key, value in endpoint.topology.items()) or "unknown place"
        state = "" if endpoint.serving else ", not serving"
        vpc = f" in vpc {endpoint.vpc}" if endpoint.vpc else ""
        lines.append(
            f"    {endpoint.address}{vpc} (weight {endpoint.weight}, priority {endpoint.priority}, {place},"
            f" from {endpoint.origin}{state})"
        )
    if alike:
        lines.append(f"    probes, ejection, panic and connections: as of {alike}")
    else:
        lines += (f"    {line}" for line in _term_lines(report))
    if report.circuit:
        lines.append(f"    {report.circuit}")
    if report.locality is not None:
        found = report_lines(report.locality) if report.has_places else priority_lines(report.locality)
        lines += (f"    {line}" for line in found)
    return lines


def _term_lines(report: DestinationReport) -> list[str]:
    if report.connect_s is None:
        return list(report.health)
    kept = "" if report.idle_s is None else f", kept without requests for {report.idle_s:g} s"
    return [*report.health, f"connections: made within {report.connect_s:g} s{kept}"]
