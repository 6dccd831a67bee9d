"""What a rule has beside plain filters: whatever needs request and answer together, chance, time or another service.

A rule with any of this keeps off the fast lanes of a data plane, which is decided once, when it is linked; all other
rules have no `RuleExtra` and pay nothing.
"""

from __future__ import annotations

import msgspec

from datum_router.filters.base import Filter, apply_response
from datum_router.filters.cors import Cors
from datum_router.model.request import Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.route import Rule
from datum_router.reasons import Reason


class RuleExtra:
    """See the module.

    Attributes:
        cors: Asked before all filters, so that a preflight, which carries no credentials, needs none.
    """

    __slots__ = ("cors",)

    def __init__(self, rule: Rule) -> None:
        self.cors = Cors(rule.cors) if rule.cors is not None else None

    def on_response(
        self,
        filters: tuple[Filter, ...],
        destination_filters: tuple[Filter, ...],
        head: RequestHead,
        response: ResponseHead,
    ) -> ResponseHead:
        """Return the response head after the filters of its destination, and those of the rule.

        Args:
            head: The request as it came.
        """
        response = apply_response(filters, apply_response(destination_filters, response))
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
    return RuleExtra(rule) if rule.cors is not None or any(ref.filters for ref in rule.destinations) else None
