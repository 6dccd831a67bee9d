"""From `localReplies` of a VPCRoute or VPCIngress to the model."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.manifests.routefilters import LocalReply
from datum_router.model.filters import ReplyTemplate


def compile_replies(items: Sequence[LocalReply]) -> tuple[ReplyTemplate, ...]:
    """Return the templates in the order written."""
    return tuple(
        [ReplyTemplate(statuses=item.statuses, content_type=item.content_type.value, body=item.body) for item in items]
    )
