"""What is read of the cluster: for each kind, in which namespaces, by which selectors. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from datum_router.discovery.identity import IDENTITY_NAMESPACE
from datum_router.discovery.marks import MANAGED_SELECTOR, REMOTE_SELECTOR
from datum_router.manifests.credentials import CREDENTIAL_KINDS
from datum_router.manifests.meta import GROUP, ObjectKey
from datum_router.manifests.table import ResourceKind
from datum_router.reconcile.reports import COMPONENT_GATEWAY, COMPONENT_LABEL
from datum_router_kubernetes.config import ClusterSettings, Role
from datum_router_kubernetes.objects import path_of

REPORT_SELECTOR = f"{COMPONENT_LABEL}={COMPONENT_GATEWAY}"
"""Labels of the Leases by which gateways report."""
LEASES = ("coordination.k8s.io", "Lease")
NAMESPACES = ("", "Namespace")
SECRETS = ("", "Secret")
SLICES = ("discovery.k8s.io", "EndpointSlice")

JSON = "application/json"
METADATA_LIST = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{JSON}"
METADATA_OBJECT = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1,{JSON}"


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """One set of objects that is listed and watched as one.

    Attributes:
        path: Of the API, for example `/apis/router.datum.net/v1alpha1/vpcroutes`.
        resource: Plural and group, as RBAC and `kubectl api-resources` name it.
        namespace: Empty: of all namespaces, or of a kind without.
        name: Of the only object that is wanted; empty: all.
        is_ours: The kind comes with our own CRDs.
        is_optional: Without the kind, or the right to read it, there are no such objects, and that is all.
    """

    kind: str
    api_version: str
    path: str
    resource: str
    namespace: str = ""
    name: str = ""
    label_selector: str = ""
    is_ours: bool = False
    is_optional: bool = False
    is_metadata_only: bool = False

    @property
    def where(self) -> str:
        """Return the part of the cluster that it covers, in words."""
        return f"namespace {self.namespace}" if self.namespace else "all namespaces"

    @property
    def list_accept(self) -> str:
        """Return what is accepted as the answer to a list."""
        return METADATA_LIST if self.is_metadata_only else JSON

    @property
    def watch_accept(self) -> str:
        """Return what is accepted as the answer to a watch."""
        return METADATA_OBJECT if self.is_metadata_only else JSON

    def list_query(self, token: str, limit: int) -> dict[str, str]:
        """Return the query of one page; a limit of 0 asks for everything at once."""
        query = self._selectors()
        if limit:
            query["limit"] = str(limit)
        if token:
            query["continue"] = token
        return query

    def watch_query(self, version: str, timeout_s: int) -> dict[str, str]:
        """Return the query of a watch that goes on from a version."""
        return {
            **self._selectors(),
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(timeout_s),
        }

    def _selectors(self) -> dict[str, str]:
        query = {}
        if self.name:
            query["fieldSelector"] = f"metadata.name={self.name}"
        if self.label_selector:
            query["labelSelector"] = self.label_selector
        return query


def collections_of(
    kinds: Iterable[ResourceKind], settings: ClusterSettings, own_namespace: str
) -> tuple[Collection, ...]:
    """Return everything that is read but Secrets and ConfigMaps, of which only those are read that others name.

    Of a kind that is there in several versions, the first is read. Of Leases, the gateways' reports, and those only by
    controllers. Where only some namespaces are read, their Namespace objects are looked for one by one, and may be out
    of reach: a Role of one namespace does not reach them.

    Discovery reads of Secrets those of its own namespace that hold a remote cluster's kubeconfig, of EndpointSlices its
    own, and of namespaces, here and there, the one whose uid says which cluster it is.
    """
    found: list[Collection] = []
    names: set[str] = set()
    for kind in kinds:
        which = (kind.group, kind.kind)
        is_discovery = settings.role is Role.DISCOVERY
        is_credential = kind.kind in CREDENTIAL_KINDS and not kind.group
        if kind.kind in names or (is_credential and not (is_discovery and which == SECRETS)):
            continue
        names.add(kind.kind)
        if is_discovery and which == SECRETS:
            found.append(_collection(kind, namespace=own_namespace, label_selector=REMOTE_SELECTOR))
        elif is_discovery and which == SLICES:
            places = settings.namespaces or ("",)
            found += [_collection(kind, namespace=place, label_selector=MANAGED_SELECTOR) for place in places]
        elif which == LEASES:
            if settings.role is Role.CONTROLLER:
                found.append(_collection(kind, namespace=own_namespace, label_selector=REPORT_SELECTOR))
        elif which == NAMESPACES and settings.role in (Role.DISCOVERY, Role.REMOTE):
            found.append(_collection(kind, name=IDENTITY_NAMESPACE, is_optional=True))
        elif which == NAMESPACES and settings.namespaces:
            found += [_collection(kind, name=name, is_optional=True) for name in settings.namespaces]
        else:
            places = settings.namespaces if kind.namespaced and settings.namespaces else ("",)
            selector = settings.label_selector if kind.group == GROUP else ""
            found += [_collection(kind, namespace=place, label_selector=selector) for place in places]
    return tuple(found)


def named_collection(kind: ResourceKind, key: ObjectKey) -> Collection:
    """Return the collection that holds one object, or nothing if it is not there.

    A right on this object by its name (`resourceNames`) is enough to list and watch it so.
    """
    return _collection(kind, namespace=key.namespace, name=key.name, is_optional=True)


def _collection(
    kind: ResourceKind, *, namespace: str = "", name: str = "", label_selector: str = "", is_optional: bool = False
) -> Collection:
    return Collection(
        kind=kind.kind,
        api_version=kind.api_version,
        path=path_of(kind.group, kind.version, kind.plural, namespace=namespace),
        resource=f"{kind.plural}.{kind.group}" if kind.group else kind.plural,
        namespace=namespace,
        name=name,
        label_selector=label_selector,
        is_ours=kind.group == GROUP,
        is_optional=is_optional or kind.is_optional,
        is_metadata_only=kind.is_metadata_only,
    )
