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
