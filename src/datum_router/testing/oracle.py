"""A slow, obvious matcher, written from `docs/reference/precedence.md` alone: the reference of property tests.

It shares no code with `routing` and `compiler.precedence` on purpose: agreement of two independent readings of the
same page is what the tests prove. It assumes what the compiler guarantees: canonical hostnames and paths, valid
networks. Patterns are compared by the `fullmatch` it is given, so that tests need no particular engine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from urllib.parse import unquote_to_bytes

from datum_router.model.request import RequestHead
from datum_router.model.route import Match, PathKind, Rule, ValueKind, ValueMatch

Fullmatch = Callable[[str, bytes], bool]


def no_patterns(pattern: str, text: bytes) -> bool:
    """Stand for the absence of an engine in tests that use no patterns."""
    raise AssertionError(f"the test uses a pattern ({pattern!r}) on {text!r} but gives the oracle no engine")


def oracle_match(rules: Iterable[Rule], head: RequestHead, fullmatch: Fullmatch = no_patterns) -> Rule | None:
    """Return the rule that must win: of all pairs of a rule and one of its hostnames that match, the first in order."""
    best: tuple[tuple[object, ...], Rule] | None = None
    for rule in rules:
        if not _conditions_hold(rule, head, fullmatch):
            continue
        for hostname in rule.hostnames or ("",):
            if not _host_holds(hostname, head.host):
                continue
            key = (*_host_key(hostname), *_rule_key(rule))
            if best is None or key < best[0]:
                best = (key, rule)
    return None if best is None else best[1]


def _host_holds(hostname: str, host: str) -> bool:
    if hostname == "":
        return True
    wanted, given = hostname.split("."), host.split(".")
    if wanted[0] != "*":
        return wanted == given
    return len(given) >= len(wanted) and given[-(len(wanted) - 1) :] == wanted[1:] and given[0] != ""


def _host_key(hostname: str) -> tuple[int, int]:
    if hostname == "":
        return (3, 0)
    return (2, 1000 - len(hostname)) if "*" in hostname else (1, 0)


def _segments(path: str) -> list[str]:
    return [] if path == "/" else path.split("/")[1:]


def _within(prefix: str, path: str) -> bool:
    return _segments(path)[: len(_segments(prefix))] == _segments(prefix)


def _path_holds(match: Match, path: str, fullmatch: Fullmatch) -> bool:
    value = match.path.value
    if match.path.kind is PathKind.EXACT and path != value:
        return False
    if match.path.kind is PathKind.PREFIX and not _within(value, path):
        return False
    if match.path.kind is PathKind.REGEX and not fullmatch(value, path.encode()):
        return False
    if match.is_grpc_call and (path.count("/") != 2 or not all(path[1:].split("/"))):
        return False
    service, method, segments = match.grpc_service, match.grpc_method, _segments(path)
    if service and method:
        return segments == [service, method]
    if service:
        return segments[:1] == [service]
    if method:
        return len(segments) == 2 and segments[0] != "" and segments[1] == method
    return True


def _value_holds(condition: ValueMatch, value: bytes | None, fullmatch: Fullmatch) -> bool:
    if value is None:
        holds = False
    elif condition.kind is ValueKind.EXACT:
        holds = value.decode("latin-1") == condition.value.encode().decode("latin-1")
    elif condition.kind is ValueKind.PREFIX:
        holds = value[: len(condition.value.encode())] == condition.value.encode()
    elif condition.kind is ValueKind.PRESENT:
        holds = True
    else:
        holds = fullmatch(condition.value, value)
    return not holds if condition.is_inverted else holds


def _header_holds(condition: ValueMatch, head: RequestHead, fullmatch: Fullmatch) -> bool:
    if condition.name.lower() == "host":
        return _value_holds(condition, head.authority.encode(), fullmatch)
    values = [value for name, value in head.headers if name == condition.name.lower().encode()]
    return _value_holds(condition, b", ".join(values) if values else None, fullmatch)


def _query_holds(condition: ValueMatch, query: str | None, fullmatch: Fullmatch) -> bool:
    parts = (query or "").split("&")
    if len(parts) > 100:
        return False
    for part in parts:
        name, _, value = part.partition("=")
        if part and unquote_to_bytes(name.replace("+", "%20")) == condition.name.encode():
            return _value_holds(condition, unquote_to_bytes(value.replace("+", "%20")), fullmatch)
    return _value_holds(condition, None, fullmatch)


def _source_holds(cidrs: tuple[str, ...], client_ip: str) -> bool:
    try:
        address = ipaddress.ip_address(client_ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in ipaddress.ip_network(cidr, strict=False) for cidr in cidrs)


def _conditions_hold(rule: Rule, head: RequestHead, fullmatch: Fullmatch) -> bool:
    match = rule.match
    return (
        (not rule.listeners or head.listener in rule.listeners)
        and _path_holds(match, head.path, fullmatch)
        and (not match.methods or head.method in match.methods)
        and all(_header_holds(condition, head, fullmatch) for condition in match.headers)
        and all(_query_holds(condition, head.query, fullmatch) for condition in match.query)
        and (not match.source_cidrs or _source_holds(match.source_cidrs, head.client_ip))
        and match.source_attachment in ("", head.attachment)
    )


def _path_key(match: Match) -> tuple[int, float]:
    keys: list[tuple[int, float]] = []
    if match.path.kind is PathKind.EXACT:
        keys.append((1, 0))
    elif match.path.kind is PathKind.REGEX:
        keys.append((2, 10_000 - len(match.path.value)))
    else:
        keys.append((3, 10_000 - len(match.path.value)))
    if match.grpc_service and match.grpc_method:
        keys.append((1, 0))
    elif match.grpc_service:
        keys.append((3, 10_000 - len("/" + match.grpc_service)))
    elif match.grpc_method:
        keys.append((3, 10_000 - len("/") - 0.5))
    return min(keys)


def _rule_key(rule: Rule) -> tuple[object, ...]:
    match = rule.match
    lengths = [ipaddress.ip_network(cidr, strict=False).prefixlen for cidr in match.source_cidrs]
    return (
        _path_key(match),
        not match.methods,
        1000 - len(match.headers),
        1000 - len(match.query),
        not match.source_attachment,
        1000 - max(lengths) if lengths else 1001,
        (rule.created_at == 0, rule.created_at),
        rule.route,
        rule.index,
        rule.id,
    )
