"""A response on its way to the client: to its last byte, or as a tunnel to the last of both sides."""

from __future__ import annotations

import math

import msgspec

from datum_router.compiler.link import LinkedRule
from datum_router.errors import UpstreamError
from datum_router.filters.base import apply_response
from datum_router.model.request import Headers, ResponseHead
from datum_router.reasons import Reason
from datum_router_proxy.answers import DateField
from datum_router_proxy.channel import RECV_BYTES
from datum_router_proxy.exchange import Downstream, End, Upstream, UpstreamHead
from datum_router_proxy.gate import Gate
from datum_router_proxy.loop import Loop, Task, current_task, park
from datum_router_proxy.pump import Pump
from datum_router_proxy.request import Request
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.trace import Trace
from datum_router_proxy.tunnel import Tunnel
from datum_router_proxy.wire import chain, grpc, hygiene


class Relay:
    """Relays responses; one per pipeline.

    Attributes:
        tunnels: WebSockets that are open, by the task of each.
    """

    __slots__ = ("_date", "_gate", "_loop", "_pump", "_settings", "tunnels")

    def __init__(self, loop: Loop, settings: ProxySettings, *, pump: Pump, date: DateField, gate: Gate) -> None:
        self._loop = loop
        self._settings = settings
        self._pump = pump
        self._date = date
        self._gate = gate
        self.tunnels: dict[Task, Tunnel] = {}

    async def run(
        self,
        downstream: Downstream,
        request: Request,
        upstream: Upstream,
        rule: LinkedRule,
        response: UpstreamHead,
        trace: Trace,
        *,
        is_settled: bool = False,
    ) -> None:
        """Send the response to the client, to its last byte.

        Args:
            is_settled: Tell a gateway before us that it need not try again (`policy.chain`).
        """
        template = request.template
        fields = hygiene.response_fields_for_downstream(
            response.fields, via_protocol=response.via, nominations=response.nominations
        )
        if not any(name == b"date" for name, _ in fields):
            fields.append(self._date.refresh(self._loop.now).field)
        if rule.needs_pipeline or trace.added:
            fields += self._gate.fields(rule, trace, request.head.scheme)
        filters = rule.filters + trace.filters if trace.filters else rule.filters
        head = apply_response(filters, ResponseHead(status=response.status, headers=Headers(fields)))
        if rule.extra is not None:
            head = rule.extra.on_response(request.head, head)
        if is_settled:  # after all filters: none of them is asked whether retries multiply
            head = msgspec.structs.replace(head, headers=Headers((*head.headers.fields, chain.SETTLED)))
        if response.is_switch:
            await self._tunnel(downstream, upstream, head, trace, rule.timeouts.stream_idle_s)
            return
        if template.is_tunnel and template.websocket_key is None and 200 <= head.status < 300:
            # 2xx to extended CONNECT means a tunnel (RFC 9110 section 9.3.6), and there is none.
            raise UpstreamError("no switch of protocols", reason=Reason.BAD_UPGRADE)
        if template.is_grpc and not grpc.speaks(response.fields):
            code = grpc.status_from_http(response.status)
            said = f"the upstream answered HTTP {response.status} without gRPC"
            date = self._date.refresh(self._loop.now).field
            told = [*grpc.local_reply_fields(code, said), date, *([chain.SETTLED] if is_settled else ())]
            downstream.send_head(200, told, content_length=None, is_bodyless=True)
            downstream.send_end()
            trace.status = 200
            return

        downstream.send_head(
            head.status,
            head.headers.fields,
            content_length=response.content_length,
            is_bodyless=response.is_bodyless,
        )
        trace.status = head.status
        trace.body.release()
        has_status = template.is_grpc and any(name == b"grpc-status" for name, _ in response.fields)
        moves = 0
        while True:
            event = await self._pump.next_event(downstream, upstream, trace)
            if type(event) is bytes:
                trace.bytes_out += len(event)
                downstream.send_data(event)
                moves += 1 + len(event) // RECV_BYTES  # a long piece counts for several
                if moves >= self._settings.moves_per_turn:
                    moves = 0
                    upstream.flush()
                    downstream.flush()
                    current_task().wake()
                    await park()
            elif isinstance(event, End):
                trailers = event.trailers
                if template.is_grpc and not has_status and not any(name == b"grpc-status" for name, _ in trailers):
                    missing = grpc.status_fields(grpc.GrpcStatus.INTERNAL, "the upstream's response has no grpc-status")
                    trailers = (*trailers, *missing)
                downstream.send_end(
                    hygiene.trailers_to_forward(trailers, te_trailers=template.te_trailers, is_grpc=template.is_grpc)
                    if trailers
                    else ()
                )
                downstream.flush()
                upstream.finish()
                return

    async def _tunnel(
        self, downstream: Downstream, upstream: Upstream, head: ResponseHead, trace: Trace, idle_s: float | None
    ) -> None:
        downstream.accept_tunnel(head.headers.fields)
        trace.status = 101
        tunnel = Tunnel(self._loop, self._settings, downstream, upstream, idle_s, trace.endpoint)
        task = current_task()
        self.tunnels[task] = tunnel
        try:
            await tunnel.run()
            upstream.finish()
        finally:
            del self.tunnels[task]
            task.deadline = math.inf
            trace.body.bytes_in = tunnel.bytes_in
            trace.bytes_out = tunnel.bytes_out
