"""From VPCIngress to listeners and rules: which ports are open, for which hosts, with which certificates.

Listeners are shared by port: several VPCIngresses may use 8443, each with its own hosts, certificate, and way of
speaking TLS. The oldest object wins: a port speaks what the oldest of its VPCIngresses says, and a host name belongs
to the oldest that names it. Within a namespace others may add paths to it; one of another namespace loses the name.
All is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from datum_router.compiler.attach import Attached, IngressScope, Joined, intersect, join
from datum_router.compiler.clientauth import compile_client_auth, plain_listeners, shared_hosts
from datum_router.compiler.diagnostics import Severity
from datum_router.compiler.edge import (
    HTTP_PORT,
    MODES,
    allowed_routes,
    dressed,
    host_policy,
    listener_name,
    port_settings,
    speaks,
    wanted_listeners,
    with_defaults,
)
from datum_router.compiler.environment import HTTPS_PORT, NOTHING, OwnCredentials, own_listener, with_default
from datum_router.compiler.limits import rate_policy
from datum_router.compiler.refs import (
    Finding,
    created_at,
    is_permitted,
    port_override,
    refusal,
    resolve_service,
)
from datum_router.compiler.services import service_key
from datum_router.manifests.labels import selects
from datum_router.manifests.meta import ObjectKey, key_of
from datum_router.manifests.secret import Secret
from datum_router.manifests.vpcingress import IngressListener, IngressProtocol, IngressRule, PathType, VPCIngress
from datum_router.manifests.vpcservice import Protocol
from datum_router.model.limits import HostRateLimit, RateScope
from datum_router.model.listener import Listener, ListenerMode, TlsBinding
from datum_router.model.policy import TimeoutPolicy
from datum_router.model.route import BackendRef, Match, PathKind, PathMatch, Rule, RuleId
from datum_router.plugins.protocols import ManifestView
from datum_router.reasons import Reason

__all__ = [
    "HTTPS_PORT",
    "HTTP_PORT",
    "Attached",
    "IngressCompiler",
    "IngressScope",
    "Joined",
    "intersect",
    "join",
    "wanted_listeners",
]


class IngressCompiler:
    """Compile all VPCIngresses together, since they share ports.

    Args:
        secrets: As in the last scope: what served goes on doing so when its VPCIngress comes to name a Secret that
            cannot be used.
        are_credentials_known: False: no Secret is looked at, and every certificate is taken to be there.
        gateway_labels: What `gatewaySelector` selects by; None: nobody's in particular, so that all are selected.
        own: What certificates the gateway has beside those of VPCIngresses.
    """

    __slots__ = (
        "_are_credentials_known", "_findings", "_gateway_labels", "_host", "_host_owners", "_listeners", "_own",
        "_owners", "_rules", "_secrets", "_secrets_before", "_view",
    )  # fmt: skip

    def __init__(
        self,
        view: ManifestView,
        *,
        host: str,
        secrets: Mapping[ObjectKey, tuple[str, TlsBinding]] = {},
        are_credentials_known: bool = True,
        gateway_labels: Mapping[str, str] | None = None,
        own: OwnCredentials = NOTHING,
    ) -> None:
        self._own = own
        self._view = view
        self._are_credentials_known = are_credentials_known
        self._gateway_labels = gateway_labels
        self._host = host
        self._listeners: dict[int, Listener] = {}
        self._owners: dict[int, ObjectKey] = {}
        self._host_owners: dict[tuple[int, str], ObjectKey] = {}
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
        selector = spec.gateway_selector
        if selector is not None and self._gateway_labels is not None and not selects(selector, self._gateway_labels):
            return Attached(key=key, hostnames=(), sections=(), is_elsewhere=True)
        hostnames = self._own_hosts(ingress, key)
        binding = self._binding(ingress, key, hostnames)
        view = self._view if self._are_credentials_known else None
        auth, is_usable = compile_client_auth(ingress, key, view, self._findings)
        if binding is not None:
            binding = msgspec.structs.replace(binding, client_auth=auth) if is_usable else None
        self._findings += plain_listeners(ingress, key)
        sections: list[tuple[str, int, str]] = []
        for index, item in enumerate(wanted_listeners(ingress) if hostnames else ()):
            listener = self._listener(ingress, key, index, item, hostnames, binding)
            if listener is not None:
                sections.append((item.name, item.port, listener.name))
        if sections:  # rules without a listener would be served on all of them
            self._compile_rules(ingress, key, hostnames, tuple(name for _, _, name in sections))
        return Attached(
            key=key,
            hostnames=hostnames,
            sections=tuple(sections),
            allowed=allowed_routes(spec.allowed_routes, key.namespace, self._view),
            timeouts=spec.default_timeouts,
            claims=self._claims(ingress, key),
        )

    # --- host names ------------------------------------------------------------------------------------------------

    def _own_hosts(self, ingress: VPCIngress, key: ObjectKey) -> tuple[str, ...]:
        """Return the host names of an ingress that no older one of another namespace has on a port of both."""
        spec = ingress.spec
        names = tuple(dict.fromkeys(name.lower() for name in (spec.host, *spec.hosts)))
        ports = [item.port for item in wanted_listeners(ingress) if item.protocol is not IngressProtocol.TCP]
        kept: list[str] = []
        for position, name in enumerate(names):
            owners = {self._host_owners[port, name]: port for port in ports if (port, name) in self._host_owners}
            stranger = next((owner for owner in owners if owner.namespace != key.namespace), None)
            if stranger is None:
                kept.append(name)
                continue
            self._findings.append(
                Finding(
                    key=key,
                    path="spec.host" if position == 0 else "spec.hosts",
                    reason=Reason.HOSTNAME_CONFLICT,
                    message=f"host {name} on port {owners[stranger]} is that of {stranger}, which is older: it is not "
                    "served for this one",
                    hint="choose another host, or another port",
                )
            )
        return tuple(kept)

    def _claim_hosts(
        self, ingress: VPCIngress, key: ObjectKey, item: IngressListener, hostnames: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return the host names of which this ingress is the oldest on a port, and so says how they are served."""
        own: list[str] = []
        shared: dict[ObjectKey, list[str]] = {}
        for name in hostnames:
            owner = self._host_owners.setdefault((item.port, name), key)
            if owner == key:
                own.append(name)
            else:
                shared.setdefault(owner, []).append(name)
        before = self._listeners.get(item.port)
        for owner, names in shared.items():
            is_told = before is not None and before.trusted_hops > 0
            mine = host_policy(ingress, key, (), item.protocol, is_scheme_told=is_told)
            theirs = next(
                (one for one in before.policies if one.owner == f"{owner.namespace}/{owner.name}")
                if before
                else iter(()),
                None,
            )
            if theirs is None or msgspec.structs.replace(theirs, owner=mine.owner, hostnames=()) == mine:
                continue
            self._findings.append(
                Finding(
                    key=key,
                    path="spec.host",
                    reason=Reason.HOSTNAME_CONFLICT,
                    message=f"host {', '.join(names)} on port {item.port} is that of {owner}, too, which is older: its "
                    "tls, hsts, httpsRedirect and accessLog apply, the paths of both are served",
                    severity=Severity.WARNING,
                )
            )
        return tuple(own)

    # --- certificates ----------------------------------------------------------------------------------------------

    def _binding(self, ingress: VPCIngress, key: ObjectKey, hostnames: tuple[str, ...]) -> TlsBinding | None:
        tls = ingress.spec.tls
        if tls is None or tls.secret_name is None:
            return None
        if not self._are_credentials_known:
            return dressed(TlsBinding(hostnames=hostnames), key, tls)
        name = tls.secret_name
        binding = self._pair(key.namespace, name, hostnames)
        if binding is not None:
            self._secrets[key] = (name, binding)
            return dressed(binding, key, tls)
        kept = self._kept(key, name, hostnames)
        before = ""
        if kept is not None:
            before = self._secrets_before[key][0]
            self._secrets[key] = (before, kept)
        is_there = isinstance(self._view.get("Secret", key.namespace, name), Secret)
        what = f"secret {key.namespace}/{name}"
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
        return None if kept is None else dressed(kept, key, tls)

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

    # --- listeners -------------------------------------------------------------------------------------------------

    def _listener(
        self,
        ingress: VPCIngress,
        key: ObjectKey,
        index: int,
        item: IngressListener,
        hostnames: tuple[str, ...],
        binding: TlsBinding | None,
    ) -> Listener | None:
        is_tls = item.protocol is IngressProtocol.HTTPS
        if is_tls and binding is None:
            return None  # it has been told why
        before = self._listeners.get(item.port)
        if before is not None and not self._may_share(key, f"spec.listeners[{index}]", item, before):
            return None
        if before is not None and binding is not None and is_tls:
            said, is_refused = shared_hosts(before.tls, binding, key, self._owners[item.port], item.port)
            self._findings += said
            if is_refused:
                return None
        own = self._claim_hosts(ingress, key, item, () if item.protocol is IngressProtocol.TCP else hostnames)
        settings = port_settings(ingress, item)
        bindings: tuple[TlsBinding, ...] = ()
        if is_tls and binding is not None and (own or before is None):
            bindings = (msgspec.structs.replace(binding, hostnames=own),)
        is_http = MODES[item.protocol] is ListenerMode.HTTP
        is_owner = bool(own) or item.protocol is IngressProtocol.TCP
        is_told = (before or settings).trusted_hops > 0  # the port's oldest VPCIngress says whom it believes
        policies = (host_policy(ingress, key, own, item.protocol, is_scheme_told=is_told),) if is_owner else ()
        if before is None:
            self._owners[item.port] = key
            listener = Listener(
                name=listener_name(item),
                host=item.address or self._host,
                port=item.port,
                mode=MODES[item.protocol],
                tls=bindings,
                hostnames=hostnames if is_http else (),
                policies=policies,
                **msgspec.structs.asdict(settings),
            )
        else:
            fields = settings.__struct_fields__
            if any(getattr(before, name) != getattr(settings, name) for name in fields):
                self._findings.append(
                    Finding(
                        key=key,
                        path="spec",
                        reason=Reason.CONFLICTED,
                        message=f"port {item.port} is shared with {self._owners[item.port]}, whose clientIP, "
                        "maxRequestBodyBytes, localReplies and tls.requireSni apply",
                        severity=Severity.WARNING,
                    )
                )
            listener = msgspec.structs.replace(
                before,
                hostnames=tuple(dict.fromkeys((*before.hostnames, *hostnames))) if is_http else (),
                tls=(*before.tls, *bindings),
                policies=(*before.policies, *policies),
            )
        if ingress.spec.rate_limit is not None and own and is_http:
            limit = HostRateLimit(hostnames=own, policy=rate_policy(ingress.spec.rate_limit, RateScope.INGRESS, key))
            listener = msgspec.structs.replace(listener, rate_limits=(*listener.rate_limits, limit))
        self._listeners[item.port] = listener
        return listener

    def _may_share(self, key: ObjectKey, path: str, item: IngressListener, before: Listener) -> bool:
        """Tell whether a port that is opened already does for this listener, too; say why not."""
        owner, spoken = self._owners[item.port], speaks(before)
        if spoken != item.protocol.value:
            message, hint = f"port {item.port} already speaks {spoken} for {owner}", "choose another port"
        elif item.protocol is IngressProtocol.TCP:
            message, hint = (
                f"port {item.port} is that of {owner}, and TCP has no host names to share it by",
                ("choose another port"),
            )
        elif before.name != listener_name(item):
            message = f"port {item.port} is opened at {before.host} for {owner}"
            hint = "choose the same address, or another port"
        else:
            return True
        self._findings.append(
            Finding(key=key, path=f"{path}.port", reason=Reason.PROTOCOL_CONFLICT, message=message, hint=hint)
        )
        return False

    # --- rules -----------------------------------------------------------------------------------------------------

    def _compile_rules(
        self, ingress: VPCIngress, key: ObjectKey, hostnames: tuple[str, ...], listeners: tuple[str, ...]
    ) -> None:
        timeouts = with_defaults(TimeoutPolicy(), ingress.spec.default_timeouts)
        by_name = {listener.name: listener for listener in self._listeners.values()}
        streams = frozenset(name for name in listeners if by_name[name].mode is not ListenerMode.HTTP)
        for index, item in enumerate(ingress.spec.rules):
            ref = item.service
            if ref is None:
                continue  # it names a VPCRoute, which comes as one
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
            is_whole = kind is PathKind.PREFIX and value == "/"
            is_tcp = result.service is not None and result.service.spec.protocol is Protocol.TCP
            bound = tuple(name for name in listeners if (is_whole if name in streams else not is_tcp))
            if len(bound) < len(listeners):
                self._tell_unbound(key, index, item, is_tcp=is_tcp, is_served=bool(bound), streams=streams)
            if not bound:
                continue
            self._rules.append(
                Rule(
                    id=RuleId(f"ingress:{key.namespace}/{key.name}#{index}"),
                    route=f"ingress:{key.namespace}/{key.name}",
                    hostnames=hostnames,
                    listeners=bound,
                    match=Match(path=PathMatch(kind=kind, value=value)),
                    destinations=(
                        BackendRef(
                            service=service_key(ref.namespace or key.namespace, ref.name),
                            port=port_override(ref.port, result.service),
                            problem=result.problem,
                        ),
                    ),
                    timeouts=timeouts,
                    created_at=created_at(ingress.metadata),
                    index=index,
                )
            )

    def _tell_unbound(
        self, key: ObjectKey, index: int, item: IngressRule, *, is_tcp: bool, is_served: bool, streams: frozenset[str]
    ) -> None:
        """Say why a rule is not served on all listeners, unless that is what anybody would expect."""
        if is_served and not streams:
            return
        if is_tcp and not is_served:
            message = "the VPCService speaks TCP, which no listener here carries"
            hint = "add a listener with protocol TLS or TCP"
        elif is_tcp:
            return  # HTTP listeners beside: they redirect, or other rules serve them
        elif is_served:
            message = f"path {item.path} is not served on {', '.join(sorted(streams))}, where nobody sees paths"
            hint = "bytes are carried on for path / alone"
        else:
            message = f"found path {item.path}, expected / : nobody sees paths on listeners with protocol TLS or TCP"
            hint = "use a listener with protocol HTTPS, which terminates TLS"
        self._findings.append(
            Finding(
                key=key,
                path=f"spec.rules[{index}].path" if not is_tcp else f"spec.rules[{index}].service.name",
                reason=Reason.INVALID_VALUE,
                message=message,
                hint=hint,
                severity=Severity.WARNING if is_served else Severity.ERROR,
            )
        )

    def _claims(self, ingress: VPCIngress, key: ObjectKey) -> tuple[tuple[str, str], ...]:
        """Return the VPCRoutes that the rules of an ingress name, those that are there and consent."""
        found: list[tuple[str, str]] = []
        for index, item in enumerate(ingress.spec.rules):
            ref = item.vpc_route_ref
            if ref is None:
                continue
            path = f"spec.rules[{index}].vpcRouteRef.name"
            target = ObjectKey(kind="VPCRoute", namespace=ref.namespace or key.namespace, name=ref.name)
            if not is_permitted(self._view, referrer=key, target=target):
                message, hint = refusal(key, target)
                self._findings.append(
                    Finding(key=key, path=path, reason=Reason.REF_NOT_PERMITTED, message=message, hint=hint)
                )
                continue
            if self._view.get("VPCRoute", target.namespace, target.name) is None:
                self._findings.append(
                    Finding(
                        key=key,
                        path=path,
                        reason=Reason.VPC_ROUTE_NOT_FOUND,
                        message=f"{target} is not there",
                        severity=Severity.WARNING,
                        is_reference=True,
                        missing=target,
                    )
                )
                continue
            found.append((target.namespace, target.name))
        return tuple(dict.fromkeys(found))
