"""Which Secrets and ConfigMaps a manifest names: all that anybody needs to read of those kinds. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.vpcegress import VPCEgress
from datum_router.manifests.vpcingress import VPCIngress
from datum_router.manifests.vpcservice import VPCService

SECRET: Final = "Secret"
CONFIG_MAP: Final = "ConfigMap"
CREDENTIAL_KINDS: Final = frozenset((SECRET, CONFIG_MAP))
"""Kinds of which only what is named by others may be read, never all (core/v1)."""
REFERRING_KINDS: Final = frozenset(("VPCEgress", "VPCIngress", "VPCService"))
"""Kinds whose manifests can name credentials."""


def references(manifest: msgspec.Struct) -> Iterator[ObjectKey]:
    """Yield the credentials that a manifest names, all of its own namespace, in order of its fields, repeats included.

    Fields that have no effect where they stand (`mode: Disable` beside them) are not told from others.
    """
    if isinstance(manifest, VPCIngress):
        names = _of_ingress(manifest)
    elif isinstance(manifest, VPCService):
        names = _of_service(manifest)
    elif isinstance(manifest, VPCEgress):
        names = _of_egress(manifest)
    else:
        return
    for kind, name in names:
        if name:
            yield ObjectKey(kind=kind, namespace=manifest.metadata.namespace, name=name)


def _of_ingress(manifest: VPCIngress) -> Iterator[tuple[str, str | None]]:
    tls = manifest.spec.tls
    if tls is None:
        return
    yield SECRET, tls.secret_name
    if tls.client_auth is not None:
        yield SECRET, tls.client_auth.ca_secret_name
        yield SECRET, tls.client_auth.crl_secret_name


def _of_service(manifest: VPCService) -> Iterator[tuple[str, str | None]]:
    tls = manifest.spec.tls
    if tls is None:
        return
    for ref in tls.ca_certificate_refs:
        yield ref.kind.value, ref.name
    if tls.client_certificate_ref is not None:
        yield SECRET, tls.client_certificate_ref.name


def _of_egress(manifest: VPCEgress) -> Iterator[tuple[str, str | None]]:
    for destination in manifest.spec.destinations:
        if destination.tls is not None:
            yield SECRET, destination.tls.ca_secret_name
            yield SECRET, destination.tls.client_certificate_secret_name
