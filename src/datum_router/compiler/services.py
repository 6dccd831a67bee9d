"""From VPCService to Service: protocol, endpoints, health policy, TLS to the upstream."""

from __future__ import annotations

from collections.abc import Container, Sequence

import msgspec

from datum_router.compiler.diagnostics import Severity
from datum_router.compiler.environment import CLIENT, NOTHING, OwnCredentials, authorities, pair
from datum_router.compiler.limits import circuit_policy
from datum_router.compiler.places import service_place
from datum_router.compiler.refs import Finding
from datum_router.manifests.meta import ObjectKey, key_of, parse_duration
from datum_router.manifests.secret import ConfigMap, Secret
from datum_router.manifests.vpcservice import (
    CertificateRef,
    DiscoveryMethod,
    HealthCheck,
    Protocol,
    TlsMode,
    UpstreamTlsSpec,
    VPCService,
)
from datum_router.model.policy import ActiveHealthPolicy, ConnectionLimits, OutlierPolicy, ProbeType
from datum_router.model.service import UNRESOLVED, Service, ServiceKey, UpstreamProtocol, UpstreamTls
from datum_router.plugins.protocols import Contribution, ManifestView, ResolveProblem
from datum_router.reasons import Reason
from datum_router.registry.bucket import Name
from datum_router.registry.endpoints import EndpointRegistry

CA_KEY = "ca.crt"


def service_key(namespace: str, name: str) -> ServiceKey:
    """Return the key of a service."""
    return ServiceKey(f"{namespace}/{name}")


class CompiledService(msgspec.Struct, frozen=True, kw_only=True):
    """A service, and what other objects gave to it."""

    service: Service
    contributions: tuple[Contribution, ...] = ()


class ServiceCompiler:
    """Compile services one by one; `registry` finds their endpoints.

    Args:
        are_credentials_known: False: no Secret or ConfigMap is looked at, and all that are named are taken to be there.
        own: What is used where a service names nothing.
    """

    __slots__ = ("_are_credentials_known", "_own", "_registry")

    def __init__(
        self, registry: EndpointRegistry, *, are_credentials_known: bool = True, own: OwnCredentials = NOTHING
    ) -> None:
        self._registry = registry
        self._own = own
        self._are_credentials_known = are_credentials_known

    def compile(self, manifest: VPCService, view: ManifestView) -> tuple[CompiledService, list[Finding]]:
        """Return the service and what is wrong with it; a service is always returned, at worst without endpoints."""
        spec = manifest.spec
        key = key_of("VPCService", manifest.metadata)
        findings: list[Finding] = []
        resolution = self._registry.resolve(manifest, view)
        findings += (finding_of(problem, key) for problem in resolution.problems)
        if not resolution.endpoints and not resolution.problems:
            findings.append(_no_endpoints(manifest, key))
        place = service_place(manifest, view)
        findings += place.findings(key)
        tls, tls_findings = _upstream_tls(manifest, key, view if self._are_credentials_known else None, self._own)
        findings += tls_findings
        health = spec.health_check
        circuit = circuit_policy(spec.circuit_breaker) if spec.circuit_breaker is not None else None
        panic = 50 if health is None else health.panic_threshold_percent
        service = Service(
            key=service_key(key.namespace, key.name),
            protocol=UpstreamProtocol(spec.protocol.value),
            endpoints=resolution.endpoints,
            active=None if health is None else active_policy(health, spec.protocol),
            outlier=outlier_policy(health),
            panic_threshold_percent=panic,
            connect_timeout_s=parse_duration(spec.connect_timeout),
            idle_timeout_s=parse_duration(spec.idle_timeout),
            limits=ConnectionLimits() if circuit is None else circuit.limits,
            breaker=None if circuit is None else circuit.breaker,
            tls=tls,
            locality=place.locality,
        )
        return CompiledService(service=service, contributions=resolution.contributions), findings

    def forget(self, name: Name) -> None:
        """Forget what is remembered of a service that is gone."""
        self._registry.forget(name)

    def retain(self, names: Container[Name]) -> None:
        """Forget what is remembered of services that are not among these."""
        self._registry.retain(names)


def _no_endpoints(manifest: VPCService, key: ObjectKey) -> Finding:
    """Return what is said of a service that nothing gives endpoints to, and nothing says why.

    What other clusters give stands in no directory, however complete: it is no reference that misses its object.
    """
    discovery = manifest.spec.discovery
    is_import = discovery is not None and discovery.method is DiscoveryMethod.ENDPOINTSLICE
    return Finding(
        key=key,
        path="spec.discovery.method" if is_import else "spec",
        reason=Reason.NO_ENDPOINTS,
        message="no endpoints here; those that other clusters export come in a cluster only, by datum-router-discovery"
        if is_import
        else "no endpoints; its traffic is answered with 503",
        severity=Severity.WARNING,
        is_reference=not is_import,
    )


def finding_of(problem: ResolveProblem, key: ObjectKey) -> Finding:
    """Return what a plugin found wrong, with the object `key` unless it names another."""
    return Finding(
        key=problem.object or key,
        path=problem.path,
        reason=problem.reason,
        message=problem.message,
        hint=problem.hint,
        severity=Severity.WARNING if problem.is_reference or problem.is_remark else Severity.ERROR,
        is_reference=problem.is_reference and not problem.is_remark,
        missing=problem.missing,
    )


def active_policy(health: HealthCheck, protocol: Protocol) -> ActiveHealthPolicy:
    """Return the probe policy of a `healthCheck`; the probe type follows the protocol unless it is given."""
    kind = ProbeType.GRPC if protocol is Protocol.GRPC and health.http_path is None else ProbeType.HTTP
    if protocol is Protocol.TCP and health.http_path is None:
        kind = ProbeType.TCP
    if health.type is not None:
        kind = ProbeType(health.type.value)
    return ActiveHealthPolicy(
        type=kind,
        http_path=health.http_path or "/healthz",
        method=health.method or "GET",
        host=health.host or "",
        headers=tuple((item.name, item.value) for item in health.headers),
        expected_statuses=parse_statuses(health.expected_statuses) or ((200, 299),),
        grpc_service=health.grpc_service or "",
        port=health.port,
        interval_s=float(health.interval_seconds),
        timeout_s=float(health.timeout_seconds),
        unhealthy_threshold=health.unhealthy_threshold,
        healthy_threshold=health.healthy_threshold,
    )


def outlier_policy(health: HealthCheck | None) -> OutlierPolicy:
    """Return the passive policy.

    Without `healthCheck.passive` only gateway errors (no answer, 502, 503, 504) eject: an application that answers
    500 is broken in a way that another endpoint of the same version would share.
    """
    passive = None if health is None else health.passive
    if passive is None:
        return OutlierPolicy(consecutive_5xx=0)
    return OutlierPolicy(
        consecutive_5xx=passive.consecutive5xx,
        consecutive_gateway_errors=passive.consecutive_gateway_errors,
        interval_s=parse_duration(passive.interval),
        base_ejection_time_s=parse_duration(passive.base_ejection_time),
        max_ejection_percent=passive.max_ejection_percent,
        half_open_requests=passive.half_open_requests,
    )


def parse_statuses(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return ranges of `200` and `200-299` texts, which validation has checked."""
    ranges = []
    for text in texts:
        low, _, high = text.partition("-")
        ranges.append((int(low), int(high or low)))
    return tuple(ranges)


def _upstream_tls(
    manifest: VPCService, key: ObjectKey, view: ManifestView | None, own: OwnCredentials
) -> tuple[UpstreamTls | None, list[Finding]]:
    """Return how TLS is spoken to the upstream; without a view nothing is found out about certificates."""
    spec = manifest.spec
    config = spec.tls
    mode = config.mode if config is not None else None
    if mode is None:
        mode = TlsMode.SIMPLE if spec.protocol is Protocol.HTTPS else TlsMode.DISABLE
    if mode is TlsMode.DISABLE:
        return None, []
    config = config or UpstreamTlsSpec()
    bundles, findings = _ca_bundles(config, key, view)
    if own.has_authorities and not bundles and view is not None and not config.insecure_skip_verify:
        bundles = [authorities(view) or UNRESOLVED]
    is_verified = not config.insecure_skip_verify
    if is_verified and not own.is_verifying and not config.ca_certificate_refs and not config.subject_alt_names:
        is_verified = False
        findings.append(
            Finding(
                key=key,
                path="spec.tls",
                reason=Reason.UPSTREAM_TLS,
                message="certificates of this upstream are not verified, since ROUTER_CLIENT_VERIFY_SERVER is false: "
                "anyone on the path can read its traffic",
                hint="name its CAs in tls.caCertificateRefs",
                severity=Severity.WARNING,
            )
        )
    if config.insecure_skip_verify:
        findings.append(
            Finding(
                key=key,
                path="spec.tls.insecureSkipVerify",
                reason=Reason.UPSTREAM_TLS,
                message="certificates of this upstream are not verified: anyone on the path can read its traffic",
                severity=Severity.WARNING,
            )
        )
    cert_pem = key_pem = ""
    if mode is TlsMode.MUTUAL:
        cert_pem, key_pem = _own_identity(config, key, view, own, findings)
    tls = UpstreamTls(
        server_name=config.sni or "",
        ca_pem="\n".join(bundles),
        is_verified=is_verified,
        min_version=config.min_version.value,
        subject_alt_names=config.subject_alt_names,
        cert_pem=cert_pem,
        key_pem=key_pem,
    )
    return tls, findings


def _own_identity(
    config: UpstreamTlsSpec, key: ObjectKey, view: ManifestView | None, own: OwnCredentials, findings: list[Finding]
) -> tuple[str, str]:
    """Return certificate and key for mode Mutual; `UNRESOLVED` if they are not there: nothing is sent without them."""
    if view is None:
        return UNRESOLVED, UNRESOLVED
    path, ref = "spec.tls.clientCertificateRef", config.client_certificate_ref
    if ref is None and own.has_client:
        return pair(view, CLIENT) or (UNRESOLVED, UNRESOLVED)
    if ref is None:
        findings.append(
            Finding(
                key=key,
                path=path,
                reason=Reason.MISSING_FIELD,
                message="mode Mutual needs a certificate of our own; no connection will be made without",
                hint="name a secret of type kubernetes.io/tls in clientCertificateRef, or give the gateway an identity "
                "in ROUTER_CLIENT_CERT and ROUTER_CLIENT_KEY",
            )
        )
        return UNRESOLVED, UNRESOLVED
    secret = view.get("Secret", key.namespace, ref.name)
    found = secret.pair() if isinstance(secret, Secret) else None
    if found is not None:
        return found
    is_there = isinstance(secret, Secret)
    what = f"secret {key.namespace}/{ref.name}"
    findings.append(
        Finding(
            key=key,
            path=path,
            reason=Reason.INVALID_CERTIFICATE_REF,
            message=(f"{what} lacks tls.crt or tls.key" if is_there else f"no usable {what} is there")
            + "; no connection to the upstream will be made without a certificate of our own",
            hint="" if is_there else "apply a secret of type kubernetes.io/tls with that name",
            severity=Severity.ERROR if is_there else Severity.WARNING,
            is_reference=not is_there,
        )
    )
    return UNRESOLVED, UNRESOLVED


def _ca_bundles(config: UpstreamTlsSpec, key: ObjectKey, view: ManifestView | None) -> tuple[list[str], list[Finding]]:
    bundles: list[str] = []
    findings: list[Finding] = []
    for index, ref in enumerate(config.ca_certificate_refs):
        bundle = None if view is None else _ca_bundle(ref, key.namespace, view)
        # An empty bundle would mean the system's CAs.
        is_usable = bool(bundle and bundle.strip())
        bundles.append(bundle if bundle and is_usable else UNRESOLVED)
        if not is_usable and view is not None:
            findings.append(
                Finding(
                    key=key,
                    path=f"spec.tls.caCertificateRefs[{index}]",
                    reason=Reason.INVALID_CERTIFICATE_REF,
                    message=f"{ref.kind.value.lower()} {key.namespace}/{ref.name} with {CA_KEY} is not there, or "
                    "that is empty; "
                    "no certificate of the upstream will be accepted",
                    severity=Severity.WARNING,
                    is_reference=True,
                )
            )
    return bundles, findings


def _ca_bundle(ref: CertificateRef, namespace: str, view: ManifestView) -> str | None:
    found = view.get(ref.kind.value, namespace, ref.name)
    if isinstance(found, Secret):
        return found.text(CA_KEY)
    if isinstance(found, ConfigMap):
        return (found.data or {}).get(CA_KEY)
    return None
