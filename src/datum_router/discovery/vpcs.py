"""Which VPC of the own cluster a VPC of another one is. Pure.

Names of VPCs are each cluster's own choice: two clusters may call different networks `production/shop`, and an address
of one means another machine in the other. The identifier that Galactic gives a VPC says which network it is, so equal
identifiers are one VPC, whatever it is called. An identified VPC that the own cluster does not have is called by its
identifier alone (`nameless_vpc`), and never meets one of the own cluster's names.

What has a name of the own cluster and cannot be shown to be that VPC is left out, until it can: an endpoint too few is
seen and mended, while a request in somebody else's network is not. Names alone count only where the own cluster has no
such VPC and the other one gives it no identifier: then there is nothing else to go by on either side.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from datum_router.discovery.export import Export
from datum_router.manifests.indexes import nameless_vpc
from datum_router.model.endpoint import Endpoint, endpoint_key

OWN = ""
"""What stands for the own cluster among names of clusters."""


class Vpcs:
    """What each cluster says of its VPCs: `namespace/name` -> identifier in base62, empty while it has none."""

    __slots__ = ("_by_id", "_ids", "_is_own_known")

    def __init__(self) -> None:
        self._ids: dict[str, Mapping[str, str]] = {}
        self._by_id: dict[str, str] = {}  # of the own cluster
        self._is_own_known = True

    def put(self, cluster: str, ids: Mapping[str, str]) -> bool:
        """Take all VPCs of a cluster (`OWN`: the own one); tell whether anything is different."""
        if cluster == OWN and not self._is_own_known:
            self._is_own_known = True
            self._put(cluster, ids)
            return True
        if self._ids.get(cluster, {}) == ids:
            return False
        self._put(cluster, ids)
        return True

    def forget_own(self) -> bool:
        """Take that VPCs of the own cluster cannot be read; tell whether that is news."""
        was_known, self._is_own_known = self._is_own_known, False
        return was_known

    def _put(self, cluster: str, ids: Mapping[str, str]) -> None:
        if ids:
            self._ids[cluster] = dict(ids)
        else:
            self._ids.pop(cluster, None)
        if cluster == OWN:
            # In order, so that of two with one identifier, which ought not to be, the same one counts always.
            self._by_id = {one: name for name, one in sorted(ids.items(), reverse=True) if one}

    def resolve(self, cluster: str, vpc: str) -> tuple[str, str]:
        """Return what a VPC of another cluster is called here, and why it is none that may be used, else empty.

        Args:
            vpc: As `Endpoint.vpc` has it.
        """
        if not vpc:
            return "", ""
        if not self._is_own_known:
            return "", f"VPCs of this cluster cannot be read, so that it cannot be told which of them {vpc} is"
        is_nameless = vpc.startswith("/")
        there = vpc[1:] if is_nameless else self._ids.get(cluster, {}).get(vpc, "")
        if there and there in self._by_id:
            return self._by_id[there], ""
        here = None if is_nameless else self._ids.get(OWN, {}).get(vpc)
        if here is None:
            return (nameless_vpc(there) if there else vpc), ""
        if not there:
            return "", f"vpc {vpc} has no identifier there, so that it cannot be told whether it is the one here"
        if not here:
            return "", f"vpc {vpc} has no identifier here, so that it cannot be told whether it is the one there"
        return "", f"vpc {vpc} has identifier {there} there and {here} here: another network of the same name"


def localized(export: Export, cluster: str, vpcs: Vpcs) -> Export:
    """Return an export with each VPC called as here; what may not be used is left out and told in `left_out`.

    Returns the export itself if that makes no difference. O(endpoints).
    """
    names = {vpc: vpcs.resolve(cluster, vpc) for vpc in {one.vpc for one in export.endpoints}}
    if all(vpc == name and not why for vpc, (name, why) in names.items()):
        return export
    kept: list[Endpoint] = []
    left_out: list[tuple[str, str]] = []
    for one in export.endpoints:
        name, why = names[one.vpc]
        if why:
            left_out.append((why, one.address))
        elif name == one.vpc:
            kept.append(one)
        else:
            key = endpoint_key(one.address, one.port, name)
            kept.append(msgspec.structs.replace(one, key=key, vpc=name))
    # Two names there may be one VPC here.
    unique = tuple({one.key: one for one in reversed(kept)}.values())[::-1]
    return msgspec.structs.replace(export, endpoints=unique, left_out=tuple(left_out))
