"""Certificates that have run out, will soon, or are not valid yet: what is said of their VPCIngresses. Pure.

It is no part of compiling, since it comes with time alone: whoever knows the time asks for it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.model.listener import Listener
from datum_router.model.validity import EXPIRY_WARNING_S, Validity, read_validity
from datum_router.reasons import Reason


class Expiry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The certificate of one VPCIngress (`namespace/name`)."""

    owner: str
    validity: Validity


class ExpiryBook:
    """Validities of the certificates in force; each text is read once."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, Validity | None] = {}

    def look(self, listeners: Iterable[Listener]) -> list[Expiry]:
        """Return what is served, the first to run out first; one for each VPCIngress."""
        found: dict[str, Validity] = {}
        known: dict[str, Validity | None] = {}
        for listener in listeners:
            for binding in listener.tls:
                pem = binding.cert_pem
                if pem not in known:
                    known[pem] = self._known[pem] if pem in self._known else read_validity(pem)
                validity = known[pem]
                if validity is not None and binding.owner:
                    found[binding.owner] = validity
        self._known = known
        return sorted(
            (Expiry(owner=owner, validity=validity) for owner, validity in found.items()),
            key=lambda one: (one.validity.not_after, one.owner),
        )


def expiry_diagnostics(expiries: Iterable[Expiry], *, now: float) -> Iterator[Diagnostic]:
    """Yield a warning for each certificate that clients refuse now, or will within `EXPIRY_WARNING_S`.

    Texts name moments, not what is left, so that they stay the same from one look to the next.

    Args:
        now: Unix seconds.
    """
    for one in expiries:
        validity = one.validity
        until = _moment(validity.not_after)
        if now > validity.not_after:
            reason, message = Reason.CERTIFICATE_EXPIRED, f"the certificate has expired at {until}"
        elif now < validity.not_before:
            reason = Reason.CERTIFICATE_EXPIRED
            message = f"the certificate is not valid before {_moment(validity.not_before)}"
        elif validity.not_after - now < EXPIRY_WARNING_S:
            reason, message = Reason.CERTIFICATE_EXPIRES_SOON, f"the certificate expires at {until}"
        else:
            continue
        yield Diagnostic(
            severity=Severity.WARNING,
            object=f"vpcingress {one.owner}",
            path="spec.tls.secretName",
            reason=reason,
            message=message,
            hint="renew it: a changed Secret is taken over while serving",
        )


def _moment(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
