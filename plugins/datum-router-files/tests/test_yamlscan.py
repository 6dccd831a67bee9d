"""YAML text to values, lines and diagnostics."""

import json

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datum_router.compiler.diagnostics import Severity
from datum_router.manifests._walk import child
from datum_router.reasons import Reason
from datum_router_files.yamlscan import FileContent, YamlLimits, read_documents

ROUTE = b"""\
# a comment
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata:
  name: api-routes
spec:
  match:
    pathPrefix: /api/v1

    methods: [GET,
              POST]
  destinations:
    - vpcServiceRef:
        name: my-api
      weight: 100
    - vpcServiceRef: {name: other}
"""


def read(text: str | bytes, **options: object) -> FileContent:
    data = text.encode() if isinstance(text, str) else text
    return read_documents(data, file=str(options.pop("file", "a.yaml")), **options)  # type: ignore[arg-type]


def only_value(text: str) -> object:
    content = read(f"value: {text}\n")
    assert content.diagnostics == ()
    return content.documents[0].raw["value"]


def only_error(text: str | bytes, **options: object) -> str:
    content = read(text, **options)
    assert len(content.diagnostics) == 1
    assert content.diagnostics[0].severity is Severity.ERROR
    assert content.diagnostics[0].reason is Reason.INVALID_SYNTAX
    return content.diagnostics[0].render()


def test_every_field_knows_its_line() -> None:
    (document,) = read(ROUTE).documents
    lines = ROUTE.decode().splitlines()
    expected = {
        "apiVersion": "apiVersion:",
        "spec.match.pathPrefix": "pathPrefix:",
        "spec.match.methods": "methods:",
        "spec.match.methods[0]": "GET",
        "spec.match.methods[1]": "POST",
        "spec.destinations[0].vpcServiceRef.name": "my-api",
        "spec.destinations[0].weight": "weight",
        "spec.destinations[1]": "other",
        "spec.destinations[1].vpcServiceRef.name": "other",
    }
    assert document.origin.line == 2
    for path, text in expected.items():
        assert text in lines[document.origin.lines[path] - 1], path
    assert document.origin.locate("spec.destinations[0].weight.of.nothing") == 15


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("on", "on"),
        ("NO", "NO"),
        ("y", "y"),
        ("null", None),
        ("~", None),
        ("", None),
        ("8080", 8080),
        ("-5", -5),
        ("0", 0),
        ("0777", "0777"),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("10s", "10s"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("'8080'", "8080"),
        ('"true"', "true"),
        ("!!str 8080", "8080"),
        ("!!float 8080", 8080.0),
        ("9223372036854775807", 2**63 - 1),
        ("=", "="),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = only_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\t- b", "a.yaml:2: error: a tab stands where YAML allows only spaces (column 1)"),
        ("a:\n  - b\n \t- c", "a.yaml:3: error: a tab stands where YAML allows only spaces"),
        ("a: b: c", "a.yaml:1: error: a colon stands where no key can begin (column 5)"),
        ("a: 1\nb: 'x\nc: 2\n", "a.yaml:2: error: a quoted text is not closed (column 4)"),
        ("a: [1,\nb", "error: a list in brackets is not closed"),
        ("a: {b\n", "error: a mapping in braces is not closed"),
        ("a: [\n", "error: a list or mapping in brackets is not closed, or a value is missing in it"),
        ("- a\nb: c", "a.yaml:2: error: a list is followed by something"),
        ("a:\n  b: 1\n c: 2", "a.yaml:3: error: this line does not fit the indentation"),
        ("a: @x", "`@` cannot begin a value (column 4) [InvalidSyntax] (put the value in quotes)"),
        ("a:\n- *.b.c", "a.yaml:2: error: `*` begins a value, which YAML takes for an alias or anchor (column 4)"),
        (
            "a: [*]",
            "`*` begins a value, which YAML takes for an alias or anchor (column 6) [InvalidSyntax] (put the value",
        ),
        ("a: &.b", "`&` begins a value, which YAML takes for an alias or anchor"),
        ("a: {{ .Values.x }}", "render a template first"),
        ("a: {{ .Values.x }\n", "render a template first"),
        ("a: {{ .Values.x\n", "render a template first"),
        ("- a", "found a list, expected an object with apiVersion, kind and metadata"),
        ("text", "found a single value, expected an object"),
        ("a: *b", "a.yaml:1: error: alias *b names no anchor above it"),
        ("a: &b\n  c: *b", "a.yaml:2: error: alias *b stands inside its own anchor"),
        ("a: 1\nb:\n  x: 1\n  y: 2\n  x: 3", "a.yaml:5: error: key `x` is given twice, in lines 3 and 5"),
        ("8080: x", "a key is the number 8080, expected text [InvalidSyntax] (put the key in quotes)"),
        ("true: x", "a key is the boolean true, expected text"),
        ("~: x", "a key is empty (null), expected text"),
        ("[a]: x", "a key is a list or a mapping, expected text"),
        ("a: !!binary aGk=", "tag !!binary is not supported"),
        ("a: !secret x", "tag !secret is not supported"),
        ("a: !!int x", "tag !!int stands before a value that is not of that type"),
        ("a: !!set {b}", "tag !!set is not supported here"),
        ("a: .nan", "a number cannot be written in JSON"),
        ("a: 1e999", "a number is too large"),
        ("a: 9223372036854775808", "an integer does not fit 64 bits"),
        ("a: " + "9" * 5000, "cannot be written in JSON as a 64-bit number"),
        ("<<: x", "`<<` takes a mapping or a list of mappings"),
        (b"a: 1\nb: \xff", "a.yaml:2: error: byte 0xff is not UTF-8"),
        (b"\xff\xfea\x00", "the file is UTF-16, expected UTF-8"),
        (b"a: 1\nb: \x00", "a.yaml:2: error: character U+0000 cannot stand in YAML"),
        ("kind: List\nitems: [1]", "items[0] of a List is not an object"),
    ],
)
def test_errors_name_line_and_remedy(text: str | bytes, message: str) -> None:
    assert message in only_error(text)


def test_documents_beside_a_bad_one_are_read() -> None:
    content = read("a: 1\n---\na: 2\na: 3\n---\na: 4\n")
    assert [document.raw for document in content.documents] == [{"a": 1}, {"a": 4}]
    assert [diagnostic.line for diagnostic in content.diagnostics] == [4]


def test_syntax_error_keeps_the_documents_before_it() -> None:
    content = read("a: 1\n---\na: [\n---\na: 4\n")
    assert [document.raw for document in content.documents] == [{"a": 1}]
    assert len(content.diagnostics) == 1


def test_empty_documents_are_skipped() -> None:
    content = read("---\n# nothing\n---\n...\n---\na: 1\n---\n")
    assert [document.raw for document in content.documents] == [{"a": 1}]
    assert content.diagnostics == ()
    assert read("") == FileContent()


def test_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert read(b"\xef\xbb\xbfa: 1").documents[0].raw == {"a": 1}


def test_list_items_become_documents_with_their_own_paths() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n- kind: A\n  spec:\n    x: 1\n"
    text += "- kind: BList\n  items:\n  - kind: C\n    y: [1]\n"
    content = read(text)
    assert [document.raw["kind"] for document in content.documents] == ["A", "C"]
    first, second = (document.origin for document in content.documents)
    assert (first.line, first.lines["spec.x"]) == (4, 6)
    assert (second.line, second.lines["y[0]"]) == (9, 10)


def test_merge_keys_yield_to_own_keys_and_to_earlier_mappings() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  <<: [*a, *b]\n  x: 3\n"
    assert read(text).documents[0].raw["c"] == {"x": 3, "y": 1, "z": 2}
    assert read('"<<": 1').documents[0].raw == {"<<": 1}


def test_aliases_repeat_values_within_a_bound() -> None:
    assert read("a: &a [1, 2]\nb: *a\n").documents[0].raw == {"a": [1, 2], "b": [1, 2]}
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    assert "aliases repeat more than 100000 values" in only_error(bomb)


def test_depth_is_bounded_also_through_aliases() -> None:
    limits = YamlLimits(max_depth=5)
    assert read("a: " + "[" * 4 + "]" * 4, limits=limits).diagnostics == ()
    assert "nested deeper than 5 levels" in only_error("a: " + "[" * 5 + "]" * 5, limits=limits)
    chain = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 5))
    assert "nested deeper than 5 levels" in only_error(chain, limits=limits)
    assert "nested deeper than 100 levels" in only_error("[" * 100_000)


def test_number_of_values_and_size_are_bounded() -> None:
    assert "more than 10 values in one file" in only_error("a: [" + "1," * 10 + "]", limits=YamlLimits(max_nodes=10))
    assert "more than 9 bytes" in only_error("a: 3456789", limits=YamlLimits(max_file_bytes=9))
    assert read("a: 3456789", limits=YamlLimits(max_file_bytes=10)).diagnostics == ()


def test_keys_that_are_no_names_are_quoted_in_paths_as_the_decoder_quotes_them() -> None:
    (document,) = read("metadata:\n  labels:\n    topology.datum.net/city-code: IAD\n    plain: x\n").documents
    assert document.origin.lines == {
        "metadata": 1,
        "metadata.labels": 2,
        "metadata.labels" + child("", "topology.datum.net/city-code"): 3,
        "metadata.labels.plain": 4,
    }


def test_long_keys_cannot_fill_memory_with_paths() -> None:
    key = "k" * 900
    text = f"{key}:\n  {key}:\n    a: 1\n"
    (document,) = read(text).documents
    assert document.raw == {key: {key: {"a": 1}}}
    assert max(map(len, document.origin.lines)) <= 1024
    assert document.origin.locate(f"{key}.{key}.a") == 1


def test_json_with_paired_escapes_is_read() -> None:
    value = {"a": "\U0001f600", "b": "\\ud83d", "c": [1, None, True, 1.5], "tab": "\t"}
    text = json.dumps(value, indent="\t")
    assert "\\ud83d\\ude00" in text
    (document,) = read(text, file="a.json").documents
    assert document.raw == value


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(value=st.dictionaries(st.text("abcdefgh", min_size=1, max_size=8), JSON_VALUES, min_size=1, max_size=4))
def test_what_json_writes_is_read_back(value: dict[str, object]) -> None:
    content = read(json.dumps(value), file="a.json")
    assert content.diagnostics == ()
    assert content.documents[0].raw == value


@settings(max_examples=200)
@given(data=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"a: &a\n  <<: *a")
@example(b"? *a")
@example(b"kind: List\nitems: []\n'items[x].y': 1")
def test_no_bytes_raise(data: bytes) -> None:
    content = read(data)
    for diagnostic in content.diagnostics:
        assert diagnostic.message
        assert 0 <= diagnostic.line <= data.count(b"\n") + data.count(b"\r") + data.count(b"\xe2\x80") + 2


FRAGMENTS = [
    *("a", "b: ", "- ", "\n", "  ", "\t", "[", "]", "{", "}", ",", "&x ", "*x ", "<<: ", "? ", "!!int ", "'", '"'),
    *("---\n", "|\n", "kind: List\n", "items:\n", "1"),
]


@settings(max_examples=200)
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=40))
def test_no_yaml_like_text_raises_and_good_text_agrees_with_the_reference_parser(parts: list[str]) -> None:
    text = "".join(parts)
    content = read(text)
    if not content.diagnostics and "items:" not in text:
        reference = list(yaml.load_all(text, Loader=yaml.CBaseLoader))
        assert len(content.documents) == len([value for value in reference if isinstance(value, dict)])
