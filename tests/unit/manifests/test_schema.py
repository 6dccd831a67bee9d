"""Schemas and reference pages come from the Structs alone, and the files in the repository are what comes out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from datum_router.manifests._yaml_out import dump
from datum_router.manifests.cel_rules import RULES
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import MAX_CONDITIONS
from datum_router.manifests.schema import crd, crd_file_name, crd_yaml, field_rows, reference_markdown
from datum_router.manifests.served import NOT_SERVED
from datum_router.manifests.table import ResourceKind

REPOSITORY = Path(__file__).resolve().parents[3]
KINDS = pytest.mark.parametrize("kind", OWN_KINDS, ids=lambda kind: kind.kind)


def by_kind(name: str) -> ResourceKind:
    return next(kind for kind in OWN_KINDS if kind.kind == name)


def dig(tree: object, *names: str | int) -> object:
    for name in names:
        if isinstance(name, int):
            assert isinstance(tree, list)
            tree = tree[name]
        else:
            assert isinstance(tree, Mapping)
            tree = tree[name]
    return tree


def schema(kind: str, *names: str) -> Mapping[str, object]:
    found = dig(crd(by_kind(kind)), "spec", "versions", 0, "schema", "openAPIV3Schema")
    for name in names:
        found = dig(found, "items" if name == "[]" else "properties", *([] if name == "[]" else [name]))
    assert isinstance(found, Mapping)
    return found


@KINDS
def test_the_crd_in_the_repository_is_what_is_generated(kind: ResourceKind) -> None:
    path = REPOSITORY / "manifests" / "crds" / crd_file_name(kind)
    assert path.read_text() == crd_yaml(kind), "write it again: datum-router schema"


@KINDS
def test_the_reference_page_in_the_repository_is_what_is_generated(kind: ResourceKind) -> None:
    path = REPOSITORY / "docs" / "reference" / f"{kind.kind.lower()}.md"
    assert path.read_text() == reference_markdown(kind)


def test_no_other_crd_of_our_group_lies_in_the_repository() -> None:
    there = {path.name for path in (REPOSITORY / "manifests" / "crds").glob("router.datum.net_*.yaml")}
    assert there == {crd_file_name(kind) for kind in OWN_KINDS}


@KINDS
def test_generated_yaml_reads_back_as_the_same_data(kind: ResourceKind) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is no part of the core's own test environment")
    assert yaml.safe_load(crd_yaml(kind)) == crd(kind)


@KINDS
def test_a_crd_has_what_a_cluster_wants(kind: ResourceKind) -> None:
    found = crd(kind)
    assert dig(found, "metadata", "name") == f"{kind.plural}.router.datum.net"
    assert dig(found, "spec", "scope") == "Namespaced"
    assert dig(found, "spec", "names", "categories") == ["datum"]
    assert dig(found, "spec", "names", "shortNames") == list(kind.short_names)
    assert dig(found, "spec", "versions", 0, "subresources") == {"status": {}}
    assert dig(found, "spec", "versions", 0, "additionalPrinterColumns", -1, "name") == "Age"
    conditions = schema(kind.kind, "status", "conditions")
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    item = conditions["items"]
    assert isinstance(item, Mapping)
    assert "type" in item["required"]


def nodes(tree: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    yield tree
    properties = tree.get("properties", {})
    assert isinstance(properties, Mapping)
    for part in [*properties.values(), tree.get("items"), tree.get("additionalProperties")]:
        if isinstance(part, Mapping):
            yield from nodes(part)


@KINDS
def test_the_schema_is_structural(kind: ResourceKind) -> None:
    for node in nodes(schema(kind.kind)):
        assert node["type"] in ("object", "array", "string", "integer", "number", "boolean")
        if node["type"] == "array":
            assert "items" in node
        assert not ("properties" in node and "additionalProperties" in node)
        if "pattern" in node:
            assert isinstance(node["pattern"], str)
            re.compile(node["pattern"])
            assert "(?" not in node["pattern"], "RE2 knows no look-around"
            assert "\\Z" not in node["pattern"], "RE2 knows no \\Z"
        if "default" in node and "enum" in node:
            assert isinstance(node["enum"], list)
            assert node["default"] in node["enum"]


def test_ranges_defaults_aliases_and_required_fields_are_in_the_schema() -> None:
    port = schema("VPCService", "spec", "port")
    assert (port["minimum"], port["maximum"], port["type"]) == (1, 65535, "integer")
    assert schema("VPCService", "spec")["required"] == ["port"]
    protocol = schema("VPCService", "spec", "protocol")
    assert protocol["default"] == "HTTP"
    assert protocol["enum"] == ["HTTP", "HTTPS", "H2C", "GRPC", "TCP", "gRPC"]
    assert schema("VPCRoute", "spec", "destinations", "[]", "weight")["default"] == 100
    assert schema("VPCRoute", "spec", "retries", "retryOnStatus")["default"] == [502, 503, 504]
    assert schema("VPCRoute", "spec", "hostnames")["maxItems"] == 16
    assert schema("VPCIngress", "spec", "clientIP", "trustedHops")["minimum"] == 0


def test_a_status_has_no_defaults_so_that_a_server_adds_nothing_to_what_the_router_writes() -> None:
    for kind in OWN_KINDS:
        assert not [node for node in nodes(schema(kind.kind, "status")) if "default" in node]


@KINDS
@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_is_described_for_people(kind: ResourceKind, part: str) -> None:
    rows = list(field_rows(kind, part))
    assert rows
    assert [row.path for row in rows if not row.description] == []


def test_descriptions_say_what_kubectl_explain_does_not_show() -> None:
    weight = str(schema("VPCRoute", "spec", "destinations", "[]", "weight")["description"])
    assert weight.endswith("From 0 to 1000000. Default: 100.")
    interval = str(schema("VPCService", "spec", "connectTimeout")["description"])
    assert interval.endswith("Written as a duration such as 10s, 1m30s or 250ms. Default: 10s.")
    tunnel = str(schema("VPCService", "spec", "tunnel")["description"])
    assert "Not served yet: use vpcAttachmentRef or endpoints" in tunnel
    method = str(schema("VPCService", "spec", "discovery", "method")["description"])
    assert "dns not served yet: use kubernetes" in method


# --- what the API server prices rules by ------------------------------------------------------------------------


@KINDS
def test_whatever_is_written_is_bounded(kind: ResourceKind) -> None:
    """A rule over a text or list without bounds costs too much, and the CRD is refused."""
    for node in nodes(schema(kind.kind)):
        if node["type"] == "array":
            assert "maxItems" in node, node
            assert node["x-kubernetes-list-type"] in ("atomic", "map")
        elif "additionalProperties" in node:
            assert "maxProperties" in node, node
    for node in nodes(schema(kind.kind, "spec")):
        if node["type"] == "string":
            assert "maxLength" in node or "enum" in node, node
            assert "pattern" in node or "enum" in node, node


@KINDS
def test_a_crd_fits_into_the_annotation_of_kubectl_apply(kind: ResourceKind) -> None:
    assert len(msgspec.json.encode(crd(kind))) < 200 * 1024, (
        "kubectl apply keeps it in an annotation of at most 256 KiB"
    )


def test_conditions_are_bounded_by_name() -> None:
    assert schema("VPCRoute", "status", "conditions")["maxItems"] == MAX_CONDITIONS


# --- rules ------------------------------------------------------------------------------------------------------


def rules_of(kind: str, *names: str) -> list[Mapping[str, object]]:
    found = schema(kind, *names).get("x-kubernetes-validations", [])
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("struct", RULES, ids=lambda struct: struct.__name__)
def test_rules_name_fields_that_exist(struct: type[msgspec.Struct]) -> None:
    fields = struct.__struct_encode_fields__
    for rule in RULES[struct]:
        assert rule.on.removesuffix("[]") in (*fields, "")
        assert rule.field.partition(".")[0] in (*fields, "")
        assert not (rule.on and rule.field)


def test_messages_are_for_people() -> None:
    for rule in (rule for rules in RULES.values() for rule in rules):
        assert rule.message[0].islower() or rule.message.startswith(("ReplacePrefixMatch", "caCertificateRefs")), rule
        assert not rule.message.endswith("."), rule
        assert "self" not in rule.message, rule


def test_a_rule_stands_where_its_struct_does() -> None:
    (rule,) = rules_of("VPCRoute", "spec", "retries", "backoff")
    assert rule["fieldPath"] == ".initialMs"
    assert rules_of("VPCRoute", "spec", "matches", "[]") == rules_of("VPCRoute", "spec", "match")
    assert rules_of("VPCRoute", "spec", "hostnames") == []
    (host,) = rules_of("VPCRoute", "spec", "hostnames", "[]")
    assert "expected a host name" in str(host["message"])
    assert "reason" not in host


def test_what_is_not_served_is_refused_where_it_is_said() -> None:
    (whole,) = rules_of("VPCService", "spec", "tunnel")
    assert (whole["rule"], whole["reason"]) == ("false", "FieldValueForbidden")
    (default,) = rules_of("VPCEgress", "spec", "timeouts", "propagate")
    (value,) = rules_of("VPCService", "spec", "discovery", "method")
    assert value["rule"] == "!(self in [r'dns'])"
    assert default["rule"] == "self == false"
    (empty,) = rules_of("VPCEgress", "spec", "retries", "retryOn")
    assert empty["rule"] == "self.size() == 0"
    (only,) = rules_of("VPCRoute", "spec", "parentRefs", "[]", "kind")
    assert only["rule"] == "self == r'VPCIngress'"


def test_below_what_is_refused_as_a_whole_there_are_no_rules() -> None:
    assert rules_of("VPCEgress", "spec", "timeouts", "backendRequest")[0]["rule"] == "false"
    assert rules_of("VPCService", "spec", "tunnel")
    assert rules_of("VPCService", "spec", "tunnel", "endpointID") == []
    assert rules_of("VPCEgress", "spec", "timeouts", "connect")


def test_every_row_of_what_is_not_served_is_a_rule() -> None:
    for kind in OWN_KINDS:
        text = msgspec.json.encode(crd(kind)).decode()
        for entry in NOT_SERVED[kind.kind]:
            assert f"not served yet: {entry.hint}" in text


# --- columns ----------------------------------------------------------------------------------------------------


def test_conditions_are_columns_most_of_them_wide() -> None:
    columns = dig(crd(by_kind("VPCRoute")), "spec", "versions", 0, "additionalPrinterColumns")
    assert isinstance(columns, list)
    shown = {column["name"]: column for column in columns}
    assert shown["Programmed"]["jsonPath"] == '.status.conditions[?(@.type=="Programmed")].status'
    assert "priority" not in shown["Programmed"]
    assert shown["Accepted"]["priority"] == 1


@KINDS
def test_a_reference_page_names_every_field(kind: ResourceKind) -> None:
    page = reference_markdown(kind)
    for row in field_rows(kind):
        assert f"| `{row.path}` |" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": "plain text", "b": 1, "c": True, "d": None}, "a: plain text\nb: 1\nc: true\nd: null\n"),
        ({"a": ["x", {"b": 1, "c": ["z"]}], "e": {}, "f": []}, "a:\n- x\n- b: 1\n  c:\n  - z\ne: {}\nf: []\n"),
        ({"a": {"b": {"c": "d"}}}, "a:\n  b:\n    c: d\n"),
        (["on", "yes", "null", "1", "1e3", "", " x", "a: b", "a #b", "- x", "~"],
         '- "on"\n- "yes"\n- "null"\n- "1"\n- "1e3"\n- ""\n- " x"\n- "a: b"\n- "a #b"\n- "- x"\n- "~"\n'),
        ({"*": "é\n"}, '"*": "\\u00e9\\n"\n'),
        ([["a", "b"], ["c"]], "- - a\n  - b\n- - c\n"),
    ],
)  # fmt: skip
def test_yaml_is_written_so_that_every_reader_reads_the_same(value: object, text: str) -> None:
    assert dump(value) == text


def test_what_is_no_plain_data_is_not_written() -> None:
    with pytest.raises(TypeError, match="cannot write"):
        dump({"a": object()})


def test_generated_schemas_are_plain_data() -> None:
    for kind in OWN_KINDS:
        assert msgspec.json.decode(msgspec.json.encode(crd(kind))) == crd(kind)
