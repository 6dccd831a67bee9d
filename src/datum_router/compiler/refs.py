"""References between objects: which namespace, whether it may be crossed, and what to say if it is not there."""

from __future__ import annotations

import datetime

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Severity, did_you_mean
from datum_router.manifests.meta import ObjectKey, ObjectMeta
from datum_router.manifests.vpcservice import ExportNamespaces, VPCService
from datum_router.plugins.protocols import ManifestView
from datum_router.reasons import Reason


class Finding(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A diagnostic before it knows file and line."""

    key: ObjectKey
    path: str
    reason: Reason
    message: str
    hint: str = ""
    severity: Severity = Severity.ERROR
    is_reference: bool = False


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
                hint=did_you_mean(name, names_in(view, "VPCService", where)),
                severity=Severity.WARNING,
                is_reference=True,
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


def _is_exported(service: VPCService) -> bool:
    export = service.spec.export_to
    return export is not None and export.namespaces is ExportNamespaces.ALL


def locate(finding: Finding, file: str, line: int) -> Diagnostic:
    """Return the finding as a diagnostic at a place."""
    return Diagnostic(
        severity=finding.severity,
        object=str(finding.key),
        path=finding.path,
        reason=finding.reason,
        message=finding.message,
        hint=finding.hint,
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
