"""Where services and their endpoints are: Locations that they name, and the topology that they state themselves.

What a VPCService states in `spec.topology` goes before what its Location says under the same key. A Location that is
not there leaves its name known, since that may be compared as well, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from datum_router.compiler.diagnostics import Severity
from datum_router.compiler.refs import Finding
from datum_router.manifests.location import Location, degrees
from datum_router.manifests.meta import LocalRef, ObjectKey
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.endpoint import Locality, make_locality
from datum_router.plugins.protocols import ManifestView, ResolveProblem
from datum_router.reasons import Reason


class Place(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A place, and what keeps it from being known better; `problem` has the path of a Location's name."""

    locality: Locality
    problem: ResolveProblem | None = None


def find_place(
    view: ManifestView, *, namespace: str, name: str, path: str, topology: Mapping[str, str] | None = None
) -> Place:
    """Return the place that a Location stands for: one of the namespace, else one of the cluster.

    Args:
        path: Where it is named.
        topology: What goes before the Location's own.
    """
    found = view.get("Location", namespace, name) or view.get("Location", "", name)
    if not isinstance(found, Location):
        missing = ObjectKey(kind="Location", namespace=namespace, name=name)
        problem = ResolveProblem(
            path=path,
            reason=Reason.LOCATION_NOT_FOUND,
            message=f"location {name} is there neither in namespace {namespace} nor for the whole cluster",
            missing=missing,
        )
        return Place(locality=make_locality(topology, location=name), problem=problem)
    merged = {**found.spec.topology, **(topology or {})}
    position = degrees(found.spec)
    if position is not None:
        return Place(locality=make_locality(merged, location=name, latitude=position[0], longitude=position[1]))
    is_given = found.spec.coordinates is not None
    said = "has coordinates that are none" if is_given else "has no coordinates"
    problem = ResolveProblem(
        path=path,
        reason=Reason.INVALID_COORDINATES if is_given else Reason.NO_COORDINATES,
        message=f"location {name} {said}: city and region are compared instead of distances",
        hint="set spec.coordinates of the Location, latitude and longitude in quotes",
        is_reference=False,
        is_remark=True,
    )
    return Place(locality=make_locality(merged, location=name), problem=problem)


class ServicePlace:
    """Where a service is, and each of the endpoints that it writes down."""

    __slots__ = ("_service", "_view", "locality", "problem")

    def __init__(self, service: VPCService, view: ManifestView) -> None:
        self._service, self._view = service, view
        ref, topology = service.spec.location_ref, service.spec.topology
        self.problem: ResolveProblem | None = None
        if ref is None:
            self.locality = make_locality(topology)
        else:
            place = find_place(
                view,
                namespace=service.metadata.namespace,
                name=ref.name,
                path="spec.locationRef.name",
                topology=topology,
            )
            self.locality, self.problem = place.locality, place.problem

    def of_endpoint(self, ref: LocalRef | None) -> Locality:
        """Return the place of an endpoint: its own Location's, or the service's."""
        if ref is None:
            return self.locality
        return find_place(self._view, namespace=self._service.metadata.namespace, name=ref.name, path="").locality

    def findings(self, key: ObjectKey) -> list[Finding]:
        """Return what is wrong with the Locations that are named, each Location once."""
        problems = [] if self.problem is None else [self.problem]
        ref = self._service.spec.location_ref
        seen = set() if ref is None else {ref.name}
        for index, item in enumerate(self._service.spec.endpoints):
            if item.location_ref is None or item.location_ref.name in seen:
                continue
            seen.add(item.location_ref.name)
            place = find_place(
                self._view,
                namespace=key.namespace,
                name=item.location_ref.name,
                path=f"spec.endpoints[{index}].locationRef.name",
            )
            if place.problem is not None:
                problems.append(place.problem)
        return [
            Finding(
                key=key,
                path=one.path,
                reason=one.reason,
                message=one.message,
                hint=one.hint,
                severity=Severity.WARNING,
                is_reference=not one.is_remark,
                missing=one.missing,
            )
            for one in problems
        ]


def service_place(service: VPCService, view: ManifestView) -> ServicePlace:
    """Return where a service is."""
    return ServicePlace(service, view)
