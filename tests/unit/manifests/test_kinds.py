"""The table of kinds, and what of an object counts as its content."""

from __future__ import annotations

import msgspec
import pytest

from datum_router.compiler.diagnostics import Origin
from datum_router.errors import PluginLoadError
from datum_router.manifests.decode import decode
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import GROUP, VERSION, ObjectMeta
from datum_router.manifests.table import KindTable, ResourceKind


class Thing(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    api_version: str
    kind: str
    metadata: ObjectMeta
    value: int = 0


def row(group: str = "x.example", version: str = "v1") -> ResourceKind:
    return ResourceKind(group=group, version=version, kind="Thing", plural="things", struct=Thing)


def test_our_five_kinds_are_there() -> None:
    table = KindTable(OWN_KINDS)
    assert {kind.plural for kind in table} == {
        "vpcservices",
        "vpcroutes",
        "servicebindings",
        "vpcingresses",
        "vpcegresses",
    }
    assert len(table) == 5
    for kind in table:
        assert kind.namespaced
        assert table.get(f"{GROUP}/{VERSION}", kind.kind) is kind
        assert (f"{GROUP}/{VERSION}", kind.kind) in table


def test_an_unknown_kind_is_none() -> None:
    assert KindTable(OWN_KINDS).get("v1", "VPCService") is None
    assert KindTable(OWN_KINDS).named("Thing") is None


def test_two_versions_of_a_kind_may_be_there() -> None:
    assert len(KindTable([row(version="v1"), row(version="v2")])) == 2


@pytest.mark.parametrize(
    ("rows", "message"), [([row(), row()], "registered twice"), ([row("a"), row("b")], "must be unique")]
)
def test_kinds_that_keys_could_not_tell_apart_are_refused(rows: list[ResourceKind], message: str) -> None:
    with pytest.raises(PluginLoadError, match=message):
        KindTable(rows)


def content(raw: dict[str, object]) -> object:
    decoded = decode(raw, Origin(source="test"), KindTable([*OWN_KINDS, row()]))
    assert decoded.manifest is not None
    assert decoded.kind is not None
    return decoded.kind.content_of(decoded.manifest)


def test_the_content_of_our_kinds_is_the_spec_and_the_age() -> None:
    def raw(port: int = 80, **metadata: object) -> dict[str, object]:
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "VPCService",
            "metadata": {"name": "x", **metadata},
            "spec": {"port": port, "endpoints": [{"address": "10.0.0.1"}]},
        }

    assert content(raw()) == content(raw(labels={"a": "b"}, resourceVersion="7", generation=3))
    assert content(raw()) == content(raw() | {"status": {"ready": True}})
    assert content(raw()) != content(raw(81))
    assert content(raw()) != content(raw(creationTimestamp="2026-01-01T00:00:00Z"))


def test_the_content_of_other_kinds_is_all_but_bookkeeping() -> None:
    def raw(value: int = 0, **metadata: object) -> dict[str, object]:
        return {"apiVersion": "x.example/v1", "kind": "Thing", "metadata": {"name": "x", **metadata}, "value": value}

    assert content(raw()) == content(raw(resourceVersion="7", managedFields=[]))
    assert content(raw()) != content(raw(1))
    assert content(raw()) != content(raw(labels={"a": "b"}))
