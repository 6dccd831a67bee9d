"""Under what other objects look for our own kinds: the indexes of `ManifestView.select`, one function a value."""

from __future__ import annotations

from typing import Final

from datum_router.manifests.servicebinding import ServiceBinding

BY_VPC_SERVICE: Final = "vpcService"
"""Index of ServiceBinding: `namespace/name` of the VPCService that it feeds."""


def full_name(namespace: str, name: str) -> str:
    """Return the value that stands for an object in an index."""
    return f"{namespace}/{name}"


def fed_service(binding: ServiceBinding) -> tuple[str, ...]:
    """Return the values of `BY_VPC_SERVICE`."""
    ref = binding.spec.vpc_service_ref
    return (full_name(ref.namespace or binding.metadata.namespace, ref.name),)


BY_TENANT: Final = "tenant"
"""Index of EndpointSlice: `namespace/id` of those that Galactic wrote for one pod, and `namespace/` for all of them."""
BY_VPC_ID: Final = "vpcId"
"""Index of VPC: its identifier in base62, as it begins the tenant id of a pod."""
TENANT_LABEL: Final = "galactic.datum.net/tenant-id"
"""Of an EndpointSlice that Galactic's second generation writes for one pod, with its VPC address: `VPC-attachment` in
base62."""


def nameless_vpc(vpc_id: str) -> str:
    """Return what stands in `Endpoint.vpc` for a VPC that is known by its identifier (base62) alone."""
    return f"/{vpc_id}"
