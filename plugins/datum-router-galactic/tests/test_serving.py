"""Where the cluster is: its one ServingLocation, with the coordinates of the Location of that name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from datum_router.compiler.compiler import Compiler, CompileResult
from datum_router.compiler.diagnostics import Origin, Severity
from datum_router.manifests.meta import ObjectKey
from datum_router.model.endpoint import UNKNOWN_LOCALITY, make_locality
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import Delete, Upsert
from datum_router.reasons import Reason
from datum_router.registry.store import Store
from datum_router_galactic import plugin

IAD = {"topology.datum.net/city-code": "IAD", "topology.datum.net/region": "us-east-1"}


class Cell:
    """A cluster with places and nothing else."""

    def __init__(self) -> None:
        plugins = load_plugins(
            [
                Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin),
                Candidate(entry_point="galactic", distribution="datum-router-galactic", load=lambda: plugin),
            ]
        )
        self._store = Store(plugins.kinds)
        self._compiler = Compiler(plugins)

    def put(self, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        raw = {"apiVersion": "networking.datumapis.com/v1alpha", "kind": kind, "metadata": {"name": name}, "spec": spec}
        self._store.apply(Upsert(source="test", raw=raw, origin=Origin(source="test", file=f"{kind}-{name}.yaml")))

    def delete(self, kind: str, name: str) -> None:
        key = ObjectKey(kind=kind, namespace="", name=name)
        self._store.apply(Delete(source="test", key=key, file=f"{kind}-{name}.yaml"))

    def compile(self) -> CompileResult:
        return self._compiler.compile(self._store.view())


@pytest.fixture
def cell() -> Cell:
    return Cell()


def test_a_cluster_without_one_is_nowhere(cell: Cell) -> None:
    assert cell.compile().data.place == UNKNOWN_LOCALITY


def test_the_one_serving_location_is_the_place_with_the_coordinates_of_its_location(cell: Cell) -> None:
    cell.put("ServingLocation", "iad-1", {"topology": IAD})
    assert cell.compile().data.place == make_locality(IAD, location="iad-1")
    coordinates = {"latitude": "38.9445", "longitude": "-77.4558"}
    location = {"locationClassName": "self-managed", "topology": IAD, "provider": {}, "coordinates": coordinates}
    cell.put("Location", "iad-1", location)
    result = cell.compile()
    assert result.data.place == make_locality(IAD, location="iad-1", latitude=38.9445, longitude=-77.4558)
    assert not result.diagnostics
    cell.delete("ServingLocation", "iad-1")
    assert cell.compile().data.place == UNKNOWN_LOCALITY


def test_several_leave_the_place_unknown_and_each_is_told_so(cell: Cell) -> None:
    cell.put("ServingLocation", "iad-1", {"topology": IAD})
    cell.put("ServingLocation", "iad-2", {"topology": IAD})
    result = cell.compile()
    assert result.data.place == UNKNOWN_LOCALITY
    assert [(item.object, item.reason, item.severity) for item in result.findings] == [
        ("servinglocation iad-1", Reason.CONFLICTED, Severity.WARNING),
        ("servinglocation iad-2", Reason.CONFLICTED, Severity.WARNING),
    ]
    assert "found ServingLocations iad-1, iad-2, expected one" in result.findings[0].message
    cell.delete("ServingLocation", "iad-2")
    assert cell.compile().data.place == make_locality(IAD, location="iad-1")
