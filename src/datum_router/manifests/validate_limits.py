"""Rules of what limits traffic that a type cannot say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from datum_router.manifests.meta import parse_duration
from datum_router.manifests.parts import CircuitBreaker, RateLimit
from datum_router.manifests.problem import Problem
from datum_router.manifests.rules import HOP_BY_HOP, check_header, exclusive, invalid, missing, warning
from datum_router.manifests.vpcroute import SessionAffinity, SessionAffinityType, SessionLifetime

_HEADER_KEY = "Header:"
_NEVER_SEEN: Final = frozenset({"content-length", "expect"})
"""Fields that framing has used up before anything of a route is looked at, and that no filter may set."""
_NEVER_TAKEN: Final = ("proxy-", "x-datum-")
"""Names that no client's request keeps: a filter may set them, but sessions are those that clients send."""
_REQUEST_ID: Final = "x-request-id"
_TRUSTED: Final = "unless a proxy sends it that is trusted by spec.clientIP of the VPCIngress"


def check_rate_limit(path: str, limit: RateLimit | None) -> Iterator[Problem]:
    """Check a `rateLimit`: what its keys name."""
    if limit is None:
        return
    seen: dict[str, int] = {}
    for index, key in enumerate(limit.keys):
        where = f"{path}.keys[{index}]"
        if key.startswith(_HEADER_KEY):
            name = key[len(_HEADER_KEY) :]
            yield from check_header(where, name)
            if name.lower() in _NEVER_SEEN:
                yield warning(where, f"found {name}, which no rule sees: it tells no requests apart")
            elif name.lower() == _REQUEST_ID:
                yield warning(
                    where,
                    f"found {name}, which is new for each request {_TRUSTED}: nothing is limited",
                    "name a header that is the same for all requests that are to be counted together",
                )
        if key.lower() in seen:
            yield exclusive(where, f"{key} is that of keys[{seen[key.lower()]}], too", "name each key once")
        seen.setdefault(key.lower(), index)


def check_session_affinity(path: str, affinity: SessionAffinity | None) -> Iterator[Problem]:
    """Check a `sessionAffinity`: what its times mean, and its name."""
    if affinity is None:
        return
    is_permanent = affinity.lifetime is SessionLifetime.PERMANENT
    if affinity.type is SessionAffinityType.HEADER:
        if affinity.name is not None:
            yield from check_header(f"{path}.name", affinity.name, is_change=True)
            yield from _check_session_header(f"{path}.name", affinity.name)
        if is_permanent:
            yield exclusive(f"{path}.lifetime", "a header has no lifetime", "use type: Cookie")
    elif is_permanent and affinity.absolute_timeout is None:
        yield missing(f"{path}.absoluteTimeout", "lifetime Permanent needs absoluteTimeout, its length")
    times = {"absoluteTimeout": affinity.absolute_timeout, "idleTimeout": affinity.idle_timeout}
    for name, text in times.items():
        if text is not None and parse_duration(text) < 1:
            yield invalid(f"{path}.{name}", f"found {text}, expected 1s or more", "leave it out for no limit")
    absolute, idle = affinity.absolute_timeout, affinity.idle_timeout
    if absolute is not None and idle is not None and parse_duration(idle) > parse_duration(absolute):
        yield exclusive(f"{path}.idleTimeout", f"{idle} is longer than absoluteTimeout, {absolute}")


def _check_session_header(path: str, name: str) -> Iterator[Problem]:
    lower = name.lower()
    if lower in HOP_BY_HOP:
        return
    if lower == "expect" or lower.startswith(_NEVER_TAKEN):
        yield warning(
            path, f"found {name}, which is taken out of what clients send: no session is found", "use another name"
        )
    elif lower == _REQUEST_ID:
        yield warning(
            path, f"found {name}, which is new for each request {_TRUSTED}: no session is found", "use another name"
        )


def check_circuit_breaker(path: str, breaker: CircuitBreaker | None) -> Iterator[Problem]:
    """Check a `circuitBreaker`: a circuit that is open for no time is none."""
    if breaker is not None and parse_duration(breaker.open_duration) <= 0:
        yield invalid(f"{path}.openDuration", f"found {breaker.open_duration}, expected more than nothing")
