"""What an API server fills in changes nothing: an object with the defaults of our schemas means what it meant."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import msgspec.inspect as types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.compiler.diagnostics import Origin, Severity
from datum_router.manifests.decode import decode
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.schema import crd
from datum_router.manifests.served import NOT_SERVED
from datum_router.manifests.table import KindTable, ResourceKind

TABLE = KindTable(OWN_KINDS)
TEXTS = (
    *("a", "/a", "a.example", "10.0.0.1", "10.0.0.0/8", "5s", "GET", "200-299", "h2", "round-robin", "SourceIP"),
    *("http", "x" * 64),
)
POOLS = {
    **dict.fromkeys(
        ("pathPrefix", "exactPath", "path", "httpPath", "replaceFullPath", "replacePrefixMatch"), ("/a", "/")
    ),
    **dict.fromkeys(("hostnames[]", "hosts[]", "host", "hostname", "sni"), ("a.example",)),
    "address": ("10.0.0.1", "fd00::1"),
    "sourceCIDRs[]": ("10.0.0.0/8",),
    "pathRegex": ("/a.*",),
}
"""Texts of fields with a grammar of their own, so that some of what is drawn is good."""


def strategy(kind: types.Type, path: str, refused: frozenset[str]) -> st.SearchStrategy[object]:
    """Draw data that a type takes, each optional field that is served there or not; rules between fields may break."""
    if isinstance(kind, types.Metadata):
        return strategy(kind.type, path, refused)
    if isinstance(kind, types.UnionType):
        (one,) = (member for member in kind.types if not isinstance(member, types.NoneType))
        return strategy(one, path, refused)
    if isinstance(kind, types.StructType):
        drawn = {
            field.encode_name: (field.required, strategy(field.type, f"{path}.{field.encode_name}", refused))
            for field in kind.fields
            if field.required or f"{path}.{field.encode_name}" not in refused
        }
        return st.fixed_dictionaries(
            {name: draw for name, (is_required, draw) in drawn.items() if is_required},
            optional={name: draw for name, (is_required, draw) in drawn.items() if not is_required},
        )
    if isinstance(kind, types.VarTupleType):
        return st.lists(strategy(kind.item_type, f"{path}[]", refused), max_size=2)
    if isinstance(kind, types.CustomType):  # of any form
        return st.recursive(st.none() | st.booleans() | st.text(max_size=3), lambda item: st.lists(item, max_size=2))
    if isinstance(kind, types.DictType):
        return st.dictionaries(st.sampled_from(("a", "b")), strategy(kind.value_type, path, refused), max_size=2)
    if isinstance(kind, types.EnumType):
        return st.sampled_from([member.value for member in kind.cls])
    if isinstance(kind, types.BoolType):
        return st.booleans()
    if isinstance(kind, types.IntType):
        low = kind.ge or 0
        return st.integers(low, min(kind.le or low + 5, low + 5))
    assert isinstance(kind, types.StrType)
    pool = POOLS.get(path.rpartition(".")[2], TEXTS)
    return st.sampled_from([text for text in pool if kind.pattern is None or re.search(kind.pattern, text)])


def fill(schema: Mapping[str, object], value: object) -> None:
    """Fill defaults in as an API server does: into objects that are there, recursively."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert isinstance(properties, Mapping)
        for name, part in properties.items():
            if name not in value and "default" in part:
                value[name] = copy.deepcopy(part["default"])
            if name in value:
                fill(part, value[name])
    elif isinstance(value, list):
        items = schema["items"]
        assert isinstance(items, Mapping)
        for item in value:
            fill(items, item)


def outcome(raw: Mapping[str, object]) -> tuple[object, list[tuple[str, str]]]:
    decoded = decode(raw, Origin(source="test"), TABLE)
    errors = sorted((x.path, x.message) for x in decoded.diagnostics if x.severity is Severity.ERROR)
    return decoded.manifest, errors


@pytest.mark.parametrize("kind", OWN_KINDS, ids=lambda kind: kind.kind)
@given(data=st.data())
def test_defaults_change_nothing(kind: ResourceKind, data: st.DataObject) -> None:
    root = types.type_info(kind.struct)
    assert isinstance(root, types.StructType)
    spec = next(field for field in root.fields if field.encode_name == "spec")
    refused = frozenset(entry.path for entry in NOT_SERVED[kind.kind] if not entry.values)
    plain = {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": "a"},
        "spec": data.draw(strategy(spec.type, "spec", refused)),
    }
    filled = copy.deepcopy(plain)
    schema = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]  # type: ignore[index]
    fill(schema, filled)
    assert outcome(filled) == outcome(plain)


def test_defaults_are_filled_in_below_what_is_given_only() -> None:
    (kind,) = (kind for kind in OWN_KINDS if kind.kind == "VPCService")
    schema = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]  # type: ignore[index]
    raw: dict[str, object] = {"spec": {"port": 1, "endpoints": [{"address": "a"}], "tls": {}}}
    fill(schema, raw)
    assert raw["spec"] == {
        "port": 1,
        "endpoints": [{"address": "a", "weight": 100, "priority": 0}],
        "tls": {"minVersion": "1.2", "insecureSkipVerify": False},
        "protocol": "HTTP",
        "connectTimeout": "10s",
        "idleTimeout": "60s",
    }
