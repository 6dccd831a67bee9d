"""What the pipeline does for rules that have more than plain filters; see `datum_router.filters.extra`."""

from __future__ import annotations

from datum_router.compiler.link import LinkedRule
from datum_router.filters.base import apply_request
from datum_router.filters.extra import RuleExtra
from datum_router.model.request import LocalReply, RequestHead
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.exchange import Downstream
from datum_router_proxy.request import Request
from datum_router_proxy.trace import Trace


class Extras:
    """One per pipeline."""

    __slots__ = ("_accounts",)

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def on_request(
        self, rule: LinkedRule, extra: RuleExtra, downstream: Downstream, request: Request, trace: Trace
    ) -> RequestHead | LocalReply:
        """Return the head to go on with, or the reply that ends the request."""
        head = request.head
        if extra.cors is not None:
            reply = extra.cors.preflight(head)
            outcome = extra.cors.verdict(head)
            if reply is not None:
                self._accounts.filtered("cors", "preflight" if outcome == "allowed" else "refused")
                return reply
            if outcome:
                self._accounts.filtered("cors", outcome)
        return apply_request(rule.filters, head)
