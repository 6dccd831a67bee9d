"""What reading and compiling found out, by object, and which objects that may have changed for. Pure.

Theory of operation. Whoever writes statuses must not look at every object after every edit. So results are compared
with the last ones by identity (unchanged parts of a compilation are the same objects), and what differs is traced back
to the objects that it is about: services, rules, VPCIngresses as routes see them, and diagnostics. Objects may be named
without need, never be left out.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping

from datum_router.compiler.compiler import CompileResult
from datum_router.compiler.diagnostics import Diagnostic
from datum_router.compiler.ingress import Attached, join
from datum_router.compiler.services import service_key
from datum_router.compiler.splice import differences
from datum_router.manifests.meta import ObjectKey, ObjectMeta, StatusPart, key_of
from datum_router.manifests.vpcroute import VPCRoute
from datum_router.manifests.vpcservice import VPCService, VpcStatus
from datum_router.model.route import Rule
from datum_router.model.service import Service, ServiceKey
from datum_router.plugins.protocols import Contribution
from datum_router.reconcile.reports import Refusal, Verdict
from datum_router.reconcile.status import KINDS
from datum_router.reconcile.subject import Facts, Subject
from datum_router.registry.bucket import Name
from datum_router.registry.store import StoreView

INGRESS_PREFIX = "ingress:"
"""Begins `Rule.route` of a rule that a VPCIngress states itself."""

_KINDS_BY_WORD = {kind.lower(): kind for kind in KINDS}


class _Links:
    """Which objects of one kind name which of another, both ways."""

    __slots__ = ("_from", "_to")

    def __init__(self) -> None:
        self._to: dict[Name, tuple[Name, ...]] = {}
        self._from: dict[Name, set[Name]] = {}

    def set(self, name: Name, targets: tuple[Name, ...]) -> tuple[Name, ...]:
        """Have an object name these; return all whose links differ."""
        before = self._to.get(name, ())
        if before == targets:
            return ()
        for target in before:
            sources = self._from[target]
            sources.discard(name)
            if not sources:
                del self._from[target]
        for target in targets:
            self._from.setdefault(target, set()).add(name)
        if targets:
            self._to[name] = targets
        else:
            del self._to[name]
        return tuple(dict.fromkeys((*before, *targets)))

    def named_by(self, name: Name) -> tuple[Name, ...]:
        """Return what an object names."""
        return self._to.get(name, ())

    def naming(self, target: Name) -> Iterable[Name]:
        """Return the objects that name `target`, in no order."""
        return self._from.get(target, ())


class FactIndex:
    """The newest view and result, by object. Not thread-safe.

    The view may be newer than the result as long as nothing in it waits to be compiled.
    """

    __slots__ = (
        "_attached",
        "_attachments",
        "_contributions",
        "_findings",
        "_parents",
        "_problems",
        "_read",
        "_rules",
        "_rules_of",
        "_services",
        "_view",
        "_vpcs",
    )

    def __init__(self) -> None:
        self._view: StoreView | None = None
        self._services: Mapping[ServiceKey, Service] = {}
        self._rules: tuple[Rule, ...] = ()
        self._rules_of: dict[str, tuple[Rule, ...]] = {}
        self._attached: dict[Name, Attached] = {}
        self._read: tuple[Diagnostic, ...] = ()
        self._problems: dict[str, tuple[Diagnostic, ...]] = {}
        self._findings: dict[str, tuple[Diagnostic, ...]] = {}
        self._parents = _Links()  # VPCRoute -> VPCIngress
        self._attachments = _Links()  # VPCService -> VPCAttachment that it names
        self._vpcs = _Links()  # VPCService -> VPC of its endpoints
        self._contributions: Mapping[ObjectKey, Contribution] = {}

    # --- keeping up ------------------------------------------------------------------------------------------------

    def refresh(self, view: StoreView, seen: Iterable[ObjectKey]) -> set[ObjectKey]:
        """Take a newer view of what is compiled already; return the objects of our kinds whose status may differ.

        Args:
            seen: All objects of which any version was read since the last view, and those that went.
        """
        self._view = view
        changed: set[ObjectKey] = set()
        for key in seen:
            if key.kind in KINDS:
                changed.add(key)
            self._link(key, view, changed)
        return changed

    def update(self, result: CompileResult, view: StoreView, seen: Iterable[ObjectKey]) -> set[ObjectKey]:
        """Take a view and what was compiled from it; else as `refresh`. O(diagnostics), O(what changed), and O(rules)
        and O(services) comparisons by identity.
        """
        changed = self.refresh(view, seen)
        self._update_services(result.data.services, changed)
        self._update_contributions(result.contributions, changed)
        self._update_ingresses(result.ingresses, changed)
        self._update_rules(result.data.rules, changed)
        read = view.diagnostics()
        if read is not self._read:
            self._read = read
            self._problems = _regrouped(self._problems, read, changed)
        self._findings = _regrouped(self._findings, result.findings, changed)
        return changed

    def _link(self, key: ObjectKey, view: StoreView, changed: set[ObjectKey]) -> None:
        name = (key.namespace, key.name)
        if key.kind == "VPCAttachment":
            changed.update(_key("VPCService", service) for service in self._attachments.naming(name))
        elif key.kind == "VPC":
            changed.update(_key("VPCService", service) for service in self._vpcs.naming(name))
        elif key.kind == "VPCRoute":
            route = view.get(*_where(key))
            refs = route.spec.parent_refs if isinstance(route, VPCRoute) else ()
            parents = tuple(dict.fromkeys((ref.namespace or key.namespace, ref.name) for ref in refs))
            self._parents.set(name, parents)
            changed.update(_key("VPCIngress", parent) for parent in self._parents.named_by(name))
        elif key.kind == "VPCService":
            service = view.get(*_where(key))
            ref = service.spec.vpc_attachment_ref if isinstance(service, VPCService) else None
            self._attachments.set(name, () if ref is None else ((ref.namespace or key.namespace, ref.name),))

    def _update_services(self, services: Mapping[ServiceKey, Service], changed: set[ObjectKey]) -> None:
        old = self._services
        if services is old:
            return
        self._services = services
        differing = [key for key, service in services.items() if old.get(key) is not service]
        differing += [key for key in old if key not in services]
        for key in differing:
            namespace, _, name = key.partition("/")
            changed.add(_key("VPCService", (namespace, name)))
            self._vpcs.set((namespace, name), _vpcs_of(services.get(key)))

    def _update_contributions(self, contributions: Mapping[ObjectKey, Contribution], changed: set[ObjectKey]) -> None:
        old = self._contributions
        if contributions is old:
            return
        self._contributions = contributions
        for key in contributions.keys() | old.keys():
            if contributions.get(key) != old.get(key):
                changed.add(key)

    def _update_ingresses(self, ingresses: tuple[Attached, ...], changed: set[ObjectKey]) -> None:
        attached = {(one.key.namespace, one.key.name): one for one in ingresses}
        for name in attached.keys() | self._attached.keys():
            if attached.get(name) != self._attached.get(name):
                changed.add(_key("VPCIngress", name))
                changed.update(_key("VPCRoute", route) for route in self._parents.naming(name))
        self._attached = attached

    def _update_rules(self, rules: tuple[Rule, ...], changed: set[ObjectKey]) -> None:
        old = self._rules
        if rules is old:
            return
        self._rules = rules
        gone, come = differences(old, rules)
        moved: dict[str, list[Rule]] = {}
        for place in gone:
            moved.setdefault(old[place].route, [])
        for place in come:
            moved.setdefault(rules[place].route, []).append(rules[place])
        left = set(map(id, (old[place] for place in gone)))
        for route, added in moved.items():
            kept = [rule for rule in self._rules_of.get(route, ()) if id(rule) not in left]
            now = tuple(sorted((*kept, *added), key=lambda rule: rule.index))
            if now:
                self._rules_of[route] = now
            else:
                self._rules_of.pop(route, None)
            kind = "VPCIngress" if route.startswith(INGRESS_PREFIX) else "VPCRoute"
            namespace, _, name = route.removeprefix(INGRESS_PREFIX).partition("/")
            changed.add(_key(kind, (namespace, name)))
            if kind == "VPCRoute":
                changed.update(_key("VPCIngress", parent) for parent in self._parents.named_by((namespace, name)))

    # --- asking ----------------------------------------------------------------------------------------------------

    def objects(self) -> Iterator[ObjectKey]:
        """Yield every object of our kinds that is there, also those of which no version was ever good."""
        view = self._view
        if view is None:
            return
        refused = {key for key in view.refused() if key.kind in KINDS}
        yield from sorted(refused)
        for kind in sorted(KINDS):
            for manifest in view.list(kind):
                metadata = getattr(manifest, "metadata", None)
                if isinstance(metadata, ObjectMeta):
                    key = key_of(kind, metadata)
                    if key not in refused:
                        yield key

    def metadata(self, key: ObjectKey) -> ObjectMeta | None:
        """Return the metadata of the latest version of an object; None if it is not there."""
        if self._view is None:
            return None
        refused = self._view.refused().get(key)
        if refused is not None:
            return refused
        metadata = getattr(self._view.get(*_where(key)), "metadata", None)
        return metadata if isinstance(metadata, ObjectMeta) else None

    def is_refused(self, key: ObjectKey) -> bool:
        """Tell whether the latest version of an object is bad."""
        return self._view is not None and key in self._view.refused()

    def status(self, key: ObjectKey) -> StatusPart | None:
        """Return the status of the latest version of an object, as it was read; None if it has none."""
        found = None if self._view is None else self._view.status(key)
        return found if isinstance(found, StatusPart) else None

    def subject(
        self,
        key: ObjectKey,
        *,
        status: StatusPart | None,
        verdict: Verdict,
        refusals: tuple[tuple[str, Refusal], ...] = (),
        notes: tuple[tuple[str, Refusal], ...] = (),
        connections: int = 0,
    ) -> Subject | None:
        """Return what is known of an object; None if it is not there.

        Args:
            status: What it has now.
            verdict: What gateways say.
            refusals, notes: The same.
            refusals, connections: The same.
        """
        metadata = self.metadata(key)
        if metadata is None or self._view is None:
            return None
        name = str(key)
        return Subject(
            key=key,
            metadata=metadata,
            manifest=self._view.get(*_where(key)),
            status=status,
            verdict=verdict,
            connections=connections,
            problems=self._problems.get(name, ()),
            findings=self._findings.get(name, ()),
            refusals=refusals,
            notes=notes,
        )

    def facts(self, key: ObjectKey) -> Facts:
        """Return what compiling made of an object."""
        name = (key.namespace, key.name)
        if key.kind == "VPCService":
            vpc, identifier = self._network(name)
            service = self._services.get(service_key(*name))
            return Facts(service=service, vpc=vpc, attachment_identifier=identifier)
        if key.kind == "VPCRoute":
            parents = {
                parent: self._attached[parent] for parent in self._parents.named_by(name) if parent in self._attached
            }
            return Facts(rules=self._rules_of.get(f"{key.namespace}/{key.name}", ()), parents=parents)
        if key.kind == "VPCIngress":
            return Facts(
                rules=self._rules_of.get(f"{INGRESS_PREFIX}{key.namespace}/{key.name}", ()),
                attached=self._attached.get(name),
                attached_routes=self._attached_routes(name),
            )
        if key.kind == "ServiceBinding":
            return Facts(contribution=self._contributions.get(key))
        return Facts()

    def _attached_routes(self, name: Name) -> Mapping[str, int]:
        """Return how many routes that name a VPCIngress are served on each of its listeners."""
        attached = self._attached.get(name)
        counts: collections.Counter[str] = collections.Counter()
        if attached is None or self._view is None:
            return counts
        for namespace, route_name in self._parents.naming(name):
            route = self._view.get("VPCRoute", namespace, route_name)
            if not isinstance(route, VPCRoute) or f"{namespace}/{route_name}" not in self._rules_of:
                continue
            own = tuple([host.lower() for host in route.spec.hostnames])
            served: set[str] = set()
            for ref in route.spec.parent_refs:
                if (ref.namespace or namespace, ref.name) == name:
                    served.update(join(ref, attached, own, namespace=namespace).listeners)
            counts.update(section for section, _, listener in attached.sections if listener in served)
        return counts

    def _network(self, name: Name) -> tuple[VpcStatus | None, str]:
        """Return the VPC of a VPCService, and the identifier of the attachment that it names.

        One that names none has the VPC of its first endpoint that is in one. Their types belong to a plugin; what is
        read here is their published shape.
        """
        view = self._view
        for where in self._attachments.named_by(name):
            attachment = None if view is None else view.get("VPCAttachment", *where)
            vpc_name = _text(attachment, "spec", "vpc", "name")
            if view is None or not vpc_name:
                continue
            namespace = _text(attachment, "spec", "vpc", "namespace") or where[0]
            identifier = _text(view.get("VPC", namespace, vpc_name), "status", "identifier")
            vpc = VpcStatus(name=vpc_name, namespace=namespace, identifier=identifier)
            return vpc, _text(attachment, "status", "identifier")
        for namespace, vpc_name in self._vpcs.named_by(name):
            identifier = "" if view is None else _text(view.get("VPC", namespace, vpc_name), "status", "identifier")
            return VpcStatus(name=vpc_name, namespace=namespace, identifier=identifier), ""
        return None, ""


def key_of_text(text: str) -> ObjectKey | None:
    """Return the object that a diagnostic names (`vpcroute default/api`); None if it is none of our kinds."""
    word, _, where = text.partition(" ")
    namespace, _, name = where.partition("/")
    kind = _KINDS_BY_WORD.get(word)
    return _key(kind, (namespace, name)) if kind is not None and name else None


def _regrouped(
    old: dict[str, tuple[Diagnostic, ...]], found: Iterable[Diagnostic], changed: set[ObjectKey]
) -> dict[str, tuple[Diagnostic, ...]]:
    """Return diagnostics by object; add to `changed` those for which they differ from `old`."""
    lists: dict[str, list[Diagnostic]] = {}
    for one in found:
        lists.setdefault(one.object, []).append(one)
    groups = {name: tuple(items) for name, items in lists.items()}
    for name in groups.keys() | old.keys():
        if groups.get(name) != old.get(name):
            key = key_of_text(name)
            if key is not None:
                changed.add(key)
    return groups


def _key(kind: str, name: Name) -> ObjectKey:
    return ObjectKey(kind=kind, namespace=name[0], name=name[1])


def _where(key: ObjectKey) -> tuple[str, str, str]:
    return key.kind, key.namespace, key.name


def _vpcs_of(service: Service | None) -> tuple[Name, ...]:
    """Return the VPCs of a service's endpoints that are known by name."""
    names: dict[Name, None] = {}
    for endpoint in () if service is None else service.endpoints:
        namespace, _, name = endpoint.vpc.partition("/")
        if namespace:
            names[namespace, name] = None
    return tuple(names)


def _text(value: object, *path: str) -> str:
    for name in path:
        value = getattr(value, name, None)
    return value if isinstance(value, str) else ""
