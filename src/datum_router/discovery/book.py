"""What all clusters export, who asks for it, what is published, and what has to be written. Pure, no I/O, no clock.

Theory of operation. A *part* is one service in one cluster. Whatever is learned marks the parts that it touches; `take`
plans those and no others, and returns what has to be written. What was written is told to the book at once
(`written`, `removed`), and an older version that is heard of later is passed over, so that no echo has anything written
twice. A part of a cluster that has not been heard yet is left as it is published.

An address that several clusters export in one VPC belongs to the first of them by name, of those whose export fits. Who
claims what is kept by address, so that only parts that share one are planned again when one of them changes. A cluster
that can be heard goes before one that cannot. Addresses are compared within VPCs of the own cluster (`vpcs`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from datum_router.discovery.export import Export, Import, Name
from datum_router.discovery.marks import MAX_CONFLICT_CHARS, MAX_GROUPS, MAX_VPC_CHARS
from datum_router.discovery.plan import Change, Wanted, plan
from datum_router.discovery.slices import Group, Slice, group_of, refusal
from datum_router.discovery.standing import Patience, Phase, Standing, advance, calmed, time_of, time_text
from datum_router.discovery.vpcs import OWN, Vpcs, localized
from datum_router.model.endpoint import EndpointKey

SHOWN = 5
"""How many addresses of a kind a conflict names."""
CUT = " ..."

Part = tuple[Name, str]
"""A service (namespace, name) and a cluster."""


class Counts(msgspec.Struct):
    """Work that was done: for reports on how it grows.

    Attributes:
        planned: Parts that were planned.
        visited: Endpoints that were looked at for it.
    """

    planned: int = 0
    visited: int = 0


class _Cluster:
    __slots__ = ("conflicts", "exports", "is_expired", "is_heard", "said", "standing")

    def __init__(self) -> None:
        self.said: dict[Name, Export] = {}  # as the cluster says it
        self.exports: dict[Name, Export] = {}  # the same, each VPC called as here
        self.conflicts: dict[Name, str] = {}  # what of an export that is asked for is left out
        self.is_heard = False  # since the book was made: what it exports is known
        self.is_expired = False
        self.standing = Standing()


class Book:
    """See the module. Not thread-safe."""

    __slots__ = (
        "_claims",
        "_clusters",
        "_dirty",
        "_imports",
        "_parts",
        "_published",
        "_slices",
        "_versions",
        "_vpcs",
        "counts",
        "patience",
    )

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self.counts = Counts()
        self._imports: dict[Name, Import] = {}
        self._clusters: dict[str, _Cluster] = {}
        self._claims: dict[Name, dict[EndpointKey, tuple[str, ...]]] = {}
        self._published: dict[Part, dict[str, Slice]] = {}
        self._slices: Counter[str] = Counter()  # published ones by cluster
        self._parts: dict[Name, set[str]] = {}  # which clusters have a part of a service: exported or published
        self._versions: dict[tuple[str, str], tuple[int, Part]] = {}  # of slices by namespace and name
        self._dirty: dict[Part, None] = {}
        self._vpcs = Vpcs()

    # --- what is known ---------------------------------------------------------------------------------------------

    @property
    def clusters(self) -> Mapping[str, Standing]:
        """Return how each cluster stands that has a Secret or is still published, by name."""
        return {name: one.standing for name, one in sorted(self._clusters.items())}

    @property
    def imports(self) -> Iterable[Name]:
        """Return the services that ask for endpoints."""
        return self._imports.keys()

    @property
    def is_settled(self) -> bool:
        """Tell whether nothing waits for `take`."""
        return not self._dirty

    def standing_of(self, cluster: str) -> Standing | None:
        """Return how one cluster stands; None if it was never told of."""
        found = self._clusters.get(cluster)
        return None if found is None else found.standing

    def exports_of(self, cluster: str) -> int:
        """Return how many services a cluster exports."""
        found = self._clusters.get(cluster)
        return 0 if found is None else len(found.exports)

    def slices_of(self, cluster: str) -> int:
        """Return how many slices of a cluster are published."""
        return self._slices[cluster]

    def conflicts_of(self, cluster: str) -> Mapping[Name, str]:
        """Return what is left out of a cluster's exports that are asked for, and why, as far as it is planned."""
        found = self._clusters.get(cluster)
        return {} if found is None else found.conflicts

    def published(self) -> list[Slice]:
        """Return what is published, in order of namespace and name. O(n log n)."""
        found = [one for slices in self._published.values() for one in slices.values()]
        return sorted(found, key=lambda one: (one.namespace, one.name))

    # --- what is learned -------------------------------------------------------------------------------------------

    def published_clusters(self) -> set[str]:
        """Return the clusters that published slices came from. O(parts)."""
        return {cluster for _, cluster in self._published}

    def put_import(self, name: Name, wanted: Import | None) -> None:
        """Take what a service of the own cluster asks for; None: nothing (any more)."""
        if self._imports.get(name) == wanted:
            return
        if wanted is None:
            del self._imports[name]
        else:
            self._imports[name] = wanted
        for cluster in self._parts.get(name, ()):
            self._dirty[name, cluster] = None

    def put_exports(self, cluster: str, changes: Mapping[Name, Export | None], *, is_whole: bool = False) -> None:
        """Take what a cluster exports, None for what it does not any more; `is_whole`: and nothing else."""
        known = self._clusters.setdefault(cluster, _Cluster())
        if is_whole:
            changes = {**dict.fromkeys(known.said), **changes}
        for name, said in changes.items():
            if said is None:
                known.said.pop(name, None)
            else:
                known.said[name] = said
            self._put_export(cluster, known, name, said)
        if not known.is_heard:
            known.is_heard = True
            self._touch_all(cluster)

    def put_vpcs(self, cluster: str, ids: Mapping[str, str] | None) -> None:
        """Take all VPCs of a cluster (`OWN`: the own one), `namespace/name` -> identifier in base62, empty: none yet.

        O(what the cluster exports) if anything is different; for the own cluster, of all of them.

        Args:
            ids: None: those of the own cluster cannot be read.
        """
        if not (self._vpcs.forget_own() if ids is None else self._vpcs.put(cluster, ids)):
            return
        for name, known in self._clusters.items():
            if cluster in (OWN, name):
                for service, said in known.said.items():
                    self._put_export(name, known, service, said)

    def _put_export(self, cluster: str, known: _Cluster, name: Name, said: Export | None) -> None:
        export = None if said is None else localized(said, cluster, self._vpcs)
        before = known.exports.get(name)
        if before == export:
            return
        if export is None:
            del known.exports[name]
        else:
            known.exports[name] = export
            self._parts.setdefault(name, set()).add(cluster)
        self._claim(name, cluster, before, export)
        self._dirty[name, cluster] = None

    def put_phase(self, cluster: str, phase: Phase, message: str = "", *, now: float) -> Standing:
        """Take how a cluster was found, and return how it stands; now in Unix seconds."""
        known = self._clusters.setdefault(cluster, _Cluster())
        before = known.standing
        marked = None
        if phase is not before.phase:
            times = [time_of(one.stale_since) for one in self._slices_of(cluster) if one.stale_since]
            marked = min((at for at in times if at is not None), default=None)
        if phase is Phase.REMOVED and before.phase is Phase.CONNECTING and marked is not None:
            now = min(now, marked)  # it was removed before the daemon started
        known.standing = advance(before, phase, message, now=now, marked_at=marked)
        was_expired = known.is_expired
        known.is_expired = was_expired and known.standing.is_gone
        if (before.marked_at, was_expired) != (known.standing.marked_at, known.is_expired):
            self._touch_all(cluster)
        return known.standing

    def observe(self, found: Slice, version: str) -> None:
        """Take a slice as the API has it."""
        self._note(found, _number(version))

    def written(self, one: Slice, version: str) -> None:
        """Take that a slice was written, and is at this version since."""
        self._note(one, _number(version), is_own=True)

    def removed(self, namespace: str, name: str) -> None:
        """Take that a slice is gone."""
        known = self._versions.pop((namespace, name), None)
        if known is None:
            return
        _, part = known
        slices = self._published.get(part)
        if slices is not None and slices.pop(name, None) is not None:
            self._slices[part[1]] -= 1
            self._dirty[part] = None
            if not slices:
                del self._published[part]

    def touch(self, part: Part) -> None:
        """Have a part planned again, for example after a write that failed."""
        self._dirty[part] = None

    def touch_everything(self) -> None:
        """Have all parts planned again. O(parts)."""
        for name, clusters in self._parts.items():
            for cluster in clusters:
                self._dirty[name, cluster] = None

    # --- what follows ----------------------------------------------------------------------------------------------

    def expire(self, *, now: float) -> None:
        """Have what is no longer kept removed, and marks that are over; forget clusters of which nothing is left.

        now in Unix seconds.
        """
        for cluster, known in list(self._clusters.items()):
            if not known.standing.is_gone:
                if known.standing.calm_at <= now:
                    known.standing = calmed(known.standing, now=now)
                    self._touch_all(cluster)
                continue
            if not known.is_expired and now >= known.standing.expires_at(self.patience):
                known.is_expired = True
                self._touch_all(cluster)
            if known.is_expired and known.standing.phase is Phase.REMOVED and not self._has_parts(cluster):
                self.put_exports(cluster, {}, is_whole=True)
                del self._clusters[cluster]
                self._vpcs.put(cluster, {})

    def next_expiry(self) -> float:
        """Return when `expire` has something to do next, in Unix seconds; infinity: never, as things are."""
        return min(
            (
                known.standing.expires_at(self.patience) if known.standing.is_gone else known.standing.calm_at
                for known in self._clusters.values()
                if not known.is_expired
            ),
            default=float("inf"),
        )

    def take(self, limit: int = 1000) -> list[tuple[Part, list[Change]]]:
        """Return what has to be written for up to `limit` parts that were touched, oldest first; they count as planned.

        Parts of which nothing has to be written are left out.
        """
        found: list[tuple[Part, list[Change]]] = []
        for part in list(self._dirty)[:limit] if len(self._dirty) > limit else list(self._dirty):
            del self._dirty[part]
            if changes := self._plan(part):
                found.append((part, changes))
        return found

    def _plan(self, part: Part) -> list[Change]:
        self.counts.planned += 1
        name, cluster = part
        existing = list(self._published.get(part, {}).values())
        wanted = self._wanted(name, cluster, existing)
        if wanted is None:
            if not existing and name not in self._exports(cluster):
                self._forget(part)
            return []
        changes = list(plan(wanted, existing))
        self.counts.visited += sum(len(one.members) for one in existing)
        if not changes and not existing and name not in self._exports(cluster):
            self._forget(part)
        return changes

    def _wanted(self, name: Name, cluster: str, existing: list[Slice]) -> Wanted | None:
        """Return what a part ought to say; None: leave it as it is."""
        importer, known = self._imports.get(name), self._clusters.get(cluster)
        if known is None:  # nobody has said yet whether there is such a cluster
            return None
        if importer is None or known.is_expired:
            known.conflicts.pop(name, None)
            return Wanted(namespace=name[0], service=name[1], cluster=cluster, owner_uid="")
        if not known.is_heard:
            if not known.standing.is_gone:
                return None
            groups, conflict = _as_published(existing)
        else:
            groups, conflict = self._merged(name, cluster, importer, known.exports.get(name))
        if conflict:
            known.conflicts[name] = conflict
        else:
            known.conflicts.pop(name, None)
        return Wanted(
            namespace=name[0],
            service=name[1],
            cluster=cluster,
            owner_uid=importer.uid,
            groups=groups,
            stale_since=time_text(known.standing.marked_at) if known.standing.marked_at else "",
            conflict=conflict,
        )

    def _merged(
        self, name: Name, cluster: str, importer: Import, export: Export | None
    ) -> tuple[dict[Group, dict[str, bool]], str]:
        if export is None:
            return {}, ""
        if misfit := _misfit(importer, export):
            return {}, misfit
        claims = self._claims.get(name, {})
        groups: dict[Group, dict[str, bool]] = {}
        taken: dict[str, list[str]] = {}
        for why, address in export.left_out:
            taken.setdefault(why, []).append(address)
        self.counts.visited += len(export.endpoints)
        last: tuple[object, ...] | None = None
        group = Group()
        for one in export.endpoints:
            if why := refusal(one.address):
                taken.setdefault(f"an EndpointSlice cannot hold what {why}", []).append(one.address)
                continue
            if len(one.vpc) > MAX_VPC_CHARS:
                taken.setdefault(f"the name of its VPC is longer than {MAX_VPC_CHARS}", []).append(one.address)
                continue
            others = claims.get(one.key, ())
            if len(others) > 1 and (first := self._first(name, others, importer)) != cluster:
                taken.setdefault(f"cluster {first} exports it, too", []).append(str(one.key))
                continue
            alike = (one.port, one.vpc, one.locality, one.weight, one.priority, one.origin, ":" in one.address)
            if alike != last:
                last, group = alike, group_of(one)
            if group not in groups and len(groups) >= MAX_GROUPS:
                why = (
                    f"it differs from the other endpoints in port, VPC, place or weight, and {MAX_GROUPS} kinds are all"
                )
                taken.setdefault(why, []).append(str(one.key))
                continue
            groups.setdefault(group, {})[one.address] = one.is_serving
        return groups, _told(taken)

    def _first(self, name: Name, clusters: tuple[str, ...], importer: Import) -> str:
        """Return who has an address that several clusters export: the first by name, of those that are not stale."""
        gone = ""
        for one in sorted(clusters):
            known = self._clusters[one]
            export = known.exports.get(name)
            if export is not None and not known.is_expired and not _misfit(importer, export):
                if not known.standing.marked_at:
                    return one
                gone = gone or one
        return gone

    # --- bookkeeping -----------------------------------------------------------------------------------------------

    def _claim(self, name: Name, cluster: str, before: Export | None, now: Export | None) -> None:
        """Note who claims which address; parts that share one with what changed are planned again."""
        old = {one.key for one in before.endpoints} if before is not None else set()
        new = {one.key for one in now.endpoints} if now is not None else set()
        self.counts.visited += len(new)
        claims = self._claims.setdefault(name, {})
        for key in old - new:
            left = tuple([one for one in claims[key] if one != cluster])
            if left:
                claims[key] = left
                self._dirty.update(((name, one), None) for one in left)
            else:
                del claims[key]
        for key in new - old:
            there = claims.get(key, ())
            self._dirty.update(((name, one), None) for one in there)
            claims[key] = (*there, cluster)
        if not claims:
            del self._claims[name]

    def _note(self, found: Slice, version: int, *, is_own: bool = False) -> None:
        part: Part = ((found.namespace, found.service), found.cluster)
        where = (found.namespace, found.name)
        known = self._versions.get(where)
        if known is not None:
            if version < known[0] or (version == known[0] and version and not is_own):
                return
            if known[1] != part:  # somebody has changed what it says it belongs to
                self.removed(*where)
        self._versions[where] = (version, part)
        slices = self._published.setdefault(part, {})
        self._parts.setdefault(part[0], set()).add(part[1])
        if slices.get(found.name) != found:
            self._slices[part[1]] += found.name not in slices
            slices[found.name] = found
            if not is_own:
                self._dirty[part] = None

    def _exports(self, cluster: str) -> Mapping[Name, Export]:
        known = self._clusters.get(cluster)
        return {} if known is None else known.exports

    def _forget(self, part: Part) -> None:
        name, cluster = part
        clusters = self._parts.get(name)
        if clusters is not None:
            clusters.discard(cluster)
            if not clusters:
                del self._parts[name]

    def _touch_all(self, cluster: str) -> None:
        for name, clusters in self._parts.items():
            if cluster in clusters:
                self._dirty[name, cluster] = None
        known = self._clusters.get(cluster)
        if known is None:
            return
        for name, export in known.exports.items():  # whose addresses others may have had, or have from now on
            claims = self._claims.get(name, {})
            for one in export.endpoints:
                others = claims.get(one.key, ())
                if len(others) > 1:
                    self._dirty.update(((name, other), None) for other in others)

    def _slices_of(self, cluster: str) -> Iterable[Slice]:
        for (_, where), slices in self._published.items():
            if where == cluster:
                yield from slices.values()

    def _has_parts(self, cluster: str) -> bool:
        return any(where == cluster for _, where in self._published)


def _misfit(importer: Import, export: Export) -> str:
    """Return why an export is not what is asked for; empty if it is."""
    found = []
    if export.protocol != importer.protocol:
        found.append(f"spec.protocol is {export.protocol} there and {importer.protocol} here")
    if export.port != importer.port:
        found.append(f"spec.port is {export.port} there and {importer.port} here")
    return "; ".join(found)


def _told(taken: Mapping[str, list[str]]) -> str:
    said = []
    for why, addresses in sorted(taken.items()):
        shown = ", ".join(addresses[:SHOWN]) + (f" and {len(addresses) - SHOWN} more" if len(addresses) > SHOWN else "")
        said.append(f"{shown}: {why}")
    text = "; ".join(said)
    return text if len(text) <= MAX_CONFLICT_CHARS else text[: MAX_CONFLICT_CHARS - len(CUT)] + CUT


def _as_published(existing: Iterable[Slice]) -> tuple[dict[Group, dict[str, bool]], str]:
    groups: dict[Group, dict[str, bool]] = {}
    conflict = ""
    for one in existing:
        if one.group.port:
            groups.setdefault(one.group, {}).update(one.members)
        conflict = conflict or one.conflict
    return groups, conflict


def _number(version: str) -> int:
    """Return an API version as a number, as those of one kind are compared since Kubernetes 1.35."""
    return int(version) if version.isascii() and version.isdecimal() else 0
