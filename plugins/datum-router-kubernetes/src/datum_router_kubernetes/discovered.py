"""Endpoints of other clusters: the EndpointSlices that the discovery daemon wrote for a VPCService. Pure, no I/O."""

from __future__ import annotations

from datum_router.discovery.slices import Slice, endpoints_of, slice_of
from datum_router.manifests.indexes import BY_VPC_SERVICE, full_name
from datum_router.manifests.vpcservice import DiscoveryMethod, VPCService
from datum_router.model.endpoint import Endpoint
from datum_router.plugins.protocols import ManifestView, Resolution, ResolveProblem
from datum_router.reasons import Reason
from datum_router_kubernetes.kinds import EndpointSlice

PATH = "spec.discovery.method"


class DiscoveredResolver:
    """Resolve `spec.discovery.method: endpointslice`."""

    __slots__ = ()

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        """Return the endpoints that other clusters export for the service; None if it asks for none.

        A slice counts only if the service owns it. Endpoints of a cluster that cannot be heard are used as they were
        last; that, and what is left out of an export, is told.
        """
        discovery = service.spec.discovery
        if discovery is None or discovery.method is not DiscoveryMethod.ENDPOINTSLICE:
            return None
        meta = service.metadata
        endpoints: list[Endpoint] = []
        stale: dict[str, str] = {}
        conflicts: dict[str, str] = {}
        for item in view.select("EndpointSlice", BY_VPC_SERVICE, full_name(meta.namespace, meta.name)):
            one = _slice(item) if isinstance(item, EndpointSlice) else None
            if one is None or (meta.uid and one.owner_uid != meta.uid):
                continue
            endpoints += endpoints_of(one)
            if one.stale_since:
                stale[one.cluster] = one.stale_since
            if one.conflict:
                conflicts[one.cluster] = one.conflict
        problems = [
            _problem(Reason.EXPORT_CONFLICT, f"cluster {cluster}: {text}")
            for cluster, text in sorted(conflicts.items())
        ]
        problems += [
            _problem(Reason.CLUSTER_STALE, f"cluster {cluster} is not heard since {at}, its last endpoints are used")
            for cluster, at in sorted(stale.items())
        ]
        return Resolution(endpoints=tuple(endpoints), problems=tuple(problems))


def _slice(item: EndpointSlice) -> Slice | None:
    return slice_of(
        item.metadata,
        item.address_type,
        [port.port for port in item.ports or ()],
        [(one.addresses[0], one.conditions.ready is not False) for one in item.endpoints or () if one.addresses],
    )


def _problem(reason: Reason, message: str) -> ResolveProblem:
    return ResolveProblem(path=PATH, reason=reason, message=message)
