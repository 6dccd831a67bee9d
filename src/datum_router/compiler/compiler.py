"""The compiler: manifests and plugins in, one immutable `SnapshotData` and diagnostics out. Never raises on user input.

Theory of operation. Each object is compiled by itself into a result that is kept together with what it was made from
(`compiler.memo`); what all VPCIngresses offer together is one such result. A view is compared with the last one, and
only results that what changed could alter are made again. Rules that came and went move in a table that is in the one
total order of `compiler.precedence` and knows conflicts and digests (`compiler.table`); data planes need no order of
arrival. Unchanged parts stay the same objects, so that whoever comes next finds the changed ones by identity.

Compiling may be done in steps, so that a process that has other things to do can do them in between: a view never
changes, and what was done half-way is forgotten.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.compiler.diff import combine_digests, part_digest
from datum_router.compiler.egress import EgressCompiler
from datum_router.compiler.environment import NAMESPACE, NOTHING, SERVER, OwnCredentials
from datum_router.compiler.ingress import Attached, IngressCompiler, IngressScope
from datum_router.compiler.memo import Changes, Look, Made, Memo, RecordingView
from datum_router.compiler.place import PlaceCompiler
from datum_router.compiler.refs import Finding, Hints, locate, resolve_service
from datum_router.compiler.rules import RouteCompiler
from datum_router.compiler.services import CompiledService, ServiceCompiler, service_key
from datum_router.compiler.steps import in_one_go
from datum_router.compiler.table import RuleTable
from datum_router.manifests.meta import ObjectKey, key_of
from datum_router.manifests.servicebinding import ServiceBinding
from datum_router.manifests.vpcingress import VPCIngress
from datum_router.manifests.vpcroute import VPCRoute
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.listener import Listener
from datum_router.model.route import Rule
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import Contribution, ManifestView
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
        egress_listeners: Listeners for outbound traffic, beside all others; None for a process that is no gateway.
        gateway_labels: What `gatewaySelector` of VPCIngresses selects by; None for a process that is no gateway, for
            which all are compiled.
        own: What certificates the process is given beside those that manifests name.
        are_credentials_known: False for a process that may not read Secrets and ConfigMaps: none is looked at, and
            nothing is said of those that are named. What it compiles is not to be served.
    """

    listen: Listener | None = None
    fallback_listener: Listener | None = None
    regex: RegexEngine | None = None
    ingress_host: str = "0.0.0.0"
    egress_listeners: tuple[Listener, ...] | None = None
    own: OwnCredentials = NOTHING
    are_credentials_known: bool = True
    gateway_labels: Mapping[str, str] | None = None


class CompileResult(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled snapshot and everything found on the way.

    Attributes:
        diagnostics: The store's own, of how objects read, and then `findings`.
        findings: What was found out by compiling, about versions that are in force.
        ingresses: All VPCIngresses in force, as routes see them.
        contributions: What each object that gives endpoints to a service gives: for every ServiceBinding that is
            permitted and whose VPCService is there, its endpoints with their readiness, whether they are held, and
            why there are not more. The mapping is the last result's if nothing in it changed. A controller makes the
            binding's status from it; for one that is held (`is_held`) it must write what `recorded_endpoints` reads.
            `Endpoint.origin` of `data.services` says which of them named an endpoint first (`servicebinding:ns/name`).
    """

    data: SnapshotData
    diagnostics: tuple[Diagnostic, ...] = ()
    findings: tuple[Diagnostic, ...] = ()
    ingresses: tuple[Attached, ...] = ()
    contributions: Mapping[ObjectKey, Contribution] = {}


STEP_OBJECTS = 100
"""Objects that are compiled in one step: a few milliseconds."""

SCOPE: Look = ("the scope of all VPCIngresses",)
"""Stands, among what a route looked at, for what all VPCIngresses together offer."""

RESTRICTIONS: Look = ("the restrictions of all VPCIngresses",)
"""Likewise, for what a route without `parentRefs` looks at: which listeners are not open to everybody's routes."""


class Compiler:
    """Compile views of one store, each out of the last one: what did not change is not looked at again.

    The result is a function of the view alone, but for its version, for endpoints of bindings without `autoSync` that
    no status records, and for certificates of VPCIngresses that name a Secret which cannot be used.
    """

    __slots__ = (
        "_bindings",
        "_contributions",
        "_digests",
        "_egress_compiler",
        "_hints",
        "_last",
        "_options",
        "_place_compiler",
        "_plugins",
        "_route_compiler",
        "_routes",
        "_scope",
        "_service_compiler",
        "_services",
        "_table",
        "_version",
        "_view",
    )

    def __init__(self, plugins: PluginSet, options: CompileOptions | None = None) -> None:
        self._plugins = plugins
        self._options = options or CompileOptions()
        self._service_compiler = ServiceCompiler(
            EndpointRegistry([spec.create() for spec in plugins.resolvers]),
            are_credentials_known=self._options.are_credentials_known,
            own=self._options.own,
        )
        self._route_compiler = RouteCompiler(plugins, regex=self._options.regex)
        self._place_compiler = PlaceCompiler([spec.create() for spec in plugins.places])
        egress = self._options.egress_listeners
        self._egress_compiler = EgressCompiler(
            [spec.create() for spec in plugins.attachments],
            are_credentials_known=self._options.are_credentials_known,
            has_listener=None if egress is None else bool(egress),
        )
        self._hints = Hints()
        self._last = SnapshotData()
        self._version = 0
        self._forget()

    def _forget(self) -> None:
        """Begin from nothing with the next view."""
        self._view: StoreView | None = None
        self._services: Memo[CompiledService] = Memo("VPCService")
        self._contributions: Mapping[ObjectKey, Contribution] = {}
        self._bindings: Memo[None] = Memo("ServiceBinding")
        self._routes: Memo[tuple[Rule, ...]] = Memo("VPCRoute")
        self._scope: Made[IngressScope] = Made(IngressScope(), (), (("VPCIngress",), ("Secret", NAMESPACE, SERVER)))
        self._place_compiler.forget()
        self._egress_compiler.forget()
        self._table = RuleTable()
        self._digests: dict[ServiceKey, bytes] = {}

    def adopt(self, data: SnapshotData) -> None:
        """Count on from a snapshot that another process compiled: equal content keeps its version. Before any view."""
        self._last = data
        self._version = data.version

    def compile(self, view: StoreView) -> CompileResult:
        """Return the snapshot of `view`. Equal content keeps the version and the object of the last call."""
        return in_one_go(self.compile_in_steps(view))

    def compile_in_steps(self, view: StoreView) -> Generator[None, None, CompileResult]:
        """Do as `compile` does and yield every few milliseconds; the last steps are O(rules). Run one at a time."""
        try:
            changes = Changes(view.changes(self._view))
            services = yield from self._compile_services(view, changes)
            for _ in self._bindings.update(view, changes, _check_binding):
                pass
            self._place_compiler.update(view, changes)
            self._egress_compiler.update(view, changes)
            removed, added = self._compile_scope(view, changes)
            yield from self._compile_routes(view, changes, removed, added)
            yield
            yield from self._table.update_in_steps(removed, added)
            yield
            data = self._publish(services, self._listeners())
        except BaseException:
            self._forget()  # half of it may be new: what is kept must be whole
            raise
        self._view = view
        yield
        findings = [
            *self._services.findings(),
            *self._bindings.findings(),
            *self._place_compiler.findings,
            *self._egress_compiler.findings(),
            *self._scope.findings,
            *self._routes.findings(),
            *(_conflict(loser, winner) for loser, winner in self._table.conflicts()),
        ]
        hints = self._hints.of(findings, view)
        found = tuple(_located(finding, view, hints) for finding in findings)
        return CompileResult(
            data=data,
            diagnostics=(*view.diagnostics(), *found),
            findings=found,
            contributions=self._contributions,
            ingresses=self._scope.result.ingresses,
        )

    def _compile_services(
        self, view: StoreView, changes: Changes
    ) -> Generator[None, None, Mapping[ServiceKey, Service]]:
        """Return all services; the very mapping of the last snapshot if none of them changed."""

        def make(
            manifest: msgspec.Struct, recording: RecordingView
        ) -> tuple[CompiledService, Sequence[Finding]] | None:
            if not isinstance(manifest, VPCService):
                return None
            found, findings = self._service_compiler.compile(manifest, recording)
            before = self._last.services.get(found.service.key)
            if before is not None and before == found.service:
                found = msgspec.structs.replace(found, service=before)
            return found, findings

        is_changed = is_given_otherwise = False
        updates = self._services.update(view, changes, make)
        for position, (name, old, new) in enumerate(updates, 1):
            if position % STEP_OBJECTS == 0:
                yield
            if new is None:
                self._digests.pop(service_key(*name), None)
                self._service_compiler.forget(name)
            elif old is None or new.service is not old.service:
                self._digests[new.service.key] = part_digest(new.service)
            is_changed |= _service_of(old) is not _service_of(new)
            is_given_otherwise |= _given_to(old) != _given_to(new)
        if self._view is None:
            self._service_compiler.retain({name for name, _ in self._services.results()})
        if is_given_otherwise:
            self._contributions = {one.object: one for _, made in self._services.results() for one in _given_to(made)}
        if not is_changed and len(self._digests) == len(self._last.services):
            return self._last.services
        return {made.service.key: made.service for _, made in self._services.results()}

    def _compile_scope(self, view: StoreView, changes: Changes) -> tuple[list[Rule], list[Rule]]:
        """Bring the scope up to date; return the rules of VPCIngresses that are gone, and new ones."""
        before = self._scope
        if changes.looks.isdisjoint(before.looks):
            return [], []
        recording = RecordingView(view)
        ingresses = [item for item in recording.list("VPCIngress") if isinstance(item, VPCIngress)]
        scope = IngressCompiler(
            recording,
            host=self._options.ingress_host,
            secrets=before.result.secrets,
            are_credentials_known=self._options.are_credentials_known,
            gateway_labels=self._options.gateway_labels,
            own=self._options.own,
        ).compile(ingresses)
        if self._options.listen is not None:
            scope = scope.unbound()
        rules = self._reuse(scope.rules, {rule.id: rule for rule in before.result.rules or self._last.rules})
        self._scope = Made(msgspec.structs.replace(scope, rules=rules), scope.findings, tuple(recording.looks))
        if self._scope.result.ingresses != before.result.ingresses:
            changes.looks.add(SCOPE)
        if self._scope.result.restrictions != before.result.restrictions:
            changes.looks.add(RESTRICTIONS)
        return _exchanged(before.result.rules, rules)

    def _compile_routes(
        self, view: StoreView, changes: Changes, removed: list[Rule], added: list[Rule]
    ) -> Generator[None, None, None]:
        """Bring routes up to date; put the rules that are gone, and new ones, into the lists."""
        scope = self._scope.result
        # After `_forget` there are no old results to take equal rules from, but there is the last snapshot.
        known: dict[str, Rule] = {rule.id: rule for rule in self._last.rules} if self._view is None else {}

        def make(
            manifest: msgspec.Struct, recording: RecordingView
        ) -> tuple[tuple[Rule, ...], Sequence[Finding]] | None:
            if not isinstance(manifest, VPCRoute):
                return None
            rules, findings = self._route_compiler.compile(manifest, recording, scope)
            recording.looks.add(SCOPE if manifest.spec.parent_refs else RESTRICTIONS)
            return (self._reuse(tuple(rules), known) if known else tuple(rules)), findings

        for position, (name, old, new) in enumerate(self._routes.update(view, changes, make), 1):
            if position % STEP_OBJECTS == 0:
                yield
            if old and new:
                new = self._reuse(new, {rule.id: rule for rule in old})
                self._routes.replace(name, new)
            gone, come = _exchanged(old or (), new or ())
            removed += gone
            added += come

    @staticmethod
    def _reuse(rules: tuple[Rule, ...], known: Mapping[str, Rule]) -> tuple[Rule, ...]:
        """Replace rules by their equals of the last compilation, so that comparisons from here on are by identity."""
        return tuple(old if (old := known.get(rule.id)) is not None and old == rule else rule for rule in rules)

    def _listeners(self) -> tuple[Listener, ...]:
        """Return all listeners; those for outbound traffic come last and are there whatever the manifests say."""
        return (*self._http_listeners(), *(self._options.egress_listeners or ()))

    def _http_listeners(self) -> tuple[Listener, ...]:
        scope = self._scope.result
        if self._options.listen is not None:
            # `--listen` is one plain listener that serves all routes, in place of what VPCIngresses ask for.
            # The gateway's own certificate is served beside it; where the kernel chooses its port, it chooses both.
            listen = self._options.listen
            own = () if scope.own is None else (scope.own,)
            port = {"port": 0} if listen.port == 0 else {}
            return (listen, *(msgspec.structs.replace(one, host=listen.host, **port) for one in own))
        listeners = scope.listeners
        is_elsewhere = any(one.is_elsewhere for one in scope.ingresses)
        if not listeners and not is_elsewhere and self._options.fallback_listener is not None:
            listeners = (self._options.fallback_listener,)
        return (*listeners, *(one for one in scope.own_listeners if all(one.port != other.port for other in listeners)))

    def _publish(self, services: Mapping[ServiceKey, Service], listeners: tuple[Listener, ...]) -> SnapshotData:
        last, rules, place = self._last, self._table.rules, self._place_compiler.place
        egress = self._egress_compiler.policy
        if (
            self._version
            and last.listeners == listeners
            and last.place == place
            and (last.egress is egress or last.egress == egress)
            and (last.services is services or last.services == services)
            and last.rules == rules  # by identity first, and no further than to the first difference
        ):
            return last
        self._version += 1
        digest = combine_digests(self._digests, self._table.digests, listeners, place, egress)
        self._last = SnapshotData(
            version=self._version,
            digest=digest,
            services=services,
            rules=rules,
            listeners=listeners,
            place=place,
            egress=egress,
        )
        return self._last


def _service_of(made: CompiledService | None) -> Service | None:
    return None if made is None else made.service


def _given_to(made: CompiledService | None) -> tuple[Contribution, ...]:
    return () if made is None else made.contributions


def _check_binding(manifest: msgspec.Struct, view: ManifestView) -> tuple[None, Sequence[Finding]] | None:
    if not isinstance(manifest, ServiceBinding):
        return None
    key = key_of("ServiceBinding", manifest.metadata)
    ref = manifest.spec.vpc_service_ref
    result = resolve_service(
        view,
        referrer=key,
        path="spec.vpcServiceRef.name",
        name=ref.name,
        namespace=ref.namespace,
        is_export_enough=False,
    )
    if result.finding is None:
        return None, ()
    return None, [msgspec.structs.replace(result.finding, message=result.finding.message.split(";", 1)[0])]


def _exchanged(old: Sequence[Rule], new: Sequence[Rule]) -> tuple[list[Rule], list[Rule]]:
    """Return the rules of `old` that are not in `new`, and the other way round, by identity."""
    if not old or not new:
        return list(old), list(new)
    old_ids, new_ids = set(map(id, old)), set(map(id, new))
    return [rule for rule in old if id(rule) not in new_ids], [rule for rule in new if id(rule) not in old_ids]


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


def _located(finding: Finding, view: StoreView, hints: Mapping[ObjectKey, str]) -> Diagnostic:
    origin = view.origin(finding.key) or Origin(source="")
    hint = "" if finding.missing is None or finding.hint else hints[finding.missing]
    return locate(finding, origin.file, origin.locate(finding.path), hint=hint)
