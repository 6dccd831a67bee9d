"""References between objects: which namespace, whether it may be crossed, and what to say if it is not there."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Severity, did_you_mean
from datum_router.manifests.meta import ObjectKey, ObjectMeta
from datum_router.manifests.vpcservice import ExportNamespaces, VPCService
from datum_router.plugins.protocols import ManifestView
from datum_router.reasons import Reason

MAX_COMPARED_NAMES = 20_000
"""Names that references to nowhere are compared with in one compilation, about 0.2 s; later ones get no hint.

A service that goes, or a namespace that is misspelt, may leave thousands of such references at once.
"""


class Finding(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A diagnostic before it knows file and line.

    Attributes:
        missing: Namespace and name of the VPCService that is not there; `Hints` finds out which one was meant.
    """

    key: ObjectKey
    path: str
    reason: Reason
    message: str
    hint: str = ""
    severity: Severity = Severity.ERROR
    is_reference: bool = False
    missing: tuple[str, str] | None = None


class ServiceRefResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a reference to a VPCService leads to: `problem` is empty if it may be used."""

    service: VPCService | None
    name: str
    problem: str = ""
    finding: Finding | None = None


def resolve_service(
    view: ManifestView, *, referrer: ObjectKey, path: str, name: str, namespace: str | None
) -> ServiceRefResult:
    """Follow a reference to a VPCService; the default namespace is the referrer's.

    Another namespace needs the target's consent: `spec.exportTo.namespaces: All`.
    """
    where = namespace or referrer.namespace
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
                message=f"vpcservice {full} is not there; its share of the traffic is answered with 500",
                severity=Severity.WARNING,
                is_reference=True,
                missing=(where, name),
            ),
        )
    if where != referrer.namespace and not _is_exported(found):
        return ServiceRefResult(
            service=None,
            name=full,
            problem=Reason.REF_NOT_PERMITTED,
            finding=Finding(
                key=referrer,
                path=path,
                reason=Reason.REF_NOT_PERMITTED,
                message=f"vpcservice {full} is not exported to namespace {referrer.namespace}",
                hint="set spec.exportTo.namespaces: All on the vpcservice",
            ),
        )
    return ServiceRefResult(service=found, name=full)


def names_in(view: ManifestView, kind: str, namespace: str) -> list[str]:
    """Return the names of a kind's objects in a namespace: what a reference may have meant."""
    return [
        meta.name
        for item in view.list(kind)
        if isinstance(meta := getattr(item, "metadata", None), ObjectMeta) and meta.namespace == namespace
    ]


class Hints:
    """Which VPCServices references to nowhere may have meant; remembered as long as all VPCServices stay the same."""

    __slots__ = ("_found", "_listed", "_names", "_namespaces")

    def __init__(self) -> None:
        self._listed: Sequence[msgspec.Struct] = ()
        self._names: dict[str, list[str]] = {}
        self._namespaces: dict[str, list[str]] = {}
        self._found: dict[tuple[str, str], str] = {}

    def of(self, findings: Iterable[Finding], view: ManifestView) -> dict[tuple[str, str], str]:
        """Return the hint for each missing service of `findings`: the same for equal findings in equal order."""
        hints: dict[tuple[str, str], str] = {}
        compared = 0
        for finding in findings:
            missing = finding.missing
            if missing is None or missing in hints:
                continue
            names = self._names_in(view, missing[0])
            compared += len(names)
            hints[missing] = "" if compared > MAX_COMPARED_NAMES else self._hint(missing, names)
        return hints

    def _names_in(self, view: ManifestView, namespace: str) -> list[str]:
        listed = view.list("VPCService")
        if listed is not self._listed:
            self._listed = listed
            self._names.clear()
            self._namespaces.clear()
            self._found.clear()
            for item in listed:
                meta = getattr(item, "metadata", None)
                if isinstance(meta, ObjectMeta):
                    self._namespaces.setdefault(meta.name, []).append(meta.namespace)
        names = self._names.get(namespace)
        if names is None:
            names = self._names[namespace] = names_in(view, "VPCService", namespace)
        return names

    def _hint(self, missing: tuple[str, str], names: Sequence[str]) -> str:
        hint = self._found.get(missing)
        if hint is None:
            hint = did_you_mean(missing[1], names)
            elsewhere = self._namespaces.get(missing[1])
            if not hint and elsewhere:
                hint = f"there is one in namespace {elsewhere[0]}: name it, and set spec.exportTo.namespaces: All there"
            self._found[missing] = hint
        return hint


def _is_exported(service: VPCService) -> bool:
    export = service.spec.export_to
    return export is not None and export.namespaces is ExportNamespaces.ALL


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
