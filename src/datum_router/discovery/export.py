"""What a service gives to other clusters, and what one asks of them. Pure."""

from __future__ import annotations

import msgspec

from datum_router.manifests.vpcservice import DiscoveryMethod, ExportClusters, VPCService
from datum_router.model.endpoint import Endpoint
from datum_router.model.service import Service

Name = tuple[str, str]
"""Namespace and name of a VPCService; the same in all clusters."""


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """A VPCService that its cluster gives to others.

    Attributes:
        protocol, port: As its spec has them.
        endpoints: Those that are its cluster's own; `Endpoint.cluster` is empty in all.
        left_out: Why, and which address of an endpoint that may not be used.
    """

    protocol: str
    port: int
    endpoints: tuple[Endpoint, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """A VPCService of the daemon's own cluster that asks for endpoints of others.

    Attributes:
        uid: Of the object, which owns the slices.
    """

    uid: str
    protocol: str
    port: int


def export_of(manifest: VPCService, service: Service) -> Export | None:
    """Return what a compiled service gives to other clusters; None if it is not exported.

    Endpoints that came from another cluster themselves are left out: each cluster speaks for its own.
    """
    consent = manifest.spec.export_to
    if consent is None or consent.clusters is not ExportClusters.ALL or manifest.metadata.deletion_timestamp:
        return None
    own = tuple([one for one in service.endpoints if not one.cluster])
    return Export(protocol=manifest.spec.protocol.value, port=manifest.spec.port, endpoints=own)


def import_of(manifest: VPCService) -> Import | None:
    """Return what a service asks of other clusters; None if it asks for nothing."""
    discovery = manifest.spec.discovery
    if discovery is None or discovery.method is not DiscoveryMethod.ENDPOINTSLICE:
        return None
    if manifest.metadata.deletion_timestamp:
        return None
    return Import(uid=manifest.metadata.uid, protocol=manifest.spec.protocol.value, port=manifest.spec.port)
