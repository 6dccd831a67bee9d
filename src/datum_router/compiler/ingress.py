"""From VPCIngress to listeners and rules: which ports are open, for which hosts, with which certificates.

Listeners are shared by port: several VPCIngresses may use 8443, each with its own hosts and certificate. If two of
them want different protocols on one port, the older object wins and the other is told so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from datum_router.compiler.clientauth import compile_client_auth, is_required, plain_listeners, shared_hosts
from datum_router.compiler.diagnostics import Severity, did_you_mean
from datum_router.compiler.environment import HTTPS_PORT, NOTHING, OwnCredentials, own_listener, with_default
from datum_router.compiler.refs import Finding, created_at, port_override, resolve_service
from datum_router.compiler.services import service_key
from datum_router.manifests.meta import ObjectKey, key_of
from datum_router.manifests.secret import Secret
from datum_router.manifests.vpcingress import IngressListener, IngressProtocol, PathType, VPCIngress
from datum_router.manifests.vpcroute import ParentRef, VPCRoute
from datum_router.model.listener import Listener, TlsBinding
from datum_router.model.route import BackendRef, Match, PathKind, PathMatch, Rule, RuleId
from datum_router.plugins.protocols import ManifestView
from datum_router.reasons import Reason

HTTP_PORT = 8080


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """One VPCIngress as routes see it."""

    key: ObjectKey
    hostnames: tuple[str, ...]
    sections: tuple[tuple[str, int, str], ...]
    """(section name, port, listener name)"""


class IngressScope(msgspec.Struct, frozen=True, kw_only=True):
    """What all VPCIngresses together offer to routes.

    Attributes:
        own: The listener of the gateway's own certificate, if it has one: in force unless a VPCIngress opens the port.
        secrets: Of each VPCIngress with a certificate the name of its Secret and what was read there.
    """

    ingresses: tuple[Attached, ...] = ()
    listeners: tuple[Listener, ...] = ()
    rules: tuple[Rule, ...] = ()
    findings: tuple[Finding, ...] = ()
    own: Listener | None = None
    secrets: Mapping[ObjectKey, tuple[str, TlsBinding]] = {}
    is_unbound: bool = False

    def unbound(self) -> IngressScope:
        """Return the scope for one listener that serves everything: no rule is bound to a listener."""
        return msgspec.structs.replace(
            self,
            is_unbound=True,
            listeners=(),
            rules=tuple(msgspec.structs.replace(rule, listeners=()) for rule in self.rules),
        )

    def attach(self, route: VPCRoute, findings: list[Finding]) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        """Return (host names, listener names, whether the route is attached anywhere).

        Without `parentRefs` a route is served by every gateway: on each listener, with its own host names. With them
        it is served on the named ingresses' listeners, for those of its host names that the ingress has too.
        """
        own = tuple([name.lower() for name in route.spec.hostnames])
        refs = route.spec.parent_refs
        if not refs:
            return own, (), True
        key = key_of("VPCRoute", route.metadata)
        hosts: dict[str, None] = {}
        listeners: dict[str, None] = {}
        table = {(item.key.namespace, item.key.name): item for item in self.ingresses}
        for index, ref in enumerate(refs):
            where = (ref.namespace or key.namespace, ref.name)
            joined = join(ref, table.get(where), own, namespace=key.namespace, path=f"spec.parentRefs[{index}]")
            if joined.reason is not None:
                is_there = where in table
                findings.append(
                    Finding(
                        key=key,
                        path=joined.path,
                        reason=joined.reason,
                        message=joined.message,
                        hint="" if is_there else did_you_mean(ref.name, [one for at, one in table if at == where[0]]),
                        severity=Severity.ERROR if is_there else Severity.WARNING,
                        is_reference=not is_there,
                    )
                )
                continue
            hosts.update(dict.fromkeys(joined.hostnames))
            listeners.update(dict.fromkeys(joined.listeners))
        if not listeners:
            return (), (), False
        return tuple(hosts), () if self.is_unbound else tuple(listeners), True


class Joined(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A route at one of its parents.

    Attributes:
        hostnames, listeners: What it is served for and on there.
        reason, message, path: Why it is not, and what is to be mended; None and empty if it is.
    """

    hostnames: tuple[str, ...] = ()
    listeners: tuple[str, ...] = ()
    reason: Reason | None = None
    message: str = ""
    path: str = ""


def join(ref: ParentRef, parent: Attached | None, own: tuple[str, ...], *, namespace: str, path: str = "") -> Joined:
    """Return what comes of a `parentRefs` item.

    Args:
        parent: The VPCIngress that it names, None if that is not there.
        own: The route's host names, lower case.
        namespace: The route's.
        path: Of the item in the route.
    """
    name = f"vpcingress {ref.namespace or namespace}/{ref.name}"
    if parent is None:
        return Joined(reason=Reason.VPC_INGRESS_NOT_FOUND, message=f"{name} is not there", path=f"{path}.name")
    listeners = [
        listener
        for section, port, listener in parent.sections
        if (not ref.section_name or section == ref.section_name) and (not ref.port or port == ref.port)
    ]
    if not listeners:
        known = ", ".join(f"{section} ({port})" for section, port, _ in parent.sections) or "none"
        message = f"{name} has no such listener (its listeners: {known})"
        return Joined(reason=Reason.VPC_INGRESS_NOT_FOUND, message=message, path=path)
    hostnames = intersect(own, parent.hostnames)
    if not hostnames and own:
        message = f"none of {', '.join(own)} is a host of {name} ({', '.join(parent.hostnames)})"
        return Joined(reason=Reason.INVALID_VALUE, message=message, path="spec.hostnames")
    return Joined(hostnames=hostnames, listeners=tuple(listeners))


def wanted_listeners(ingress: VPCIngress) -> tuple[IngressListener, ...]:
    """Return the listeners that a VPCIngress asks for, those that it gets without asking included."""
    if ingress.spec.listeners:
        return ingress.spec.listeners
    plain = IngressListener(name="http", port=HTTP_PORT, protocol=IngressProtocol.HTTP)
    if ingress.spec.tls is None:
        return (plain,)
    secure = IngressListener(name="https", port=HTTPS_PORT, protocol=IngressProtocol.HTTPS)
    return (secure,) if is_required(ingress) else (plain, secure)  # in the clear nobody shows a certificate


def intersect(route: Sequence[str], ingress: Sequence[str]) -> tuple[str, ...]:
    """Return the host names that both sides have; an empty side has all (Gateway API host name intersection)."""
    if not route:
        return tuple(ingress)
    if not ingress:
        return tuple(route)
    found: dict[str, None] = {}
    for one in route:
        for other in ingress:
            if one == other or _covers(other, one):
                found[one] = None
            elif _covers(one, other):
                found[other] = None
    return tuple(found)


def _covers(wildcard: str, name: str) -> bool:
    return wildcard.startswith("*.") and name.endswith(wildcard[1:]) and name != wildcard


class IngressCompiler:
    """Compile all VPCIngresses together, since they share ports.

    Args:
        secrets: As in the last scope: what served goes on doing so when its VPCIngress comes to name a Secret that
            cannot be used.
        are_credentials_known: False: no Secret is looked at, and every certificate is taken to be there.
    """

    __slots__ = (
        "_are_credentials_known",
        "_findings",
        "_host",
        "_listeners",
        "_own",
        "_owners",
        "_rules",
        "_secrets",
        "_secrets_before",
        "_view",
    )

    def __init__(
        self,
        view: ManifestView,
        *,
        host: str,
        secrets: Mapping[ObjectKey, tuple[str, TlsBinding]] = {},
        are_credentials_known: bool = True,
        own: OwnCredentials = NOTHING,
    ) -> None:
        self._own = own
        self._view = view
        self._are_credentials_known = are_credentials_known
        self._host = host
        self._listeners: dict[int, Listener] = {}
        self._owners: dict[int, ObjectKey] = {}
        self._rules: list[Rule] = []
        self._findings: list[Finding] = []
        self._secrets: dict[ObjectKey, tuple[str, TlsBinding]] = {}
        self._secrets_before = secrets

    def compile(self, ingresses: Iterable[VPCIngress]) -> IngressScope:
        """Return listeners, rules and findings of all ingresses; older objects first."""
        attached = [
            self._one(item)
            for item in sorted(
                ingresses,
                key=lambda item: (
                    item.metadata.creation_timestamp or "9999",
                    item.metadata.namespace,
                    item.metadata.name,
                ),
            )
        ]
        own = own_listener(self._view, self._own, self._host)
        return IngressScope(
            ingresses=tuple(attached),
            listeners=tuple(with_default(self._listeners[port], own) for port in sorted(self._listeners)),
            own=own,
            rules=tuple(self._rules),
            findings=tuple(self._findings),
            secrets=self._secrets,
        )

    def _one(self, ingress: VPCIngress) -> Attached:
        key = key_of("VPCIngress", ingress.metadata)
        spec = ingress.spec
        hostnames = tuple(dict.fromkeys(name.lower() for name in (spec.host, *spec.hosts)))
        binding = self._binding(ingress, key, hostnames)
        view = self._view if self._are_credentials_known else None
        auth, is_usable = compile_client_auth(ingress, key, view, self._findings)
        if binding is not None:
            binding = msgspec.structs.replace(binding, client_auth=auth) if is_usable else None
        self._findings += plain_listeners(ingress, key)
        sections: list[tuple[str, int, str]] = []
        for index, item in enumerate(wanted_listeners(ingress)):
            listener = self._listener(ingress, key, index, item, hostnames, binding)
            if listener is not None:
                sections.append((item.name, item.port, listener.name))
        if sections or not is_required(ingress):  # rules without a listener are served on all of them
            self._compile_rules(ingress, key, hostnames, tuple(name for _, _, name in sections))
        return Attached(key=key, hostnames=hostnames, sections=tuple(sections))

    def _binding(self, ingress: VPCIngress, key: ObjectKey, hostnames: tuple[str, ...]) -> TlsBinding | None:
        tls = ingress.spec.tls
        if tls is None:
            return None
        if not self._are_credentials_known:
            return TlsBinding(hostnames=hostnames, cert_pem="", key_pem="")
        binding = self._pair(key.namespace, tls.secret_name, hostnames)
        if binding is not None:
            self._secrets[key] = (tls.secret_name, binding)
            return binding
        kept = self._kept(key, tls.secret_name, hostnames)
        before = ""
        if kept is not None:
            before = self._secrets_before[key][0]
            self._secrets[key] = (before, kept)
        is_there = isinstance(self._view.get("Secret", key.namespace, tls.secret_name), Secret)
        what = f"secret {key.namespace}/{tls.secret_name}"
        self._findings.append(
            Finding(
                key=key,
                path="spec.tls.secretName",
                reason=Reason.INVALID_CERTIFICATE_REF,
                message=(f"{what} lacks tls.crt or tls.key; " if is_there else f"no usable {what} is there; ")
                + ("its HTTPS listener is not opened" if kept is None else f"{before}, named before, stays in force"),
                hint="" if is_there else "apply a secret of type kubernetes.io/tls with that name",
                severity=Severity.ERROR if is_there else Severity.WARNING,
                is_reference=not is_there,
            )
        )
        return kept

    def _kept(self, key: ObjectKey, named: str, hostnames: tuple[str, ...]) -> TlsBinding | None:
        """Return the certificate of the Secret that was named before, in its newest version or as it was read last.

        It may be gone from the view for no other reason than that it is named no more: sources read what is named.
        """
        name, binding = self._secrets_before.get(key, (named, None))
        if name == named or binding is None:
            return None
        newest = self._pair(key.namespace, name, hostnames)
        return msgspec.structs.replace(binding, hostnames=hostnames) if newest is None else newest

    def _pair(self, namespace: str, name: str, hostnames: tuple[str, ...]) -> TlsBinding | None:
        secret = self._view.get("Secret", namespace, name)
        cert = secret.text("tls.crt") if isinstance(secret, Secret) else None
        private = secret.text("tls.key") if isinstance(secret, Secret) else None
        return TlsBinding(hostnames=hostnames, cert_pem=cert, key_pem=private) if cert and private else None

    def _listener(
        self,
        ingress: VPCIngress,
        key: ObjectKey,
        index: int,
        item: IngressListener,
        hostnames: tuple[str, ...],
        binding: TlsBinding | None,
    ) -> Listener | None:
        spec = ingress.spec
        is_tls = item.protocol is IngressProtocol.HTTPS
        path = f"spec.listeners[{index}]"
        if is_tls and spec.tls is None:
            self._findings.append(
                Finding(
                    key=key,
                    path=path,
                    reason=Reason.MISSING_FIELD,
                    message="an HTTPS listener needs spec.tls.secretName",
                )
            )
            return None
        if is_tls and binding is None:
            return None
        name = f"{'https' if is_tls else 'http'}-{item.port}"
        before = self._listeners.get(item.port)
        if before is not None and bool(before.tls) != is_tls:
            owner = self._owners[item.port]
            self._findings.append(
                Finding(
                    key=key,
                    path=f"{path}.port",
                    reason=Reason.CONFLICTED,
                    message=f"port {item.port} already speaks {'HTTPS' if before.tls else 'HTTP'} for {owner}",
                    hint="choose another port",
                )
            )
            return None
        if before is not None and binding is not None and is_tls:
            said, is_refused = shared_hosts(before.tls, binding, key, self._owners[item.port], item.port)
            self._findings += said
            if is_refused:
                return None
        trusted_hops = spec.client_ip.trusted_hops if spec.client_ip is not None else 0
        limit = spec.max_request_body_bytes or 0
        if before is None:
            self._owners[item.port] = key
            listener = Listener(
                name=name,
                host=self._host,
                port=item.port,
                tls=(binding,) if is_tls and binding is not None else (),
                alpn=_alpn(ingress),
                min_tls_version=spec.tls.min_version.value if spec.tls is not None else "1.2",
                trusted_hops=trusted_hops,
                max_request_body_bytes=limit,
                hostnames=hostnames,
            )
        else:
            min_version = spec.tls.min_version.value if is_tls and spec.tls is not None else before.min_tls_version
            alpn = _alpn(ingress) if is_tls else before.alpn
            kept = (before.trusted_hops, before.max_request_body_bytes, before.min_tls_version, before.alpn)
            if kept != (trusted_hops, limit, min_version, alpn):
                self._findings.append(
                    Finding(
                        key=key,
                        path="spec",
                        reason=Reason.CONFLICTED,
                        message=f"port {item.port} is shared with {self._owners[item.port]}, whose clientIP, "
                        "maxRequestBodyBytes, tls.minVersion and tls.alpn apply",
                        severity=Severity.WARNING,
                    )
                )
            names = before.hostnames
            merged = tuple(dict.fromkeys((*names, *hostnames))) if names and hostnames else ()
            tls = (*before.tls, binding) if is_tls and binding is not None else before.tls
            listener = msgspec.structs.replace(before, hostnames=merged, tls=tls)
        self._listeners[item.port] = listener
        return listener

    def _compile_rules(
        self, ingress: VPCIngress, key: ObjectKey, hostnames: tuple[str, ...], listeners: tuple[str, ...]
    ) -> None:
        for index, item in enumerate(ingress.spec.rules):
            ref = item.service
            result = resolve_service(
                self._view,
                referrer=key,
                path=f"spec.rules[{index}].service.name",
                name=ref.name,
                namespace=ref.namespace,
            )
            if result.finding is not None:
                self._findings.append(result.finding)
            kind = PathKind.EXACT if item.path_type is PathType.EXACT else PathKind.PREFIX
            value = item.path or "/"
            if kind is PathKind.PREFIX:
                value = value.rstrip("/") or "/"
            self._rules.append(
                Rule(
                    id=RuleId(f"ingress:{key.namespace}/{key.name}#{index}"),
                    route=f"ingress:{key.namespace}/{key.name}",
                    hostnames=hostnames,
                    listeners=listeners,
                    match=Match(path=PathMatch(kind=kind, value=value)),
                    destinations=(
                        BackendRef(
                            service=service_key(ref.namespace or key.namespace, ref.name),
                            port=port_override(ref.port, result.service),
                            problem=result.problem,
                        ),
                    ),
                    created_at=created_at(ingress.metadata),
                    index=index,
                )
            )


def _alpn(ingress: VPCIngress) -> tuple[str, ...]:
    tls = ingress.spec.tls
    return tls.alpn if tls is not None and tls.alpn else ("h2", "http/1.1")
