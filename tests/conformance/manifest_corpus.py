"""Good and bad manifests that every validator must agree on: `datum-router check` and the API server with our CRDs.

`manifests/good` holds objects that both take without an error. Each file of `manifests/bad` holds one object that both
refuse, and says in comments where:

    # expect: spec.match.headers.Host      the JSON paths that `datum-router check` names, separated by ", "
    # server: spec.match.headers           those that the API server names, if they are others

`manifests/offline-only` holds what the API server takes and only we refuse, each with the reason why. What only an API
server has an opinion on is not here: fields of metadata that it alone reads (finalizers, owners, times), unknown fields
of metadata and of a status, and whether a namespace exists.

The second half of this module makes bad objects out of good ones, one for each bound that a type has, so that no field
can be forgotten: `mutants`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import msgspec.inspect as types
import yaml

from datum_router.compiler.diagnostics import Origin, Severity
from datum_router.manifests.decode import Decoded, decode
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.table import KindTable, ResourceKind

Steps = tuple[str | int, ...]
"""Names of fields and indexes of items, from the object down."""
ROOT = Path(__file__).resolve().parent / "manifests"
TABLE = KindTable(OWN_KINDS)
PLURALS = {kind.kind: kind.plural for kind in OWN_KINDS}


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One object and what is to be said of it."""

    name: str
    raw: dict[str, object]
    expect: tuple[str, ...] = ()
    server: tuple[str, ...] = ()
    comment: str = ""

    @property
    def kind(self) -> str:
        """Return the kind of the object."""
        return str(self.raw["kind"])


def paths_in(text: str, word: str) -> tuple[str, ...]:
    """Return the paths that follow a word in the comments of a file."""
    found = re.search(rf"^# {word}: (.+)$", text, re.MULTILINE)
    return tuple(found[1].split(", ")) if found else ()


def cases(folder: str) -> list[Case]:
    """Return the cases of a folder, by name."""
    found = []
    for path in sorted((ROOT / folder).glob("*.yaml")):
        text = path.read_text()
        expect = paths_in(text, "expect")
        comment = " ".join(
            line[2:]
            for line in text.splitlines()
            if line.startswith("# ") and not re.match("# (expect|server): ", line)
        )
        found.append(
            Case(
                name=path.stem,
                raw=yaml.safe_load(text),
                expect=expect,
                server=paths_in(text, "server") or expect,
                comment=comment,
            )
        )
    assert found, folder
    return found


def judge(raw: dict[str, object]) -> tuple[Decoded, set[str]]:
    """Return what decoding makes of an object, and the paths of its errors."""
    decoded = decode(raw, Origin(source="corpus"), TABLE)
    return decoded, {item.path for item in decoded.diagnostics if item.severity is Severity.ERROR}


def is_at_or_above(path: str, others: Sequence[str]) -> bool:
    """Tell whether a path is one of others, or leads to one."""
    return any(other == path or other.startswith((f"{path}.", f"{path}[")) for other in others)


# --- what the types say, broken one by one ---------------------------------------------------------------------

MAX_COPIED_ITEMS = 300
"""Longer lists are not made: the object would be too large to be readable in a failure."""
_CANDIDATES = ("", " ", "no such thing!", "a b", "\x01", "é")


def mutants() -> Iterator[Case]:
    """Yield an object for each bound of each type of each field, which it breaks and nothing else does."""
    good = cases("good")
    for kind in OWN_KINDS:
        root = types.type_info(kind.struct)
        assert isinstance(root, types.StructType)
        spec = next(field for field in root.fields if field.encode_name == "spec")
        seen: set[str] = set()
        for path, place in _places(spec.type, ("spec",)):
            base = _base(kind, path, [case.raw for case in good if case.kind == kind.kind], place)
            for label, value in _broken(place, _get(base, path)):
                case = _mutant(kind, base, path, label, value)
                if case.name not in seen:
                    seen.add(case.name)
                    yield case


def _mutant(kind: ResourceKind, base: dict[str, object], path: Steps, label: str, value: object) -> Case:
    raw = copy.deepcopy(base)
    where = path
    if label == "unknown field":
        where = (*path, "zzz")
    elif label.startswith("missing "):
        where = (*path, label.removeprefix("missing "))
    _set(raw, path if label.startswith("missing ") else where, value)
    text = _path_text(where)
    raw["metadata"] = {"name": "mutant"}
    return Case(name=f"{kind.kind} {text} {label}", raw=raw, expect=(text,), server=(text,))


def _places(kind: types.Type, path: Steps) -> Iterator[tuple[Steps, types.Type]]:
    """Yield every place below a type, itself first: of lists the first item, of maps the values under key `k`."""
    bare = _bare(kind)
    yield path, kind
    if isinstance(bare, types.StructType):
        for field in bare.fields:
            yield from _places(field.type, (*path, field.encode_name))
    elif isinstance(bare, types.VarTupleType):
        yield from _places(bare.item_type, (*path, 0))
    elif isinstance(bare, types.DictType) and not isinstance(bare.value_type, types.CustomType):
        yield from _places(bare.value_type, (*path, "k"))


def _bare(kind: types.Type) -> types.Type:
    while True:
        if isinstance(kind, types.Metadata):
            kind = kind.type
        elif isinstance(kind, types.UnionType):
            (kind,) = (member for member in kind.types if not isinstance(member, types.NoneType))
        else:
            return kind


def _base(kind: ResourceKind, path: Steps, good: Sequence[dict[str, object]], place: types.Type) -> dict[str, object]:
    """Return a good object that has the path, or the first one with the path grafted on."""
    for raw in good:
        if _get(raw, path) is not None:
            return raw
    raw = copy.deepcopy(good[0]) if good else {"apiVersion": kind.api_version, "kind": kind.kind, "spec": {}}
    root = types.type_info(kind.struct)
    current: types.Type = root
    for index, step in enumerate(path):
        bare = _bare(current)
        if isinstance(bare, types.StructType):
            current = next(field.type for field in bare.fields if field.encode_name == step)
        elif isinstance(bare, types.VarTupleType):
            current = bare.item_type
        else:
            assert isinstance(bare, types.DictType)
            current = bare.value_type
        if _get(raw, path[: index + 1]) is None:
            _set(raw, path[: index + 1], _sample(current))
    return raw


def _sample(kind: types.Type) -> object:
    """Return a value that a type takes, as small as possible."""
    bare = _bare(kind)
    if isinstance(bare, types.StructType):
        return {field.encode_name: _sample(field.type) for field in bare.fields if field.required}
    if isinstance(bare, types.VarTupleType):
        return []
    if isinstance(bare, types.DictType):
        return {}
    if isinstance(bare, types.EnumType):
        return next(iter(bare.cls)).value
    if isinstance(bare, types.BoolType):
        return True
    if isinstance(bare, types.IntType):
        return bare.ge or 0
    assert isinstance(bare, types.StrType)
    samples = ("a", "1s", "h2", "a" * 64, "200", "GET", "SourceIP", "http")
    return next(text for text in samples if bare.pattern is None or re.search(bare.pattern, text))


def _broken(kind: types.Type, sample: object) -> Iterator[tuple[str, object]]:
    """Yield values that a type does not take, with what is wrong with them."""
    bare = _bare(kind)
    if isinstance(bare, types.StructType):
        assert isinstance(sample, dict)
        yield "text", "text"
        yield "unknown field", 1
        for field in bare.fields:
            if field.required:
                rest = {name: value for name, value in sample.items() if name != field.encode_name}
                yield f"missing {field.encode_name}", rest
    elif isinstance(bare, types.VarTupleType):
        yield "text", "text"
        if bare.max_length is not None and bare.max_length <= MAX_COPIED_ITEMS:
            item = sample[0] if isinstance(sample, list) and sample else _sample(bare.item_type)
            yield "too many", [item] * (bare.max_length + 1)
    elif isinstance(bare, types.DictType):
        yield "list", ["x"]
        if bare.max_length is not None:
            yield "too many", {f"k{n}": _sample(bare.value_type) for n in range(bare.max_length + 1)}
    elif isinstance(bare, types.EnumType):
        yield "no such value", "Nonsense"
        yield "number", 7
    elif isinstance(bare, types.BoolType):
        yield "text", "true"
    elif isinstance(bare, types.IntType):
        yield "text", "1"
        yield "fraction", 1.5
        if bare.ge is not None:
            yield "too low", bare.ge - 1
        if bare.le is not None:
            yield "too high", bare.le + 1
    else:
        assert isinstance(bare, types.StrType)
        yield "number", 7
        if bare.min_length:
            yield "empty", ""
        if bare.max_length is not None:
            yield "too long", "a" * (bare.max_length + 1)
        pattern = bare.pattern or r"^[^\x00-\x08\x0a-\x1f\x7f]*$"
        yield "other form", next(text for text in _CANDIDATES if re.search(pattern, text) is None)


def _get(raw: object, path: Steps) -> object:
    """Return what is at a path; None if nothing is. Any key stands for the key `k` of a map."""
    for step in path:
        if isinstance(step, int):
            if not isinstance(raw, list) or step >= len(raw):
                return None
            raw = raw[step]
        elif isinstance(raw, dict):
            raw = raw.get(step)
        else:
            return None
    return raw


def _set(raw: object, path: Steps, value: object) -> None:
    holder = _get(raw, path[:-1])
    last = path[-1]
    if isinstance(holder, list):
        assert isinstance(last, int)
        holder[last : last + 1] = [value]
    else:
        assert isinstance(holder, dict)
        holder[last] = value


def _path_text(path: Steps) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
