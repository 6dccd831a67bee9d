"""What users write who know Envoy, the Gateway API or another proxy, and what it is called here.

Nothing here is accepted: these are hints. A term stands here only if ours means the same, or is where to look. Terms
are compared without regard to case, `_` and `-` (`compiler.diagnostics.nearest`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

FIELD_TERMS: Final[Mapping[str, tuple[str, ...]]] = {
    "backendRef": ("vpcServiceRef", "destinations"),
    "backendRefs": ("destinations",),
    "backends": ("destinations", "endpoints"),
    "backend": ("vpcServiceRef", "service", "destinations"),
    "cluster": ("vpcServiceRef",),
    "weightedClusters": ("destinations",),
    "upstream": ("vpcServiceRef", "destinations"),
    "upstreams": ("destinations", "endpoints"),
    "service": ("vpcServiceRef",),
    "serviceRef": ("vpcServiceRef", "service"),
    "host": ("hostnames",),
    "hosts": ("hostnames",),
    "hostname": ("hostnames", "host"),
    "hostnames": ("hosts",),
    "domains": ("hostnames", "hosts"),
    "prefix": ("pathPrefix",),
    "path": ("pathPrefix",),
    "regex": ("pathRegex",),
    "safeRegex": ("pathRegex",),
    "method": ("methods",),
    "queryParameters": ("queryParamMatches",),
    "sourceRanges": ("sourceCIDRs",),
    "lbPolicy": ("loadBalancing",),
    "loadBalancer": ("loadBalancing",),
    "loadBalancerPolicy": ("loadBalancing",),
    "retry": ("retries",),
    "retryPolicy": ("retries",),
    "numRetries": ("maxRetries",),
    "attempts": ("maxRetries",),
    "codes": ("retryOnStatus",),
    "healthChecks": ("healthCheck",),
    "outlierDetection": ("passive", "healthCheck.passive"),
    "certificateRefs": ("secretName",),
    "certificateRef": ("secretName",),
    "ip": ("address",),
    "action": ("policy",),
}
"""Field names, and ours in order of preference; a hint names the first that the object has."""

BALANCER_TERMS: Final[Mapping[str, str]] = {
    "least-request": "least-connections",
    "least-conn": "least-connections",
    "power-of-two": "least-connections",
    "rr": "round-robin",
    "weighted-round-robin": "round-robin",
    "ip-hash": "source-ip",
    "maglev": "consistent-hash",
    "ring-hash": "consistent-hash-ring",
}
BALANCER_NAMES: Final = ("round-robin", "least-connections", "source-ip", "consistent-hash", "random")
"""The core's own, for hints where plugins are not known."""
PROTOCOL_TERMS: Final[Mapping[str, str]] = {
    "HTTP1": "HTTP",
    "HTTP/1.1": "HTTP",
    "HTTP2": "H2C",
    "HTTP/2": "H2C",
    "H2": "H2C",
    "kubernetes.io/h2c": "H2C",
    "gRPC-Web": "HTTP",
}
LISTENER_TERMS: Final[Mapping[str, str]] = {
    "HTTP1": "HTTP",
    "HTTP/1.1": "HTTP",
    "HTTP2": "HTTP",
    "HTTP/2": "HTTP",
    "H2C": "HTTP",
    "GRPC": "HTTP",
    "H2": "HTTPS",
}
"""Listeners speak HTTP/1.1, HTTP/2, gRPC and WebSocket alike; only TLS makes a difference."""
TLS_VERSION_TERMS: Final[Mapping[str, str]] = {
    "TLSv1.2": "1.2",
    "TLSv1_2": "1.2",
    "TLS1.2": "1.2",
    "TLSv1.3": "1.3",
    "TLSv1_3": "1.3",
    "TLS1.3": "1.3",
}
PATH_TYPE_TERMS: Final[Mapping[str, str]] = {"PathPrefix": "Prefix", "ImplementationSpecific": "Prefix"}
MATCH_TYPE_TERMS: Final[Mapping[str, str]] = {
    "Regex": "RegularExpression",
    "SafeRegex": "RegularExpression",
    "StartsWith": "Prefix",
    "PathPrefix": "Prefix",
    "Exists": "Present",
}
HASH_TERMS: Final[Mapping[str, str]] = {"ClientIP": "SourceIP", "Query": "QueryParam", "QueryParameter": "QueryParam"}

_METHOD = re.compile(r"[A-Za-z][A-Za-z-]{0,31}\Z")
_AMOUNT = re.compile(r"([0-9]{1,5})(?:\.([0-9]{1,3}))?\s*([A-Za-z]*)\Z")
_UNITS: Final[Mapping[str, tuple[str, int]]] = {
    word: unit
    for words, unit in (
        ("ms msec msecs millis millisecond milliseconds", ("ms", 1)),
        ("s sec secs second seconds", ("s", 1000)),
        ("m min mins minute minutes", ("m", 60_000)),
        ("h hr hrs hour hours", ("h", 3_600_000)),
    )
    for word in words.split()
}


def suggest_duration(value: object) -> str:
    """Return the duration (GEP-2257) that a number, as seconds, or a near miss stands for; empty if none is meant."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, int | float) and not 0 <= value < 100_000:
        return ""  # the decimal form of a huge integer is refused by the interpreter
    found = _AMOUNT.match(str(value).strip())
    if found is None:
        return ""
    whole, fraction, word = found[1], found[2] or "", found[3].lower() or "s"
    if word not in _UNITS:
        return ""
    unit, milliseconds = _UNITS[word]
    if not fraction.strip("0"):
        return f"{int(whole)}{unit}"
    rest, beyond = divmod(int(fraction.ljust(3, "0")) * milliseconds, 1000)
    if beyond:
        return ""  # less than a millisecond
    total = int(whole) * milliseconds + rest
    seconds, left = divmod(total, 1000)
    if total < 100_000:
        return f"{total}ms" if left else f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100_000:
        return ""
    parts = ((hours, "h"), (minutes, "m"), (seconds, "s"), (left, "ms"))
    return "".join(f"{amount}{name}" for amount, name in parts if amount)


def suggest_method(value: object) -> str:
    """Return a method as it is written, if upper case is all that it lacks; else nothing."""
    return value.upper() if isinstance(value, str) and _METHOD.match(value) else ""
