"""What the pipeline does for rules that have more than plain filters; see `datum_router.filters.extra`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import trio

from datum_router.compiler.link import LinkedRule
from datum_router.errors import PluginContractError, UpstreamError
from datum_router.filters.base import CheckedFilter
from datum_router.filters.extra import RuleExtra
from datum_router.filters.fault import FaultFilter
from datum_router.filters.mirror import MirrorFilter
from datum_router.filters.pending import MAX_CALLS, Answer, Call, Failed, Pending
from datum_router.filters.reply import dress
from datum_router.model.filters import ReplyTemplate
from datum_router.model.listener import Listener
from datum_router.model.request import Headers, LocalReply, RequestHead
from datum_router.policy.timeout import request_deadline
from datum_router.reasons import Reason
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.exchange import NOBODY, Downstream, UpstreamRequest, Watched
from datum_router_proxy.loop import DeadlineExpired, Loop, current_task, park
from datum_router_proxy.mirror import Launch, Mirrors
from datum_router_proxy.replies import TOO_LARGE, timed_out
from datum_router_proxy.request import Request
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.sidecalls import SideCalls
from datum_router_proxy.trace import Trace

log = logging.getLogger(__name__)

MAX_ASIDE = 16
"""Calls of filters that end with no request, under way in one worker; one more fails at once."""


class Extras:
    """One per pipeline."""

    __slots__ = ("_accounts", "_aside", "_calls", "_loop", "_mirrors", "_replies")

    def __init__(self, loop: Loop, settings: ProxySettings, accounts: Accounts, calls: SideCalls) -> None:
        self._loop = loop
        self._accounts = accounts
        self._calls = calls
        self._aside = 0
        self._replies: dict[str, tuple[ReplyTemplate, ...]] = {}
        self._mirrors = Mirrors(loop, settings, accounts, calls)

    async def on_request(
        self, rule: LinkedRule, extra: RuleExtra, downstream: Downstream, request: Request, trace: Trace
    ) -> RequestHead | LocalReply:
        """Return the head to go on with, or the reply that ends the request. The request's deadline holds from here on.

        Raises:
            DeadlineExpired, TaskCancelled, PluginContractError: As in the pipeline.
        """
        head = request.head
        template = request.template
        if extra.cors is not None:
            reply = self._cors(extra, head)
            if reply is not None:
                return reply
        if extra.most_body_bytes:
            if (template.content_length or 0) > extra.most_body_bytes:
                return TOO_LARGE
            trace.body.limit(extra.most_body_bytes)
        trace.deadline = request_deadline(
            rule.timeouts, now=trace.started_at, client_timeout_s=template.client_timeout_s
        )
        if trace.deadline <= trace.started_at:  # it came late already: nobody waits for the answer
            return timed_out(Reason.REQUEST_TIMEOUT)
        task = current_task()
        task.deadline, task.deadline_reason = trace.deadline, Reason.REQUEST_TIMEOUT
        mirrors: list[MirrorFilter] = []
        for item in rule.filters:
            if isinstance(item, MirrorFilter):
                if item.is_chosen(self._loop.rng):
                    mirrors.append(item)
                continue
            if isinstance(item, FaultFilter):
                reply = await self._fault(item, downstream, is_grpc=template.is_grpc)
                if reply is not None:
                    return reply
                continue
            result = item.on_request(head)
            if isinstance(result, Pending):
                result = await self._asked(rule, result, head, downstream)
            if isinstance(item, CheckedFilter):
                self._accounts.filtered(item.name, "refused" if isinstance(result, LocalReply) else "allowed")
            if isinstance(result, LocalReply):
                return result
            head = result
        if mirrors:
            self._mirrors.begin(Launch(rule, request, head, tuple(mirrors)), trace)
        return head

    async def _asked(
        self, rule: LinkedRule, pending: Pending, head: RequestHead, downstream: Downstream
    ) -> RequestHead | LocalReply:
        """Make the calls that a filter asks for, and return what it makes of them."""
        for _ in range(MAX_CALLS):
            result: RequestHead | LocalReply | Pending
            if pending.meanwhile is not None:
                self._on_the_side(rule, pending, head)
                result = pending.meanwhile
            elif pending.call.outlives_client:
                result = await self._waited(rule, pending, head, downstream)
            else:
                result = pending.resume(await self._ask(rule, pending.call, head, downstream))
            if not isinstance(result, Pending):
                return result
            pending = result
        return LocalReply(status=500, reason=Reason.BAD_FILTER_OUTPUT, detail="a filter of the route asks without end")

    async def _ask(self, rule: LinkedRule, call: Call, head: RequestHead, client: Watched = NOBODY) -> Answer | Failed:
        """Make a call within its own time; the task's deadline stays what it was."""
        loop = self._loop
        lease = rule.select_side(call.service, head, rng=loop.rng, now=loop.now)
        if lease is None:
            return Failed(reason=Reason.NO_HEALTHY_ENDPOINT)
        task = current_task()
        outer, outer_reason = task.deadline, task.deadline_reason
        is_ours = loop.now + call.timeout_s < outer
        if is_ours:
            task.deadline, task.deadline_reason = loop.now + call.timeout_s, Reason.SIDE_CALL_TIMEOUT
        sent = UpstreamRequest(
            method=call.method,
            target=call.target.encode("ascii"),
            authority=call.authority.encode("ascii"),
            fields=call.headers,
        )
        try:
            answer = await self._calls.call(lease, sent, b"", most_bytes=call.most_bytes, client=client)
        except UpstreamError as error:
            return Failed(reason=error.reason)
        except DeadlineExpired as error:
            if error.reason is not Reason.SIDE_CALL_TIMEOUT:
                raise
            return Failed(reason=error.reason)
        finally:
            task.deadline, task.deadline_reason = outer, outer_reason
        return Answer(status=answer.status, headers=Headers(answer.fields), body=answer.body, is_cut=answer.is_cut)

    async def _waited(
        self, rule: LinkedRule, pending: Pending, head: RequestHead, downstream: Downstream
    ) -> RequestHead | LocalReply | Pending:
        """Make a call on the side, and wait for what the filter makes of its outcome."""
        task = current_task()
        results: list[RequestHead | LocalReply | Pending | None] = []
        is_waiting = True

        def told(result: RequestHead | LocalReply | Pending | None) -> None:
            results.append(result)
            if is_waiting:  # else the task is at something else by now
                task.wake()

        self._on_the_side(rule, pending, head, told)
        downstream.watch()
        try:
            while not results:
                await park()
        finally:
            is_waiting = False
            downstream.unwatch()
        return results[0] or LocalReply(
            status=500, reason=Reason.INTERNAL, detail="a filter or a plugin broke its promise"
        )

    def _on_the_side(
        self,
        rule: LinkedRule,
        pending: Pending,
        head: RequestHead,
        told: Callable[[RequestHead | LocalReply | Pending | None], None] | None = None,
    ) -> None:
        """Make a call that ends by its own time alone.

        Args:
            told: Takes what the filter makes of its outcome, None if it failed.
        """
        if self._aside >= MAX_ASIDE:
            result: RequestHead | LocalReply | Pending | None = pending.resume(Failed(reason=Reason.POOL_OVERFLOW))
            if told is not None:
                told(result)
            return
        self._aside += 1

        async def run() -> None:
            result: RequestHead | LocalReply | Pending | None = None
            try:
                result = pending.resume(await self._ask(rule, pending.call, head))
            except PluginContractError as error:
                log.error("plugin failed", extra={"error": str(error), "route": rule.rule.route})
            finally:
                self._aside -= 1
                if told is not None:
                    told(result)

        self._loop.spawn(run(), name="filter call")

    def set_replies(self, listener: Listener) -> None:
        """Take the templates of a listener for our own answers."""
        self._replies[listener.name] = listener.replies

    def on_reply(self, trace: Trace, request: Request, reply: LocalReply) -> LocalReply:
        """Return what is said in place of a service's answer: its body by the route's templates or the listener's."""
        linked = trace.linked
        templates = self._replies.get(request.template.listener, ())
        if linked is not None and linked.extra is not None:
            reply = linked.extra.on_reply(request.head, reply)
            templates = linked.rule.replies + templates
        return dress(templates, reply, request.request_id) if templates else reply

    def _cors(self, extra: RuleExtra, head: RequestHead) -> LocalReply | None:
        assert extra.cors is not None
        reply = extra.cors.preflight(head)
        outcome = extra.cors.verdict(head)
        if reply is not None:
            self._accounts.filtered("cors", "preflight" if outcome == "allowed" else "refused")
        elif outcome:
            self._accounts.filtered("cors", outcome)
        return reply

    async def _fault(self, item: FaultFilter, downstream: Downstream, *, is_grpc: bool) -> LocalReply | None:
        plan = item.plan(self._loop.rng, is_grpc=is_grpc)
        if plan.delay_s:
            self._accounts.filtered("fault", "delayed")
            downstream.watch()
            try:
                await self._loop.in_trio(functools.partial(trio.sleep, plan.delay_s))
            finally:
                downstream.unwatch()
        if plan.reply is not None:
            self._accounts.filtered("fault", "aborted")
        return plan.reply
