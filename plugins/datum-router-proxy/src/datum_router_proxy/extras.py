"""What the pipeline does for rules that have more than plain filters; see `datum_router.filters.extra`."""

from __future__ import annotations

import functools

import trio

from datum_router.compiler.link import LinkedRule
from datum_router.filters.extra import RuleExtra
from datum_router.filters.fault import FaultFilter
from datum_router.filters.mirror import MirrorFilter
from datum_router.filters.reply import dress
from datum_router.model.filters import ReplyTemplate
from datum_router.model.listener import Listener
from datum_router.model.request import LocalReply, RequestHead
from datum_router.policy.timeout import request_deadline
from datum_router.reasons import Reason
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.exchange import Downstream
from datum_router_proxy.loop import Loop, current_task
from datum_router_proxy.mirror import Launch, Mirrors
from datum_router_proxy.replies import TOO_LARGE, timed_out
from datum_router_proxy.request import Request
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.sidecalls import SideCalls
from datum_router_proxy.trace import Trace


class Extras:
    """One per pipeline."""

    __slots__ = ("_accounts", "_loop", "_mirrors", "_replies")

    def __init__(self, loop: Loop, settings: ProxySettings, accounts: Accounts, calls: SideCalls) -> None:
        self._loop = loop
        self._accounts = accounts
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
            if isinstance(result, LocalReply):
                return result
            head = result
        if mirrors:
            self._mirrors.begin(Launch(rule, request, head, tuple(mirrors)), trace)
        return head

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
