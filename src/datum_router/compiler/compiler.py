"""The compiler: manifests and plugins in, one immutable `SnapshotData` and diagnostics out. Never raises on user input.

Unchanged parts are reused by reference: a service or a route whose manifest, and whose neighbourhood as far as it looks
at it, is what it was last time costs a dictionary look-up. Rules leave in the one total order of
`compiler.precedence`; data planes need no order of arrival.
"""

from __future__ import annotations

import msgspec

from datum_router.compiler.conflicts import find_conflicts
from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.compiler.diff import digest_of
from datum_router.compiler.ingress import IngressCompiler, IngressScope
from datum_router.compiler.precedence import sort_key
from datum_router.compiler.refs import Finding, locate, resolve_service
from datum_router.compiler.rules import RouteCompiler
from datum_router.compiler.services import ServiceCompiler
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.servicebinding import ServiceBinding
from datum_router.manifests.vpcingress import VPCIngress
from datum_router.manifests.vpcroute import VPCRoute
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.listener import Listener
from datum_router.model.route import Rule
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins.manager import PluginSet
from datum_router.reasons import Reason
from datum_router.registry.endpoints import EndpointRegistry
from datum_router.registry.store import StoreView
from datum_router.routing.regex import RegexEngine


class CompileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the process adds to the manifests.

    Attributes:
        listen: A plain listener that serves all routes, beside those of VPCIngresses; None = no such.
        fallback_listener: Used if `listen` is None and no VPCIngress is there.
        regex: The linear-time engine; None if none is installed: routes with patterns get a diagnostic.
        ingress_host: Address that listeners of VPCIngresses bind.
    """

    listen: Listener | None = None
    fallback_listener: Listener | None = None
    regex: RegexEngine | None = None
    ingress_host: str = "0.0.0.0"


class CompileResult(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled snapshot and everything found on the way, the store's own diagnostics included."""

    data: SnapshotData
    diagnostics: tuple[Diagnostic, ...] = ()


class Compiler:
    """Compile views of one store; keeps the last results for reuse."""

    __slots__ = ("_last", "_options", "_plugins", "_routes", "_services", "_version")

    def __init__(self, plugins: PluginSet, options: CompileOptions | None = None) -> None:
        self._plugins = plugins
        self._options = options or CompileOptions()
        self._services = ServiceCompiler(EndpointRegistry([spec.create() for spec in plugins.resolvers]))
        self._routes = RouteCompiler(plugins, regex=self._options.regex)
        self._last: SnapshotData | None = None
        self._version = 0

    def compile(self, view: StoreView) -> CompileResult:
        """Return the snapshot of `view`. Equal content keeps the version and the object of the last call."""
        findings: list[Finding] = []
        services: dict[ServiceKey, Service] = {}
        last_services = self._last.services if self._last is not None else {}
        for manifest in view.list("VPCService"):
            if not isinstance(manifest, VPCService):
                continue
            service, found = self._services.compile(manifest, view)
            findings += found
            before = last_services.get(service.key)
            services[service.key] = before if before is not None and before == service else service
        self._check_bindings(view, findings)

        ingresses = [item for item in view.list("VPCIngress") if isinstance(item, VPCIngress)]
        scope, listeners = self._compile_ingresses(ingresses, view, findings)
        rules: list[Rule] = list(scope.rules)
        for route in view.list("VPCRoute"):
            if isinstance(route, VPCRoute):
                found_rules, found = self._routes.compile(route, view, scope)
                rules += found_rules
                findings += found
        rules.sort(key=sort_key)
        for loser, winner in find_conflicts(rules):
            findings.append(_conflict(loser, winner))
        data = self._publish(services, self._reuse(rules), listeners)
        diagnostics = [*view.diagnostics(), *(_located(finding, view) for finding in findings)]
        return CompileResult(data=data, diagnostics=tuple(diagnostics))

    def _reuse(self, rules: list[Rule]) -> tuple[Rule, ...]:
        """Replace rules by their equals of the last snapshot, so that later comparisons are by identity."""
        if self._last is None:
            return tuple(rules)
        old = {rule.id: rule for rule in self._last.rules}
        return tuple(before if (before := old.get(rule.id)) is not None and before == rule else rule for rule in rules)

    def _publish(
        self, services: dict[ServiceKey, Service], rules: tuple[Rule, ...], listeners: tuple[Listener, ...]
    ) -> SnapshotData:
        last = self._last
        if (
            last is not None
            and last.listeners == listeners
            and last.services == services
            and len(last.rules) == len(rules)
            and all(a is b for a, b in zip(last.rules, rules, strict=True))
        ):
            return last
        self._version += 1
        data = SnapshotData(version=self._version, services=services, rules=rules, listeners=listeners)
        data = msgspec.structs.replace(data, digest=digest_of(data))
        self._last = data
        return data

    def _compile_ingresses(
        self, ingresses: list[VPCIngress], view: StoreView, findings: list[Finding]
    ) -> tuple[IngressScope, tuple[Listener, ...]]:
        compiler = IngressCompiler(view, host=self._options.ingress_host)
        scope = compiler.compile(ingresses)
        findings += scope.findings
        listeners = list(scope.listeners)
        if self._options.listen is not None:
            # `--listen` is one plain listener that serves all routes, in place of what VPCIngresses ask for.
            return scope.unbound(), (self._options.listen,)
        if not listeners and self._options.fallback_listener is not None:
            return scope, (self._options.fallback_listener,)
        return scope, tuple(listeners)

    def _check_bindings(self, view: StoreView, findings: list[Finding]) -> None:
        for binding in view.list("ServiceBinding"):
            if isinstance(binding, ServiceBinding):
                key = ObjectKey(kind="ServiceBinding", namespace=binding.metadata.namespace, name=binding.metadata.name)
                ref = binding.spec.vpc_service_ref
                result = resolve_service(
                    view, referrer=key, path="spec.vpcServiceRef.name", name=ref.name, namespace=ref.namespace
                )
                if result.finding is not None:
                    findings.append(
                        msgspec.structs.replace(result.finding, message=result.finding.message.split(";", 1)[0])
                    )


def _conflict(loser: Rule, winner: Rule) -> Finding:
    kind = "VPCIngress" if loser.route.startswith("ingress:") else "VPCRoute"
    namespace, _, name = loser.route.removeprefix("ingress:").partition("/")
    return Finding(
        key=ObjectKey(kind=kind, namespace=namespace, name=name),
        path="spec",
        reason=Reason.CONFLICTED,
        message=f"rule {loser.id} matches the same requests as {winner.id}, which comes first and takes them all",
        severity=Severity.WARNING,
    )


def _located(finding: Finding, view: StoreView) -> Diagnostic:
    origin = view.origin(finding.key) or Origin(source="")
    return locate(finding, origin.file, origin.locate(finding.path))
