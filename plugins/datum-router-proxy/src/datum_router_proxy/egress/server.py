"""Absolute-form requests of proxy clients: decided here, and carried by the pipeline like any other request.

Theory of operation. A connection of an egress listener is an ordinary HTTP/1 connection whose server is an
`EgressServer`. It turns each decision into what the pipeline knows: a rule whose one service has the addresses that may
be dialled as its endpoints. Framing, hop-by-hop fields, limits, retries and accounts are the pipeline's. Nothing takes
the fast lanes: those begin before anybody has decided.

Rules that were made are kept while the policy stays the same: so endpoints take turns, and limits count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from datum_router.balancing.locality import SharedCandidates
from datum_router.balancing.round_robin import RoundRobin
from datum_router.balancing.service_balancer import ServiceBalancer
from datum_router.compiler.lease import Lease, ServiceState
from datum_router.compiler.link import LinkedRule, Snapshot
from datum_router.egress.decide import Verdict
from datum_router.egress.destination import BadDestination, Destination, parse_destination
from datum_router.errors import RemoteProtocolError, UpstreamError
from datum_router.filters.headers import RequestHeaderEdit
from datum_router.health.trial import LocalPermits, TrialDesk
from datum_router.health.view import HealthTable
from datum_router.model.egress import EgressReason, EgressRule
from datum_router.model.endpoint import make_endpoint
from datum_router.model.listener import Listener
from datum_router.model.request import LocalReply
from datum_router.model.route import BackendRef, BalancingPolicy, HeaderEdit, LocalityPolicy, Rule, RuleId
from datum_router.model.service import Service, ServiceKey, UpstreamProtocol
from datum_router.reasons import Reason
from datum_router.routing.normalize import BadHost, parse_authority
from datum_router_proxy.channel import Channel, ChannelError
from datum_router_proxy.egress.desk import Decision, EgressDesk
from datum_router_proxy.egress.dialing import dial_one, hello_of, require_name
from datum_router_proxy.egress.tunnel import StreamTunnel
from datum_router_proxy.egress.tunnels import OpenTunnels
from datum_router_proxy.exchange import ClientGone, Downstream
from datum_router_proxy.express import Begun
from datum_router_proxy.flight import AnyFlight, FlyingDownstream, SinglyDownstream, Takeoff
from datum_router_proxy.loop import DeadlineExpired, Loop, Task, TaskCancelled, current_task, park
from datum_router_proxy.pipeline import Pipeline
from datum_router_proxy.replies import for_upstream_error, refuse
from datum_router_proxy.request import Template
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.wire.hpack_codec import LineCache
from datum_router_proxy.wire.http1 import HeadCache, Http1Limits

HTTP_PORT: Final = 80
MAX_RULES: Final = 1024
"""Destinations whose rules are kept; the one that was not used for longest goes first."""

STATUS: Final = {
    EgressReason.BAD_DESTINATION: 400,
    EgressReason.RATE_LIMITED: 429,
    EgressReason.NAME_NOT_FOUND: 502,
    EgressReason.RESOLUTION_FAILED: 502,
    EgressReason.RESOLUTION_TIMEOUT: 504,
    EgressReason.TOO_MANY_LOOKUPS: 503,
}
"""What a client is told; everything else is 403."""

_REASONS: Final = {
    EgressReason.BAD_DESTINATION: Reason.BAD_HOST,
    EgressReason.RATE_LIMITED: Reason.EGRESS_RATE_LIMITED,
    EgressReason.NAME_NOT_FOUND: Reason.EGRESS_UNRESOLVED,
    EgressReason.RESOLUTION_FAILED: Reason.EGRESS_UNRESOLVED,
    EgressReason.RESOLUTION_TIMEOUT: Reason.EGRESS_UNRESOLVED,
    EgressReason.TOO_MANY_LOOKUPS: Reason.EGRESS_UNRESOLVED,
}


_ANONYMOUS: Final = HeaderEdit(
    remove=("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "x-real-ip")
)
"""What strangers outside are not told: the addresses of clients inside, ours or what a client says."""


def reply_to(verdict: Verdict) -> LocalReply:
    """Return what a client is told that was denied: which kind of reason, and no address (those are for the log)."""
    status = STATUS.get(verdict.reason, 403)
    again = status in (429, 503)
    return LocalReply(
        status=status,
        reason=_REASONS.get(verdict.reason, Reason.EGRESS_DENIED),
        detail=verdict.reason.value,
        headers=((b"retry-after", b"1"),) if again else (),
    )


class _Grounded:
    """Flights that never begin: every request is put before its task."""

    __slots__ = ()

    def fly(self, template: Template, task: Task, on_input: Callable[[], bool]) -> Begun | None:
        return None

    def arrive(self, downstream: SinglyDownstream, template: Template, begun: Begun) -> bool | None:
        return False

    def land(self, template: Template, begun: Begun, error: Exception) -> None:
        begun.raised = begun.raised or error

    def crash(self, begun: Begun) -> None:
        begun.drop()

    def launch(self, downstream: FlyingDownstream, template: Template) -> AnyFlight | Begun | None:
        return None


class EgressServer:
    """See `server.base.Server`; one for each connection, since the listener says whose traffic it is."""

    __slots__ = ("_book", "_client", "_listener", "_pipeline", "flights", "h1_cache", "h1_limits", "h2_lines")

    def __init__(self, pipeline: Pipeline, book: RuleBook, listener: Listener, client: str) -> None:
        self._pipeline = pipeline
        self._book = book
        self._listener = listener
        self._client = client
        self.flights: Takeoff = _Grounded()
        self.h1_limits: Http1Limits = msgspec.structs.replace(pipeline.h1_limits, serve_connect=True)
        self.h1_cache: HeadCache = pipeline.h1_cache
        self.h2_lines: LineCache = pipeline.h2_lines

    @property
    def loop(self) -> Loop:
        """The loop."""
        return self._pipeline.loop

    @property
    def settings(self) -> ProxySettings:
        """The settings."""
        return self._pipeline.settings

    @property
    def is_draining(self) -> bool:
        """See `Pipeline.is_draining`."""
        return self._pipeline.is_draining

    def rejected(self, protocol: str, reason: Reason) -> None:
        """Count a refusal."""
        self._pipeline.rejected(protocol, reason)

    async def serve(self, downstream: Downstream, template: Template, begun: Begun | None = None) -> None:
        """Decide about one request, and have it answered."""
        downstream.settle()
        if template.method == "CONNECT" and not _is_extended(template):
            await self._connect(downstream, template)
            return
        rule: LinkedRule = self._book.refused
        allowed: Decision | None = None
        try:
            reply = self._unfit(template)
            if reply is None:
                decision = await self._decide(downstream, template)
                if decision.verdict.is_allowed:
                    allowed = decision
                    rule = self._book.rule(decision)
                else:
                    reply = reply_to(decision.verdict)
        except (ClientGone, TaskCancelled, DeadlineExpired) as error:
            reason = Reason.DOWNSTREAM_RESET if isinstance(error, ClientGone) else error.reason
            downstream.abort(reason)
            return
        loop = self.loop
        chosen: Lease | LocalReply = rule.select(template.head, rng=loop.rng, now=loop.now) if reply is None else reply
        begun = Begun(rule, chosen, loop.now)
        if allowed is None:
            await self._pipeline.serve(downstream, template, begun)
            return
        policy = allowed.verdict.policy
        if template.is_tunnel:  # a WebSocket
            opened = self._book.tunnels.open(
                allowed, self._listener, allowed.verdict.addresses, method=template.method, path=template.path
            )
            try:
                await self._pipeline.serve(downstream, template, begun)
            finally:
                self._book.tunnels.close(opened)
            return
        self._book.desk.opened(policy)
        try:
            await self._pipeline.serve(downstream, template, begun)
        finally:
            self._book.desk.closed(policy)

    async def turn_away(self, downstream: Downstream, template: Template) -> None:
        """Answer one request that there is no time for."""
        await self._pipeline.turn_away(downstream, template)

    async def _connect(self, downstream: Downstream, template: Template) -> None:
        """Serve a plain CONNECT, which only HTTP/2 has here: over HTTP/1 it ends a connection's requests."""
        upstream: Channel | None = None
        try:
            reply = self._pipeline.unwilling()
            decision: Decision | None = None
            first = b""
            if reply is None:
                decision = await self._book.desk.decide(self._listener, self._client, _authority(template, None))
                if not decision.verdict.is_allowed:
                    reply = reply_to(decision.verdict)
            if decision is not None and reply is None:
                try:
                    upstream = await dial_one(self.loop, decision)
                except UpstreamError as error:
                    reply = for_upstream_error(error)
            if reply is not None or decision is None or upstream is None:
                assert reply is not None
                await self._pipeline.serve(downstream, template, Begun(self._book.refused, reply, self.loop.now))
                return
            downstream.accept_tunnel(())
            downstream.flush()
            if decision.verdict.must_be_tls:
                first = await self._checked(downstream, decision)
            await self._carry(downstream, upstream, first, decision)
            upstream.close()
        except (ClientGone, TaskCancelled, DeadlineExpired, ChannelError, RemoteProtocolError) as error:
            downstream.abort(Reason.DOWNSTREAM_RESET if isinstance(error, ClientGone) else error.reason)
        finally:
            if upstream is not None and not upstream.is_closed:
                upstream.abort()

    async def _checked(self, downstream: Downstream, decision: Decision) -> bytes:
        """Return the first bytes of a tunnel once they are known to be a ClientHello for the destination.

        Raises:
            RemoteProtocolError: They are not; counted.
        """
        task = current_task()
        task.deadline = self.loop.now + self.settings.tls_handshake_timeout_s
        task.deadline_reason = Reason.TLS_HANDSHAKE
        data = b""
        try:
            while (hello := hello_of(data)) is None:
                more = downstream.read_body()
                if more is None:
                    await park()
                elif not more:
                    raise RemoteProtocolError("tls: cut off", reason=Reason.TLS_HANDSHAKE, status_hint=400)
                else:
                    data += more
            require_name(hello, decision)
        except (RemoteProtocolError, DeadlineExpired) as error:
            self.rejected("tls", error.reason)
            self._book.desk.refuse(decision, self._listener, EgressReason.NOT_TLS, str(error))
            raise
        return data

    async def _carry(self, downstream: Downstream, upstream: Channel, first: bytes, decision: Decision) -> None:
        rule = decision.verdict.rule
        assert rule is not None
        tunnel = StreamTunnel(
            self.loop,
            downstream,
            upstream,
            first=first,
            idle_s=rule.idle_s or self.settings.tunnel_idle_timeout_s,
            moves_per_turn=self.settings.moves_per_turn,
        )
        reason = Reason.INTERNAL
        opened = self._book.tunnels.open(decision, self._listener, (upstream.peer[0],))
        try:
            await tunnel.run()
            reason = Reason.ROUTED
        except ClientGone:
            reason = Reason.DOWNSTREAM_RESET
            raise
        except (ChannelError, DeadlineExpired, TaskCancelled) as error:
            reason = error.reason
            raise
        finally:
            self._book.tunnels.close(opened)
            self._book.desk.tunnel_ended(opened.decision, self._listener, "h2", tunnel, reason)

    def _unfit(self, template: Template) -> LocalReply | None:
        """Return the reply to what is no request to a proxy, whatever the policy says."""
        if (unwilling := self._pipeline.unwilling()) is not None:
            return unwilling
        snapshot: Snapshot = self._book.snapshot
        reply = refuse(
            snapshot,
            template,
            most_bytes=self._pipeline.body_limit(template.listener),
            max_via_hops=self.settings.max_via_hops,
        )
        if reply is not None:
            return reply
        if template.proxied_scheme != "http":
            said = (
                "https goes by CONNECT"
                if template.proxied_scheme
                else "this is a proxy: the target has to be a whole URL"
            )
            return LocalReply(status=400, reason=Reason.BAD_TARGET, detail=said)
        return None

    async def _decide(self, downstream: Downstream, template: Template) -> Decision:
        downstream.watch()  # a name may take its time; a client that leaves ends it
        try:
            return await self._book.desk.decide(
                self._listener,
                self._client,
                _authority(template, HTTP_PORT),
                method=template.method,
                path=template.path,
            )
        finally:
            downstream.unwatch()


def _is_extended(template: Template) -> bool:
    """Tell whether this is an extended CONNECT (RFC 8441) that is no WebSocket: it asks for more than a tunnel."""
    return template.refusal is not None and template.refusal.reason is Reason.BAD_UPGRADE


def _authority(template: Template, default_port: int | None) -> Destination | BadDestination:
    """Return what a request is for; `default_port` None: the port has to be stated."""
    parsed = parse_authority(template.authority)
    if isinstance(parsed, BadHost):
        return BadDestination(parsed.detail)
    return parse_destination(parsed.host, parsed.port or default_port)


_Key = tuple[str, tuple[str, ...], int, object]


class RuleBook:
    """Rules for the pipeline, by what was decided; one per process.

    Attributes:
        tunnels: Those that are open.
        refused: The rule of what is answered without going anywhere.
    """

    __slots__ = ("_policy", "_rules", "_trials", "desk", "refused", "tunnels")

    def __init__(self, desk: EgressDesk, tunnels: OpenTunnels) -> None:
        self.desk = desk
        self.tunnels = tunnels
        self._trials = TrialDesk(LocalPermits(), lambda _verdict: None)
        self._rules: OrderedDict[_Key, LinkedRule] = OrderedDict()
        self._policy: object = None
        self.refused = LinkedRule(Rule(id=RuleId("egress:"), route=""), (), {})

    @property
    def snapshot(self) -> Snapshot:
        """Return the snapshot in force."""
        return self.desk.snapshot

    def rule(self, decision: Decision) -> LinkedRule:
        """Return the rule for a decision that allows."""
        verdict, destination = decision.verdict, decision.destination
        assert verdict.rule is not None
        assert destination is not None
        policy = self.desk.table.policy
        if policy is not self._policy:
            self._rules.clear()
            self._policy = policy
        tls = None if verdict.target is None else verdict.target.tls
        key = (verdict.policy, verdict.addresses, destination.port, tls)
        found = self._rules.get(key)
        if found is None:
            found = self._rules[key] = self._make(verdict.rule, verdict, destination)
            if len(self._rules) > MAX_RULES:
                self._rules.popitem(last=False)
        else:
            self._rules.move_to_end(key)
        return found

    def _make(self, egress: EgressRule, verdict: Verdict, destination: Destination) -> LinkedRule:
        tls = None if verdict.target is None else verdict.target.tls
        key = ServiceKey(f"egress:{egress.name}")
        service = Service(
            key=key,
            protocol=UpstreamProtocol.HTTP if tls is None else UpstreamProtocol.HTTPS,
            endpoints=tuple(make_endpoint(address, destination.port) for address in verdict.addresses),
            tls=tls,
        )
        rule = Rule(
            id=RuleId(f"egress:{egress.name}"),
            route=f"egress:{egress.name}",
            destinations=(BackendRef(service=key),),
            filters=(_ANONYMOUS,),
            retry=egress.retry,
            timeouts=egress.timeouts,
        )
        state = ServiceState(service, HealthTable().view(key), self._trials)
        balancer = ServiceBalancer(
            service,
            balancing=BalancingPolicy(),
            locality=LocalityPolicy(),
            balancer=RoundRobin(BalancingPolicy()),
            health=state.view,
            shared=SharedCandidates(),
        )
        state.balancers[balancer] = None
        return LinkedRule(rule, (RequestHeaderEdit(_ANONYMOUS),), {key: (state, balancer)})
