"""Where the gateway is: at the Location of which its cluster has a ServingLocation."""

from __future__ import annotations

from datum_router.compiler.places import find_place
from datum_router.manifests.location import ServingLocation
from datum_router.manifests.meta import ObjectKey
from datum_router.plugins.protocols import ManifestView, PlaceResult, ResolveProblem
from datum_router.reasons import Reason


class ServingPlaceFinder:
    """Take the one ServingLocation for the place of the cluster.

    It has a topology and no coordinates; those are of the Location of the same name, if the cluster has that as well.
    Several contradict each other: then the place is not known, which is better than a wrong one.
    """

    __slots__ = ()

    def find(self, view: ManifestView) -> PlaceResult:
        """Return the place, unknown unless there is exactly one ServingLocation."""
        found = [item for item in view.list("ServingLocation") if isinstance(item, ServingLocation)]
        if len(found) == 1:
            name, topology = found[0].metadata.name, found[0].spec.topology
            place = find_place(view, namespace="", name=name, path="metadata.name", topology=topology)
            return PlaceResult(place=place.locality)
        names = ", ".join(item.metadata.name for item in found)
        return PlaceResult(problems=tuple(_one_of_several(item.metadata.name, names) for item in found))


def _one_of_several(name: str, names: str) -> ResolveProblem:
    return ResolveProblem(
        object=ObjectKey(kind="ServingLocation", namespace="", name=name),
        path="metadata.name",
        reason=Reason.CONFLICTED,
        message=f"found ServingLocations {names}, expected one: where this cluster is stays unknown",
        hint="remove the others, or set DATUM_ROUTER_LOCATION or DATUM_ROUTER_TOPOLOGY of the gateway",
        is_reference=False,
        is_remark=True,
    )
