"""How the end of a request is told to the observer."""

from __future__ import annotations

from datum_router.observe.meter import RequestMeter
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router.reasons import Reason
from datum_router_proxy.request import Request
from datum_router_proxy.trace import Trace


class Accounts:
    """Finds the meter of a request, which is kept beside its rule: one look-up by two short strings."""

    __slots__ = ("_observer", "_unrouted", "_wants_events")

    def __init__(self, observer: DataPlaneObserver) -> None:
        self._observer = observer
        self._wants_events = observer.wants_events
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
        if self._wants_events:
            self._observer.request_ended(trace.event(protocol, request, now))
