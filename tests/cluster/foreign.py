"""CRDs of Galactic and of Locations, as far as their published fields matter here: written for these tests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.plane import REPOSITORY
from tests.cluster.stage import crd

PUBLISHED = Path(os.environ.get("DATUM_ROUTER_SHARED", REPOSITORY.parent / "shared")) / "reference" / "crds"
"""The published ones, where they are at hand; they are not part of this repository."""

GALACTIC = "galactic.datumapis.com"
NETWORKING = "networking.datumapis.com"

TEXT = {"type": "string"}
LABELS = {"type": "object", "additionalProperties": TEXT}


def some_object(required: tuple[str, ...] = (), **properties: Mapping[str, object]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def texts(least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": TEXT, **({"minItems": least} if least else {})}


STATUS = some_object(("ready",), ready={"type": "boolean", "default": False}, identifier=TEXT)
VPC = {"spec": some_object(("networks",), networks=texts(1)), "status": STATUS}
VPC_ATTACHMENT = {
    "spec": some_object(
        ("vpc", "interface"),
        vpc=some_object(apiVersion=TEXT, kind=TEXT, name=TEXT, namespace=TEXT),
        interface=some_object(("name", "addresses"), name={**TEXT, "default": "galactic0"}, addresses=texts(1)),
        routes={"type": "array", "items": some_object(("destination",), destination=TEXT, via=TEXT)},
    ),
    "status": STATUS,
}
LOCATION = {
    "spec": some_object(
        ("locationClassName", "topology", "provider"),
        locationClassName=TEXT,
        topology=LABELS,
        provider={"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        coordinates=some_object(
            ("latitude", "longitude"),
            latitude={**TEXT, "pattern": r"^-?\d{1,2}(\.\d+)?$"},
            longitude={**TEXT, "pattern": r"^-?\d{1,3}(\.\d+)?$"},
        ),
    ),
    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
}
SERVING_LOCATION = {"spec": some_object(("topology",), topology=LABELS)}


def own_crds(*, location_scope: str = "Cluster") -> list[dict[str, object]]:
    """Return the CRDs of VPC, VPCAttachment, Location and ServingLocation."""
    spec = ("spec",)
    return [
        crd(GALACTIC, "VPC", "vpcs", properties=VPC, required=spec),
        crd(GALACTIC, "VPCAttachment", "vpcattachments", properties=VPC_ATTACHMENT, required=spec),
        crd(NETWORKING, "Location", "locations", scope=location_scope, properties=LOCATION, required=spec),
        crd(NETWORKING, "ServingLocation", "servinglocations", scope="Cluster", properties=SERVING_LOCATION),
    ]


def foreign_crds() -> list[dict[str, object]]:
    """Return the published CRDs of the same kinds, or, where they are not at hand, our own."""
    found = []
    for raw in own_crds():
        meta = raw["metadata"]
        assert isinstance(meta, Mapping)
        plural, _, group = str(meta["name"]).partition(".")
        path = PUBLISHED / f"{group}_{plural}.yaml"
        found.append(yaml.safe_load(path.read_text()) if path.exists() else raw)
    return found
