"""Rules of what limits traffic that a type cannot say."""

from __future__ import annotations

from collections.abc import Iterator

from datum_router.manifests.meta import parse_duration
from datum_router.manifests.parts import CircuitBreaker, RateLimit
from datum_router.manifests.problem import Problem
from datum_router.manifests.rules import check_header, exclusive, invalid, missing
from datum_router.manifests.vpcroute import SessionAffinity, SessionAffinityType, SessionLifetime

_HEADER_KEY = "Header:"


def check_rate_limit(path: str, limit: RateLimit | None) -> Iterator[Problem]:
    """Check a `rateLimit`: what its keys name."""
    if limit is None:
        return
    seen: dict[str, int] = {}
    for index, key in enumerate(limit.keys):
        where = f"{path}.keys[{index}]"
        if key.startswith(_HEADER_KEY):
            yield from check_header(where, key[len(_HEADER_KEY) :])
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


def check_circuit_breaker(path: str, breaker: CircuitBreaker | None) -> Iterator[Problem]:
    """Check a `circuitBreaker`: a circuit that is open for no time is none."""
    if breaker is not None and parse_duration(breaker.open_duration) <= 0:
        yield invalid(f"{path}.openDuration", f"found {breaker.open_duration}, expected more than nothing")
