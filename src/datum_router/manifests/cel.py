"""The rules of `rules`, `validate` and `validate_route` once more, in the Common Expression Language.

The API server runs them (`x-kubernetes-validations`), so that an object which the router would refuse never gets into
the cluster. A rule here and a check there say the same of the same field; tests/conformance/manifests holds at least
one bad object for each of both, and both validators must refuse it.

Theory of operation. `schema` puts the rules of a Struct wherever the Struct stands. The server fills in defaults before
it runs rules, so a field with a default is always there; every other field needs `has()`. It prices a rule by the
longest text and list that it may be run on (`meta` has those limits) and refuses the CRD if the price is too high, so
nothing here compares each item of a long list with each other one. Regular expressions are those of RE2.

Expressions use nothing that is newer than Kubernetes 1.31 (the functions on addresses and networks are the newest).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from datum_router.manifests.meta import (
    LABEL_KEY_PATTERN,
    MAX_HEADER_NAME_CHARS,
    MAX_LABEL_KEY_CHARS,
    TOKEN_PATTERN,
)
from datum_router.manifests.rules import FRAMING, HOP_BY_HOP
from datum_router.reasons import Reason


class CelRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of the API server.

    Attributes:
        on: The field whose value is `self`, by its name on the wire; `name[]`: its items; empty: the Struct itself.
        rule: True for what is good.
        message: What was expected; the server writes the path, and the value if it is no object, before it.
        field: What an error is about, below where the rule stands. Empty: that place itself.
        reason: As the same check of the router has it.
    """

    on: str = ""
    rule: str
    message: str
    field: str = ""
    reason: Reason = Reason.INVALID_VALUE


REASONS: Final = {
    Reason.INVALID_VALUE: "FieldValueInvalid",
    Reason.MISSING_FIELD: "FieldValueRequired",
    Reason.MUTUALLY_EXCLUSIVE: "FieldValueForbidden",
    Reason.NOT_SERVED: "FieldValueForbidden",
}
"""What the API server calls a reason."""


def text(value: str) -> str:
    """Return a text as a literal in which a backslash is a backslash."""
    quote = '"' if "'" in value else "'"
    if quote in value:
        raise ValueError(f"found both kinds of quotes in {value!r}")
    return f"r{quote}{value}{quote}"


def texts(values: Iterable[str]) -> str:
    """Return a list of texts, sorted."""
    return f"[{', '.join(text(value) for value in sorted(values))}]"


# --- paths -----------------------------------------------------------------------------------------------------

# What `normalize_rule_path` takes: segments that are not empty, of any character but those that mean something else.
_PATH: Final = r"^(/[^/?#\\\x00-\x1f\x7f]+)*/?$"
# A path as it is sent, with a query or without.
_SENT: Final = r"""[!-"$-.0->@-\[\]-~]+"""
_SENT_PATH: Final = rf"""^/({_SENT}(/{_SENT})*/?)?(\?[!-"$-~]*)?$"""
# Escapes that may stand in a path: not %2F, not %5C, no control character.
_ESCAPES: Final = (
    r"^([^%?]|%(2[0-9A-Ea-e]|[346][0-9A-Fa-f]|5[0-9ABDEFabdef]|7[0-9A-Ea-e]|[89A-Fa-f][0-9A-Fa-f]))*(\?.*)?$"
)
_DOT_SEGMENTS: Final = r"^[^?]*/(\.|%2[Ee]){1,2}(/|;|%3[Bb]|\?|$)"


def path(on: str, *, is_sent: bool = False) -> tuple[CelRule, ...]:
    """Return what `check_path` says of a field; an empty text passes, unless the type refuses it.

    Args:
        is_sent: The path is sent as it is, with a query or without.
    """
    pattern = _SENT_PATH if is_sent else _PATH
    without = "blanks, #, \\ and empty segments" if is_sent else "?, #, \\ and empty segments"
    return (
        CelRule(
            on=on,
            rule=f"self.matches({text(pattern)})",
            message=f"expected a path that begins with /, without {without}",
        ),
        CelRule(
            on=on,
            rule=f"self.matches({text(_ESCAPES)})",
            message="expected two hex digits after each %, and none of %2F, %5C and control characters",
        ),
        CelRule(
            on=on,
            rule=f"!self.matches({text(_DOT_SEGMENTS)})",
            message="expected no dot segment: requests are compared without",
        ),
    )


# --- hosts, addresses, networks --------------------------------------------------------------------------------

_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = rf"{_LABEL}(\.{_LABEL})*"


def host(on: str, *, is_wildcard_allowed: bool = True) -> CelRule:
    """Return what `check_host` says of a field."""
    start = r"(\*\.)?" if is_wildcard_allowed else ""
    return CelRule(
        on=on,
        rule=f"self.matches({text(f'^{start}{_HOST}$')}) && !isIP(self)",
        message="expected a host name such as shop.example.com" + (" or *.example.com" if is_wildcard_allowed else ""),
    )


def host_port(on: str) -> CelRule:
    """Return what `check_host_port` says of a field."""
    name = "(self.contains(':') ? self.substring(0, self.indexOf(':')) : self)"
    port = "int(self.substring(self.indexOf(':') + 1))"
    return CelRule(
        on=on,
        rule=f"self.matches({text(f'^{_HOST}(:[0-9]{{1,5}})?$')}) && !isIP{name}"
        f" && (!self.contains(':') || {port} >= 1 && {port} <= 65535)",
        message="expected a host name and perhaps a port",
    )


_ADDRESS: Final = (
    "!ip(self).isUnspecified() && !cidr('224.0.0.0/4').containsIP(self) && !cidr('ff00::/8').containsIP(self)"
)


def address(on: str) -> CelRule:
    """Return what `check_address` says of a field."""
    return CelRule(
        on=on,
        rule=f"isIP(self) && {_ADDRESS}",
        message="expected the IPv4 or IPv6 address of one host, without prefix length, port, brackets or zone",
    )


def address_or_host(on: str) -> CelRule:
    """Return what is said of a field that holds an address or a name."""
    return CelRule(
        on=on,
        rule=f"isIP(self) ? {_ADDRESS} : self.matches({text(f'^{_HOST}$')})",
        message="expected the address of one host, or a host name such as api.example.com",
    )


def network(on: str) -> CelRule:
    """Return what `check_network` says of a field."""
    return CelRule(
        on=on,
        rule="isCIDR(self) || isIP(self)",
        message="expected a network such as 10.0.0.0/8 or fd00::/8",
    )


# --- headers, labels, durations --------------------------------------------------------------------------------


_MATCHED: Final = "expected no header of a single connection, such as te, and not host: that is what hostnames are for"


def header_matched(on: str) -> CelRule:
    """Return what `check_header` says of the name of a header that is looked at."""
    return CelRule(
        on=on,
        rule=f"!(self.lowerAscii() in {texts(HOP_BY_HOP | {'host'})})",
        message=_MATCHED,
    )


def header_changed(on: str) -> CelRule:
    """Return what `check_header` says of the name of a header that is set, added or removed."""
    return CelRule(
        on=on,
        rule=f"!(self.lowerAscii() in {texts(HOP_BY_HOP | FRAMING)})",
        message="expected a header that may be changed: not host, content-length or one of a single connection",
    )


def header_map(on: str) -> tuple[CelRule, ...]:
    """Return what is said of the names of a map from headers to values: no pattern can stand on a key."""
    name = f"k.size() <= {MAX_HEADER_NAME_CHARS} && k.matches({text(TOKEN_PATTERN)})"
    return (
        CelRule(on=on, rule=f"self.all(k, {name})", message="expected names of headers (RFC 9110 token)"),
        CelRule(
            on=on,
            rule=f"!self.exists(k, k.lowerAscii() in {texts(HOP_BY_HOP | {'host'})})",
            message=_MATCHED,
        ),
        CelRule(
            on=on,
            rule="self.all(a, self.all(b, a == b || a.lowerAscii() != b.lowerAscii()))",
            message="expected each header once: upper and lower case are the same",
            reason=Reason.MUTUALLY_EXCLUSIVE,
        ),
    )


def label_map(on: str) -> CelRule:
    """Return what is said of the keys of labels."""
    return CelRule(
        on=on,
        rule=f"self.all(k, k.size() <= {MAX_LABEL_KEY_CHARS} && k.matches({text(LABEL_KEY_PATTERN)}))",
        message="expected label keys such as app or example.com/tier",
    )


def lasting(on: str) -> CelRule:
    """Return that a duration is longer than nothing."""
    return CelRule(on=on, rule="duration(self) > duration('0s')", message="expected more than nothing")


# --- fields that need or exclude each other --------------------------------------------------------------------


def given(name: str) -> str:
    """Return an expression: the field `name` of `self`, such as `tls.sni`, is there."""
    parts = name.split(".")
    return " && ".join(f"has(self.{'.'.join(parts[: end + 1])})" for end in range(len(parts)))


def filled(name: str) -> str:
    """Return an expression: the list `name` of `self` is there and has items."""
    return f"{given(name)} && self.{name}.size() > 0"


def needs(field: str, when: str, message: str, *, is_list: bool = False) -> CelRule:
    """Return that a field must be there, or a list have items, if `when` holds."""
    there = filled(field) if is_list else given(field)
    return CelRule(rule=f"!({when}) || {there}", message=message, field=field, reason=Reason.MISSING_FIELD)


def excludes(field: str, when: str, message: str, *, is_list: bool = False) -> CelRule:
    """Return that a field must not be there, or a list have no items, if `when` holds."""
    there = filled(field) if is_list else given(field)
    return CelRule(rule=f"!({when}) || !({there})", message=message, field=field, reason=Reason.MUTUALLY_EXCLUSIVE)
