"""core/v1 Namespace: its labels say who `exportTo` of a VPCService means. Read only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from datum_router.manifests.meta import ObjectMeta

NAME_LABEL: Final = "kubernetes.io/metadata.name"
"""The label that an API server gives every namespace: its own name."""


class Namespace(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A core/v1 Namespace, of which only the metadata is read."""

    api_version: str
    kind: str
    metadata: ObjectMeta


def namespace_content(namespace: Namespace) -> object:
    """Return what counts as a change."""
    return namespace.metadata.labels


def namespace_labels(name: str, namespace: msgspec.Struct | None) -> Mapping[str, str]:
    """Return the labels of a namespace; one that no source tells of has its name as a label, as all have."""
    labels = namespace.metadata.labels if isinstance(namespace, Namespace) else None
    return {NAME_LABEL: name, **(labels or {})}
