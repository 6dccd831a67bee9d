"""What `explain` says of certificates: which one a client needs for a host, and whom an upstream is taken for."""

from __future__ import annotations

import msgspec

from datum_router.model.listener import Listener
from datum_router.model.route import Rule
from datum_router.model.service import UNRESOLVED, Service, UpstreamProtocol, UpstreamTls
from datum_router.routing.client_guard import make_guard


class ClientReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a host asks of clients.

    Attributes:
        mode: `required`, or `requested` if there may be none.
        names: Of which the certificate must have one; empty = whoever the CAs have signed.
        forwarded: What X-Forwarded-Client-Cert says beside By and Hash; None = there is none.
        is_admitted: False: the rule is not to be had on a connection for this host (421).
    """

    mode: str
    names: tuple[str, ...]
    has_revocation_list: bool
    forwarded: tuple[str, ...] | None
    is_admitted: bool


def describe_client(listener: Listener | None, host: str, rule: Rule | None) -> ClientReport | None:
    """Return what is asked of clients of `host`; None if nothing is, and the rule may be had so."""
    guard = None if listener is None else make_guard(listener)
    if guard is None:
        return None
    policy = guard.policy_of(host)
    is_admitted = guard.admits(policy, host, () if rule is None else rule.hostnames)
    if policy is None:
        if is_admitted:
            return None
        return ClientReport(mode="none", names=(), has_revocation_list=False, forwarded=None, is_admitted=False)
    return ClientReport(
        mode="required" if policy.is_required else "requested",
        names=policy.names,
        has_revocation_list=bool(policy.crl_pem),
        forwarded=policy.details if policy.is_forwarded else None,
        is_admitted=is_admitted,
    )


def client_lines(report: ClientReport) -> list[str]:
    """Return the report as lines for people."""
    if report.mode == "none":
        return ["client certificate: none is asked for here, but the rule's host name asks for one: 421"]
    who = f"for one of {', '.join(report.names)}" if report.names else "for any name"
    line = f"client certificate: {report.mode}, {who}"
    line += ", and not on a revocation list" if report.has_revocation_list else ""
    if report.forwarded is not None:
        line += f"; the service is told in X-Forwarded-Client-Cert: {', '.join(('By', 'Hash', *report.forwarded))}"
    lines = [line]
    if not report.is_admitted:
        lines.append("    the rule's host name asks for another one: 421")
    return lines


def describe_upstream_tls(service: Service) -> str:
    """Return how TLS is spoken to a service's endpoints, and whom they are taken for; empty if it is not."""
    tls = service.tls
    if tls is None:
        return "TLS, verified by the endpoint's address" if service.protocol is UpstreamProtocol.HTTPS else ""
    return describe_tls(tls)


def describe_tls(tls: UpstreamTls) -> str:
    """Return how TLS is spoken, and whom the other side is taken for."""
    if UNRESOLVED in (tls.cert_pem, tls.ca_pem):
        return "TLS that cannot be made: a certificate is not there (502)"
    if not tls.is_verified:
        whom = "NOT VERIFIED"
    elif tls.subject_alt_names:
        whom = f"verified as {' or '.join(tls.subject_alt_names)}"
    else:
        whom = f"verified as {tls.server_name}" if tls.server_name else "verified by the endpoint's address"
    return f"{'mutual TLS' if tls.cert_pem else 'TLS'}, {whom}"
