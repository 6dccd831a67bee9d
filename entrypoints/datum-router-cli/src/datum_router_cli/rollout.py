"""Waiting until objects are in force on every gateway, as the controller's conditions say it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence

import msgspec
import trio

from datum_router.errors import ClusterError
from datum_router.manifests.meta import Condition, ObjectKey
from datum_router.manifests.table import ResourceKind
from datum_router.plugins.cluster import Cluster
from datum_router.reconcile.reports import (
    GATEWAY_LABELS,
    REPORT_ANNOTATION,
    GatewayReport,
    decode_report,
    version_number,
)

POLL_S = 0.25
"""How often objects that are not in force yet are looked at (seconds)."""
AT_ONCE = 8
"""Objects looked at at once."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An object of which one generation is to come into force."""

    kind: ResourceKind
    key: ObjectKey
    generation: int
    version: str


class State(enum.StrEnum):
    """How far an object has come."""

    WAITING = "waiting"
    IN_FORCE = "in force"
    REFUSED = "refused"
    GONE = "gone"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """An object's state and why it is not in force, or what it lacks though it is; empty if there is nothing to say."""

    target: Target
    state: State
    why: str = ""


_SUPPLY = (("EndpointsReady", "False"), ("Synced", "False"))


class _Status(msgspec.Struct, frozen=True):
    conditions: tuple[Condition, ...] = ()


def judge(target: Target, found: Mapping[str, object] | None) -> Progress:
    """Return how far an object has come, from what the API says of it now."""
    if found is None:
        return Progress(target=target, state=State.GONE, why="it was deleted meanwhile")
    try:
        status = msgspec.convert(found.get("status") or {}, _Status)
    except msgspec.ValidationError as error:
        return Progress(target=target, state=State.WAITING, why=f"its status cannot be read: {error}")
    current = {one.type: one for one in status.conditions if one.observed_generation >= target.generation}
    if not current:
        return Progress(
            target=target,
            state=State.WAITING,
            why=f"no controller has looked at generation {target.generation} yet; is router-controller running?",
        )
    accepted = current.get("Accepted")
    if accepted is not None and accepted.status == "False":
        return Progress(target=target, state=State.REFUSED, why=f"{accepted.reason}: {accepted.message}")
    programmed = current.get("Programmed")
    if programmed is None:
        return Progress(target=target, state=State.WAITING, why="no gateway's word on it yet")
    if programmed.status == "True":
        return Progress(target=target, state=State.IN_FORCE, why=_reservation(current))
    return Progress(target=target, state=State.WAITING, why=f"{programmed.reason}: {programmed.message}")


def _reservation(conditions: Mapping[str, Condition]) -> str:
    """Return why an object that is in force everywhere does not do all that it says, or cannot take traffic yet."""
    for kind, bad in (("Accepted", "False"), ("ResolvedRefs", "False"), ("Conflicted", "True"), *_SUPPLY):
        one = conditions.get(kind)
        if one is not None and one.status == bad:
            return f"{one.reason}: {one.message}"
    return ""


async def wait_until_in_force(
    cluster: Cluster, targets: Sequence[Target], *, timeout_s: float, report: Callable[[Progress], None]
) -> list[Progress]:
    """Return how far every object came within `timeout_s`; objects that are refused or gone are not waited for.

    Args:
        report: Called once for each object that needs no more waiting.
    """
    known = {target.key: Progress(target=target, state=State.WAITING, why="not looked at yet") for target in targets}
    with trio.move_on_after(timeout_s):
        while True:
            waiting = [progress.target for progress in known.values() if progress.state is State.WAITING]
            if not waiting:
                break
            for start in range(0, len(waiting), AT_ONCE):
                async with trio.open_nursery() as nursery:
                    for target in waiting[start : start + AT_ONCE]:
                        nursery.start_soon(_look, cluster, target, known, report)
            await trio.sleep(POLL_S)
    return list(known.values())


async def _look(
    cluster: Cluster, target: Target, known: dict[ObjectKey, Progress], report: Callable[[Progress], None]
) -> None:
    try:
        found = await cluster.get(target.kind.gvk, target.kind.plural, target.key)
    except ClusterError as error:  # it may come back in time, or the right to look may be given
        known[target.key] = Progress(target=target, state=State.WAITING, why=str(error))
        return
    progress = known[target.key] = judge(target, found)
    if progress.state is not State.WAITING:
        report(progress)


class GatewayRow(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway, and which of the objects have not reached it."""

    gateway: str
    digest: str
    missing: tuple[str, ...]
    problem: str


async def gateways(cluster: Cluster, namespace: str, targets: Sequence[Target]) -> list[GatewayRow]:
    """Return what each gateway that reports in `namespace` has not in force of `targets`."""
    rows = []
    for record in await cluster.list_leases(namespace, labels=GATEWAY_LABELS):
        report = decode_report(record.annotations.get(REPORT_ANNOTATION, ""))
        if report is not None:
            rows.append(
                GatewayRow(
                    gateway=record.holder or record.name,
                    digest=report.digest,
                    missing=tuple(str(target.key) for target in targets if not _has(report, target)),
                    problem=report.problem,
                )
            )
    return rows


def _has(report: GatewayReport, target: Target) -> bool:
    return report.version_of(target.key) >= version_number(target.version) and all(
        one.key != target.key for one in report.refused
    )
