"""From `spec.tls.clientAuth` of a VPCIngress to `ClientAuth`, and who shares hosts with whom.

Whatever is missing closes the door: a host whose clients are to be verified is not served by TLS until that can be
done. Nothing that was in force before is a reason to serve it without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datum_router.compiler.diagnostics import Severity
from datum_router.compiler.refs import Finding
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.secret import Secret
from datum_router.manifests.vpcingress import ClientAuth as ClientAuthSpec
from datum_router.manifests.vpcingress import ClientAuthMode, IngressProtocol, VPCIngress
from datum_router.model.listener import ClientAuth, TlsBinding
from datum_router.plugins.protocols import ManifestView
from datum_router.reasons import Reason
from datum_router.routing.host import host_matches

CA_KEY = "ca.crt"
CRL_KEY = "ca.crl"
_PATH = "spec.tls.clientAuth"


def asks_clients(ingress: VPCIngress) -> ClientAuthSpec | None:
    """Return what is asked of clients; None if nothing is."""
    auth = ingress.spec.tls.client_auth if ingress.spec.tls is not None else None
    return auth if auth is not None and auth.mode is not ClientAuthMode.NONE else None


def is_required(ingress: VPCIngress) -> bool:
    """Tell whether nobody without a certificate is to be served."""
    auth = asks_clients(ingress)
    return auth is not None and auth.mode is ClientAuthMode.REQUIRE


def compile_client_auth(
    ingress: VPCIngress, key: ObjectKey, view: ManifestView | None, findings: list[Finding]
) -> tuple[ClientAuth | None, bool]:
    """Return what is asked of clients, and whether that can be done; if not, `findings` says why.

    Args:
        view: None: nothing is looked at, and names stand for what they name, which is enough to compare.
    """
    auth = asks_clients(ingress)
    if auth is None:
        return None, True
    ca_pem = _text(auth.ca_secret_name, CA_KEY, "caSecretName", key, view, findings)
    crl_pem: str | None = ""
    if auth.crl_secret_name is not None:
        crl_pem = _text(auth.crl_secret_name, CRL_KEY, "crlSecretName", key, view, findings)
    if ca_pem is None or crl_pem is None:
        return None, False
    made = ClientAuth(
        is_required=auth.mode is ClientAuthMode.REQUIRE,
        ca_pem=ca_pem,
        crl_pem=crl_pem,
        names=auth.subject_alt_names,
        is_forwarded=auth.forward_client_cert,
        details=tuple(detail.value for detail in auth.forward_details) if auth.forward_client_cert else (),
    )
    return made, True


def _text(
    name: str | None, entry: str, field: str, key: ObjectKey, view: ManifestView | None, findings: list[Finding]
) -> str | None:
    if view is None:
        return f"{key.namespace}/{name}"
    found = view.get("Secret", key.namespace, name) if name is not None else None
    text = found.text(entry) if isinstance(found, Secret) else None
    if text and text.strip():
        return text
    is_there = isinstance(found, Secret)
    what = f"secret {key.namespace}/{name}"
    findings.append(
        Finding(
            key=key,
            path=f"{_PATH}.{field}",
            reason=Reason.INVALID_CERTIFICATE_REF,
            message=(f"{what} lacks {entry}, or it is empty; " if is_there else f"no usable {what} is there; ")
            + "its hosts are not served by HTTPS, since nobody's certificate could be verified",
            hint=f"apply a secret with {entry}",
            severity=Severity.ERROR if is_there else Severity.WARNING,
            is_reference=not is_there,
        )
    )
    return None


def shared_hosts(
    bindings: Iterable[TlsBinding], binding: TlsBinding, key: ObjectKey, owner: ObjectKey | None, port: int
) -> tuple[list[Finding], bool]:
    """Return what is to be said of hosts that other bindings of the port have, too, and whether the port is refused.

    An older binding serves a name that both have. If that asks for something else than this one does, this one's port
    is refused: its rules would be had by whoever the older one lets in.
    """
    found: list[Finding] = []
    is_refused = False
    for other in bindings:
        if other.client_auth == binding.client_auth:
            continue
        for name in binding.hostnames:
            if name in other.hostnames:
                is_refused |= binding.client_auth is not None
                found.append(_clash(key, name, owner, port, is_refused=binding.client_auth is not None))
        # Who asks for certificates by a wildcard, and who serves a name under it without.
        asking, open_ = (binding, other) if binding.client_auth is not None else (other, binding)
        if open_.client_auth is None:
            found += (
                _hole(key, name, wildcard, port)
                for wildcard in asking.hostnames
                for name in open_.hostnames
                if name != wildcard and host_matches(wildcard, name)
            )
    return found, is_refused


def _hole(key: ObjectKey, name: str, wildcard: str, port: int) -> Finding:
    return Finding(
        key=key,
        path=_PATH,
        reason=Reason.CONFLICTED,
        message=f"{name} on port {port} asks clients for no certificate, but {wildcard} does; rules of {wildcard} are "
        f"not served under {name}",
        severity=Severity.WARNING,
    )


def _clash(key: ObjectKey, name: str, owner: ObjectKey | None, port: int, *, is_refused: bool) -> Finding:
    whose = f" ({owner} came first there)" if owner is not None else ""
    return Finding(
        key=key,
        path=_PATH,
        reason=Reason.CONFLICTED,
        message=f"{name} is served on port {port} by another VPCIngress that asks something else of clients{whose}; "
        + ("the port is not opened for this one" if is_refused else "what that one asks applies"),
        hint="use the same clientAuth in both, or another port",
        severity=Severity.ERROR if is_refused else Severity.WARNING,
    )


def plain_listeners(ingress: VPCIngress, key: ObjectKey) -> Iterator[Finding]:
    """Yield a warning for each listener on which the same hosts are served without any certificate."""
    if not is_required(ingress):
        return
    for index, item in enumerate(ingress.spec.listeners):
        if item.protocol is IngressProtocol.HTTP:
            yield Finding(
                key=key,
                path=f"spec.listeners[{index}].protocol",
                reason=Reason.CONFLICTED,
                message=f"port {item.port} serves the same hosts in the clear, where no client shows a certificate",
                hint="remove the listener, or put rules that all may use into a VPCIngress of their own",
                severity=Severity.WARNING,
            )
