"""The manifest decoder, and the YAML reader before it.

Properties: nothing is raised, whatever the bytes; a manifest comes without errors or errors say why it did not; what is
said can be printed on one line of bounded length; deciding twice says the same and changes nothing; the documents of a
YAML file hold JSON types only, no deeper than allowed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.manifests.decode import decode
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.schema import field_rows
from datum_router.manifests.table import KindTable
from datum_router_files.yamlscan import YamlLimits, read_documents

TABLE = KindTable(OWN_KINDS)
ORIGIN = Origin(source="fuzz", file="f.yaml", line=1)
LIMITS = YamlLimits(max_file_bytes=4_096, max_depth=16, max_nodes=500, max_aliased_nodes=200)
LONGEST_MESSAGE = 1_000
MOST_PLACES = 2_000

_REPOSITORY = Path(__file__).resolve().parents[3]
EXAMPLES = [
    *sorted((_REPOSITORY / "manifests" / "examples").glob("*.yaml")),
    *sorted((_REPOSITORY / "demo" / "manifests").glob("*.yaml")),
]
_GOOD: list[object] = [
    document.raw for path in EXAMPLES for document in read_documents(path.read_bytes(), file=path.name).documents
]
_VALUES: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 80, 65_536, 2**63, 10**100, 0.5, float("nan"), float("inf"), "",
    "x",
    "/", "/a", "*", "*.a", "a.example",
    "10.0.0.1", "10.0.0.1/24", "fd00::1", "10s", "-1s", "GET", "\ud800", "a\r\nb", "\x00", "x" * 5_000, "200-299",
    "(a+)+$",
    [], {},    [None], [[]], {"": {}}, {"name": "x"}, ["x", "x"], [{}],
)  # fmt: skip

_FIELDS = sorted(
    {part.removesuffix("[]") for kind in OWN_KINDS for row in field_rows(kind) for part in row.path.split(".")}
)
WORDS = (
    *(b'"%s":' % name.encode() for name in _FIELDS),
    *(b'"%s"' % kind.kind.encode() for kind in OWN_KINDS),
    b'"router.datum.net/v1alpha1"', b"null", b"true", b"{}", b"[]", b'""', b"1e999", b"-1", b"18446744073709551616",
    b"\\ud800",
    b'"10s"', b'"10.0.0.1"', b'"*.a"', b'"/"',
)  # fmt: skip
YAML_WORDS = (
    *(b"%s: " % name.encode() for name in _FIELDS),
    b"---\n", b"...\n", b"- ", b"&a ", b"*a", b"<<: *a", b"<<: [*a, *a]", b"!!str ", b"!!binary ", b"!!set ", b"? ",
    b"|\n", b">-\n", b"{", b"}",
    b"[", b"]", b"'", b'"', b"\\uD800\\uDC00", b"\xef\xbb\xbf", b"\xff\xfe", b"%YAML 1.1\n", b"%TAG ! !\n",
    b"kind: List\nitems:\n", b"~", b".inf",
    b"0x10", b"0o7", b"1_0", b"2001-01-01", b"=", b"\t", b"\x00", b"\xc2\x85", b"\xe2\x80\xa8",
)  # fmt: skip


def check_json(data: bytes) -> None:
    """Check the decoder on any JSON value, or on a good manifest that `_edited` has spoilt."""
    if data[:1] != b"{" and len(data) > 1:
        _check_tree(_edited(data))
        return
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # a source hands over decoded trees only
    _check_tree(raw)


def _edited(program: bytes) -> object:
    """Return an example of this repository after edits: octet 0 chooses it, then each three octets are one edit.

    An edit names a place by number (two octets), and what to do with it: remove it, put a value there, give a
    neighbour another field's name, or put there what stands at another place.
    """
    raw = copy.deepcopy(_GOOD[program[0] % len(_GOOD)])
    for start in range(1, len(program) - 2, 3):
        places = list(_places(raw))
        if not places or len(places) > MOST_PLACES:
            break
        holder, key = places[(program[start] << 8 | program[start + 1]) % len(places)]
        what = program[start + 2]
        if what == 0:
            del holder[key]  # type: ignore[arg-type]  # a name for a mapping, an index for a list
        elif what < 64:
            holder[key] = copy.deepcopy(_VALUES[what % len(_VALUES)])  # type: ignore[index]
        elif what < 192 and isinstance(holder, dict):
            holder[_FIELDS[what % len(_FIELDS)]] = holder[key]  # type: ignore[index]
        else:
            other, other_key = places[what % len(places)]
            holder[key] = copy.deepcopy(other[other_key])  # type: ignore[index]
    return raw


def _places(part: object) -> Iterator[tuple[dict[str, object] | list[object], str | int]]:
    if isinstance(part, dict):
        for name in list(part):
            yield part, name
            yield from _places(part.get(name))
    elif isinstance(part, list):
        for index, value in enumerate(list(part)):
            yield part, index
            yield from _places(value)


def check_yaml(data: bytes) -> None:
    """Check the reader of YAML files, and the decoder on what it gives."""
    content = read_documents(data, file="f.yaml", limits=LIMITS)
    assert read_documents(data, file="f.yaml", limits=LIMITS) == content
    lines = data.count(b"\n") + data.count(b"\r") + data.count(b"\x85") + data.count(b"\xe2\x80") + 1
    for item in content.diagnostics:
        _check_diagnostic(item)
        assert 0 <= item.line <= lines + 1
    assert len(content.documents) <= LIMITS.max_nodes
    for document in content.documents:
        assert isinstance(document.raw, dict)
        assert _count(document.raw, LIMITS.max_depth + 1) <= LIMITS.max_nodes + LIMITS.max_aliased_nodes
        _check_tree(document.raw)


def _count(value: object, depth: int) -> int:
    assert depth >= 0, "deeper than allowed"
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        return 1 + sum(_count(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return 1 + sum(_count(item, depth - 1) for item in value)
    assert value is None or isinstance(value, str | int | float | bool)
    return 1


def _check_tree(raw: object) -> None:
    before = repr(raw)
    decoded = decode(raw, ORIGIN, TABLE)  # type: ignore[arg-type]  # a source that broke its promise
    assert decode(raw, ORIGIN, TABLE) == decoded  # type: ignore[arg-type]
    assert repr(raw) == before
    errors = [item for item in decoded.diagnostics if item.severity is Severity.ERROR]
    if decoded.manifest is not None:
        assert not errors
        assert decoded.key is not None
    elif not decoded.is_unknown_kind:
        assert errors
    for item in decoded.diagnostics:
        _check_diagnostic(item)
        assert item.line == 1


def _check_diagnostic(item: Diagnostic) -> None:
    item.render().encode()  # can be printed
    assert len(item.message) < LONGEST_MESSAGE
    assert item.message.splitlines() == [item.message]
    assert item.path.isprintable()
