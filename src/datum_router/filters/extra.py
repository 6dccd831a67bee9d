"""What a rule has beside plain filters: whatever needs request and answer together, chance, time or another service.

A rule with any of this keeps off the fast lanes of a data plane, which is decided once, when it is linked; all other
rules have no `RuleExtra` and pay nothing.
"""

from __future__ import annotations

import msgspec

from datum_router.filters.cors import Cors
from datum_router.model.filters import Fault, Mirror
from datum_router.model.request import Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.route import PluginFilter, Rule
from datum_router.reasons import Reason


class RuleExtra:
    """See the module.

    Attributes:
        cors: Asked before all filters, so that a preflight, which carries no credentials, needs none.
        most_body_bytes: Longest request body of the rule; 0 = as its listener has it.
    """

    __slots__ = ("cors", "most_body_bytes")

    def __init__(self, rule: Rule) -> None:
        self.cors = Cors(rule.cors) if rule.cors is not None else None
        self.most_body_bytes = rule.max_request_body_bytes

    def on_response(self, head: RequestHead, response: ResponseHead) -> ResponseHead:
        """Return the response head after everything else has been done with it; `head` is the request as it came."""
        if self.cors is None:
            return response
        return ResponseHead(status=response.status, headers=Headers(self.cors.stamp(head, response.headers.fields)))

    def on_reply(self, head: RequestHead, reply: LocalReply) -> LocalReply:
        """Return what is said in place of a service's answer: a page may read why it got none, too."""
        if self.cors is None or reply.reason == Reason.PREFLIGHT:
            return reply
        return msgspec.structs.replace(reply, headers=self.cors.stamp(head, reply.headers))


def extra_of(rule: Rule) -> RuleExtra | None:
    """Return what a rule has beside plain filters, None if that is nothing."""
    has_any = (
        rule.cors is not None
        or bool(rule.replies)
        or rule.max_request_body_bytes > 0
        or any(isinstance(item, Mirror | Fault | PluginFilter) for item in rule.filters)
        or any(ref.filters for ref in rule.destinations)
    )
    return RuleExtra(rule) if has_any else None
