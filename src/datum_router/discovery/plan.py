"""What has to be written so that the slices of one service and one cluster say what they ought to. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from datum_router.discovery.marks import MAX_SLICE_ENDPOINTS
from datum_router.discovery.slices import Group, Slice

MAX_NAME_CHARS = 200
"""Of a service's name, so much begins the names of its slices (the API takes names of 253)."""


class Put(msgspec.Struct, frozen=True, gc=False):
    """A slice that is to be there as it says."""

    slice: Slice


class Remove(msgspec.Struct, frozen=True, gc=False):
    """A slice that is to be gone."""

    namespace: str
    name: str


Change = Put | Remove


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the slices of one service and one cluster ought to say.

    Attributes:
        groups: Addresses and whether they serve, by group.
        conflict: Not empty: what is left out, which one slice without endpoints says.
    """

    namespace: str
    service: str
    cluster: str
    owner_uid: str
    groups: Mapping[Group, Mapping[str, bool]] = {}
    stale_since: str = ""
    conflict: str = ""


def plan(wanted: Wanted, existing: Sequence[Slice], *, limit: int = MAX_SLICE_ENDPOINTS) -> Iterator[Change]:
    """Yield what has to be written; nothing if all is as it ought to be. O(endpoints wanted and there).

    An endpoint stays in the slice that it is in. New ones go where there is room, first into slices that have to be
    written anyway, and then into new slices. Slices that become empty are removed.

    Args:
        existing: What is there, all of this service and cluster; of one name there is one.
        limit: Endpoints in one slice.
    """
    by_group: dict[Group, list[Slice]] = {}
    for one in sorted(existing, key=lambda one: one.name):
        by_group.setdefault(one.group, []).append(one)
    taken = {one.name for one in existing}
    if wanted.conflict:
        wanted_groups: Mapping[Group, Mapping[str, bool]] = {**wanted.groups, Group(): {}}
    else:
        wanted_groups = wanted.groups
    for group, members in wanted_groups.items():
        yield from _plan_group(wanted, group, members, by_group.pop(group, []), taken, limit)
    for left in by_group.values():
        for one in left:
            yield Remove(one.namespace, one.name)


def _plan_group(
    wanted: Wanted, group: Group, members: Mapping[str, bool], there: list[Slice], taken: set[str], limit: int
) -> Iterator[Change]:
    missing = dict(members)
    kept: list[tuple[Slice, list[tuple[str, bool]]]] = []
    for one in there:
        here = [address for address, _ in one.members if address in missing][:limit]
        kept.append((one, [(address, missing.pop(address)) for address in dict.fromkeys(here)]))
    # A stable sort: slices that have to be written anyway first.
    order = sorted(kept, key=lambda item: tuple(item[1]) == item[0].members) if missing else kept
    rest = iter(missing.items())
    for _, stay in order:
        while len(stay) < limit and (item := next(rest, None)) is not None:
            stay.append(item)
    is_notice = not group.port
    for index, (one, stay) in enumerate(kept):
        if not stay and not (is_notice and index == 0):
            yield Remove(one.namespace, one.name)
            continue
        now = _slice(wanted, one.name, group, stay)
        if now != one:
            yield Put(now)
    if is_notice and not kept:
        yield Put(_slice(wanted, _free_name(wanted, group, taken), group, ()))
    fresh: list[tuple[str, bool]] = []
    for item in rest:
        fresh.append(item)
        if len(fresh) == limit:
            yield Put(_slice(wanted, _free_name(wanted, group, taken), group, fresh))
            fresh = []
    if fresh:
        yield Put(_slice(wanted, _free_name(wanted, group, taken), group, fresh))


def _slice(wanted: Wanted, name: str, group: Group, members: Iterable[tuple[str, bool]]) -> Slice:
    return Slice(
        namespace=wanted.namespace,
        name=name,
        service=wanted.service,
        cluster=wanted.cluster,
        owner_uid=wanted.owner_uid,
        group=group,
        members=tuple(members),
        stale_since=wanted.stale_since,
        conflict="" if group.port else wanted.conflict,
    )


def _free_name(wanted: Wanted, group: Group, taken: set[str]) -> str:
    """Return a name that no slice of this service and cluster has, the same for the same circumstances."""
    said = msgspec.json.encode((wanted.service, wanted.cluster, group), order="deterministic")
    stem = f"{wanted.service[:MAX_NAME_CHARS].rstrip('.-')}-{hashlib.sha256(said).hexdigest()[:10]}"
    number = 0
    while (name := f"{stem}-{number}") in taken:
        number += 1
    taken.add(name)
    return name
