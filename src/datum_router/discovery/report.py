"""What is said of each joined cluster to people: conditions, in a small object beside the cluster's Secret. Pure.

A Secret has no status, and a daemon that could write Secrets would have more than it should. So each joined cluster has
a Lease, `cluster-NAME`, owned by its Secret and thus deleted with it. Its annotation holds the conditions in the form
that all Kubernetes objects have them in; what decides at a glance stands in labels, for the columns of `kubectl get -L`
and for selectors. The Lease is written when something is different, never to say that nothing is.

The Lease remembers one thing for the daemon, too: to which cluster the kubeconfig led (`CLUSTER_ID_ANNOTATION`), so
that one that starts while a cluster is away knows it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from datum_router.discovery.export import Name
from datum_router.discovery.standing import GONE, Phase, time_text
from datum_router.manifests.meta import Condition, OwnerReference
from datum_router.plugins.cluster import LeaseRecord
from datum_router.reasons import Reason
from datum_router.reconcile.conditions import bounded, merge
from datum_router.reconcile.reports import COMPONENT_LABEL

COMPONENT_CLUSTER: Final = "remote-cluster"
CLUSTER_LABELS: Final = {COMPONENT_LABEL: COMPONENT_CLUSTER}
"""Of the Lease of a joined cluster."""
READY_LABEL: Final = "router.datum.net/ready"
STALE_LABEL: Final = "router.datum.net/stale"
REASON_LABEL: Final = "router.datum.net/reason"
"""Reason of the first condition that is not as it should be; `Ready` if all are."""
CLUSTER_ANNOTATION: Final = "router.datum.net/cluster"
CONDITIONS_ANNOTATION: Final = "router.datum.net/conditions"
CLUSTER_ID_ANNOTATION: Final = "router.datum.net/cluster-id"
VERSION_ANNOTATION: Final = "router.datum.net/observed-resource-version"
"""Version of the Secret whose kubeconfig the conditions are about: what `observedGeneration` is of other objects."""
SERVICES_ANNOTATION: Final = "router.datum.net/services"
SLICES_ANNOTATION: Final = "router.datum.net/slices"

MAX_MESSAGE_CHARS: Final = 1024
"""Longest message of a condition (characters); a longer one is cut, and says so."""
MAX_NAMED: Final = 5
"""Services that a condition names; it says how many others there are."""
MAX_NAMED_CHARS: Final = 160
"""How much is said of each of them."""
MAX_WHOLE_NAME_CHARS: Final = 200
"""Secrets with longer names have Leases of shortened ones."""

TYPES: Final = ("Accepted", "Ready", "Synced", "Stale")
"""Conditions, in order. The last is good when it is False."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a joined cluster.

    Attributes:
        reason, message: Why it stands so.
        since_at: Unix seconds at which the phase began.
        kept_until_at: Unix seconds until which endpoints are kept while it is gone; infinity: for ever.
        calm_at: Unix seconds until which its slices stay marked as stale although it is heard; infinity: they are not
            marked, or it is gone.
        refused: Reason why its Secret cannot be used, and message; both empty if it can.
        exports: Services that it exports.
        slices: Slices that are published of it.
        conflicts: What is left out of exports that are asked for.
        failing: Services whose slices could not be written last.
        id: Which cluster it is (see `identity`); empty: not known.
        version: Version of its Secret that was taken up last.
        uid: Of the Secret.
    """

    name: str
    phase: Phase
    reason: Reason
    message: str = ""
    since_at: float = 0.0
    kept_until_at: float = float("inf")
    calm_at: float = float("inf")
    refused: tuple[Reason, str] | None = None
    exports: int = 0
    slices: int = 0
    conflicts: Mapping[Name, str] = {}
    failing: Sequence[Name] = ()
    id: str = ""
    version: str = ""
    uid: str = ""


class ClusterReport(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a cluster's Lease; `secret` is None for one that belongs to none."""

    name: str
    conditions: tuple[Condition, ...] = ()
    exports: int = 0
    slices: int = 0
    id: str = ""
    version: str = ""
    secret: OwnerReference | None = None

    @property
    def trouble(self) -> Condition | None:
        """Return the first condition that is not as it should be."""
        return next((one for one in self.conditions if not _is_good(one)), None)


def report_of(facts: Facts, before: ClusterReport | None, *, now: float) -> ClusterReport:
    """Return what is to be said of a cluster; conditions keep their times while their status stays.

    Args:
        now: Unix seconds.
    """
    merged = merge(() if before is None else before.conditions, _conditions(facts), now=time_text(now))
    return ClusterReport(
        name=facts.name,
        conditions=tuple(sorted(merged, key=lambda one: TYPES.index(one.type))),
        exports=facts.exports,
        slices=facts.slices,
        id=facts.id,
        version=facts.version,
        secret=OwnerReference(api_version="v1", kind="Secret", name=facts.name, uid=facts.uid),
    )


def is_urgent(before: ClusterReport | None, now: ClusterReport) -> bool:
    """Tell whether a report says something else than before, and not just the same in other words or numbers."""

    def gist(one: ClusterReport) -> object:
        return [(each.type, each.status, each.reason) for each in one.conditions], one.id, one.version, one.secret

    return before is None or gist(before) != gist(now)


def _conditions(facts: Facts) -> Iterable[Condition]:
    if facts.refused is None:
        yield _condition("Accepted", True, Reason.ACCEPTED)
    else:
        yield _condition("Accepted", False, *facts.refused)
    if facts.phase is Phase.CONNECTING:
        yield _condition("Ready", None, Reason.PENDING, facts.message or "not everything has been read yet")
    else:
        yield _condition("Ready", facts.phase is Phase.READY, facts.reason, facts.message)
    yield _synced(facts)
    if facts.phase in GONE and facts.slices:
        until = "" if facts.kept_until_at == float("inf") else f" until {time_text(facts.kept_until_at)}"
        what = f"not heard since {time_text(facts.since_at)}; its last endpoints are used{until}"
        yield _condition("Stale", True, Reason.CLUSTER_STALE, what)
    elif facts.phase in GONE:
        yield _condition("Stale", False, Reason.NO_ENDPOINTS, "nothing of it is published")
    elif facts.calm_at != float("inf"):
        what = f"it comes and goes: its endpoints stay marked, until {time_text(facts.calm_at)} if it stays"
        yield _condition("Stale", True, Reason.FLAPPING, what)
    else:
        yield _condition("Stale", False, Reason.HEARD)


def _synced(facts: Facts) -> Condition:
    if facts.failing:
        said = [f"{namespace}/{name}" for namespace, name in heapq.nsmallest(MAX_NAMED, facts.failing)]
        message = f"slices cannot be written, will retry: {', '.join(said)}{_more(len(facts.failing))}"
        return _condition("Synced", False, Reason.WRITE_FAILED, message)
    if facts.conflicts:
        named = heapq.nsmallest(MAX_NAMED, facts.conflicts.items())
        texts = [f"{namespace}/{name}: {bounded(why, MAX_NAMED_CHARS)}" for (namespace, name), why in named]
        return _condition("Synced", False, Reason.EXPORT_CONFLICT, "; ".join(texts) + _more(len(facts.conflicts)))
    if facts.phase is Phase.READY:
        return _condition("Synced", True, Reason.SYNCED)
    return _condition("Synced", None, facts.reason, "it is not known what it exports now")


def _more(count: int) -> str:
    return f"; and {count - MAX_NAMED} more" if count > MAX_NAMED else ""


def _condition(kind: str, status: bool | None, reason: Reason, message: str = "") -> Condition:
    said = "Unknown" if status is None else str(status)
    return Condition(type=kind, status=said, reason=str(reason), message=bounded(plain(message), MAX_MESSAGE_CHARS))


def _is_good(one: Condition) -> bool:
    return one.status == ("False" if one.type == "Stale" else "True")


def plain(text: str) -> str:
    """Return a text without anything that a terminal or a log would obey: what remote clusters say is in it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


# --- as a Lease ------------------------------------------------------------------------------------------------------


def lease_name(cluster: str) -> str:
    """Return the name of a cluster's Lease; no two clusters have the same."""
    if len(cluster) <= MAX_WHOLE_NAME_CHARS:
        return f"cluster-{cluster}"
    mark = hashlib.sha256(cluster.encode()).hexdigest()[:16]
    return f"cluster.{cluster[:MAX_WHOLE_NAME_CHARS].rstrip('.-')}.{mark}"  # others begin with `cluster-`


def record_of(report: ClusterReport, namespace: str, *, now: float, version: str = "") -> LeaseRecord:
    """Return the Lease that says a report.

    Args:
        now: Unix seconds: when it is written.
        version: Of the Lease that it takes the place of; empty: there is none.
    """
    status = {one.type: one.status for one in report.conditions}
    trouble = report.trouble
    notes = {
        CLUSTER_ANNOTATION: report.name,
        CONDITIONS_ANNOTATION: msgspec.json.encode(report.conditions).decode(),
        CLUSTER_ID_ANNOTATION: report.id,
        VERSION_ANNOTATION: report.version,
        SERVICES_ANNOTATION: str(report.exports),
        SLICES_ANNOTATION: str(report.slices),
    }
    return LeaseRecord(
        namespace=namespace,
        name=lease_name(report.name),
        duration_s=0,
        renewed_at=now,
        labels={
            **CLUSTER_LABELS,
            READY_LABEL: status.get("Ready", "Unknown"),
            STALE_LABEL: status.get("Stale", "Unknown"),
            REASON_LABEL: str(Reason.READY) if trouble is None else trouble.reason,
        },
        annotations={name: text for name, text in notes.items() if text},
        owners=() if report.secret is None else (report.secret,),
        version=version,
    )


_CONDITIONS = msgspec.json.Decoder(tuple[Condition, ...])


def read_record(record: LeaseRecord) -> ClusterReport | None:
    """Return the report in a Lease; None if it holds none that can be read."""
    notes = record.annotations
    try:
        conditions = _CONDITIONS.decode(notes.get(CONDITIONS_ANNOTATION, "[]"))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    name = notes.get(CLUSTER_ANNOTATION, "")
    if not name or lease_name(name) != record.name:
        return None
    secret = next((one for one in record.owners if one.kind == "Secret"), None)
    return ClusterReport(
        name=name,
        conditions=conditions,
        exports=_number(notes.get(SERVICES_ANNOTATION, "")),
        slices=_number(notes.get(SLICES_ANNOTATION, "")),
        id=notes.get(CLUSTER_ID_ANNOTATION, ""),
        version=notes.get(VERSION_ANNOTATION, ""),
        secret=None
        if secret is None
        else OwnerReference(api_version="v1", kind=secret.kind, name=secret.name, uid=secret.uid),
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else 0
