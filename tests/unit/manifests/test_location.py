"""Locations: coordinates that make sense, and a kind whose objects have a namespace or none."""

from __future__ import annotations

import msgspec
import pytest

from datum_router.compiler.diagnostics import Origin, Severity
from datum_router.manifests.decode import Decoded, decode, decode_json
from datum_router.manifests.location import Coordinates, Location, LocationSpec, degrees, validate_location
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.plugins.protocols import Delete, Upsert
from datum_router.registry.store import Store

API = "networking.datumapis.com/v1alpha"
ROW = ResourceKind(
    group="networking.datumapis.com",
    version="v1alpha",
    kind="Location",
    plural="locations",
    struct=Location,
    namespaced=False,
    is_scope_open=True,
    validate=validate_location,
)
KINDS = KindTable([ROW])
ORIGIN = Origin(source="test")


def raw(metadata: dict[str, object], **spec: object) -> dict[str, object]:
    return {"apiVersion": API, "kind": "Location", "metadata": {"name": "fra", **metadata}, "spec": spec}


def both(found: dict[str, object]) -> list[Decoded]:
    """Decode plain data and JSON text."""
    text = msgspec.Raw(msgspec.json.encode(found))
    return [decode(found, ORIGIN, KINDS), decode_json(text, ORIGIN, KINDS, api_version=API, kind="Location")]


@pytest.mark.parametrize("coordinates", [None, {"latitude": "1", "longitude": 2}], ids=["plain", "walked"])
@pytest.mark.parametrize(
    ("metadata", "namespace"),
    [({}, ""), ({"namespace": ""}, ""), ({"namespace": "default"}, "default"), ({"namespace": "prod"}, "prod")],
)
def test_what_an_object_says_of_its_namespace_counts(
    metadata: dict[str, object], namespace: str, coordinates: object
) -> None:
    spec = {} if coordinates is None else {"coordinates": coordinates}
    for decoded in both(raw(metadata, **spec)):
        assert decoded.key == ObjectKey(kind="Location", namespace=namespace, name="fra")
        assert isinstance(decoded.manifest, Location)
        assert decoded.manifest.metadata.namespace == namespace


def test_a_bad_namespace_is_refused() -> None:
    for decoded in both(raw({"namespace": "Not A Name"})):
        assert decoded.manifest is None


@pytest.mark.parametrize(
    ("latitude", "longitude", "expected"),
    [
        ("50.0379", "8.5622", (50.0379, 8.5622)),
        ("-90", "180", (-90.0, 180.0)),
        (50, -8.5, (50.0, -8.5)),
        ("90.1", "0", None),
        ("0", "-180.1", None),
        ("", "0", None),
        ("inf", "0", None),
        ("nan", "0", None),
        (10**400, 0, None),  # JSON knows integers that no float can hold
        ("1_0", "0", None),
        ("\u0663", "0", None),  # a digit to Python alone
    ],
)
def test_coordinates_are_degrees_or_nothing(
    latitude: str | float, longitude: str | float, expected: tuple[float, float] | None
) -> None:
    spec = LocationSpec(coordinates=Coordinates(latitude=latitude, longitude=longitude))
    assert degrees(spec) == expected


def test_bad_coordinates_are_warned_of_and_the_topology_is_used() -> None:
    for decoded in both(raw({}, topology={"zone": "one"}, coordinates={"latitude": "north", "longitude": 8})):
        assert isinstance(decoded.manifest, Location)
        assert decoded.manifest.spec.topology == {"zone": "one"}
        assert {one.severity for one in decoded.diagnostics} == {Severity.WARNING}
        assert [one.path for one in decoded.diagnostics] == ["spec.coordinates.latitude", "spec.coordinates.longitude"]


def test_a_delete_of_the_default_namespace_means_the_object_without_one_unless_there_is_one_in_it() -> None:
    store = Store(KINDS)

    def put(file: str, **metadata: object) -> None:
        store.apply(Upsert(source="test", raw=raw(metadata), origin=Origin(source="test", file=file)))

    def delete(file: str, namespace: str) -> None:
        key = ObjectKey(kind="Location", namespace=namespace, name="fra")
        store.apply(Delete(source="test", key=key, file=file))

    def there() -> list[str]:
        found = store.view().list("Location")
        return [one.metadata.namespace for one in found if isinstance(one, Location)]

    put("a.yaml")
    put("b.yaml", namespace="default")
    put("c.yaml", namespace="prod")
    delete("c.yaml", "dev")
    assert there() == ["", "default", "prod"]
    delete("b.yaml", "default")
    assert there() == ["", "prod"]
    delete("a.yaml", "default")
    assert there() == ["prod"]
