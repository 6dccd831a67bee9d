"""Words for what the walk finds: what a type expects, and what the author of a manifest probably meant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec.inspect as types

from datum_router.compiler.diagnostics import did_you_mean, fold, nearest
from datum_router.manifests.meta import SUBDOMAIN_PATTERN, is_name, is_namespace
from datum_router.manifests.terms import FIELD_TERMS

MAX_SUGGESTED_CHARS = 64
"""Longer texts are not compared with names: none of ours is that long."""
_MAX_LISTED = 12

_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {fold(term): fields for term, fields in FIELD_TERMS.items()}


def bare(kind: types.Type) -> types.Type:
    """Return a type without what stands around it."""
    while isinstance(kind, types.Metadata):
        kind = kind.type
    return kind


def integer_range(kind: types.IntType) -> str:
    """Return the bounds of an integer as words that follow `an integer`."""
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    if kind.ge is not None:
        return f" of at least {kind.ge}"
    return f" of at most {kind.le}" if kind.le is not None else ""


def or_not_empty(expected: str, kind: types.StrType) -> str:
    """Return what is expected of a text that is too short."""
    if expected == "text":
        return "text" if kind.min_length == 1 else f"at least {kind.min_length} characters"
    return expected


def listing(names: Sequence[str]) -> str:
    """Return the first names of fields."""
    if not names:
        return ""
    text = ", ".join(names[:_MAX_LISTED])
    return f"known fields: {text}, ..." if len(names) > _MAX_LISTED else f"known fields: {text}"


def likely_field(name: str, known: Collection[str]) -> str:
    """Return the field that an unknown one probably stands for, perhaps with one below it; empty if none is near."""
    wanted = fold(name)
    if wanted not in map(fold, known):
        for field in _FIELDS.get(wanted, ()):
            if field.partition(".")[0] in known:
                return field
    return nearest(name, known)


def likely_value(value: str, known: Sequence[str], extra: Mapping[str, object]) -> str:
    """Return the value of a set that another one probably stands for, by the `terms` of its type, too."""
    return nearest(value, known, _terms(extra))


def _terms(extra: Mapping[str, object]) -> Mapping[str, str]:
    terms = extra.get("terms")
    return terms if isinstance(terms, Mapping) else {}


def suggestion(value: object, extra: Mapping[str, object]) -> str:
    """Return a hint for a text, or what stands in its place, by the `suggest` or `known` of its type."""
    suggest, known = extra.get("suggest"), extra.get("known")
    if callable(suggest):
        meant = suggest(value)
        return f"write {meant}" if meant else ""
    if isinstance(known, Sequence) and isinstance(value, str) and len(value) <= MAX_SUGGESTED_CHARS:
        terms = _terms(extra)
        return did_you_mean(value, [*known, *terms.values()], terms)
    return ""


def written_out(value: str, kind: types.StructType) -> str:
    """Return a reference that was written as a bare name, or as namespace/name, in full; empty if it is none."""
    needed = [field for field in kind.fields if field.required]
    if len(needed) != 1:
        return ""
    (field,) = needed
    inner = bare(field.type)
    if isinstance(inner, types.StructType):
        below = written_out(value, inner)
        return f"{{{field.encode_name}: {below}}}" if below else ""
    if field.encode_name != "name" or not isinstance(inner, types.StrType) or inner.pattern != SUBDOMAIN_PATTERN:
        return ""
    namespace, slash, name = value.rpartition("/")
    if not is_name(name):
        return ""
    if not slash:
        return f"{{name: {name}}}"
    has_namespace = any(other.encode_name == "namespace" for other in kind.fields)
    return f"{{name: {name}, namespace: {namespace}}}" if has_namespace and is_namespace(namespace) else ""
