"""The second generation's EndpointSlices, one a pod: where VPC addresses come from without VPCAttachments. Pure.

Their type belongs to another plugin; what is read here is their published shape. They are written when a pod is wired
up and deleted when it is not any more; `ready` is never updated, so health is for health checks to find out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from datum_router.manifests.indexes import BY_TENANT, TENANT_LABEL, full_name
from datum_router.manifests.meta import ObjectMeta
from datum_router.plugins.protocols import ManifestView
from datum_router_galactic.identifiers import TenantId, parse_object_name, parse_tenant, tenant_text

KIND = "EndpointSlice"


class PodSlice(msgspec.Struct, frozen=True, kw_only=True):
    """What a slice says.

    Attributes:
        tenant: None if the label says none that could be; `problem` tells.
        addresses: As they are written, each with whether it is ready.
        pod: Name of the pod that it is about, in the slice's own namespace.
    """

    namespace: str
    name: str
    labels: Mapping[str, str]
    tenant: TenantId | None
    addresses: tuple[tuple[str, bool], ...]
    pod: str = ""
    problem: str = ""


def read_slice(item: object) -> PodSlice | None:
    """Return what a slice says, None if it is none of Galactic's."""
    meta = getattr(item, "metadata", None)
    if not isinstance(meta, ObjectMeta):
        return None
    labels = meta.labels or {}
    text = labels.get(TENANT_LABEL, "")
    if not text:
        return None
    tenant, problem = None, ""
    try:
        tenant = parse_tenant(text)
    except ValueError as error:
        problem = f"label {TENANT_LABEL}: {error}"
    endpoints = getattr(item, "endpoints", None)
    found: list[tuple[str, bool]] = []
    pod = ""
    for one in endpoints if isinstance(endpoints, Sequence) else ():
        ref = getattr(one, "target_ref", None)
        kind, where = getattr(ref, "kind", ""), getattr(ref, "namespace", "") or meta.namespace
        if ref is not None and (kind != "Pod" or where != meta.namespace):
            continue  # nobody in another namespace has consented
        pod = str(getattr(ref, "name", "")) or pod
        is_ready = getattr(getattr(one, "conditions", None), "ready", None) is not False
        found += [(str(address), is_ready) for address in getattr(one, "addresses", ())[:1]]
    return PodSlice(
        namespace=meta.namespace,
        name=meta.name,
        labels=labels,
        tenant=tenant,
        addresses=tuple(found),
        pod=pod,
        problem=problem,
    )


def slices_named(view: ManifestView, namespace: str, name: str) -> list[PodSlice]:
    """Return the slices that a name stands for: that of the pod of this name, or those of a tenant (`4d2-2a`)."""
    found = read_slice(view.get(KIND, namespace, name))
    if found is not None:
        return [found]
    tenant = parse_object_name(name)
    if tenant is None:
        return []
    return _read(view, full_name(namespace, tenant_text(tenant)))


def slices_in(view: ManifestView, namespace: str) -> list[PodSlice]:
    """Return all slices of Galactic's in a namespace, with the labels of their pods, which their own add to."""
    found = []
    for one in _read(view, full_name(namespace, "")):
        meta = getattr(view.get("Pod", namespace, one.pod), "metadata", None) if one.pod else None
        labels = meta.labels or {} if isinstance(meta, ObjectMeta) else {}
        found.append(msgspec.structs.replace(one, labels={**labels, **one.labels}) if labels else one)
    return found


def _read(view: ManifestView, value: str) -> list[PodSlice]:
    read = (read_slice(item) for item in view.select(KIND, BY_TENANT, value))
    return [one for one in read if one is not None]
