"""The one total order among rules: which of several rules that match a request wins.

The order is that of Gateway API HTTPRoute and GRPCRoute, made total and extended by what they do not know (patterns,
source networks). `docs/reference/precedence.md` tells it with examples; the matcher, `explain`, conflict reports and
the order of rules in a snapshot all use the keys made here, so that they cannot disagree.
"""

from __future__ import annotations

import math

from datum_router.model.route import Match, PathMatch, Rule
from datum_router.routing.grpc import grpc_path
from datum_router.routing.host import HostRank, best_hostname, host_rank, hostnames_of
from datum_router.routing.normalize import BadPath
from datum_router.routing.path import RANK_GRPC_METHOD, PathRank, canonical_value, path_rank
from datum_router.routing.source import ATTACHMENT_RANK, source_rank

RuleRank = tuple[PathRank, int, int, int, int, float, str, int, str]
SortKey = tuple[HostRank, RuleRank]


def path_rank_of(path: PathMatch) -> PathRank:
    """Return the rank of one path condition by its canonical value (as written if that is malformed)."""
    value = canonical_value(path)
    return path_rank(path.kind, path.value if isinstance(value, BadPath) else value)


def match_path_rank(match: Match) -> PathRank:
    """Return the rank of a match's path: the more specific of its path condition and its gRPC condition."""
    rank = path_rank_of(match.path)
    if match.grpc_service:
        implied = grpc_path(match)
        assert implied is not None
        return min(rank, path_rank_of(implied))
    return min(rank, RANK_GRPC_METHOD) if match.grpc_method else rank


def rule_rank(rule: Rule) -> RuleRank:
    """Return the part of the key that does not depend on the hostname; smaller goes first, no two rules are equal."""
    match = rule.match
    return (
        match_path_rank(match),
        0 if match.methods else 1,
        -len(match.headers),
        -len(match.query),
        source_rank(match),
        rule.created_at if rule.created_at > 0 else math.inf,
        rule.route,
        rule.index,
        rule.id,
    )


def sort_key(rule: Rule, hostname: str | None = None) -> SortKey:
    """Return the key of a rule under one of its hostnames; rules sorted by it stand most specific first.

    A rule with several hostnames competes with each of them separately.

    Args:
        hostname: Canonical; None takes the most specific one of the rule.
    """
    if hostname is None:
        hostname = min(hostnames_of(rule.hostnames), key=host_rank)
    return (host_rank(hostname), rule_rank(rule))


_HOSTS = ("an exact hostname", "a wildcard hostname", "no hostname")
_PATHS = ("an exact path", "a path pattern", "a path prefix")


def explain_order(first: Rule, second: Rule, *, host: str | None = None) -> str:
    """Say in one sentence why `first` precedes `second`: the earliest criterion in which they differ.

    Args:
        host: The request's canonical host; each rule competes with its most specific hostname that matches it.
            None takes each rule's most specific hostname.
    """
    key, other = _key_for(first, host), _key_for(second, host)
    if other < key:
        return f"it does not: {second.id} precedes {first.id} ({_why(second, first, other, key)})"
    return _why(first, second, key, other)


def _key_for(rule: Rule, host: str | None) -> SortKey:
    hostname = None if host is None else best_hostname(hostnames_of(rule.hostnames), host)
    return sort_key(rule, hostname)


def _why(first: Rule, second: Rule, key: SortKey, other: SortKey) -> str:
    (host_a, a), (host_b, b) = key, other
    if host_a != host_b:
        if host_a[0] != host_b[0]:
            return f"{_HOSTS[host_a[0]]} precedes {_HOSTS[host_b[0]]}"
        return "its wildcard hostname is longer"
    if a[0] != b[0]:
        return _why_path(a[0], b[0])
    if a[1] != b[1]:
        return "it has a method condition"
    for position, noun in ((2, "header"), (3, "query")):
        if a[position] != b[position]:
            return f"it has more {noun} conditions ({-int(a[position])} against {-int(b[position])})"  # type: ignore[arg-type]  # positions 2 and 3 are ints
    if a[4] != b[4]:
        (by_a, network_a), (by_b, network_b) = divmod(-a[4], ATTACHMENT_RANK), divmod(-b[4], ATTACHMENT_RANK)
        if by_a != by_b:
            return "it has a source attachment"
        if network_b == 0:
            return "it has a source network"
        return f"its longest source network is narrower (/{network_a - 1} against /{network_b - 1})"
    if a[5] != b[5]:
        return "it is older" if b[5] != math.inf else "its age is known, and an unknown age counts as newest"
    if a[6] != b[6]:
        return f"its name {first.route} sorts before {second.route}"
    if a[7] != b[7]:
        return f"it stands earlier in {first.route} (position {first.index} against {second.index})"
    return f"its id {first.id} sorts before {second.id}" if first.id != second.id else "they are the same rule"


def _why_path(a: PathRank, b: PathRank) -> str:
    if a == RANK_GRPC_METHOD or b == RANK_GRPC_METHOD:
        names = ["a gRPC method" if rank == RANK_GRPC_METHOD else _PATHS[rank[0]] for rank in (a, b)]
        return f"{names[0]} precedes {'the path prefix /' if b[:2] == (2, -1) and b != RANK_GRPC_METHOD else names[1]}"
    if a[0] != b[0]:
        return f"{_PATHS[a[0]]} precedes {_PATHS[b[0]]}"
    noun = "path pattern" if a[0] == 1 else "path prefix"
    return f"its {noun} is longer ({-a[1]} characters against {-b[1]})"
