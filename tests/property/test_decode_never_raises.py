"""Decoding takes any JSON-like tree: it gives a manifest or says why not, and never raises."""

from __future__ import annotations

import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.diagnostics import Origin, Severity
from datum_router.manifests._walk import PlainText
from datum_router.manifests.decode import decode
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.schema import field_rows
from datum_router.manifests.table import KindTable, ResourceKind


class Walked(KindTable):
    """Let no object be left to msgspec: what decoding is measured by."""

    def plain_text_of(self, kind: ResourceKind) -> PlainText | None:
        return None


TABLE = KindTable(OWN_KINDS)
WALKED = Walked(OWN_KINDS)
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
                }
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
]


def check(raw: dict[str, object]) -> None:
    decoded = decode(raw, ORIGIN, TABLE)
    assert repr(decoded) == repr(decode(raw, ORIGIN, WALKED)), (
        "the quick way and the walk disagree"
    )  # repr: not a number
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


@settings(max_examples=200, deadline=None)
@given(headers)
def test_any_tree_gives_a_manifest_or_the_reasons_why_not(raw: dict[str, object]) -> None:
    check(raw)


@settings(max_examples=100, deadline=None)
@given(trees)
def test_what_is_no_manifest_at_all_is_taken_too(raw: object) -> None:
    decode(raw, ORIGIN, TABLE)  # type: ignore[arg-type]  # a source that broke its promise


@settings(max_examples=200, deadline=None)
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
    holder[place] = data.draw(trees)  # type: ignore[index]  # a name for a mapping, an index for a list
    check(raw)


@settings(max_examples=200, deadline=None)
@given(headers)
def test_decoding_changes_nothing_and_says_the_same_twice(raw: dict[str, object]) -> None:
    before = repr(raw)
    first = decode(raw, ORIGIN, TABLE)
    assert decode(raw, ORIGIN, TABLE) == first
    assert repr(raw) == before
