"""Cross-origin resource sharing, as the Fetch standard has it (section 3.3, https://fetch.spec.whatwg.org/#http-cors-protocol).

Theory of operation. A page may always send a plain request to another origin; the fields made here tell its browser
whether the page may read the answer, and, in answer to a preflight, whether it may send more than a plain request. So
nothing is refused here: an origin that is not allowed gets the answer without these fields. The service's own fields
of this kind never pass, else two authorities would answer one question.

What depends on the request's Origin says `Vary: Origin`, whether Origin was there or not: a cache must not give the
answer for one origin to another. Only the answer to a policy without credentials and with `*` is the same for all.
"""

from __future__ import annotations

import re
from typing import Final

from datum_router.model.filters import CorsPolicy
from datum_router.model.request import FieldList, LocalReply, RequestHead
from datum_router.reasons import Reason

ANY: Final = "*"
SAFE_METHODS: Final = ("GET", "HEAD", "POST")
"""Methods that need no permission (Fetch: CORS-safelisted method)."""
DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}

_PORT: Final = r"6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}"
ORIGIN_PATTERN: Final = (
    r"^(\*|[A-Za-z][A-Za-z0-9+.-]*://((\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])"
    rf"(:({_PORT}))?)$"
)
"""origin = scheme "://" host [ ":" port ] (RFC 6454 section 6.2), with `*.` in front of a name or not; or `*`."""
_ORIGIN: Final = re.compile(ORIGIN_PATTERN.removesuffix("$") + r"\Z")
# What the wildcard of a pattern stands for: one or more labels of a host name.
_LABELS: Final = re.compile(rb"[a-z0-9_\-]+(?:\.[a-z0-9_\-]+)*\Z")
_OWN_PREFIX: Final = b"access-control-"
_PREFLIGHT_VARY: Final = b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


def canonical_origin(text: str) -> str:
    """Return an origin or pattern as browsers write it: lower-case, without the scheme's default port."""
    lower = text.lower()
    scheme = lower.partition("://")[0]
    return lower.removesuffix(DEFAULT_PORTS.get(scheme, "\0"))


def origin_problem(text: str) -> str:
    """Return what is wrong with an origin or pattern, empty if nothing is."""
    if text == "null":
        return "null, the origin of every sandboxed page and local file, expected an origin that belongs to somebody"
    if _ORIGIN.match(text) is None:
        return f"{text!a}, expected an origin such as https://shop.example.com or https://*.example.com, or *"
    return ""


def is_preflight(head: RequestHead) -> bool:
    """Tell whether a request is a CORS-preflight request: OPTIONS with Origin and Access-Control-Request-Method."""
    return (
        head.method == "OPTIONS"
        and head.headers.get(b"origin") is not None
        and head.headers.get(b"access-control-request-method") is not None
    )


class Cors:
    """A compiled policy; one serves many requests."""

    __slots__ = ("_common", "_exact", "_is_any", "_preflight", "_wildcards")

    def __init__(self, policy: CorsPolicy) -> None:
        """Take a policy for which `origin_problem` is empty everywhere."""
        self._is_any = ANY in policy.origins and not policy.allows_credentials
        self._exact = frozenset(one.encode("ascii") for one in policy.origins if "*" not in one)
        pairs = [one.encode("ascii").split(b"*", 1) for one in policy.origins if "*." in one]
        self._wildcards = tuple((before, after) for before, after in pairs)
        common: list[tuple[bytes, bytes]] = []
        if policy.allows_credentials:
            common.append((b"access-control-allow-credentials", b"true"))
        self._common: FieldList = tuple(common)
        if policy.exposed:
            self._common += ((b"access-control-expose-headers", _joined(policy.exposed)),)
        methods = tuple(dict.fromkeys((*SAFE_METHODS, *policy.methods)))
        preflight = [*common, (b"access-control-allow-methods", _joined(methods))]
        if policy.headers:
            preflight.append((b"access-control-allow-headers", _joined(policy.headers)))
        if policy.max_age_s is not None:
            preflight.append((b"access-control-max-age", b"%d" % policy.max_age_s))
        self._preflight: FieldList = tuple(preflight)

    def allows(self, origin: bytes) -> bool:
        """Tell whether pages of an origin may read the answers; O(wildcards)."""
        if self._is_any or origin in self._exact:
            return True
        for before, after in self._wildcards:
            # Both ends must be there without overlap, and what is between them must be labels and nothing else.
            middle = origin[len(before) : len(origin) - len(after)]
            if origin == before + middle + after and _LABELS.match(middle):
                return True
        return False

    def verdict(self, head: RequestHead) -> str:
        """Return the outcome that is counted: `allowed`, `refused`, or nothing for a request without Origin."""
        origin = head.headers.get(b"origin")
        if origin is None:
            return ""
        return "allowed" if self.allows(origin) else "refused"

    def preflight(self, head: RequestHead) -> LocalReply | None:
        """Return the answer to a preflight request, None for any other.

        It is 204 in any case; which method and fields are allowed is for the browser to compare.
        """
        if not is_preflight(head):
            return None
        origin = head.headers.get(b"origin") or b""
        fields: FieldList = ()
        if self.allows(origin):
            fields = ((b"access-control-allow-origin", b"*" if self._is_any else origin), *self._preflight)
        if not self._is_any:
            fields += ((b"vary", _PREFLIGHT_VARY),)
        return LocalReply(status=204, reason=Reason.PREFLIGHT, headers=fields)

    def stamp(self, head: RequestHead, fields: FieldList) -> FieldList:
        """Return the fields of an answer with ours in place of the service's.

        Args:
            head: The request as it came.
        """
        kept = tuple(field for field in fields if not field[0].startswith(_OWN_PREFIX))
        origin = head.headers.get(b"origin")
        if self._is_any:
            kept += ((b"access-control-allow-origin", b"*"), *self._common)
        elif origin is not None and self.allows(origin):
            kept += ((b"access-control-allow-origin", origin), *self._common)
        return kept if self._is_any else with_vary(kept, b"Origin")


def with_vary(fields: FieldList, name: bytes) -> FieldList:
    """Return fields whose Vary names `name` (RFC 9110 section 12.5.5)."""
    wanted = name.lower()
    for key, value in fields:
        if key == b"vary" and any(one.strip(b" \t").lower() in (wanted, b"*") for one in value.split(b",")):
            return fields
    return (*fields, (b"vary", name))


def _joined(names: tuple[str, ...]) -> bytes:
    return ", ".join(names).encode("ascii", "replace")
