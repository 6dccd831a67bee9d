"""URLRewrite: another host, another path on the way to the service."""

from __future__ import annotations

import msgspec

from datum_router.filters.base import bad_output, new_path
from datum_router.model.request import LocalReply, RequestHead, ResponseHead
from datum_router.model.route import Rewrite, Rule


class RewriteFilter:
    """Change authority and path."""

    __slots__ = ("_config", "_rule")

    def __init__(self, config: Rewrite, rule: Rule) -> None:
        self._config = config
        self._rule = rule

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the head as the service gets it."""
        config = self._config
        path = new_path(head.path, self._rule, full=config.full_path, prefix=config.prefix_path)
        if path is None:
            return bad_output("the rewritten path is no valid path")
        authority = config.hostname or head.authority
        return msgspec.structs.replace(head, path=path, authority=authority)

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head as it is."""
        return head
