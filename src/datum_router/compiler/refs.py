"""References between objects: which namespace, whether it may be crossed, and what to say if it is not there."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Severity, did_you_mean
from datum_router.manifests.labels import selects
from datum_router.manifests.meta import GROUP, ObjectKey, ObjectMeta
from datum_router.manifests.namespace import namespace_labels
from datum_router.manifests.referencegrant import BY_TARGET, GrantFrom, GrantTo, ReferenceGrant, target_value
from datum_router.manifests.vpcservice import ExportNamespaces, ExportTo, VPCService
from datum_router.plugins.protocols import ManifestView
from datum_router.reasons import Reason

MAX_COMPARED_NAMES = 20_000
"""Names that references to nowhere are compared with in one compilation, about 0.2 s; later ones get no hint.

A service that goes, or a namespace that is misspelt, may leave thousands of such references at once.
"""


class Finding(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A diagnostic before it knows file and line.

    Attributes:
        missing: The object that is referred to and is not there; `Hints` finds out which one was meant.
    """

    key: ObjectKey
    path: str
    reason: Reason
    message: str
    hint: str = ""
    severity: Severity = Severity.ERROR
    is_reference: bool = False
    missing: ObjectKey | None = None


class ServiceRefResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a reference to a VPCService leads to: `problem` is empty if it may be used."""

    service: VPCService | None
    name: str
    problem: str = ""
    finding: Finding | None = None


def is_permitted(
    view: ManifestView, *, referrer: ObjectKey, target: ObjectKey, group: str = GROUP, export: ExportTo | None = None
) -> bool:
    """Tell whether one of our objects may refer to `target`: the one place where consent is decided.

    Within a namespace always. Another namespace has to consent, either by `exportTo` of the target or by a
    ReferenceGrant in the target's namespace. Everything that the answer depends on is looked at in `view`, so that
    consent which is withdrawn acts with the next compilation.

    Args:
        group: API group of the target.
        export: The target's `exportTo` if it counts for this reference.
    """
    if referrer.namespace == target.namespace or _is_exported(view, export, referrer.namespace):
        return True
    source = GrantFrom(group=GROUP, kind=referrer.kind, namespace=referrer.namespace)
    wanted = GrantTo(group=group, kind=target.kind, name=target.name)
    grants = view.select("ReferenceGrant", BY_TARGET, target_value(target.namespace, group, target.kind))
    return any(isinstance(grant, ReferenceGrant) and grant.permits(source=source, target=wanted) for grant in grants)


def _is_exported(view: ManifestView, export: ExportTo | None, namespace: str) -> bool:
    if export is None or export.namespaces is ExportNamespaces.SAME:
        return False
    if export.namespaces is ExportNamespaces.ALL:
        return True
    if export.selector is None:
        return False
    return selects(export.selector, namespace_labels(namespace, view.get("Namespace", "", namespace)))


def refusal(
    referrer: ObjectKey, target: ObjectKey, *, group: str = GROUP, is_exportable: bool = False
) -> tuple[str, str]:
    """Return message and hint for a reference that is not permitted.

    Args:
        is_exportable: `exportTo` of the target would do.
    """
    message = f"{target} does not consent to references from {referrer.kind}s of namespace {referrer.namespace}"
    grant = (
        f"add a ReferenceGrant to namespace {target.namespace}, from {referrer.kind} ({GROUP}) of namespace "
        f"{referrer.namespace} to {target.kind} ({group or 'core'})"
    )
    return message, f"set spec.exportTo of the {target.kind.lower()}, or {grant}" if is_exportable else grant


def resolve_service(
    view: ManifestView,
    *,
    referrer: ObjectKey,
    path: str,
    name: str,
    namespace: str | None,
    is_export_enough: bool = True,
) -> ServiceRefResult:
    """Follow a reference to a VPCService; the default namespace is the referrer's.

    Args:
        is_export_enough: `exportTo` of the service is consent. It is to those who send it traffic; whoever gives it
            endpoints, and so gets its traffic, needs a ReferenceGrant.
    """
    where = namespace or referrer.namespace
    target = ObjectKey(kind="VPCService", namespace=where, name=name)
    full = f"{where}/{name}"
    found = view.get("VPCService", where, name)
    if not isinstance(found, VPCService):
        return ServiceRefResult(
            service=None,
            name=full,
            problem=Reason.VPC_SERVICE_NOT_FOUND,
            finding=Finding(
                key=referrer,
                path=path,
                reason=Reason.VPC_SERVICE_NOT_FOUND,
                message=f"{target} is not there; its share of the traffic is answered with 500",
                severity=Severity.WARNING,
                is_reference=True,
                missing=target,
            ),
        )
    export = found.spec.export_to if is_export_enough else None
    if not is_permitted(view, referrer=referrer, target=target, export=export):
        message, hint = refusal(referrer, target, is_exportable=is_export_enough)
        return ServiceRefResult(
            service=None,
            name=full,
            problem=Reason.REF_NOT_PERMITTED,
            finding=Finding(key=referrer, path=path, reason=Reason.REF_NOT_PERMITTED, message=message, hint=hint),
        )
    return ServiceRefResult(service=found, name=full)


class _Known:
    """The names of all objects of one kind."""

    __slots__ = ("by_name", "by_namespace", "found", "listed", "names")

    def __init__(self) -> None:
        self.listed: Sequence[msgspec.Struct] = ()
        self.names: list[tuple[str, str]] = []
        self.by_namespace: dict[str, list[str]] = {}
        self.by_name: dict[str, list[str]] = {}
        self.found: dict[ObjectKey, str] = {}

    def update(self, listed: Sequence[msgspec.Struct]) -> None:
        """Forget what was found if any object came or went; O(objects) if any changed, else O(1)."""
        if listed is self.listed:
            return
        self.listed = listed
        metas = [getattr(item, "metadata", None) for item in listed]
        names = [(meta.namespace, meta.name) for meta in metas if isinstance(meta, ObjectMeta)]
        if names == self.names:
            return
        self.names = names
        self.by_namespace, self.by_name, self.found = {}, {}, {}
        for namespace, name in names:
            self.by_namespace.setdefault(namespace, []).append(name)
            self.by_name.setdefault(name, []).append(namespace)


class Hints:
    """Which objects references to nowhere may have meant; remembered as long as none of the kind comes or goes."""

    __slots__ = ("_kinds",)

    def __init__(self) -> None:
        self._kinds: dict[str, _Known] = {}

    def of(self, findings: Iterable[Finding], view: ManifestView) -> dict[ObjectKey, str]:
        """Return the hint for each missing object of `findings`: the same for equal findings in equal order."""
        hints: dict[ObjectKey, str] = {}
        current: set[str] = set()
        compared = 0
        for finding in findings:
            missing = finding.missing
            if missing is None or missing in hints:
                continue
            known = self._kinds.setdefault(missing.kind, _Known())
            if missing.kind not in current:
                known.update(view.list(missing.kind))
                current.add(missing.kind)
            names = known.by_namespace.get(missing.namespace, [])
            compared += len(names)
            hints[missing] = "" if compared > MAX_COMPARED_NAMES else _hint(missing, names, known)
        return hints


def _hint(missing: ObjectKey, names: Sequence[str], known: _Known) -> str:
    hint = known.found.get(missing)
    if hint is None:
        hint = did_you_mean(missing.name, names)
        elsewhere = known.by_name.get(missing.name)
        if not hint and elsewhere:
            consent = "spec.exportTo or a ReferenceGrant" if missing.kind == "VPCService" else "a ReferenceGrant"
            hint = f"there is one in namespace {elsewhere[0]}: name it, and give consent there by {consent}"
        known.found[missing] = hint
    return hint


def locate(finding: Finding, file: str, line: int, *, hint: str = "") -> Diagnostic:
    """Return the finding as a diagnostic at a place; `hint` is used if it has none of its own."""
    return Diagnostic(
        severity=finding.severity,
        object=str(finding.key),
        path=finding.path,
        reason=finding.reason,
        message=finding.message,
        hint=finding.hint or hint,
        file=file,
        line=line,
        is_reference=finding.is_reference,
    )


def port_override(port: int | None, service: VPCService | None) -> int | None:
    """Return the port to dial instead of the endpoints' own; naming the service's own port overrides nothing."""
    if port is None or (service is not None and port == service.spec.port):
        return None
    return port


def created_at(meta: ObjectMeta) -> float:
    """Return the creation time as Unix seconds, 0 if there is none or it cannot be read."""
    text = meta.creation_timestamp
    if not text:
        return 0.0
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()
