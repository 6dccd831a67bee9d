"""The words that Secrets and EndpointSlices of discovery carry. Pure."""

from __future__ import annotations

from typing import Final

REMOTE_LABEL: Final = "router.datum.net/remote-cluster"
"""Of a Secret in the daemon's namespace, with the value `true`: it holds the kubeconfig of a remote cluster."""
REMOTE_SELECTOR: Final = f"{REMOTE_LABEL}=true"
KUBECONFIG_KEY: Final = "kubeconfig"
"""Key of such a Secret."""

MANAGED_BY_LABEL: Final = "endpointslice.kubernetes.io/managed-by"
MANAGER: Final = "discovery.router.datum.net"
"""Value of `MANAGED_BY_LABEL` of slices that discovery writes; nobody else touches them."""
MANAGED_SELECTOR: Final = f"{MANAGED_BY_LABEL}={MANAGER}"

CLUSTER_LABEL: Final = "router.datum.net/source-cluster"
"""Of a slice: name of the cluster that its endpoints came from."""
SERVICE_ANNOTATION: Final = "router.datum.net/vpc-service"
"""Of a slice: name of the VPCService, in the slice's namespace, that it belongs to."""
VPC_ANNOTATION: Final = "router.datum.net/vpc"
LOCATION_ANNOTATION: Final = "router.datum.net/location"
TOPOLOGY_ANNOTATION: Final = "router.datum.net/topology"
COORDINATES_ANNOTATION: Final = "router.datum.net/coordinates"
WEIGHT_ANNOTATION: Final = "router.datum.net/weight"
PRIORITY_ANNOTATION: Final = "router.datum.net/priority"
HEALTH_ANNOTATION: Final = "router.datum.net/health-source"
STALE_ANNOTATION: Final = "router.datum.net/stale-since"
"""Since when the cluster cannot be heard, RFC 3339; not there while it can."""
CONFLICT_ANNOTATION: Final = "router.datum.net/conflict"
"""What of the cluster's export is left out, and why."""

MAX_CLUSTER_NAME_CHARS: Final = 63
"""A cluster's name is the value of a label."""
MAX_SLICE_ENDPOINTS: Final = 100
"""Endpoints in one slice: as Kubernetes' own controller has it; the API takes 1000."""
MAX_GROUPS: Final = 100
"""Kinds of endpoints (family, port, VPC, place, weight) that slices are written of for one service and cluster; each
has slices of its own, so that endpoints that all differ would be a slice each. Others are left out."""
MAX_TOPOLOGY_CHARS: Final = 4096
"""Longest text of `TOPOLOGY_ANNOTATION`; keys that do not fit are left out. The API takes annotations of 256 KiB."""
MAX_LOCATION_CHARS: Final = 253
"""Longest text of `LOCATION_ANNOTATION`, as the name of an object may be; a longer one is left out."""
MAX_VPC_CHARS: Final = 63 + 1 + 253
"""Longest text of `VPC_ANNOTATION`: a namespace and a name; endpoints in a VPC of a longer one are left out."""
MAX_CONFLICT_CHARS: Final = 1024
"""Longest text of `CONFLICT_ANNOTATION`; more is cut."""
