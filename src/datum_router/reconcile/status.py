"""The status that each object of our kinds ought to have, and whether it has it already. Pure.

Scalars (`ready`, `active`, counts) are what conditions add up to, for columns and scripts. Some fields are not ours to
say (`NOT_OURS`): they are left out of what is written, so that whoever knows can write them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from datum_router.compiler.ingress import join, wanted_listeners
from datum_router.manifests.meta import MAX_STATUS_ENDPOINTS, Condition, StatusPart
from datum_router.manifests.servicebinding import ServiceBindingStatus
from datum_router.manifests.vpcegress import EgressTls, VPCEgress, VPCEgressStatus
from datum_router.manifests.vpcingress import ListenerStatus, VPCIngress, VPCIngressStatus
from datum_router.manifests.vpcroute import ParentStatus, VPCRoute, VPCRouteStatus
from datum_router.manifests.vpcservice import EndpointStatus, VPCServiceStatus
from datum_router.model.endpoint import Endpoint
from datum_router.model.route import Redirect
from datum_router.reasons import Reason
from datum_router.reconcile.conditions import ConditionType, condition, find, is_same, is_true, merge
from datum_router.reconcile.subject import (
    Facts,
    Sorted,
    Subject,
    accepted,
    certificate_valid,
    conflicted,
    describe,
    merged,
    programmed,
    resolved,
    sort_findings,
    summary,
)

CONTROLLER_NAME = "router.datum.net/router-controller"

LISTED_ENDPOINTS = 100
"""Endpoints that a status lists; its count is of all. A status must stay small: it is written whenever one changes."""

BOUND_ENDPOINTS = MAX_STATUS_ENDPOINTS
"""Endpoints that the status of a ServiceBinding lists: with `autoSync: false` they are read from there if all are."""

LOCATION_KEYS = ("topology.datum.net/city-code", "topology.datum.net/region", "topology.kubernetes.io/zone")
"""Topology keys that say where an endpoint is, the best one first."""

NOT_OURS = frozenset({"load_balancer_ip", "ingress_addresses", "healthy", "last_heartbeat"})
"""Fields of statuses that the controller knows nothing of."""

VOLATILE = frozenset({"last_update_time", "last_sync_time"})
"""Times that go with what changed at them, and are no change by themselves."""

S = TypeVar("S", bound=StatusPart)


def desired_status(subject: Subject, facts: Facts, *, now: str) -> StatusPart:
    """Return the status that an object ought to have.

    Args:
        now: RFC 3339, for conditions whose status changes.

    Raises:
        KeyError: The object is of no kind of ours.
    """
    return _BY_KIND[subject.key.kind](subject, facts, now)


def _service(subject: Subject, facts: Facts, now: str) -> VPCServiceStatus:
    found = sort_findings(subject.findings, has_conflicts=False)
    endpoints = () if facts.service is None else facts.service.endpoints
    usable = sum(1 for one in endpoints if one.is_serving)
    conditions = [
        accepted(subject, found),
        resolved(subject, found),
        _supply(ConditionType.ENDPOINTS_READY, Reason.ENDPOINTS_READY, subject, found, usable, len(endpoints)),
        programmed(subject),
    ]
    needed = (ConditionType.ACCEPTED, ConditionType.RESOLVED_REFS, ConditionType.ENDPOINTS_READY)
    conditions.append(summary(conditions, *needed))
    listed = tuple(_endpoint(one) for one in endpoints[:LISTED_ENDPOINTS])
    old = _old(subject, VPCServiceStatus)
    is_kept = old is not None and _blank(old.endpoints) == listed and old.endpoint_count == len(endpoints)
    return VPCServiceStatus(
        observed_generation=subject.metadata.generation,
        ready=is_true(conditions, ConditionType.READY),
        endpoint_count=len(endpoints),
        last_update_time=old.last_update_time if old is not None and is_kept else now,
        endpoints=listed,
        vpc=facts.vpc,
        attachment_identifier=facts.attachment_identifier,
        conditions=merged(subject, conditions, now=now),
    )


def _binding(subject: Subject, facts: Facts, now: str) -> ServiceBindingStatus:
    found = sort_findings(subject.findings, has_conflicts=False)
    contribution = facts.contribution
    endpoints = () if contribution is None else contribution.endpoints
    is_held = contribution is not None and contribution.is_held
    usable = sum(1 for one in endpoints if one.is_serving)
    reason = Reason.PAUSED if is_held else Reason.SYNCED
    supply = _supply(ConditionType.SYNCED, reason, subject, found, usable, len(endpoints))
    if is_held and supply.status == "True":
        message = f"{supply.message}, taken once: autoSync is false, so later changes of the Service are not followed"
        supply = msgspec.structs.replace(supply, message=message)
    conditions = [accepted(subject, found), resolved(subject, found), supply, programmed(subject)]
    listed = tuple(str(one.key) for one in endpoints[:BOUND_ENDPOINTS])
    old = _old(subject, ServiceBindingStatus)
    is_kept = old is not None and old.endpoints == listed and old.synced_endpoints == len(endpoints)
    return ServiceBindingStatus(
        observed_generation=subject.metadata.generation,
        active=is_true(conditions, ConditionType.ACCEPTED, ConditionType.RESOLVED_REFS, ConditionType.SYNCED),
        synced_endpoints=len(endpoints),
        last_sync_time=old.last_sync_time if old is not None and is_kept else now,
        endpoints=listed,
        conditions=merged(subject, conditions, now=now),
    )


def _route(subject: Subject, facts: Facts, now: str) -> VPCRouteStatus:
    found = sort_findings(subject.findings, has_conflicts=True)
    conditions = [
        accepted(subject, found),
        resolved(subject, found),
        conflicted(subject, found),
        programmed(subject),
    ]
    rules = [rule for rule in facts.rules if not rule.is_preflight]
    # All other rules of a route have the same destinations and filters.
    active = sum(1 for one in rules[0].destinations if not one.problem and one.weight > 0) if rules else 0
    is_redirect = bool(rules) and any(isinstance(one, Redirect) for one in rules[0].filters)
    is_shadowed = len(found.conflicts) >= len(rules)
    needed = (ConditionType.ACCEPTED, ConditionType.RESOLVED_REFS, ConditionType.PROGRAMMED)
    return VPCRouteStatus(
        observed_generation=subject.metadata.generation,
        ready=is_true(conditions, *needed) and (active > 0 or is_redirect) and not is_shadowed,
        active_destinations=active,
        conditions=merged(subject, conditions, now=now),
        parents=_parents(subject, facts, conditions, now),
    )


def _parents(subject: Subject, facts: Facts, conditions: Sequence[Condition], now: str) -> tuple[ParentStatus, ...]:
    """Return the route at each parent that it names."""
    route = subject.manifest
    if not isinstance(route, VPCRoute) or not route.spec.parent_refs:
        return ()
    generation = subject.generation_in_force
    own = tuple([name.lower() for name in route.spec.hostnames])
    old = _old(subject, VPCRouteStatus)
    before = {one.parent_ref: one.conditions for one in old.parents} if old is not None else {}
    whole = find(conditions, ConditionType.ACCEPTED)
    parents = []
    for ref in route.spec.parent_refs:
        where = (ref.namespace or subject.key.namespace, ref.name)
        joined = join(ref, facts.parents.get(where), own, namespace=subject.key.namespace)
        here = condition(ConditionType.ACCEPTED, True, Reason.ACCEPTED, generation=generation)
        if joined.reason is not None:
            here = condition(ConditionType.ACCEPTED, False, joined.reason, joined.message, generation=generation)
        elif not facts.rules and whole is not None and whole.status == "False":
            here = condition(ConditionType.ACCEPTED, False, whole.reason, whole.message, generation=generation)
        shared = [one for one in conditions if one.type in (ConditionType.RESOLVED_REFS, ConditionType.PROGRAMMED)]
        parents.append(
            ParentStatus(
                parent_ref=ref,
                controller_name=CONTROLLER_NAME,
                conditions=merge(before.get(ref, ()), [here, *shared], now=now),
            )
        )
    return tuple(parents)


def _ingress(subject: Subject, facts: Facts, now: str) -> VPCIngressStatus:
    found = sort_findings(subject.findings, has_conflicts=True)
    conditions = [
        accepted(subject, found),
        resolved(subject, found),
        conflicted(subject, found),
        programmed(subject),
    ]
    manifest = subject.manifest
    if isinstance(manifest, VPCIngress) and manifest.spec.tls is not None and manifest.spec.tls.secret_name is not None:
        conditions.append(certificate_valid(subject))
    needed = (ConditionType.ACCEPTED, ConditionType.RESOLVED_REFS, ConditionType.PROGRAMMED)
    conditions.append(summary(conditions, *needed))
    has_listener = facts.attached is not None and bool(facts.attached.sections)
    backends = {one.service for rule in facts.rules for one in rule.destinations if not one.problem}
    return VPCIngressStatus(
        observed_generation=subject.metadata.generation,
        ready=is_true(conditions, ConditionType.READY) and has_listener,
        active_backends=len(backends),
        listeners=_listeners(subject, facts, conditions, now),
        conditions=merged(subject, conditions, now=now),
    )


def _listeners(subject: Subject, facts: Facts, conditions: Sequence[Condition], now: str) -> tuple[ListenerStatus, ...]:
    """Return each listener that the ingress asks for."""
    ingress = subject.manifest
    if not isinstance(ingress, VPCIngress):
        return ()
    generation = subject.generation_in_force
    opened = {} if facts.attached is None else {section: name for section, _, name in facts.attached.sections}
    old = _old(subject, VPCIngressStatus)
    before = {one.name: one.conditions for one in old.listeners} if old is not None else {}
    whole = find(conditions, ConditionType.PROGRAMMED)
    listeners = []
    for index, item in enumerate(wanted_listeners(ingress)):
        path = f"spec.listeners[{index}]"
        errors = [one for one in subject.findings if one.path == path or one.path.startswith(f"{path}.")]
        if item.name in opened:
            here = condition(ConditionType.ACCEPTED, True, Reason.ACCEPTED, describe(errors), generation=generation)
        elif errors:
            here = condition(ConditionType.ACCEPTED, False, errors[0].reason, describe(errors), generation=generation)
        else:
            here = condition(ConditionType.ACCEPTED, False, Reason.INVALID, "it is not opened", generation=generation)
        shared = [whole] if whole is not None and item.name in opened else []
        listeners.append(
            ListenerStatus(
                name=item.name,
                attached_routes=facts.attached_routes.get(item.name, 0),
                conditions=merge(before.get(item.name, ()), [here, *shared], now=now),
            )
        )
    return tuple(listeners)


def _egress(subject: Subject, facts: Facts, now: str) -> VPCEgressStatus:
    found = sort_findings(subject.findings, has_conflicts=False)
    conditions = [accepted(subject, found), resolved(subject, found), programmed(subject)]
    manifest = subject.manifest
    if isinstance(manifest, VPCEgress) and any(_names_certificates(one.tls) for one in manifest.spec.destinations):
        conditions.append(certificate_valid(subject))
    return VPCEgressStatus(
        observed_generation=subject.metadata.generation,
        active=is_true(conditions, ConditionType.ACCEPTED, ConditionType.RESOLVED_REFS, ConditionType.PROGRAMMED),
        connection_count=subject.connections,
        conditions=merged(subject, conditions, now=now),
    )


def _names_certificates(tls: EgressTls | None) -> bool:
    return tls is not None and tls.enabled and (tls.client_certificate_secret_name or tls.ca_secret_name) is not None


_BY_KIND: Mapping[str, Callable[[Subject, Facts, str], StatusPart]] = {
    "VPCService": _service,
    "VPCRoute": _route,
    "ServiceBinding": _binding,
    "VPCIngress": _ingress,
    "VPCEgress": _egress,
}
KINDS = frozenset(_BY_KIND)
"""Kinds whose status is written."""


def _supply(kind: ConditionType, reason: Reason, subject: Subject, found: Sorted, usable: int, total: int) -> Condition:
    """Return whether there are endpoints that may take traffic."""
    generation = subject.generation_in_force or subject.metadata.generation
    if usable:
        count = f"{usable} endpoint{'s' if usable > 1 else ''}"
        message = f"{count} of {total} may be used" if usable < total else count
        if found.shortages:
            message = f"{message}; {describe(found.shortages)}"
        return condition(kind, True, reason, message, generation=generation)
    if subject.manifest is None:
        return condition(kind, None, Reason.PENDING, "no version of it has been accepted", generation=generation)
    why = describe([*found.shortages, *found.references, *found.faults])
    if total:
        why = f"none of {total} endpoints may be used" + (f": {why}" if why else "")
    first = next(iter((*found.shortages, *found.references)), None)
    return condition(
        kind,
        False,
        Reason.NO_ENDPOINTS if first is None else first.reason,
        why or "no endpoints",
        generation=generation,
    )


def _endpoint(one: Endpoint) -> EndpointStatus:
    place = one.locality
    location = place.location or next((found for key in LOCATION_KEYS if (found := place.value(key))), "")
    return EndpointStatus(ip=one.address, port=one.port, ready=one.is_serving, location=location, source=one.origin)


def _old(subject: Subject, struct: type[S]) -> S | None:
    return subject.status if isinstance(subject.status, struct) else None


# --- comparing and writing ----------------------------------------------------------------------------------------


def is_same_status(old: StatusPart | None, new: StatusPart) -> bool:
    """Tell whether an object's status, as it was read, says what it ought to say; times do not count."""
    if old is None or type(old) is not type(new):
        return False
    for name in new.__struct_fields__:
        if name in NOT_OURS or name in VOLATILE:
            continue
        before, now = getattr(old, name), getattr(new, name)
        if name == "conditions":
            if not is_same(before, now):
                return False
        elif before != now and not (isinstance(now, tuple) and _are_same(before, now)):
            return False
    return True


def _are_same(old: Sequence[object], new: Sequence[object]) -> bool:
    return len(old) == len(new) and all(
        before == now
        or (isinstance(before, StatusPart) and isinstance(now, StatusPart) and is_same_status(before, now))
        for before, now in zip(old, new, strict=True)
    )


def _blank(endpoints: tuple[EndpointStatus, ...]) -> tuple[EndpointStatus, ...]:
    """Return endpoints without what others say of them."""
    return tuple(msgspec.structs.replace(one, healthy=None, last_heartbeat=None) for one in endpoints)


_ALWAYS = frozenset({"message"})


def plain_status(status: msgspec.Struct) -> dict[str, object]:
    """Return a status as plain data in camelCase, as it is written: scalars are there even if they are 0 or false."""
    plain: dict[str, object] = {}
    for name, encoded in zip(status.__struct_fields__, status.__struct_encode_fields__, strict=True):
        value = getattr(status, name)
        if name in NOT_OURS or (not isinstance(value, bool | int) and name not in _ALWAYS and not value):
            continue
        plain[encoded] = _plain(value)
    return plain


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return plain_status(value) if isinstance(value, msgspec.Struct) else value
