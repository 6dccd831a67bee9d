"""One object as its status is about it: what was read, compiled and reported, and the conditions that follow. Pure.

Theory of operation. An object has a latest version, which may be bad, and a version in force, which then is an older
one. `Accepted` is about the latest version; all other conditions are about the one in force, and say so by their
`observedGeneration`. What was found wrong goes to one condition by what it is about: a reference to `ResolvedRefs`,
another object that stands in the way to `Conflicted`, a lack of endpoints to `EndpointsReady` or `Synced`, and all else
to `Accepted`.

Messages hold what `Diagnostic` does: what users wrote in these objects, never secrets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.compiler.ingress import Attached
from datum_router.manifests.meta import Condition, ObjectKey, ObjectMeta, StatusPart
from datum_router.manifests.vpcservice import VpcStatus
from datum_router.model.route import Rule
from datum_router.model.service import Service
from datum_router.plugins.protocols import Contribution
from datum_router.reasons import Reason
from datum_router.reconcile.conditions import ConditionType, condition, conditions_of, find, merge
from datum_router.reconcile.reports import NO_GATEWAY, Refusal, Verdict

REFERENCES = frozenset(
    {
        Reason.VPC_SERVICE_NOT_FOUND,
        Reason.VPC_ROUTE_NOT_FOUND,
        Reason.VPC_INGRESS_NOT_FOUND,
        Reason.ATTACHMENT_NOT_FOUND,
        Reason.ATTACHMENT_NOT_READY,
        Reason.VPC_NOT_READY,
        Reason.VPC_NOT_FOUND,
        Reason.LOCATION_NOT_FOUND,
        Reason.NO_COORDINATES,
        Reason.INVALID_COORDINATES,
        Reason.INVALID_IDENTIFIER,
        Reason.INVALID_ADDRESS,
        Reason.NO_PREFIX_LENGTH,
        Reason.INVALID_ATTACHMENT_ROUTE,
        Reason.SERVICE_NOT_FOUND,
        Reason.PORT_NOT_FOUND,
        Reason.REF_NOT_PERMITTED,
        Reason.INVALID_CERTIFICATE_REF,
    }
)
"""Reasons of `ResolvedRefs`."""

SHORTAGES = frozenset({Reason.NO_ENDPOINTS, Reason.NO_VPC_ADDRESS, Reason.EXPORT_CONFLICT, Reason.CLUSTER_STALE})
"""Reasons of `EndpointsReady` and `Synced`."""

CONFLICTS = frozenset({Reason.CONFLICTED, Reason.HOSTNAME_CONFLICT, Reason.PROTOCOL_CONFLICT})
"""Reasons of `Conflicted`, of kinds that have that condition."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of one object, and found out about it.

    Attributes:
        metadata: Of the latest version.
        manifest: The version in force; None if there never was a good one.
        status: As it was last read; None if there is none.
        problems: What reading the latest version found; with an error among them that version is not in force.
        findings: What compiling the version in force found.
        refusals: What gateways say about references that only they may follow, with their names.
        notes: What gateways say of certificates, with their names.
        verdict: Whether the version in force is so on every gateway.
        connections: Of a VPCEgress: outbound connections that are open on all gateways together.
    """

    key: ObjectKey
    metadata: ObjectMeta
    manifest: msgspec.Struct | None
    status: StatusPart | None
    verdict: Verdict
    problems: tuple[Diagnostic, ...] = ()
    findings: tuple[Diagnostic, ...] = ()
    refusals: tuple[tuple[str, Refusal], ...] = ()
    notes: tuple[tuple[str, Refusal], ...] = ()
    connections: int = 0

    @property
    def is_bad(self) -> bool:
        """Tell whether the latest version is not in force."""
        return self.manifest is None or any(one.severity is Severity.ERROR for one in self.problems)

    @property
    def generation_in_force(self) -> int:
        """Return the generation that is in force, 0 if none is."""
        if not self.is_bad:
            return self.metadata.generation  # which may be newer than the manifest's, for the same content
        metadata = getattr(self.manifest, "metadata", None)
        return metadata.generation if isinstance(metadata, ObjectMeta) else 0


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What compiling made of one object.

    Attributes:
        service: Of a VPCService.
        vpc, attachment_identifier: Of a VPCService with an attachment.
        rules: Of a VPCRoute or a VPCIngress.
        parents: Of a VPCRoute with `parentRefs`: those VPCIngresses that are there, by namespace and name.
        attached: Of a VPCIngress.
        attached_routes: Of a VPCIngress: how many VPCRoutes name it and are served on a listener, by listener's name.
        contribution: Of a ServiceBinding that is permitted and whose VPCService is there.
    """

    service: Service | None = None
    vpc: VpcStatus | None = None
    attachment_identifier: str = ""
    rules: tuple[Rule, ...] = ()
    parents: Mapping[tuple[str, str], Attached] = {}
    attached: Attached | None = None
    attached_routes: Mapping[str, int] = {}
    contribution: Contribution | None = None


class Sorted(msgspec.Struct, frozen=True, kw_only=True):
    """What was found about the version in force, by the condition that it belongs to; errors first in each.

    Attributes:
        notes: Warnings about objects that are referred to, by which nothing is missing.
        faults: Errors that are about the object itself: a part of it is not in force.
        remarks: Warnings about the object itself.
    """

    references: tuple[Diagnostic, ...] = ()
    notes: tuple[Diagnostic, ...] = ()
    conflicts: tuple[Diagnostic, ...] = ()
    shortages: tuple[Diagnostic, ...] = ()
    faults: tuple[Diagnostic, ...] = ()
    remarks: tuple[Diagnostic, ...] = ()


def sort_findings(findings: Sequence[Diagnostic], *, has_conflicts: bool) -> Sorted:
    """Return findings by condition.

    Args:
        has_conflicts: The kind has the condition `Conflicted`; else conflicts are about the object itself.
    """
    parts: dict[str, list[Diagnostic]] = {name: [] for name in Sorted.__struct_fields__}
    for one in sorted(findings, key=lambda one: one.severity is not Severity.ERROR):
        if one.reason in SHORTAGES:
            parts["shortages"].append(one)
        elif one.reason in REFERENCES and one.severity is Severity.WARNING and not one.is_reference:
            parts["notes"].append(one)
        elif one.reason in REFERENCES or one.is_reference:
            parts["references"].append(one)
        elif one.reason in CONFLICTS and has_conflicts:
            parts["conflicts"].append(one)
        elif one.severity is Severity.ERROR:
            parts["faults"].append(one)
        elif one.severity is Severity.WARNING:
            parts["remarks"].append(one)
    return Sorted(**{name: tuple(found) for name, found in parts.items()})


def describe(diagnostics: Sequence[Diagnostic]) -> str:
    """Return diagnostics as one text for a condition's message: `path: message (hint); ...`, each once."""
    texts: dict[str, None] = {}
    for one in diagnostics:
        text = f"{one.path}: {one.message}" if one.path else one.message
        texts[f"{text} ({one.hint})" if one.hint else text] = None
    return "; ".join(texts)


def accepted(subject: Subject, found: Sorted) -> Condition:
    """Return whether the latest version is taken as it is."""
    kind, generation = ConditionType.ACCEPTED, subject.metadata.generation
    if subject.is_bad:
        errors = [one for one in subject.problems if one.severity is Severity.ERROR]
        reason = errors[0].reason if errors else Reason.INVALID
        kept = "no version of it is in force"
        if subject.manifest is not None:
            number = subject.generation_in_force
            kept = f"the last good version{f', generation {number},' if number else ''} stays in force"
        return condition(kind, False, reason, f"{describe(errors)}; {kept}", generation=generation)
    if found.faults:
        return condition(kind, False, found.faults[0].reason, describe(found.faults), generation=generation)
    remarks = [one for one in subject.problems if one.severity is Severity.WARNING]
    return condition(kind, True, Reason.ACCEPTED, describe([*remarks, *found.remarks]), generation=generation)


def resolved(subject: Subject, found: Sorted) -> Condition:
    """Return whether everything that the version in force refers to is there and may be used."""
    kind, generation = ConditionType.RESOLVED_REFS, subject.generation_in_force
    if subject.manifest is None:
        message = "no version of it has been accepted"
        return condition(kind, None, Reason.PENDING, message, generation=subject.metadata.generation)
    said = [f"gateway {gateway}: {refusal.message}" for gateway, refusal in subject.refusals]
    if found.references:
        message = "; ".join([describe(found.references), *said])
        return condition(kind, False, found.references[0].reason, message, generation=generation)
    if said:
        return condition(kind, False, subject.refusals[0][1].reason, "; ".join(said), generation=generation)
    if found.notes:  # what is named may be used, but is not as it should be
        return condition(kind, True, found.notes[0].reason, describe(found.notes), generation=generation)
    return condition(kind, True, Reason.RESOLVED_REFS, generation=generation)


def conflicted(subject: Subject, found: Sorted) -> Condition:
    """Return whether another object stands in the way of the version in force."""
    kind, generation = ConditionType.CONFLICTED, subject.generation_in_force or subject.metadata.generation
    if found.conflicts:
        reason = found.conflicts[0].reason
        return condition(kind, True, reason, describe(found.conflicts), generation=generation)
    return condition(kind, False, Reason.NO_CONFLICTS, generation=generation)


def certificate_valid(subject: Subject) -> Condition:
    """Return whether peers take the certificate in force, as gateways say, who alone may read it.

    Of a VPCEgress, those that its destinations are shown, and whether the CAs that it names still vouch for anybody.
    """
    kind, generation = ConditionType.CERTIFICATE_VALID, subject.generation_in_force or subject.metadata.generation
    if subject.notes:
        reason = subject.notes[0][1].reason
        message = "; ".join(f"gateway {gateway}: {note.message}" for gateway, note in subject.notes)
        return condition(kind, reason != Reason.CERTIFICATE_EXPIRED, reason, message, generation=generation)
    if subject.verdict == NO_GATEWAY:
        return condition(kind, None, NO_GATEWAY.reason, NO_GATEWAY.message, generation=generation)
    return condition(kind, True, Reason.CERTIFICATE_VALID, generation=generation)


def programmed(subject: Subject) -> Condition:
    """Return whether the version in force is so on every gateway."""
    kind, verdict = ConditionType.PROGRAMMED, subject.verdict
    if subject.manifest is None:
        message = "no version of it is in force"
        return condition(kind, False, Reason.INVALID, message, generation=subject.metadata.generation)
    status = {"True": True, "False": False}.get(verdict.status)
    return condition(kind, status, verdict.reason, verdict.message, generation=subject.generation_in_force)


def summary(conditions: Sequence[Condition], *needed: ConditionType) -> Condition:
    """Return the condition `Ready`: True if all that are needed are, else as the first that is not."""
    generation = max((one.observed_generation for one in conditions), default=0)
    for kind in needed:
        one = find(conditions, kind)
        if one is not None and one.status != "True":
            status = None if one.status == "Unknown" else False
            return condition(ConditionType.READY, status, one.reason, one.message, generation=generation)
    return condition(ConditionType.READY, True, Reason.READY, generation=generation)


def merged(subject: Subject, conditions: Sequence[Condition], *, now: str) -> tuple[Condition, ...]:
    """Return conditions with their times, given those that the object has."""
    return merge(conditions_of(subject.status), conditions, now=now)
