"""Certificates that have run out, will soon, or are not valid yet: what is said of who names them. Pure.

It is no part of compiling, since it comes with time alone: whoever knows the time asks for it.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.manifests.meta import ObjectKey
from datum_router.model.egress import EgressPolicy
from datum_router.model.snapshot import SnapshotData
from datum_router.model.validity import EXPIRY_WARNING_S, Validity, read_bundle_validity, read_validity
from datum_router.reasons import Reason

_KINDS = {kind.lower(): kind for kind in ("VPCIngress", "VPCEgress")}


class Expiry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A certificate that is in force.

    Attributes:
        owner: `namespace/name` of the object that names it.
        kind: Of that object.
        path: Where it names it.
        what: What it is, as messages begin.
    """

    owner: str
    validity: Validity
    kind: str = "VPCIngress"
    path: str = "spec.tls.secretName"
    what: str = "the certificate"


class ExpiryBook:
    """Validities of the certificates in force; each text is read once."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, bool], Validity | None] = {}

    def look(self, data: SnapshotData | None) -> list[Expiry]:
        """Return what is in force, the first to run out first.

        One for each VPCIngress; for each destination of a VPCEgress the certificate that it is shown, and the CAs that
        it is verified by: of these, the last to run out, since one is enough.
        """
        known: dict[tuple[str, bool], Validity | None] = {}

        def read(pem: str, *, is_bundle: bool = False) -> Validity | None:
            key = pem, is_bundle
            if key not in known:
                reader = read_bundle_validity if is_bundle else read_validity
                known[key] = self._known[key] if key in self._known else reader(pem)
            return known[key]

        found: dict[tuple[str, str, str], Expiry] = {}
        for listener in () if data is None else data.listeners:
            for binding in listener.tls:
                validity = read(binding.cert_pem)
                if validity is not None and binding.owner:
                    one = Expiry(owner=binding.owner, validity=validity)
                    found[one.kind, one.owner, one.path] = one
        if data is not None and data.egress is not None:
            for one in _of_egress(data.egress, read):
                found[one.kind, one.owner, one.path] = one
        self._known = known
        return sorted(found.values(), key=lambda one: (one.validity.not_after, one.kind, one.owner, one.path))


def _of_egress(policy: EgressPolicy, read: Callable[..., Validity | None]) -> Iterator[Expiry]:
    for rule in policy.rules:
        if not rule.is_allow:  # nobody is connected with; and its bad destinations are left out, so that no index holds
            continue
        for index, target in enumerate(rule.targets):
            if target.tls is None:
                continue
            path = f"spec.destinations[{index}].tls"
            shown = read(target.tls.cert_pem)
            if shown is not None:
                yield Expiry(
                    kind="VPCEgress",
                    owner=rule.name,
                    path=f"{path}.clientCertificateSecretName",
                    what=f"our certificate for {target.host}",
                    validity=shown,
                )
            trusted = read(target.tls.ca_pem, is_bundle=True) if target.tls.is_verified else None
            if trusted is not None:
                yield Expiry(
                    kind="VPCEgress",
                    owner=rule.name,
                    path=f"{path}.caSecretName",
                    what=f"the last CA for {target.host}",
                    validity=trusted,
                )


def expiry_diagnostics(expiries: Iterable[Expiry], *, now: float) -> Iterator[Diagnostic]:
    """Yield a warning for each certificate that peers refuse now, or will within `EXPIRY_WARNING_S`.

    Texts name moments, not what is left, so that they stay the same from one look to the next.

    Args:
        now: Unix seconds.
    """
    for one in expiries:
        validity = one.validity
        until = _moment(validity.not_after)
        if now > validity.not_after:
            reason, message = Reason.CERTIFICATE_EXPIRED, f"{one.what} has expired at {until}"
        elif now < validity.not_before:
            reason = Reason.CERTIFICATE_EXPIRED
            message = f"{one.what} is not valid before {_moment(validity.not_before)}"
        elif validity.not_after - now < EXPIRY_WARNING_S:
            reason, message = Reason.CERTIFICATE_EXPIRES_SOON, f"{one.what} expires at {until}"
        else:
            continue
        yield Diagnostic(
            severity=Severity.WARNING,
            object=f"{one.kind.lower()} {one.owner}",
            path=one.path,
            reason=reason,
            message=message,
            hint="renew it: a changed Secret is taken over while serving",
        )


def owner_of(diagnostic: Diagnostic) -> ObjectKey:
    """Return which object a warning of `expiry_diagnostics` is about."""
    kind, _, where = diagnostic.object.partition(" ")
    namespace, _, name = where.partition("/")
    return ObjectKey(kind=_KINDS[kind], namespace=namespace, name=name)


def _moment(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
