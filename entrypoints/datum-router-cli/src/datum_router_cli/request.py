"""METHOD URL [-H ...] as typed -> the request head that the gateway would make of it, or why it would refuse it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.errors import ConfigError
from datum_router.model.request import Headers, RequestHead
from datum_router.reasons import Reason
from datum_router.routing.normalize import BadHost, BadPath, normalize_target, parse_authority

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
DEFAULT_SOURCE_IP = "127.0.0.1"
SCHEMES = ("http", "https")

# token = 1*tchar (RFC 9110 section 5.6.2); field-value: no controls but HTAB, no blank at either end (section 5.5)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"(?:[!-~\x80-\U0010ffff](?:[\t -~\x80-\U0010ffff]*[!-~\x80-\U0010ffff])?)?")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?:#.*)?", re.DOTALL)


def make_request(
    method: str,
    url: str,
    *,
    headers: Sequence[str] = (),
    source_ip: str = DEFAULT_SOURCE_IP,
    listener: str = "",
    attachment: str = "",
) -> RequestHead:
    """Build the head of a request; a `Host` header takes the place of the URL's authority, as with curl.

    Raises:
        ConfigError: The gateway would refuse the request, or an argument is no request; says what would be right.
    """
    if not _TOKEN.fullmatch(method):
        raise _bad(f"METHOD: found {method!r}, expected a method such as GET or POST")
    if method != method.upper():
        hint = did_you_mean(method.upper(), METHODS)
        raise _bad(f"METHOD: found {method!r}; methods are case-sensitive" + (f" ({hint})" if hint else ""))
    found = _URL.fullmatch(url)
    if found is None and method == "CONNECT":
        raise _bad(
            "METHOD: CONNECT asks a forward proxy for a tunnel, and routes do not know it: expected --egress too"
        )
    if found is None:
        raise _bad(f"URL: found {url!r}, expected http://HOST[:PORT]/PATH such as http://localhost/api/v1/users")
    scheme = found["scheme"].lower()
    if scheme not in SCHEMES:
        hint = did_you_mean(scheme, SCHEMES)
        raise _bad(f"URL: found scheme {scheme!r}, expected http or https" + (f" ({hint})" if hint else ""))
    target = found["target"]
    if not target.startswith("/"):
        target = "/" + target  # an empty path is sent as "/" (RFC 9110 section 4.2.3)
    fields: list[tuple[bytes, bytes]] = []
    authority_text = found["authority"]
    for header in headers:
        name, value = _field(header)
        if name == "host":
            authority_text = value
        else:
            fields.append((name.encode("ascii"), value.encode("utf-8", "surrogateescape")))
    authority = parse_authority(authority_text)
    if isinstance(authority, BadHost):
        raise _bad(f"URL: host {authority_text!r} would be answered with 400: {authority.detail}")
    normalized = normalize_target(target.encode("utf-8", "surrogateescape"))
    if isinstance(normalized, BadPath):
        raise _bad(f"URL: path {target!r} would be answered with 400: {normalized.detail}")
    try:
        client_ip = str(ipaddress.ip_address(source_ip))
    except ValueError:
        raise _bad(f"--source-ip: found {source_ip!r}, expected an IP address such as 10.0.0.1 or fd00::1") from None
    return RequestHead(
        method=method,
        scheme=scheme,
        authority=authority.text,
        host=authority.host,
        path=normalized.path,
        query=normalized.query,
        headers=Headers(fields),
        client_ip=client_ip,
        listener=listener,
        attachment=attachment,
    )


def _field(header: str) -> tuple[str, str]:
    name, colon, value = header.partition(":")
    value = value.strip(" \t")
    if not colon or not _TOKEN.fullmatch(name):
        raise _bad(f"-H: found {header!r}, expected 'Name: value' such as 'X-Tenant: blue'")
    if not _FIELD_VALUE.fullmatch(value):
        raise _bad(f"-H: the value of {name} holds a control character, which no header may")
    return name.lower(), value


def _bad(message: str) -> ConfigError:
    return ConfigError(message, reason=Reason.INVALID_VALUE)
