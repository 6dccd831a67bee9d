"""How the end of a request is told to the observer."""

from __future__ import annotations

from collections import Counter

from datum_router.compiler.lease import Lease
from datum_router.compiler.link import LinkedRule
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.observe.events import RequestEnded
from datum_router.observe.meter import RequestMeter
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router.policy.hedge import RacerState
from datum_router.policy.retry import RetryDecision
from datum_router.reasons import Reason
from datum_router_proxy.loop import Loop
from datum_router_proxy.request import Request, Template
from datum_router_proxy.trace import Trace


class Accounts:
    """Finds the meter of a request, which is kept beside its rule: one look-up by two short strings."""

    __slots__ = ("_filtered", "_hedges", "_loop", "_not_retried", "_observer", "_unrouted", "_wants_events")

    def __init__(self, loop: Loop, observer: DataPlaneObserver) -> None:
        self._loop = loop
        self._observer = observer
        self._wants_events = observer.wants_events
        self._not_retried: Counter[str] = Counter()
        self._filtered: Counter[tuple[str, str]] = Counter()
        self._hedges: Counter[str] = Counter()
        self._unrouted: dict[tuple[str, str], RequestMeter] = {}

    def ended(self, protocol: str, request: Request, trace: Trace, now: float) -> None:
        """Count a request; its access-log record is only made if somebody wants it."""
        linked = trace.linked
        meters = self._unrouted if linked is None else linked.meters
        key = (protocol, trace.service)
        meter = meters.get(key)
        if meter is None:
            route = "" if linked is None else linked.rule.route
            meter = meters[key] = self._observer.meter(protocol=protocol, route=route, service=trace.service)
        meter.ended(trace.status, now - trace.started_at, trace.body.bytes_in, trace.bytes_out)
        if trace.reason is not Reason.ROUTED:
            self._observer.request_reason(protocol, trace.reason)
        if self._wants_events and (linked is None or linked.is_logged):
            self._observer.request_ended(trace.event(protocol, request, now))

    def express_ended(
        self,
        protocol: str,
        template: Template,
        linked: LinkedRule,
        lease: Lease,
        status: int,
        bytes_in: int,
        bytes_out: int,
        started_at: float,
        request_id: bytes,
    ) -> None:
        """Count a request that the express lane has served: it was answered by its first attempt."""
        service = lease.state.service.key
        key = (protocol, service)
        meter = linked.meters.get(key)
        if meter is None:
            meter = self._observer.meter(protocol=protocol, route=linked.rule.route, service=service)
            linked.meters[key] = meter
        duration_s = self._loop.now - started_at
        meter.ended(status, duration_s, bytes_in, bytes_out)
        if self._wants_events and linked.is_logged:
            self._observer.request_ended(
                RequestEnded(
                    protocol=protocol,
                    listener=template.listener,
                    method=template.method,
                    host=template.host,
                    path=template.path,
                    status=status,
                    reason=Reason.ROUTED,
                    route=linked.rule.route,
                    rule=linked.rule.id,
                    service=service,
                    endpoint=lease.key,
                    attempts=1,
                    bytes_in=bytes_in,
                    bytes_out=bytes_out,
                    duration_s=duration_s,
                    client_ip=template.client_ip,
                    request_id=request_id.decode("ascii"),
                )
            )

    def decided(self, decision: RetryDecision) -> RetryDecision:
        """Count why a failed attempt is not repeated."""
        if not decision.retry:
            self._not_retried[decision.why] += 1
        return decision

    def filtered(self, name: str, outcome: str) -> None:
        """Count what a filter has done; `outcome` is one of `names.FILTER_OUTCOME`."""
        self._filtered[name, outcome] += 1

    def hedged(self, state: RacerState) -> None:
        """Count how a race ended for an attempt that was not its first."""
        self._hedges[state.value] += 1

    def take_cells(self) -> list[Cell]:
        """Return what was counted here since the last call."""
        cells = [Cell(names.NOT_RETRIED.name, (why,), count) for why, count in self._not_retried.items()]
        cells += [Cell(names.FILTERED.name, key, count) for key, count in self._filtered.items()]
        self._not_retried.clear()
        self._filtered.clear()
        cells += [Cell(names.HEDGES.name, (state,), count) for state, count in self._hedges.items()]
        self._hedges.clear()
        return cells
