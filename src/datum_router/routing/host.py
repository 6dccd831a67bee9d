"""Host predicates: exact names, `*.suffix`, any; and how specific each is.

A wildcard stands for one or more whole labels (Gateway API Hostname): `*.x` matches `a.x` and `a.b.x`, never `x`.
Hosts of requests are canonical already (`normalize.canonical_host`); hostnames of rules are folded here the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ANY_HOST = ""
"""The hostname of a rule that names none."""

HostRank = tuple[int, int]


def canonical_hostname(hostname: str) -> str:
    """Return a rule's hostname in lower case without trailing dot."""
    return hostname.lower().removesuffix(".")


def host_rank(hostname: str) -> HostRank:
    """Return how specific a canonical hostname is; smaller goes first: exact, longer wildcard, any."""
    if not hostname:
        return (2, 0)
    if hostname.startswith("*."):
        return (1, -len(hostname))
    return (0, 0)


def host_matches(hostname: str, host: str) -> bool:
    """Tell whether a request's host falls under a rule's canonical hostname."""
    if not hostname:
        return True
    if hostname.startswith("*."):
        suffix = hostname[1:]
        return len(host) > len(suffix) and host.endswith(suffix)
    return host == hostname


def hostnames_of(hostnames: Sequence[str]) -> tuple[str, ...]:
    """Return canonical hostnames, ANY_HOST alone if there are none."""
    if len(hostnames) == 1:
        return (canonical_hostname(hostnames[0]),)
    return tuple(dict.fromkeys([canonical_hostname(name) for name in hostnames])) or (ANY_HOST,)


def best_hostname(hostnames: Iterable[str], host: str) -> str | None:
    """Return the most specific of canonical hostnames that matches a request's host, None if none does."""
    return min((name for name in hostnames if host_matches(name, host)), key=host_rank, default=None)
