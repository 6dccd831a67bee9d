"""CustomResourceDefinitions and reference pages, generated from the Structs that decode manifests.

The Structs are the only definition: `manifests/crds` and `docs/reference` are outputs of this module, and a test
compares them. Structural schema: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator, Mapping

import msgspec.inspect as types
from msgspec import NODEFAULT, Struct

from datum_router.manifests._yaml_out import dump
from datum_router.manifests.served import NOT_SERVED, ONLY_SERVED, NotServed
from datum_router.manifests.table import ResourceKind

CATEGORY = "datum"
"""`kubectl get datum` lists objects of all our kinds."""


def crd(kind: ResourceKind) -> dict[str, object]:
    """Return the CustomResourceDefinition (apiextensions.k8s.io/v1) of a kind as plain data."""
    root = types.type_info(kind.struct)
    assert isinstance(root, types.StructType)
    fields = {field.encode_name: field for field in root.fields}
    properties: dict[str, object] = {
        "apiVersion": {"type": "string", "description": "Version of the schema that this object is written in."},
        "kind": {"type": "string", "description": "Kind of this object."},
        "metadata": {"type": "object"},
    }
    for name in ("spec", "status"):
        if name in fields:
            properties[name] = schema_of(fields[name].type, with_defaults=name == "spec")
    version: dict[str, object] = {"name": kind.version, "served": True, "storage": True}
    if kind.columns:
        version["additionalPrinterColumns"] = [
            {"name": column.name, "type": column.type, "jsonPath": column.json_path} for column in kind.columns
        ]
    version["schema"] = {
        "openAPIV3Schema": {
            "description": _summary(kind.struct),
            "type": "object",
            "required": [name for name in ("spec",) if name in fields],
            "properties": properties,
        }
    }
    if "status" in fields:
        version["subresources"] = {"status": {}}
    names: dict[str, object] = {
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
        "plural": kind.plural,
        "singular": kind.kind.lower(),
        "categories": [CATEGORY],
    }
    if kind.short_names:
        names["shortNames"] = list(kind.short_names)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "names": names,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [version],
        },
    }


def crd_yaml(kind: ResourceKind) -> str:
    """Return the CustomResourceDefinition of a kind as YAML text; the same text for the same kind, always."""
    return f"# Generated from the type {kind.kind}; `datum-router schema {kind.kind}` writes it.\n" + dump(crd(kind))


def crd_file_name(kind: ResourceKind) -> str:
    """Return the name of the file under `manifests/crds`."""
    return f"{kind.group}_{kind.plural}.yaml"


# --- schema ----------------------------------------------------------------------------------------------------


def schema_of(kind: types.Type, *, with_defaults: bool = True) -> dict[str, object]:
    """Return the OpenAPI schema of a type: what a cluster accepts is what decoding accepts, aliases included."""
    meta = _Meta(kind)
    schema: dict[str, object] = {}
    bare = meta.bare
    if meta.description:
        schema["description"] = meta.description
    if isinstance(bare, types.StructType):
        schema |= _object(bare, with_defaults=with_defaults, has_description=bool(meta.description))
    elif isinstance(bare, types.EnumType):
        values = [str(member.value) for member in bare.cls]
        schema |= {"type": "string", "enum": values + [alias for alias in meta.aliases if alias not in values]}
    elif isinstance(bare, types.StrType):
        schema["type"] = "string"
        schema |= _known(minLength=bare.min_length, maxLength=bare.max_length, pattern=bare.pattern, format=meta.format)
    elif isinstance(bare, types.IntType):
        is_small = bare.le is not None and bare.le < 2**31
        schema |= {"type": "integer", "format": "int32" if is_small else "int64"}
        schema |= _known(minimum=bare.ge, maximum=bare.le)
    elif isinstance(bare, types.BoolType):
        schema["type"] = "boolean"
    elif isinstance(bare, types.FloatType):
        schema["type"] = "number"
    elif isinstance(bare, types.VarTupleType | types.ListType):
        schema["type"] = "array"
        schema |= _known(minItems=bare.min_length, maxItems=bare.max_length)
        if meta.list_map_keys:
            schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(meta.list_map_keys)}
        schema["items"] = schema_of(bare.item_type, with_defaults=with_defaults)
    elif isinstance(bare, types.DictType):
        schema |= {
            "type": "object",
            "additionalProperties": schema_of(bare.value_type, with_defaults=with_defaults),
        }
    else:
        raise TypeError(f"no schema for {bare}")
    return schema


def _object(kind: types.StructType, *, with_defaults: bool, has_description: bool) -> dict[str, object]:
    schema: dict[str, object] = {} if has_description else {"description": _summary(kind.cls)}
    schema["type"] = "object"
    required = [field.encode_name for field in kind.fields if field.required]
    if required:
        schema["required"] = required
    properties: dict[str, object] = {}
    for field in kind.fields:
        part = schema_of(field.type, with_defaults=with_defaults)
        default = default_of(field)
        if with_defaults and default is not None:
            part["default"] = default
        properties[field.encode_name] = part
    schema["properties"] = properties
    return schema


def default_of(field: types.Field) -> object:
    """Return the default of a field as plain data; None if an absent field says nothing."""
    default = field.default
    if default is NODEFAULT or default is None or default == () or isinstance(default, Struct):
        return None
    if isinstance(default, enum.Enum):
        return default.value
    return list(default) if isinstance(default, tuple) else default


def _known(**parts: object) -> dict[str, object]:
    return {name: value for name, value in parts.items() if value is not None}


def _summary(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n", 1)[0].replace("\n", " ")


class _Meta:
    """What stands around a type: description and extra, outside or inside of an `| None`."""

    __slots__ = ("aliases", "bare", "description", "expected", "format", "list_map_keys")

    def __init__(self, kind: types.Type) -> None:
        self.description = ""
        self.aliases: Mapping[str, str] = {}
        self.list_map_keys: tuple[str, ...] = ()
        self.format: str | None = None
        self.expected = ""
        while True:
            if isinstance(kind, types.Metadata):
                self._take(kind)
                kind = kind.type
            elif isinstance(kind, types.UnionType):
                members = [member for member in kind.types if not isinstance(member, types.NoneType)]
                if len(members) != 1:
                    raise TypeError(f"no structural schema for a union: {kind}")
                kind = members[0]
            else:
                break
        self.bare = kind

    def _take(self, kind: types.Metadata) -> None:
        extra = kind.extra or {}
        self.description = self.description or str((kind.extra_json_schema or {}).get("description", ""))
        self.aliases = self.aliases or extra.get("aliases", {})
        self.list_map_keys = self.list_map_keys or tuple(extra.get("list_map_keys", ()))
        self.format = self.format or extra.get("format")
        self.expected = self.expected or str(extra.get("expected", ""))


# --- reference pages -------------------------------------------------------------------------------------------


class FieldRow(Struct, frozen=True, kw_only=True):
    """One field of a spec or status: a row of a reference page.

    Attributes:
        path: JSON path with `[]` for items.
        type: In words, for people.
        rule: Ranges, values and patterns.
        not_served: What is refused of it; None if the field is served as a whole.
        is_leaf: False if fields of its own follow.
    """

    path: str
    type: str
    rule: str
    default: str
    description: str
    not_served: NotServed | None = None
    is_leaf: bool = True


def field_rows(kind: ResourceKind, part: str = "spec") -> Iterator[FieldRow]:
    """Yield every field below `part`, parents before their members."""
    root = types.type_info(kind.struct)
    assert isinstance(root, types.StructType)
    refused = {entry.path: entry for entry in NOT_SERVED.get(kind.kind, ())}
    for field in root.fields:
        if field.encode_name == part:
            bare = _Meta(field.type).bare
            assert isinstance(bare, types.StructType)
            yield from _rows(bare, part, refused, refused.get(part))


def _rows(
    kind: types.StructType, path: str, refused: Mapping[str, NotServed], above: NotServed | None
) -> Iterator[FieldRow]:
    for field in kind.fields:
        where = f"{path}.{field.encode_name}"
        meta = _Meta(field.type)
        entry = above or refused.get(where)
        inner = meta.bare
        if isinstance(inner, types.VarTupleType):
            inner = _Meta(inner.item_type).bare
        default = default_of(field)
        yield FieldRow(
            path=where,
            type=_type_words(meta.bare),
            rule=_rule_words(meta),
            default="required" if field.required else ("" if default is None else _text(default)),
            description=meta.description,
            not_served=entry,
            is_leaf=not isinstance(inner, types.StructType),
        )
        if isinstance(inner, types.StructType):
            below = where if meta.bare is inner else f"{where}[]"
            whole = entry if entry is not None and not entry.values else None
            yield from _rows(inner, below, refused, whole)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _type_words(kind: types.Type) -> str:
    if isinstance(kind, types.StructType):
        return "object"
    if isinstance(kind, types.VarTupleType):
        return f"list of {_type_words(_Meta(kind.item_type).bare)}"
    if isinstance(kind, types.DictType):
        return "map of text"
    if isinstance(kind, types.IntType):
        return "integer"
    return "true or false" if isinstance(kind, types.BoolType) else "text"


def _rule_words(meta: _Meta) -> str:
    bare = meta.bare
    words: list[str] = []
    if isinstance(bare, types.VarTupleType):
        if bare.max_length is not None:
            words.append(f"at most {bare.max_length} items")
        inner = _rule_words(_Meta(bare.item_type))
        if inner:
            words.append(f"each {inner}")
    elif isinstance(bare, types.EnumType):
        words.append("one of " + ", ".join(str(member.value) for member in bare.cls))
        words += [f"{alias} = {name}" for alias, name in meta.aliases.items()]
    elif isinstance(bare, types.IntType):
        if bare.ge is not None and bare.le is not None:
            words.append(f"{bare.ge} to {bare.le}")
        elif bare.ge is not None:
            words.append(f"at least {bare.ge}")
    elif isinstance(bare, types.StrType):
        if meta.expected:
            words.append(meta.expected)
        if bare.max_length is not None:
            words.append(f"at most {bare.max_length} characters")
    return "; ".join(words)


def reference_markdown(kind: ResourceKind) -> str:
    """Return the reference page of a kind: every field with type, rule, default, and whether it is served."""
    lines = [
        f"# {kind.kind}",
        "",
        "<!-- Generated from the types in src/datum_router/manifests; do not edit. -->",
        "",
        _summary(kind.struct),
        "",
        f"- apiVersion: `{kind.api_version}`",
        f"- plural: `{kind.plural}`, short: {', '.join(f'`{name}`' for name in kind.short_names) or 'none'}",
        f"- scope: {'namespaced' if kind.namespaced else 'cluster'}",
        "",
        "Unknown fields are refused. A field that is not served yet is refused, too, when it says something else than "
        "its default.",
        "",
        "## spec",
        "",
        "| field | type | rule | default | meaning | served |",
        "|---|---|---|---|---|---|",
    ]
    only = {path: (value, hint) for path, value, hint in ONLY_SERVED.get(kind.kind, ())}
    for row in field_rows(kind):
        lines.append(_markdown_row(row, _served_words(row, only.get(row.path))))
    lines += ["", "## status", "", "Written by the router; what is there when an object is read is passed over.", ""]
    lines += ["| field | type | meaning |", "|---|---|---|"]
    for row in field_rows(kind, "status"):
        lines.append(f"| `{row.path}` | {row.type} | {_cell(row.description)} |")
    return "\n".join(lines) + "\n"


def _served_words(row: FieldRow, only: tuple[str, str] | None) -> str:
    if only is not None:
        return f"only {only[0]}"
    entry = row.not_served
    if entry is None:
        return "yes"
    if entry.values:
        return f"not {', '.join(entry.values)}: {entry.hint}"
    return f"no: {entry.hint}"


def _markdown_row(row: FieldRow, served: str) -> str:
    cells = (row.type, row.rule, row.default, row.description, served)
    return f"| `{row.path}` | " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
