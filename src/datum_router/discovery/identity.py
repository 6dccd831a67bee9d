"""Which clusters kubeconfigs lead to, and which of them may not be followed for that. Pure.

A cluster is known by the uid of its namespace `kube-system`, which is made with the cluster and lives as long (the
OpenTelemetry attribute `k8s.cluster.uid` is the same). Where it may not be read, it is not known, and nothing follows
from it.

Of several Secrets that lead to one cluster the oldest counts, so that one that is added never moves what is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from datum_router.reasons import Reason

IDENTITY_NAMESPACE = "kube-system"
"""The namespace whose uid says which cluster it is."""


_UID = re.compile(r"[0-9A-Za-z-]{1,64}")


def is_uid(text: str) -> bool:
    """Tell whether a text can be a uid: what somebody else's API says is kept, shown and compared."""
    return _UID.fullmatch(text) is not None


class Joined(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A cluster that has a Secret.

    Attributes:
        since: When its Secret was made, RFC 3339.
        id: Which cluster its kubeconfig leads to; empty while that is not known.
    """

    name: str
    since: str = ""
    id: str = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why a cluster is not followed although its kubeconfig can be used."""

    reason: Reason
    message: str


def refusals(own_id: str, joined: Iterable[Joined]) -> dict[str, Refusal]:
    """Return which clusters may not be followed, by name, and why. O(n log n)."""
    found: dict[str, Refusal] = {}
    first: dict[str, str] = {}
    for one in sorted(joined, key=lambda one: (one.since, one.name)):
        if not one.id:
            continue
        if one.id == own_id:
            found[one.name] = Refusal(
                reason=Reason.OWN_CLUSTER,
                message="its kubeconfig leads to the cluster that this daemon publishes in (the uid of namespace "
                f"{IDENTITY_NAMESPACE} is the same), expected one of another cluster; delete the Secret",
            )
        elif (other := first.setdefault(one.id, one.name)) != one.name:
            found[one.name] = Refusal(
                reason=Reason.DUPLICATE_CLUSTER,
                message=f"its kubeconfig leads to the same cluster as that of the older Secret {other} (the uid of "
                f"namespace {IDENTITY_NAMESPACE} is the same), whose endpoints are used; delete one of the two",
            )
    return found
