"""Decoding takes any JSON-like tree: it gives a manifest or says why not, and never raises."""

from __future__ import annotations

import copy
from importlib import import_module
from importlib.util import find_spec

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.diagnostics import Origin, Severity
from datum_router.manifests._walk import PlainText, Walker
from datum_router.manifests.decode import Decoded, decode, decode_json
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.schema import field_rows
from datum_router.manifests.table import KindTable, ResourceKind


class Walked(KindTable):
    """Let no object be left to msgspec: what decoding is measured by."""

    def plain_text_of(self, kind: ResourceKind) -> PlainText | None:
        return None


class ThingSpec(msgspec.Struct, frozen=True, rename="camel"):
    some_size: int | None = None
    share: float = 1.0
    mode: str = "a"


class Thing(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: ThingSpec = ThingSpec()


# A kind of a plugin as it may be: without a namespace, and passing over fields that it does not know.
THING = ResourceKind(group="x.test", version="v1", kind="Thing", plural="things", struct=Thing, namespaced=False)
# The core alone has its own kinds; the full run has the plugin's, too.
PLUGIN = find_spec("datum_router_kubernetes") and import_module("datum_router_kubernetes.plugin")
KINDS = (*OWN_KINDS, *(PLUGIN.datum_router_resource_kinds() if PLUGIN else ()), THING)
TABLE = KindTable(KINDS)
WALKED = Walked(KINDS)
ORIGIN = Origin(source="test", file="f.yaml", line=1)
FIELDS = sorted(
    {part.removesuffix("[]") for kind in OWN_KINDS for row in field_rows(kind) for part in row.path.split(".")}
)
WORDS = [
    "", "/", "/a", "*", "*.a", "a.example", "10.0.0.1", "10.0.0.1/24", "fd00::1", "10s", "h2", "GET", "GRPC", "gRPC",
    "Simple", "Header", "RequestRedirect", "URLRewrite", "ReplacePrefixMatch", "\ud800", "a\r\nb", "x" * 5000,
    "200-299", "source-ip-hash", "\x7f", "null", "\t",
]  # fmt: skip

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 80, 2**64, -1, 10**100])
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=20)
)
names = st.sampled_from(FIELDS) | st.text(max_size=8)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6),
    max_leaves=25,
)
headers = st.fixed_dictionaries(
    {
        "apiVersion": st.sampled_from(["router.datum.net/v1alpha1", "router.datum.net/v2", "v1"]) | scalars,
        "kind": st.sampled_from([kind.kind for kind in OWN_KINDS]) | scalars,
        "metadata": st.just({"name": "x"}) | trees,
        "spec": trees,
    },
    optional={"status": trees, "more": trees},
)

GOOD = [
    {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCRoute",
        "metadata": {"name": "x"},
        "spec": {
            "match": {"pathPrefix": "/a", "headers": {"x": "y"}, "headerMatches": [{"name": "x", "type": "Present"}]},
            "hostnames": ["a.example"],
            "destinations": [{"vpcServiceRef": {"name": "s"}, "weight": 1}],
            "filters": [
                {
                    "type": "URLRewrite",
                    "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}},
                },
                {
                    "type": "Plugin",
                    "plugin": {"name": "jwt", "config": {"issuer": "a", "keys": [{"n": 1, "more": {"a": [0.5]}}]}},
                },
            ],
            "loadBalancing": "consistent-hash",
            "loadBalancingConfig": {"hashOn": "Cookie", "cookie": {"name": "c"}, "slowStart": "10s"},
            "retries": {"backoff": {"initialMs": 1}},
            "timeouts": {"request": "10s"},
        },
    },
    {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCService",
        "metadata": {"name": "x", "labels": {"a": "b"}},
        "spec": {
            "port": 80,
            "endpoints": [{"address": "10.0.0.1"}],
            "healthCheck": {"httpPath": "/a", "expectedStatuses": ["200-299"], "host": "a.example", "passive": {}},
            "protocol": "HTTPS",
            "tls": {"sni": "a.example", "caCertificateRefs": [{"name": "ca"}]},
        },
    },
    {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCIngress",
        "metadata": {"name": "x"},
        "spec": {
            "host": "a.example",
            "listeners": [{"name": "a", "port": 443, "protocol": "HTTPS"}],
            "rules": [{"path": "/a", "service": {"name": "s"}}],
            "tls": {"secretName": "s", "alpn": ["h2"]},
            "clientIP": {"trustedHops": 1},
        },
    },
    {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "ServiceBinding",
        "metadata": {"name": "x", "namespace": "prod", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "serviceRef": {"name": "s"},
            "vpcServiceRef": {"name": "v", "namespace": "a"},
            "autoSync": True,
            "portMappings": [{"servicePort": 80, "vpcPort": 8080}],
        },
        "status": {"active": True, "conditions": [{"type": "A", "status": "True", "reason": "B"}]},
    },
    {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCEgress",
        "metadata": {"name": "x"},
        "spec": {"sourceVpcAttachment": "a"},
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "s"}, "managedFields": [{"a": "b"}]},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": True}, "hints": {"forZones": [{"name": "z"}]}}
        ],
        "ports": [{"name": "p", "port": 80, "protocol": "TCP"}],
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "x", "ownerReferences": [{"name": "o"}]},
        "spec": {
            "ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8081}],
            "selector": {"a": "b"},
        },
    },
    {
        "apiVersion": "x.test/v1",
        "kind": "Thing",
        "metadata": {"name": "x"},
        "spec": {"someSize": 1, "share": 0.5, "mode": "b"},
    },
]


def check(raw: dict[str, object]) -> None:
    decoded = decode(raw, ORIGIN, TABLE)
    assert repr(decoded) == repr(decode(raw, ORIGIN, WALKED)), (
        "the quick way and the walk disagree"
    )  # repr: not a number
    check_json(raw, decoded)
    errors = [item for item in decoded.diagnostics if item.severity is Severity.ERROR]
    if decoded.manifest is not None:
        assert not errors
        assert decoded.key is not None
    elif not decoded.is_unknown_kind:
        assert errors
    for item in decoded.diagnostics:
        item.render().encode()  # can be printed
        assert len(item.message) < 1000
        assert item.line == 1
        assert item.message.splitlines() == [item.message]
        assert item.path.isprintable()


def check_json(raw: dict[str, object], decoded: Decoded) -> None:
    """The way of JSON text finds what the way of plain data does, if the data can be written in JSON at all."""
    api_version, kind = raw.get("apiVersion"), raw.get("kind")
    if not isinstance(api_version, str) or not isinstance(kind, str):
        return
    try:
        text = msgspec.json.encode(raw)
        if repr(msgspec.json.decode(text)) != repr(raw):  # not a number, numbers as keys, floats beyond the decimal
            return
    except (msgspec.MsgspecError, TypeError, ValueError, UnicodeError, OverflowError, RecursionError):
        return
    for told in (text, msgspec.json.encode({**raw, "apiVersion": "meta.k8s.io/v1", "kind": 5})):
        found = decode_json(msgspec.Raw(told), ORIGIN, TABLE, api_version=api_version, kind=kind)
        assert repr(found) == repr(decoded), "JSON and plain data disagree"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=50))
def test_any_text_is_taken(text: bytes) -> None:
    found = decode_json(msgspec.Raw(text), ORIGIN, TABLE, api_version="v1", kind="Service")
    assert found.manifest is None
    assert found.diagnostics or found.is_unknown_kind


@settings(max_examples=200, deadline=None)
@given(headers)
def test_any_tree_gives_a_manifest_or_the_reasons_why_not(raw: dict[str, object]) -> None:
    check(raw)


@settings(max_examples=100, deadline=None)
@given(trees)
def test_what_is_no_manifest_at_all_is_taken_too(raw: object) -> None:
    decode(raw, ORIGIN, TABLE)  # type: ignore[arg-type]  # a source that broke its promise


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_a_good_manifest_with_one_part_replaced_is_good_or_says_why_not(
    good: dict[str, object], data: st.DataObject
) -> None:
    raw = copy.deepcopy(good)
    places: list[tuple[dict[str, object] | list[object], str | int]] = []

    def collect(part: object) -> None:
        if isinstance(part, dict):
            for name, value in part.items():
                places.append((part, name))
                collect(value)
        elif isinstance(part, list):
            for index, value in enumerate(part):
                places.append((part, index))
                collect(value)

    collect(raw)
    holder, place = data.draw(st.sampled_from(places))
    other, other_place = data.draw(st.sampled_from(places))
    holder[place] = data.draw(  # type: ignore[index]  # a name for a mapping, an index for a list
        trees | near(holder[place]) | st.just(other[other_place])  # type: ignore[index]
    )
    if isinstance(holder, dict) and data.draw(st.booleans()):
        holder[data.draw(names)] = holder.pop(str(place))
    check(raw)


def near(value: object) -> st.SearchStrategy[object]:
    """Draw what is nearly `value`: of another type, a little longer, out of range."""
    if isinstance(value, bool):
        return st.sampled_from([not value, int(value), str(value).lower()])
    if isinstance(value, int | float):
        return st.sampled_from([float(value), str(value), -value, value + 0.5, 2**63 + value, 10**18, 0, 65536])
    if isinstance(value, str):
        return st.sampled_from(
            [value.upper(), value.lower(), value + "\n", " " + value, value + "\x7f", value + "\u0085", "", value * 99]
        )
    return st.sampled_from([None, [], {}, [value]])


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.kind)
def test_objects_of_every_kind_can_be_left_to_msgspec(kind: ResourceKind) -> None:
    """One field of a type that it alone understands, however rarely used, sends each object of its kind on the walk."""
    assert TABLE.plain_text_of(kind) is not None


@pytest.mark.parametrize("raw", GOOD, ids=lambda raw: str(raw["kind"]))
def test_a_good_manifest_as_an_api_server_tells_it_is_not_walked(
    raw: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk takes ten times as long: thousands of objects, at a start, seconds."""
    asked: list[object] = []

    class Counted(Walker):
        def walk(self, value: object, *rest: object, **more: object) -> object:
            asked.append(value)
            return super().walk(value, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("datum_router.manifests.decode.Walker", Counted)
    metadata, api_version, kind = raw["metadata"], str(raw["apiVersion"]), str(raw["kind"])
    assert isinstance(metadata, dict)
    told = {
        **raw,
        "metadata": {
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {".": {}}}, "operation": "Apply"}],
            "uid": "cf994732-b4b9-40f0-b4c1-1b2cea8ec35e",
            "resourceVersion": "2241",
            "generation": 1,
            **metadata,
        },
    }
    text = msgspec.Raw(msgspec.json.encode(told))
    found = (decode(told, ORIGIN, TABLE), decode_json(text, ORIGIN, TABLE, api_version=api_version, kind=kind))
    assert [one.diagnostics for one in found] == [(), ()]
    assert len(asked) == 0


@pytest.mark.parametrize("namespace", [5, None, "", "prod", "No Name", ["a"]])
def test_a_namespace_of_an_object_without_one_is_judged_the_same(namespace: object) -> None:
    raw = {"apiVersion": "x.test/v1", "kind": "Thing", "metadata": {"name": "x", "namespace": namespace}}
    check(raw)


@settings(max_examples=200, deadline=None)
@given(headers)
def test_decoding_changes_nothing_and_says_the_same_twice(raw: dict[str, object]) -> None:
    before = repr(raw)
    first = decode(raw, ORIGIN, TABLE)
    assert decode(raw, ORIGIN, TABLE) == first
    assert repr(raw) == before
