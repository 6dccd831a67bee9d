"""The express lane: the common request in one page, for both downstream protocols.

Most requests have no body or a short one, go to an HTTP/1.1 upstream that a kept connection leads to, and are answered
by one head with a short body of stated length that arrives in one piece. The pipeline serves them as well, but it must
be ready for everything; here nothing is asked that cannot be the case. Measured (CPU of one request without sockets,
1,000 routes, `benchmarks/bench_lane.py`): 56 us by the pipeline, 7 us here.

The lane takes no decision of its own: rule, endpoint, connection, limits, outcome and meters come from where the
pipeline gets them. As soon as anything is not as expected it hands over what it has begun as a `Begun`, and the
pipeline goes on from that very point, as if it had done the beginning itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final, Protocol

from datum_router.compiler.lease import Lease
from datum_router.compiler.link import LinkedRule, Snapshot
from datum_router.errors import LocalProtocolError, PluginContractError, UpstreamError
from datum_router.model.outcome import class_of
from datum_router.model.request import LocalReply, RequestHead
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router.policy.timeout import request_deadline
from datum_router.reasons import Reason
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.admission import Admission
from datum_router_proxy.answers import NOT_SIMPLE, Answer, AnswerBook, DateField, SharedAnswerBook
from datum_router_proxy.channel import ChannelError
from datum_router_proxy.exchange import ClientGone
from datum_router_proxy.loop import DeadlineExpired, Loop, Task, TaskCancelled, park
from datum_router_proxy.request import ID_BYTES, MAX_BODY_BYTES, RequestIds, Template
from datum_router_proxy.upstream.h1 import H1Upstream
from datum_router_proxy.upstream.h2 import H2Connection, H2Upstream
from datum_router_proxy.upstream.transport import Transport
from datum_router_proxy.wire.hpack_codec import encode_line

log = logging.getLogger(__name__)

_REQUEST_TIMEOUT: Final = Reason.REQUEST_TIMEOUT
_ID_LINE: Final = encode_line(b"x-request-id", bytes(ID_BYTES), never_indexed=False)[:-ID_BYTES]

MAX_ROUNDS: Final = 4
"""How often a message that has begun is looked at again while its connection has unread input: one read is parsed
in rounds of 64 frames, and a cut between two of them says nothing about the peer."""


class ExpressDownstream(Protocol):
    """What the lane asks of a client's side."""

    @property
    def is_gone(self) -> bool:
        """True once nobody is there to take the response."""
        ...

    @property
    def has_unread(self) -> bool:
        """True if the body may be whole in the next round of the loop."""
        ...

    def whole_body(self) -> bytes | None:
        """Return the whole request body if it is here and short."""
        ...

    def send_answer(self, answer: Answer, date: DateField, body: bytes, trailers: bytes = b"") -> bool:
        """Send a whole response at once; False if that cannot be done now, and nothing was sent.

        Raises:
            ClientGone: The client has left.
        """
        ...


class Begun:
    """An exchange that the lane has begun and the pipeline is to finish.

    Attributes:
        lease: To be released by the pipeline; or what is to be replied instead.
        upstream: Has been sent the request head; None if no kept connection was there.
        raised: What ended the wait for body or response, to be dealt with as if it had been raised in the pipeline.
        is_flying: It was sent by `Flights.fly`, and nothing has come back.
        is_over: It was answered; what is left is to see the answer off.
        is_new: Nothing but the choice has been made; the lane may still serve it.
    """

    __slots__ = ("is_flying", "is_new", "is_over", "lease", "raised", "request_id", "rule", "started_at", "upstream")

    def __init__(self, rule: LinkedRule, lease: Lease | LocalReply, started_at: float) -> None:
        self.rule = rule
        self.lease = lease
        self.started_at = started_at
        self.request_id = b""
        self.upstream: H1Upstream | H2Upstream | None = None
        self.raised: Exception | None = None
        self.is_flying = self.is_new = self.is_over = False

    def drop(self) -> None:
        """Give everything back: nobody goes on from here."""
        if self.upstream is not None:
            self.upstream.cancel()
            self.upstream = None
        if isinstance(self.lease, Lease):
            self.lease.release()


class ExpressLane:
    """Serve plain requests; one per process."""

    __slots__ = (
        "_accounts",
        "_admission",
        "_answers",
        "_date",
        "_ids",
        "_loop",
        "_max_via_hops",
        "_observer",
        "_shared_answers",
        "_shedder",
        "_transport",
    )

    def __init__(
        self,
        loop: Loop,
        transport: Transport,
        observer: DataPlaneObserver,
        accounts: Accounts,
        date: DateField,
        ids: RequestIds,
        admission: Admission,
        max_via_hops: int,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._observer = observer
        self._accounts = accounts
        self._date = date
        self._max_via_hops = max_via_hops
        self._admission = admission
        self._shedder = admission.shedder
        self._answers = AnswerBook(transport.h1_limits)
        self._ids = ids
        self._shared_answers = SharedAnswerBook()

    def plan(self, template: Template, snapshot: Snapshot) -> LinkedRule | None:
        """Find the rule for a simple template and remember it there; None if the lane cannot serve it."""
        rule: LinkedRule | None = None
        is_served = template.scheme != "https" or snapshot.serves_host(
            template.listener, template.host, template.identity
        )
        if is_served and template.via_hops <= self._max_via_hops and not snapshot.matches_request_id:
            rule = snapshot.match(template.head)
            if snapshot.guards and not snapshot.admits(template.listener, template.client_auth, template.host, rule):
                rule = None
        if rule is not None and (
            not rule.is_simple
            or (rule.may_hedge and rule.hedges(template.method))
            or (snapshot.has_limiters and snapshot.limiter(template.listener, template.host) is not None)
            or not template.prepare(rule)
        ):
            rule = None
        template.planned_for = snapshot.mark
        template.rule = rule
        return rule

    def find_rule(self, template: Template, snapshot: Snapshot) -> LinkedRule | None:
        """Return the rule of a simple template if the lane can serve it."""
        return template.rule if template.planned_for is snapshot.mark else self.plan(template, snapshot)

    def shed(self) -> None:
        """Forget what is only kept to be faster (threat E8)."""
        self._answers.clear()
        self._shared_answers.clear()

    async def serve(
        self, downstream: ExpressDownstream, template: Template, begun: Begun, task: Task, protocol: str
    ) -> bool:
        """Serve one request for which an endpoint has been chosen; False if the pipeline is to go on from `begun`."""
        begun.is_new = False
        lease = begun.lease
        if isinstance(lease, LocalReply) or lease.trial is not None:
            return False
        upstream = self._transport.take(lease) if template.is_plain else None
        if upstream is None:
            link = self._transport.take_shared(lease)
            return link is not None and await self._serve_shared(downstream, template, begun, link, task, protocol)
        try:
            body = b""
            if template.has_body:
                whole = await self._whole_body(downstream, task, begun)
                if whole is None or len(whole) != template.content_length:
                    upstream.release()
                    return False
                body = whole
            if not self.send(template, begun, upstream, task, body):
                return False
            try:
                while (is_over := self.answer(downstream, template, begun, protocol, body)) is None:
                    await park()
            except (DeadlineExpired, TaskCancelled) as error:
                self.land(template, begun, body, error)
                return False
            if is_over:
                task.deadline = math.inf
            return is_over
        except BaseException:
            upstream.cancel()
            lease.release()
            raise

    def take(self, template: Template, begun: Begun) -> H1Upstream | None:
        """Take a kept connection of the endpoint chosen, for `send`; None: `serve` is to go on from `begun`."""
        lease = begun.lease
        upstream = None
        if template.is_plain and isinstance(lease, Lease) and lease.trial is None:
            upstream = self._transport.take(lease)
        if upstream is None:
            begun.is_new = True
        return upstream

    def send(
        self,
        template: Template,
        begun: Begun,
        upstream: H1Upstream,
        task: Task,
        body: bytes,
        on_answer: Callable[[], bool] | None = None,
    ) -> bool:
        """Write a whole request; False if the connection broke, which is the pipeline's to deal with.

        Args:
            on_answer: The connection's `eager` until `answer` has said that the request is over or not to be had so.
        """
        before, after = template.h1_head
        request_id = begun.request_id = template.kept_id or self._ids.make()
        begun.upstream = upstream
        channel = upstream.channel
        channel.task = task
        rule = begun.rule
        task.deadline = begun.started_at + rule.first_limit_s
        task.deadline_reason = rule.first_reason
        if rule.has_try_limits:
            self._loop.alarm(task)
        try:
            channel.send(before + request_id + after + body)
        except ChannelError:  # reading tells the pipeline the same again
            upstream.adopt(template, body, None, is_sent=False)
            return False
        channel.eager = on_answer
        return True

    def land(self, template: Template, begun: Begun, body: bytes, error: Exception) -> None:
        """Let the pipeline deal with what has ended the wait for the answer to a request that was sent by `send`."""
        begun.raised = error
        assert isinstance(begun.upstream, H1Upstream)
        begun.upstream.adopt(template, body, None, is_sent=True)

    def answer(
        self, downstream: ExpressDownstream, template: Template, begun: Begun, protocol: str, body: bytes
    ) -> bool | None:
        """Answer by what has come; None: nothing yet; False: the pipeline is to go on from `begun`.

        Args:
            body: The request's, which has been sent.
        """
        upstream = begun.upstream
        assert isinstance(upstream, H1Upstream)
        channel = upstream.channel
        data: bytes | None = None
        try:
            if downstream.is_gone:  # before the first wait too: its end may have come with the request
                raise ClientGone
            if not channel.readable or (data := channel.recv()) is None:
                return None
            end = data.find(b"\r\n\r\n") + 4
            rule = begun.rule
            answer = self._answers.find(data[:end], rule) if end > 3 else NOT_SIMPLE
            if (
                0 <= answer.length == len(data) - end
                and answer.status not in rule.retry.retry_on_status
                and not channel.buffered
                and downstream.send_answer(answer, self._date, data[end:])
            ):
                upstream.release()
                lease = begun.lease
                assert isinstance(lease, Lease)
                status = answer.status
                if lease.ticket is not None:
                    lease.ticket.settle(class_of(status))
                lease.release()
                self._observer.attempt_answered(lease.state.service.key, lease.key, status)
                self._accounts.express_ended(
                    protocol,
                    template,
                    rule,
                    lease,
                    status,
                    len(body),
                    answer.length,
                    begun.started_at,
                    begun.request_id,
                )
                return True
        except ChannelError:
            pass  # the upstream's: reading tells the pipeline the same again
        except ClientGone as error:
            begun.raised = error
        upstream.adopt(template, body, data, is_sent=True)
        return False

    async def _whole_body(self, downstream: ExpressDownstream, task: Task, begun: Begun) -> bytes | None:
        """Return a short body that is here whole or will be in a few rounds; what ends the wait is noted in `begun`."""
        rounds = MAX_ROUNDS
        try:
            body = downstream.whole_body()
            while body is None and rounds and downstream.has_unread:
                rounds -= 1
                task.wake()
                await park()
                body = downstream.whole_body()
        except (ClientGone, TaskCancelled) as error:
            begun.raised = error
            return None
        return body

    async def _serve_shared(
        self,
        downstream: ExpressDownstream,
        template: Template,
        begun: Begun,
        link: H2Connection,
        task: Task,
        protocol: str,
    ) -> bool:
        """Serve one request by an HTTP/2 upstream: body and response are each here whole, or the pipeline goes on."""
        try:
            body = await self._whole_body(downstream, task, begun) if template.has_body else b""
            if body is None or len(body) > MAX_BODY_BYTES or not link.has_room():
                return False
            if not self.send_shared(template, begun, link, task, body):
                return False
            upstream = begun.upstream
            assert isinstance(upstream, H2Upstream)
            try:
                while upstream.is_silent:
                    if downstream.is_gone:
                        raise ClientGone
                    await park()
                rounds = MAX_ROUNDS
                while rounds and upstream.may_be_whole_soon:
                    rounds -= 1
                    task.wake()
                    await park()
            except (ClientGone, DeadlineExpired, TaskCancelled) as error:
                begun.raised = error
                return False
            return self.answer_shared(downstream, template, begun, upstream, protocol, len(body))
        except BaseException:
            begun.drop()
            raise

    def send_shared(self, template: Template, begun: Begun, link: H2Connection, task: Task, body: bytes) -> bool:
        """Send a whole request by a connection that has room; False if the pipeline is to go on from `begun`."""
        rule = begun.rule
        try:
            before, after = template.render_h2(rule, template.sent, link.scheme, link.lines)
        except LocalProtocolError:
            return False  # the pipeline says what is wrong with it
        request_id = begun.request_id = template.kept_id or self._ids.make()
        upstream = begun.upstream = link.begin(task, is_reused=link.is_greeted)
        limit = request_deadline(rule.timeouts, now=self._loop.now, client_timeout_s=template.client_timeout_s)
        task.deadline, task.deadline_reason = limit, _REQUEST_TIMEOUT
        if rule.first_reason is not _REQUEST_TIMEOUT and begun.started_at + rule.first_limit_s < limit:
            task.deadline, task.deadline_reason = begun.started_at + rule.first_limit_s, rule.first_reason
            if rule.has_try_limits:
                self._loop.alarm(task)
        if len(request_id) == ID_BYTES:
            line = _ID_LINE + request_id
        else:
            line = encode_line(b"x-request-id", request_id, never_indexed=False)
        try:
            return upstream.send_whole(before + line + after, body, has_body=template.has_body)
        except UpstreamError as error:
            begun.raised = error
            return False

    def answer_shared(
        self,
        downstream: ExpressDownstream,
        template: Template,
        begun: Begun,
        upstream: H2Upstream,
        protocol: str,
        body_bytes: int,
    ) -> bool:
        """Answer by what has come of an HTTP/2 upstream; False if the pipeline is to go on from `begun`."""
        whole = upstream.take_whole()
        if whole is None:
            return False
        head, data, trailer_fields = whole
        status = head.status
        rule = begun.rule
        if status in rule.retry.retry_on_status:
            return False
        answer = self._shared_answers.find(status, head.fields, head.content_length, rule)
        if answer is NOT_SIMPLE:
            return False
        trailers, has_grpc_status = self._shared_answers.trailers(
            trailer_fields, te_trailers=template.te_trailers, is_grpc=template.is_grpc
        )
        if template.is_grpc and not (
            answer.speaks_grpc and (has_grpc_status or (answer.has_grpc_status and not rule.retry.retry_on_grpc))
        ):
            return False
        try:
            if not downstream.send_answer(answer, self._date, data, trailers):
                return False
        except ClientGone as error:
            begun.raised = error
            return False
        upstream.finish()
        lease = begun.lease
        assert isinstance(lease, Lease)
        if lease.ticket is not None:
            lease.ticket.settle(class_of(status))
        lease.release()
        self._observer.attempt_answered(lease.state.service.key, lease.key, status)
        self._accounts.express_ended(
            protocol, template, rule, lease, status, body_bytes, len(data), begun.started_at, begun.request_id
        )
        return True

    def find_shared(self, begun: Begun) -> H2Connection | None:
        """Return a connection that has room for a request that no HTTP/1 upstream can take."""
        lease = begun.lease
        if isinstance(lease, LocalReply) or lease.trial is not None:
            return None
        return self._transport.take_shared(lease)

    def choose(self, template: Template, rule: LinkedRule) -> Begun:
        """Claim an endpoint, or say that the request is not let in."""
        now = self._loop.now
        if self._shedder.is_shedding and not self._shedder.admits():
            return Begun(rule, self._admission.reply, now)
        return Begun(rule, self._select(template.sent, rule, now), now)

    def _select(self, sent: RequestHead, rule: LinkedRule, now: float) -> Lease | LocalReply:
        try:
            return rule.select(sent, rng=self._loop.rng, now=now)
        except PluginContractError as error:
            log.error("plugin failed", extra={"error": str(error), "route": rule.rule.route})
            return LocalReply(status=500, reason=error.reason, detail="a plugin of the route failed")
