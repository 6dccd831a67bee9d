"""Rules that several kinds share: paths, host names, addresses, networks, header names, regular expressions."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterator, Sequence

from datum_router.compiler.diagnostics import Severity
from datum_router.manifests._walk import child
from datum_router.manifests.meta import (
    LABEL_KEY_PATTERN,
    LABEL_VALUE_PATTERN,
    MAX_LABEL_VALUE_CHARS,
    MAX_NAME_CHARS,
    ObjectMeta,
    parse_duration,
)
from datum_router.manifests.parts import GRPC_CONDITIONS, LabelSelector, Retries, SelectorOperator, Timeouts
from datum_router.manifests.problem import Problem, shown
from datum_router.manifests.vpcroute import MAX_REGEX_BYTES
from datum_router.reasons import Reason
from datum_router.routing.normalize import BadPath, is_canonical, normalize_rule_path
from datum_router.routing.regex import RegexEngine, RegexProblem, compile_regex, load_engine

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    }
)
"""Fields that are about one connection (RFC 9110 section 7.6.1): they are neither matched nor changed by rules."""
FRAMING = frozenset({"content-length", "host"})
"""Fields that say where a message ends or where it goes; changing them as text would let the two disagree."""

_LABEL_KEY = re.compile(LABEL_KEY_PATTERN.removesuffix("$") + r"\Z")
_LABEL_VALUE = re.compile(LABEL_VALUE_PATTERN.removesuffix("$") + r"\Z")
_PREFIX_LENGTH = re.compile(r"(?:0|[1-9][0-9]{0,2})\Z")
_HOST = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?)*\Z")


def invalid(path: str, message: str, hint: str = "") -> Problem:
    """Return a problem with reason InvalidValue."""
    return Problem(path=path, reason=Reason.INVALID_VALUE, message=message, hint=hint)


def missing(path: str, message: str, hint: str = "") -> Problem:
    """Return a problem with reason MissingField."""
    return Problem(path=path, reason=Reason.MISSING_FIELD, message=message, hint=hint)


def exclusive(path: str, message: str, hint: str = "") -> Problem:
    """Return a problem with reason MutuallyExclusive."""
    return Problem(path=path, reason=Reason.MUTUALLY_EXCLUSIVE, message=message, hint=hint)


def warning(path: str, message: str, hint: str = "") -> Problem:
    """Return a warning: the object is used, but not all of it means what its author may think."""
    return Problem(path=path, reason=Reason.INVALID_VALUE, message=message, hint=hint, severity=Severity.WARNING)


def check_path(path: str, text: str) -> Iterator[Problem]:
    """Check a path that requests are compared with, or that replaces theirs.

    Requests are normalised before they are compared, so a path that is not in normal form would match nothing.
    """
    if is_canonical(text):
        return
    if not text.startswith("/"):
        hint = f"write /{text}" if text and text[0] not in "*?#" else "a path begins with /"
        yield invalid(path, f"found {shown(text)}, expected a path that begins with /", hint)
    elif "?" in text or "#" in text:
        yield invalid(
            path, f"found a query or fragment in {shown(text)}", "use queryParams for conditions on the query"
        )
    elif "//" in text:
        yield invalid(path, f"found an empty segment in {shown(text)}", "requests are compared with single slashes")
    elif ("/." in text or "/%2" in text) and any(
        re.sub("%2[eE]", ".", segment) in (".", "..") for segment in text.split("/")
    ):
        yield invalid(path, f"found a dot segment in {shown(text)}", "requests are compared without dot segments")
    else:
        found = normalize_rule_path(text)
        if isinstance(found, BadPath):
            yield invalid(path, f"found {found.detail}: {shown(text)}")


def check_host(path: str, text: str, *, is_wildcard_allowed: bool = True) -> Iterator[Problem]:
    """Check a host name (RFC 1123), with `*.` in front if that is allowed."""
    lower = text.lower() if text.isascii() else text  # the lower case of some other letters is an ASCII one
    is_named = _HOST.match(lower) is not None and (is_wildcard_allowed or not lower.startswith("*."))
    if is_named and _is_host(lower):
        return
    expected = "a host name such as shop.example.com" + (" or *.example.com" if is_wildcard_allowed else "")
    if is_address(lower):
        yield invalid(path, f"found the address {shown(text)}, expected {expected}", "addresses are no host names")
    elif not is_named:
        yield invalid(path, f"found {shown(text)}, expected {expected}", _host_hint(lower))


def check_host_port(path: str, text: str) -> Iterator[Problem]:
    """Check a host name with or without a port."""
    host, colon, port = text.partition(":")
    if colon and not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        yield invalid(path, f"found {shown(text)}, expected a host name and perhaps a port")
    else:
        yield from check_host(path, host, is_wildcard_allowed=False)


def _is_host(lower: str) -> bool:
    # Addresses end in a digit if they have no colon, and then they are no name: see `is_address`.
    return _HOST.match(lower) is not None and not lower[-1].isdecimal()


def _host_hint(text: str) -> str:
    if "://" in text:
        return "leave out the scheme"
    if text == "*":
        return "leave the field out to mean every host"
    if ":" in text:
        return "leave out the port"
    if text.endswith("."):
        return "leave out the dot at the end"
    if "*" in text[1:]:
        return "only the whole first label may be a wildcard"
    if not text.isascii():
        return "write internationalised names as xn--..."
    return ""


def is_address(text: str) -> bool:
    """Tell whether a text is an IP address, perhaps in brackets."""
    if ":" not in text and not text[-1:].isdecimal():
        return False  # IPv4 ends in a digit, IPv6 has colons: asking the library for every name costs 20 us
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def check_hosts(path: str, names: Sequence[str]) -> Iterator[Problem]:
    """Check a list of host names."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        lower = name.lower()
        if not (_is_host(lower) and name.isascii()):
            yield from check_host(f"{path}[{index}]", name)
        if lower in seen:
            yield warning(f"{path}[{index}]", f"found {shown(name)} for the second time")
        seen.add(lower)


def check_address(path: str, text: str) -> Iterator[Problem]:
    """Check an IP literal that is dialled: no prefix length, no zone, no address that is no host's."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        yield invalid(path, f"found {shown(text)}, expected an IPv4 or IPv6 address", _address_hint(text))
        return
    if getattr(address, "scope_id", None):
        yield invalid(
            path,
            f"found a zone in {shown(text)}, expected an address without one",
            f"write {text.split('%', maxsplit=1)[0]}",
        )
    elif mapped := getattr(address, "ipv4_mapped", None):
        yield invalid(path, f"found an IPv4 address in IPv6 form: {shown(text)}", f"write {mapped}")
    elif address.is_unspecified or address.is_multicast:
        yield invalid(path, f"found {address}, expected the address of one host")


def _address_hint(text: str) -> str:
    bare, slash, _ = text.partition("/")
    if slash and is_address(bare):
        return f"leave out the prefix length: {bare}"
    if text.startswith("[") and is_address(text):
        return f"leave out the brackets: {text[1:-1]}"
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and is_address(host):
        return f"write address: {host.strip('[]')} and port: {port}"
    if _HOST.match(text.lower()):
        return "names are not looked up; write the address"
    return ""


def check_network(path: str, text: str) -> Iterator[Problem]:
    """Check a network in CIDR form; a single address is the network of that address alone."""
    start, slash, bits = text.partition("/")
    try:
        network = ipaddress.ip_network(text, strict=False)
        address = ipaddress.ip_address(start)
    except ValueError:
        yield invalid(path, f"found {shown(text)}, expected a network such as 10.0.0.0/8 or fd00::/8")
        return
    mapped = getattr(address, "ipv4_mapped", None)
    if "%" in text:
        yield invalid(path, f"found a zone in {shown(text)}, expected a network without one")
    elif mapped is not None:
        yield invalid(path, f"found an IPv4 address in IPv6 form: {shown(text)}", f"write it as that of {mapped}")
    elif slash and not _PREFIX_LENGTH.match(bits):  # the library takes netmasks and leading zeros, too
        hint = f"write {network}" if "." in bits or bits.isdigit() else ""
        yield invalid(path, f"found {shown(text)}, expected a network such as 10.0.0.0/8 or fd00::/8", hint)
    elif slash and network.network_address != address:
        yield warning(path, f"found {shown(text)} with host bits set; it is used as {network}", f"write {network}")


def check_header(path: str, name: str, *, is_change: bool = False) -> Iterator[Problem]:
    """Check a header name, which is a token by its type, that is matched, or (`is_change`) set, added or removed."""
    lower = name.lower()
    if lower in HOP_BY_HOP:
        yield invalid(path, f"found {name}, which is about one connection only and is never passed on")
    elif lower == "host" and not is_change:
        yield invalid(path, "found host among the headers", "use spec.hostnames")
    elif is_change and lower in FRAMING:
        hint = "use a URLRewrite filter with hostname" if lower == "host" else "the router keeps it right"
        yield invalid(path, f"found {name}, which may not be changed by a header filter", hint)


def check_regex(path: str, pattern: str) -> Iterator[Problem]:
    """Check a regular expression; without an engine only its length and characters, and the compiler says the rest.

    A pattern that the engine refuses is a bad version of the object, so that the last good one stays in force.
    """
    if not pattern:
        yield invalid(path, "found an empty expression, which would match everything")
    elif len(pattern.encode("utf-8", "replace")) > MAX_REGEX_BYTES:
        yield invalid(path, f"found an expression of more than {MAX_REGEX_BYTES} bytes")
    elif not pattern.isascii():
        yield invalid(
            path,
            f"found a character outside ASCII in {shown(pattern)}",
            "write it as the percent-encoded or \\x bytes that clients send",
        )
    elif isinstance(problem := compile_regex(pattern, _engine()), RegexProblem) and problem.why:
        yield invalid(
            path,
            f"found {shown(pattern)}, expected a regular expression of RE2: {problem.why}",
            "RE2 has no look-around and no back-references" if "(?" in pattern or "\\" in pattern else "",
        )


def check_selector(path: str, selector: LabelSelector | None) -> Iterator[Problem]:
    """Check what the operators of a label selector need."""
    if selector is None:
        return
    for index, item in enumerate(selector.match_expressions):
        where = f"{path}.matchExpressions[{index}].values"
        takes_values = item.operator in (SelectorOperator.IN, SelectorOperator.NOT_IN)
        if takes_values and not item.values:
            yield missing(where, f"operator {item.operator.value} needs values")
        elif item.values and not takes_values:
            yield exclusive(where, f"operator {item.operator.value} takes no values")


def check_selector_for(path: str, namespaces: str, selector: LabelSelector | None) -> Iterator[Problem]:
    """Check that a selector of namespaces stands where `namespaces` is Selector, and only there."""
    if namespaces == "Selector":
        if selector is None:
            yield missing(f"{path}.selector", "namespaces Selector needs selector")
    elif selector is not None:
        yield exclusive(f"{path}.selector", f"namespaces {namespaces} reads no selector", "set namespaces: Selector")


def check_timeouts(path: str, timeouts: Timeouts | None) -> Iterator[Problem]:
    """Check time limits against each other."""
    if timeouts is None:
        return
    if timeouts.connect is not None and parse_duration(timeouts.connect) <= 0:
        yield invalid(f"{path}.connect", f"found {shown(timeouts.connect)}, expected more than nothing")
    request, attempt = timeouts.request, timeouts.backend_request
    if request is not None and attempt is not None and 0 < parse_duration(request) < parse_duration(attempt):
        yield invalid(f"{path}.backendRequest", f"found {attempt}, expected at most request ({request})")


def check_retries(path: str, retries: Retries | None) -> Iterator[Problem]:
    """Check the waits between attempts, and that what is tried again may be."""
    if retries is None:
        return
    for index, condition in enumerate(retries.retry_on):
        if condition in GRPC_CONDITIONS and not retries.retry_non_idempotent:
            yield missing(
                f"{path}.retryNonIdempotent",
                f"retryOn[{index}] is {condition.value}, a code of gRPC, and calls of gRPC are POST: the backend may "
                "have acted on what it answered, expected retryNonIdempotent: true to try it again",
                "say retryNonIdempotent: true if every call of the route may be made twice, or remove the condition",
            )
            break
    if retries.hedging is not None and parse_duration(retries.hedging.delay) <= 0:
        yield invalid(
            f"{path}.hedging.delay",
            f"found {shown(retries.hedging.delay)}, expected more than nothing",
            "take what 95 of 100 requests take",
        )
    backoff = retries.backoff
    if backoff is not None and backoff.initial_ms > backoff.max_ms:
        yield invalid(
            f"{path}.backoff.initialMs", f"found {backoff.initial_ms}, expected at most maxMs ({backoff.max_ms})"
        )


def check_metadata(metadata: ObjectMeta) -> Iterator[Problem]:
    """Check labels and annotations of an object that a file holds; an API server has checked its own."""
    for name, value in (metadata.labels or {}).items():
        where = child("metadata.labels", name)
        yield from _label_key(where, name)
        if len(value) > MAX_LABEL_VALUE_CHARS or not _LABEL_VALUE.match(value):
            yield invalid(
                where, f"found {shown(value)}, expected at most {MAX_LABEL_VALUE_CHARS} letters, digits, -, _ and ."
            )
    for name in metadata.annotations or ():
        yield from _label_key(child("metadata.annotations", name), name.lower())


def _label_key(path: str, name: str) -> Iterator[Problem]:
    prefix, _, _ = name.rpartition("/")
    if not _LABEL_KEY.match(name) or len(prefix) > MAX_NAME_CHARS:
        yield invalid(path, f"found the key {shown(name)}, expected one such as app or example.com/tier")


@functools.cache
def _engine() -> RegexEngine | None:
    return load_engine()


def is_prime(number: int) -> bool:
    """Tell whether a number is prime."""
    if number < 4:
        return number > 1
    if number % 2 == 0:
        return False
    return all(number % divisor for divisor in range(3, int(number**0.5) + 1, 2))


def next_prime(number: int) -> int:
    """Return the lowest prime that is at least `number`."""
    while not is_prime(number):
        number += 1
    return number
