"""What the manifests of a cluster say of the cluster itself: which one it is, and which VPCs it has."""

from __future__ import annotations

from collections.abc import Mapping

from datum_router.discovery.identity import IDENTITY_NAMESPACE, is_uid
from datum_router.manifests.indexes import BY_VPC_ID, full_name
from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.table import KindTable
from datum_router.registry.store import StoreView

VPC_KIND = "VPC"
NAMESPACE_KIND = "Namespace"


def cluster_id(view: StoreView) -> str:
    """Return which cluster it is (see `discovery.identity`); empty if that may not be read, or is no uid."""
    found = view.get(NAMESPACE_KIND, "", IDENTITY_NAMESPACE)
    meta = getattr(found, "metadata", None)
    return meta.uid if isinstance(meta, ObjectMeta) and is_uid(meta.uid) else ""


def vpc_ids(view: StoreView, kinds: KindTable) -> Mapping[str, str]:
    """Return the identifier (base62, empty while it has none) of each VPC by `namespace/name`. O(VPCs)."""
    kind = kinds.named(VPC_KIND)
    if kind is None or BY_VPC_ID not in kind.indexes:
        return {}
    index = kind.indexes[BY_VPC_ID]
    found: dict[str, str] = {}
    for one in view.list(VPC_KIND):
        meta = getattr(one, "metadata", None)
        if isinstance(meta, ObjectMeta):
            found[full_name(meta.namespace, meta.name)] = next(iter(index(one)), "")
    return found
