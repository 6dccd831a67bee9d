"""What keeps the requests of one client at one endpoint. Times are seconds."""

from __future__ import annotations

import enum

import msgspec


class AffinityKind(enum.StrEnum):
    """Where clients keep their session."""

    COOKIE = "Cookie"
    HEADER = "Header"


class AffinityPolicy(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Sessions of a route.

    Attributes:
        name: Of the cookie, or of the header in lower case.
        absolute_s: A session ends so long after it began; None = never.
        idle_s: It ends so long after its last request; None = never.
        is_permanent: The cookie outlives the browser, up to `absolute_s`.
    """

    kind: AffinityKind = AffinityKind.COOKIE
    name: str
    absolute_s: float | None = None
    idle_s: float | None = None
    is_permanent: bool = False


class SetCookie(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The cookie that a consistent hash reads, for clients that have none. `ttl_s` 0: until the browser is closed."""

    ttl_s: int = 0
    path: str = "/"
