"""Check raw data against a type and report everything that is wrong, where msgspec reports the first thing only.

Theory of operation. The walk follows the type information of a Struct, not the data, so its depth is the type's. It
returns the data as `msgspec.convert` will take it: aliases replaced by the names they stand for, and nulls of known
fields left out, as the API server prunes them. What it reports and what convert refuses must agree; convert has the
last word.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import msgspec.inspect as types
from msgspec import NODEFAULT, UNSET

from datum_router.compiler.diagnostics import Severity
from datum_router.manifests._hints import (
    bare,
    integer_range,
    likely_field,
    likely_value,
    listing,
    or_not_empty,
    suggestion,
    written_out,
)
from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.problem import Problem, shown
from datum_router.reasons import Reason

if TYPE_CHECKING:  # the kind table needs this module in every process, and not those tables
    from datum_router.manifests.served import NotServed

MAX_PROBLEMS = 100
"""Problems that are reported of one object; there is a note if there are more."""
MAX_PATH_CHARS = 256
MAX_GUESSES = 200
"""Unknown fields for which a known one is looked for, more than are reported: each takes 0.1 ms."""

_INDEX = re.compile(r"\[[0-9]+\]")
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

# What an API server adds to metadata, and what only it reads: passed over without a word.
KNOWN_METADATA = frozenset({"managedFields", "selfLink", "generateName", "deletionGracePeriodSeconds", "clusterName"})


def child(path: str, name: object) -> str:
    """Return the JSON path of a member, for example `spec.match` or `spec.labels["a/b"]`."""
    if isinstance(name, str) and _PLAIN_KEY.match(name):
        text = f"{path}.{name}" if path else name
    else:
        text = f"{path}[{shown(name)}]"
    return text if len(text) <= MAX_PATH_CHARS else f"{text[:MAX_PATH_CHARS]}..."


def json_type(value: object) -> str:
    """Return what a value is in the words of JSON, with the value itself if it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean {'true' if value else 'false'}"
    if isinstance(value, int):
        # The decimal form of a huge integer is refused by the interpreter.
        return f"integer {value}" if value.bit_length() <= 128 else "a huge integer"
    if isinstance(value, float):
        return f"number {value}"
    if isinstance(value, str):
        return f"text {shown(value)}"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return "a list"
    return f"a value of type {type(value).__name__}"


class Walker:
    """Collect the problems of one object.

    Args:
        refused: What is well-formed but not served, by path with `[]` for any item; hints do not recommend it.
    """

    __slots__ = ("_guesses", "_refused", "is_cut", "problems")

    def __init__(self, refused: Mapping[str, NotServed] = {}) -> None:
        self._refused = refused
        self._guesses = MAX_GUESSES
        self.problems: list[Problem] = []
        self.is_cut = False

    def report(
        self, path: str, reason: Reason, message: str, hint: str = "", severity: Severity = Severity.ERROR
    ) -> None:
        """Add a problem, unless there are too many."""
        if len(self.problems) >= MAX_PROBLEMS:
            self.is_cut = True
            return
        self.problems.append(Problem(path=path, reason=reason, message=message, hint=hint, severity=severity))

    def walk(
        self, value: object, kind: types.Type, path: str, *, is_strict: bool = False, extra: Mapping[str, object] = {}
    ) -> object:
        """Check `value` and return it cleaned; what is wrong comes back as it was.

        Args:
            is_strict: Text of what users write: no control characters but those of `is_lines`.
            extra: What the type says beside its type: `aliases`, `expected`, `is_lines` (its pattern says which control
                characters there may be); for hints `terms` (see `nearest`), `known` (names of an open set) and
                `suggest` (value -> what was probably meant, or nothing).
        """
        if isinstance(kind, types.Metadata):
            return self.walk(value, kind.type, path, is_strict=is_strict, extra=kind.extra or extra)
        if isinstance(kind, types.UnionType):
            return self._union(value, kind, path, is_strict, extra)
        if isinstance(kind, types.StructType):
            return self._struct(value, kind, path)
        if isinstance(kind, types.StrType):
            return self._text(value, kind, path, is_strict, extra)
        if isinstance(kind, types.EnumType):
            return self._enum(value, kind.cls, path, extra)
        if isinstance(kind, types.BoolType):
            if not isinstance(value, bool):
                hint = "remove the quotes" if isinstance(value, str) and value.lower() in ("true", "false") else ""
                self._wrong_type(value, path, "true or false", hint)
            return value
        if isinstance(kind, types.IntType):
            return self._integer(value, kind, path)
        if isinstance(kind, types.FloatType):
            if isinstance(value, bool) or not isinstance(value, int | float):
                self._wrong_type(value, path, "a number")
            return value
        if isinstance(kind, types.VarTupleType | types.ListType):
            return self._list(value, kind, path, is_strict)
        if isinstance(kind, types.DictType):
            return self._mapping(value, kind, path, is_strict)
        return value  # other types: msgspec.convert decides

    def _wrong_type(self, value: object, path: str, expected: str, hint: str = "") -> None:
        self.report(path, Reason.INVALID_VALUE, f"found {json_type(value)}, expected {expected}", hint)

    def _union(
        self, value: object, kind: types.UnionType, path: str, is_strict: bool, extra: Mapping[str, object]
    ) -> object:
        members = [member for member in kind.types if not isinstance(member, types.NoneType)]
        if value is None and len(members) < len(kind.types):
            return None
        if len(members) == 1:
            return self.walk(value, members[0], path, is_strict=is_strict, extra=extra)
        for member in members:
            trial = Walker(self._refused)
            cleaned = trial.walk(value, member, path, is_strict=is_strict, extra=extra)
            if not trial.problems:
                return cleaned
        words = " or ".join(type(bare(member)).__name__.removesuffix("Type").lower() for member in members)
        self._wrong_type(value, path, words)
        return value

    def _struct(self, value: object, kind: types.StructType, path: str) -> object:
        if not isinstance(value, Mapping):
            names = ", ".join(self._recommended([field.encode_name for field in kind.fields], path)[:3])
            hint = written_out(value, kind) if isinstance(value, str) else ""
            if hint:
                last = path.rpartition(".")[2]
                hint = f"write {hint}" if last.endswith("]") else f"write {last}: {hint}"
            self._wrong_type(value, path, f"an object with fields such as {names}" if names else "an object", hint)
            return value
        known = {field.encode_name: field for field in kind.fields}
        suspected: set[str] = set()
        is_strict = kind.forbid_unknown_fields
        if is_strict or kind.cls is ObjectMeta:
            for name in value:
                if name not in known:
                    suspected.add(self._unknown(name, known, value, path, is_metadata=not is_strict))
        cleaned: dict[str, object] = {}
        for name, field in known.items():
            member = value.get(name)
            if member is None:
                if field.required and name not in suspected:
                    where = child(path, name)
                    self.report(where, Reason.MISSING_FIELD, "the field is missing", self._expected(field.type, where))
                elif name in value and not field.required and field.default is NODEFAULT:
                    cleaned[name] = field.default_factory() if callable(field.default_factory) else UNSET
                continue
            cleaned[name] = self.walk(member, field.type, child(path, name), is_strict=is_strict)
        return cleaned

    def _unknown(
        self,
        name: object,
        known: Mapping[str, types.Field],
        value: Mapping[object, object],
        path: str,
        *,
        is_metadata: bool,
    ) -> str:
        """Report an unknown field; return the field that was probably meant."""
        if is_metadata and isinstance(name, str) and name in KNOWN_METADATA:
            return ""
        if not self._guesses:
            if not is_metadata:
                self.report(child(path, name), Reason.UNKNOWN_FIELD, "unknown field")
            return ""
        self._guesses -= 1
        meant = likely_field(name, known) if isinstance(name, str) and len(name) <= MAX_PATH_CHARS else ""
        if is_metadata:
            if meant and meant not in value:
                self.report(
                    child(path, name),
                    Reason.UNKNOWN_FIELD,
                    "unknown field",
                    f"did you mean {meant}?",
                    severity=Severity.WARNING,
                )
            return ""
        row = self._row(child(path, meant)) if meant else None
        if row is not None and not row.values:
            hint = f"{meant} is not served yet; {row.hint}"
        elif meant:
            hint = f"did you mean {meant}?"
        else:
            hint = listing(self._recommended(known, path))
        self.report(child(path, name), Reason.UNKNOWN_FIELD, "unknown field", hint)
        return meant.partition(".")[0]

    def _row(self, path: str) -> NotServed | None:
        return self._refused.get(_INDEX.sub("[]", path)) if self._refused else None

    def _recommended(self, names: Iterable[str], path: str) -> list[str]:
        """Return the names of fields at `path` without those that are refused whatever they say."""
        rows = {name: self._row(f"{path}.{name}" if path else name) for name in names}
        return [name for name, row in rows.items() if row is None or row.values]

    def _served(self, cls: type[enum.Enum], path: str) -> tuple[list[str], NotServed | None]:
        """Return the values of a closed set that may be recommended at `path`."""
        row = self._row(path)
        values = [str(member.value) for member in cls]
        return [value for value in values if row is None or value not in row.values], row

    def _expected(self, kind: types.Type, path: str) -> str:
        words = kind.extra.get("expected") if isinstance(kind, types.Metadata) and kind.extra else None
        plain = bare(kind)
        if isinstance(words, str):
            return f"it is {words}"
        if isinstance(plain, types.EnumType):
            return f"one of {', '.join(self._served(plain.cls, path)[0])}"
        return f"an integer{integer_range(plain)}" if isinstance(plain, types.IntType) else ""

    def _text(
        self, value: object, kind: types.StrType, path: str, is_strict: bool, extra: Mapping[str, object]
    ) -> object:
        expected = str(extra.get("expected", "text"))
        if not isinstance(value, str):
            hint = "put the value in quotes" if isinstance(value, bool | int | float) else ""
            self._wrong_type(value, path, expected, suggestion(value, extra) if "suggest" in extra else hint)
            return value
        aliases = extra.get("aliases")
        if isinstance(aliases, Mapping) and value in aliases:
            return aliases[value]
        if _SURROGATE.search(value):
            self.report(path, Reason.INVALID_VALUE, f"found {shown(value)}, which is no valid Unicode text")
        elif is_strict and "is_lines" not in extra and _CONTROL.search(value):
            self.report(path, Reason.INVALID_VALUE, f"found a control character in {shown(value)}, expected {expected}")
        elif kind.min_length is not None and len(value) < kind.min_length:
            self.report(path, Reason.INVALID_VALUE, f"found {shown(value)}, expected {or_not_empty(expected, kind)}")
        elif kind.max_length is not None and len(value) > kind.max_length:
            self.report(
                path,
                Reason.INVALID_VALUE,
                f"found {len(value)} characters, expected at most {kind.max_length}",
            )
        elif kind.pattern is not None and re.search(kind.pattern, value) is None:
            words = expected if "expected" in extra else f"text that matches {kind.pattern}"
            self.report(path, Reason.INVALID_VALUE, f"found {shown(value)}, expected {words}", suggestion(value, extra))
        return value

    def _enum(self, value: object, cls: type[enum.Enum], path: str, extra: Mapping[str, object]) -> object:
        known = [str(member.value) for member in cls]
        aliases = extra.get("aliases")
        if isinstance(value, str):
            if value in known:
                return value
            if isinstance(aliases, Mapping) and value in aliases:
                return aliases[value]
        served, row = self._served(cls, path)
        hint = ""
        if isinstance(value, str) and len(value) <= MAX_PATH_CHARS:
            # Among all of them: the nearest served one would be something else than what was meant.
            meant = likely_value(value, known, extra)
            hint = row.hint if row is not None and meant in row.values else f"did you mean {meant}?" if meant else ""
        elif isinstance(value, int | float):
            hint = "put the value in quotes"
        found = shown(value) if isinstance(value, str) else json_type(value)
        self.report(path, Reason.INVALID_VALUE, f"found {found}, expected one of {', '.join(served)}", hint)
        return value

    def _integer(self, value: object, kind: types.IntType, path: str) -> object:
        if isinstance(value, bool) or not isinstance(value, int):
            quoted = isinstance(value, str) and value.isascii() and value.isdigit()
            self._wrong_type(value, path, f"an integer{integer_range(kind)}", "remove the quotes" if quoted else "")
        elif (kind.ge is not None and value < kind.ge) or (kind.le is not None and value > kind.le):
            self._wrong_type(value, path, f"an integer{integer_range(kind)}")
        elif not -(2**63) <= value < 2**63:
            self._wrong_type(value, path, "an integer of at most 64 bits")
        return value

    def _list(
        self,
        value: object,
        kind: types.VarTupleType | types.ListType,
        path: str,
        is_strict: bool,
    ) -> object:
        if not isinstance(value, list | tuple):
            item = bare(kind.item_type)
            what = "a list of objects" if isinstance(item, types.StructType) else "a list"
            hint = "put `- ` in front of each item, or the value in [ ]"
            if isinstance(item, types.StructType) and isinstance(value, Mapping):
                names = self._recommended([field.encode_name for field in item.fields], f"{path}[]")
                hint = f"write a list of {{{', '.join(names)}}}"
            self._wrong_type(value, path, what, hint)
            return value
        if kind.max_length is not None and len(value) > kind.max_length:
            self.report(path, Reason.INVALID_VALUE, f"found {len(value)} items, expected at most {kind.max_length}")
            return value
        return [
            self.walk(item, kind.item_type, f"{path}[{index}]", is_strict=is_strict) for index, item in enumerate(value)
        ]

    def _mapping(self, value: object, kind: types.DictType, path: str, is_strict: bool) -> object:
        if not isinstance(value, Mapping):
            self._wrong_type(value, path, "an object of names and values")
            return value
        if kind.max_length is not None and len(value) > kind.max_length:
            self.report(path, Reason.INVALID_VALUE, f"found {len(value)} entries, expected at most {kind.max_length}")
            return value
        cleaned: dict[object, object] = {}
        for name, member in value.items():
            where = child(path, name)
            before = len(self.problems)
            self.walk(name, kind.key_type, where, is_strict=is_strict)
            if len(self.problems) > before:
                continue
            cleaned[name] = self.walk(member, kind.value_type, where, is_strict=is_strict)
        return cleaned


class PlainText(msgspec.Struct, frozen=True):
    """Tells from the JSON text of an object that the walk knows no more of it than msgspec.

    Attributes:
        words: What must not stand in it: nulls, escapes (control characters among them), DEL, aliases of plain text.
    """

    words: tuple[bytes, ...]

    def accepts(self, text: bytes) -> bool:
        """Tell whether the object can be left to msgspec; False may be a false alarm."""
        for word in self.words:
            if word in text:
                return False
        return _LONG_NUMBER not in text.translate(_DIGITS)


_DIGITS = bytes(0x30 if 0x30 <= octet <= 0x39 else octet for octet in range(256))
_LONG_NUMBER = (
    b"0" * 19
)  # what `_DIGITS` makes of a number that is perhaps beyond 64 bits; 20 times faster than a regex


METADATA_TEXT = PlainText(())
"""For metadata: text in there may be any, and only numbers can be what msgspec would pass over."""


def plain_text(kind: types.Type) -> PlainText | None:
    """Return how to recognise objects of a type that can be left to msgspec.

    None if that cannot be told from the text, and then every object of the kind takes the walk: there is a type that
    msgspec alone understands, or an `ObjectMeta` elsewhere than at `metadata`, where names that look misspelt are
    pointed out.
    """
    if not isinstance(kind, types.StructType):
        return None
    aliases: set[str] = set()
    for field in kind.fields:
        below = () if field.encode_name == "metadata" else (ObjectMeta,)
        if not _collect(field.type, aliases, seen=(kind.cls,), refused=below):
            return None
    return PlainText((b"null", b"\\", b"\x7f", *(msgspec.json.encode(alias) for alias in sorted(aliases))))


def _collect(kind: types.Type, aliases: set[str], *, seen: tuple[type, ...], refused: tuple[type, ...]) -> bool:
    """Add the aliases of plain text below `kind`, which msgspec takes as they are; False: a type is not understood."""
    if isinstance(kind, types.Metadata):
        aliases.update((kind.extra or {}).get("aliases", {}))
        return _collect(kind.type, aliases, seen=seen, refused=refused)
    if isinstance(kind, types.StructType):
        if kind.cls in refused:
            return False
        below = (*seen, kind.cls)
        return kind.cls in seen or all(
            _collect(field.type, aliases, seen=below, refused=(ObjectMeta,)) for field in kind.fields
        )
    if isinstance(kind, types.UnionType):
        return all(_collect(member, aliases, seen=seen, refused=refused) for member in kind.types)
    if isinstance(kind, types.VarTupleType | types.ListType):
        return _collect(kind.item_type, aliases, seen=seen, refused=refused)
    if isinstance(kind, types.DictType):
        return all(_collect(part, aliases, seen=seen, refused=refused) for part in (kind.key_type, kind.value_type))
    if isinstance(kind, types.CustomType):
        return kind.cls is object  # anything, such as the settings of a plugin: the walk passes it on as it is
    return isinstance(
        kind, types.StrType | types.EnumType | types.BoolType | types.IntType | types.FloatType | types.NoneType
    )


__all__ = [
    "KNOWN_METADATA",
    "MAX_PATH_CHARS",
    "MAX_PROBLEMS",
    "METADATA_TEXT",
    "PlainText",
    "Walker",
    "child",
    "json_type",
    "plain_text",
]
