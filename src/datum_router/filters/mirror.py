"""Copies of requests for a second service: which requests, and what the copy says."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from datum_router.model.filters import Mirror
from datum_router.model.request import LocalReply, RequestHead, ResponseHead

SHADOW: Final = "-shadow"
"""What the host of a copy ends in, so that logs and virtual hosts can tell it from the original: as Envoy has it
(`RouteAction.RequestMirrorPolicy`, `disable_shadow_host_suffix_append` not set)."""


class MirrorFilter:
    """Changes nothing: whoever runs the rule's filters sends the copies."""

    __slots__ = ("config",)

    def __init__(self, config: Mirror) -> None:
        self.config = config

    def is_chosen(self, rng: random.Random) -> bool:
        """Tell whether a request is to be copied."""
        return is_hit(self.config.percent, rng)

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the head unchanged."""
        return head

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head unchanged."""
        return head


def is_hit(percent: int, rng: random.Random) -> bool:
    """Tell whether a draw falls into a share of `percent` of 100; 0 and 100 need no luck."""
    return percent >= 100 or (percent > 0 and rng.random() * 100 < percent)


def copy_of(head: RequestHead) -> RequestHead:
    """Return the head of a copy: the same but for its host, whose port stays behind the suffix."""
    host, colon, port = head.authority.rpartition(":")
    if colon and port.isdecimal():
        authority = f"{host}{SHADOW}:{port}"
    else:
        authority = head.authority + SHADOW
    if head.authority.startswith("["):
        authority = head.authority  # an address: with a suffix it would be none
    return msgspec.structs.replace(head, authority=authority)
