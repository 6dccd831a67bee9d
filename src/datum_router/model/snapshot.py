"""Snapshots: immutable compiled configuration as data, and the one mutable reference to the one in force.

A `SnapshotData` is plain Structs: it crosses process borders, is kept on disk and compared. Indexes, balancers
and filters are built from it by `compiler.link` in the process that serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import msgspec

from datum_router.model.egress import EgressPolicy
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Locality
from datum_router.model.listener import Listener
from datum_router.model.route import Rule
from datum_router.model.service import Service, ServiceKey

T = TypeVar("T")


class SnapshotData(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a data plane needs, as data.

    Attributes:
        version: Rises by one with each compilation of one supervisor.
        digest: Hash of the content; equal digests mean equal behaviour, across processes and restarts.
        rules: In precedence order, most specific first.
        place: Where the cluster is that this comes from, and with it a gateway whose settings do not name its place.
        egress: What may leave, and where to; None while there is no VPCEgress: then nothing may.
    """

    version: int = 0
    digest: str = ""
    services: Mapping[ServiceKey, Service] = {}
    rules: tuple[Rule, ...] = ()
    listeners: tuple[Listener, ...] = ()
    place: Locality = UNKNOWN_LOCALITY
    egress: EgressPolicy | None = None


class SnapshotDelta(msgspec.Struct, frozen=True, kw_only=True):
    """The difference between two `SnapshotData`.

    Attributes:
        removed_rules: Positions in the old order of rules that are gone or changed, ascending.
        has_egress, egress: Whether the egress policy is another, and what it is then.
        rules, positions: Rules that are new or changed, and where each stands in the new order, ascending.
    """

    base: int
    version: int
    digest: str
    services: Mapping[ServiceKey, Service] = {}
    removed_services: tuple[ServiceKey, ...] = ()
    removed_rules: tuple[int, ...] = ()
    rules: tuple[Rule, ...] = ()
    positions: tuple[int, ...] = ()
    listeners: tuple[Listener, ...] | None = None
    place: Locality | None = None
    has_egress: bool = False
    egress: EgressPolicy | None = None


class Holder(Generic[T]):
    """The single mutable reference: a request reads `current` once and keeps what it got until its end."""

    __slots__ = ("current",)

    def __init__(self, current: T) -> None:
        self.current = current

    def swap(self, new: T) -> T:
        """Publish `new` and return what was in force before."""
        old = self.current
        self.current = new
        return old
