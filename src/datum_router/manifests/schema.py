"""CustomResourceDefinitions and reference pages, generated from the Structs that decode manifests.

The Structs are the only definition: `manifests/crds` and `docs/reference` are outputs of this module, and a test
compares them. Structural schema: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import msgspec.inspect as types
from msgspec import NODEFAULT, Struct
from msgspec.structs import replace

from datum_router.manifests._yaml_out import dump
from datum_router.manifests.cel import REASONS, CelRule, text, texts
from datum_router.manifests.cel_rules import RULES
from datum_router.manifests.meta import FIELD_TEXT_PATTERN
from datum_router.manifests.parts import LabelSelector
from datum_router.manifests.served import NOT_SERVED, ONLY_SERVED, NotServed
from datum_router.manifests.table import ResourceKind
from datum_router.reasons import Reason

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
            properties[name] = schema_of(fields[name].type, owner=kind.kind, path=name)
    version: dict[str, object] = {"name": kind.version, "served": True, "storage": True}
    if kind.columns:
        version["additionalPrinterColumns"] = [
            {"name": column.name, "type": column.type, "jsonPath": column.json_path}
            | ({"priority": 1} if column.is_wide else {})
            for column in kind.columns
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


def schema_of(kind: types.Type, *, owner: str = "", path: str = "") -> dict[str, object]:
    """Return the OpenAPI schema of a type, with the rules that hold where it stands.

    Args:
        owner: The kind whose `path` the type stands at: that decides what is not served. Empty: no kind's.
        path: JSON path with `[]` for items. What stands in a status has no defaults, no rules and no refusals.
    """
    return _Schema(owner, is_written_by_users=not path.startswith("status")).of(kind, path)


class _Schema:
    """Makes the schema of a spec or a status."""

    __slots__ = ("_is_spec", "_only", "_owner", "_refused")

    def __init__(self, owner: str, *, is_written_by_users: bool) -> None:
        self._owner = owner
        self._is_spec = is_written_by_users
        self._refused = {entry.path: entry for entry in NOT_SERVED.get(owner, ())} if is_written_by_users else {}
        self._only = {where: (value, hint) for where, value, hint in ONLY_SERVED.get(owner, ())}

    def of(
        self,
        kind: types.Type,
        path: str,
        *,
        field: types.Field | None = None,
        rules: Sequence[CelRule] = (),
        is_refused: bool = False,
    ) -> dict[str, object]:
        """Return the schema of a type at `path`.

        Args:
            field: The field that it is the type of, if it is no item of a list.
            rules: What the Struct around it says of this field or its items.
            is_refused: Whatever stands here is refused further up, so no rule is needed.
        """
        meta = _Meta(kind)
        bare = meta.bare
        schema: dict[str, object] = {}
        default = None if field is None or not self._is_spec else default_of(field)
        entry = self._refused.get(path)
        # Of a kind that is refused as a whole the rules are run all the same, since there would be none to see.
        is_hidden = is_refused or (entry is not None and not entry.values and path != "spec")
        description = _explained(meta, default, entry)
        if description:
            schema["description"] = description
        here = [rule for rule in rules if not rule.on.endswith("[]")]
        if isinstance(bare, types.StructType):
            schema |= self._object(bare, path, has_description=bool(description), is_refused=is_hidden)
            here += [rule for rule in self._rules(bare, is_refused=is_hidden) if not rule.on]
        elif isinstance(bare, types.VarTupleType | types.ListType):
            items = [replace(rule, on="") for rule in rules if rule.on.endswith("[]")]
            schema |= {"type": "array"} | _known(minItems=bare.min_length, maxItems=bare.max_length)
            if meta.list_map_keys:
                schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(meta.list_map_keys)}
            else:
                schema["x-kubernetes-list-type"] = "atomic"
            schema["items"] = self.of(bare.item_type, f"{path}[]", rules=items, is_refused=is_hidden)
        elif isinstance(bare, types.DictType):
            schema |= {"type": "object"} | _known(maxProperties=bare.max_length)
            if isinstance(bare.value_type, types.CustomType):  # of any form, which somebody else checks
                schema["x-kubernetes-preserve-unknown-fields"] = True
            else:
                schema["additionalProperties"] = self.of(bare.value_type, f"{path}{{}}", is_refused=is_hidden)
        else:
            schema |= _scalar(meta, is_text_checked=self._is_spec)
        if default is not None:
            schema["default"] = default
        here = [*self._served(path, entry, field), *([] if is_hidden else here)]
        if here and not is_refused:
            schema["x-kubernetes-validations"] = [_validation(rule) for rule in here]
        return schema

    def _object(
        self, kind: types.StructType, path: str, *, has_description: bool, is_refused: bool
    ) -> dict[str, object]:
        schema: dict[str, object] = {} if has_description else {"description": _summary(kind.cls)}
        schema["type"] = "object"
        if kind.cls is LabelSelector:  # as the selectors of Kubernetes' own kinds
            schema["x-kubernetes-map-type"] = "atomic"
        required = [field.encode_name for field in kind.fields if field.required]
        if required:
            schema["required"] = required
        rules = self._rules(kind, is_refused=is_refused)
        properties: dict[str, object] = {}
        for field in kind.fields:
            name = field.encode_name
            said = [rule for rule in rules if rule.on.removesuffix("[]") == name]
            properties[name] = self.of(field.type, f"{path}.{name}", field=field, rules=said, is_refused=is_refused)
        schema["properties"] = properties
        return schema

    def _rules(self, kind: types.StructType, *, is_refused: bool) -> Sequence[CelRule]:
        return () if is_refused or not self._is_spec else RULES.get(kind.cls, ())

    def _served(self, path: str, entry: NotServed | None, field: types.Field | None) -> Iterator[CelRule]:
        """Yield what is refused of a field, since nothing acts on it yet: the same as `find_not_served`."""
        name = path.rpartition(".")[2]
        if entry is not None and entry.values:
            rule, what = f"!(self in {texts(entry.values)})", " or ".join(entry.values)
        elif entry is not None:
            default = None if field is None else field.default
            if default == ():
                rule = "self.size() == 0"
            elif default is None or default is NODEFAULT:
                rule = "false"
            else:
                rule = f"self == {msgspec.json.encode(default).decode()}"
            what = f"kind {self._owner}" if path == "spec" else name
        if entry is not None:
            message = f"{what} is not served yet: {entry.hint}"
            yield CelRule(rule=rule, message=message, reason=Reason.NOT_SERVED)
        if path in self._only:
            served, hint = self._only[path]
            message = f"only {served} is served yet: {hint}"
            yield CelRule(rule=f"self == {text(served)}", message=message, reason=Reason.NOT_SERVED)


def _scalar(meta: _Meta, *, is_text_checked: bool) -> dict[str, object]:
    bare = meta.bare
    if isinstance(bare, types.EnumType):
        values = [str(member.value) for member in bare.cls]
        return {"type": "string", "enum": values + [alias for alias in meta.aliases if alias not in values]}
    if isinstance(bare, types.StrType):
        # Decoding refuses control characters in whatever users write.
        pattern = bare.pattern or (FIELD_TEXT_PATTERN if is_text_checked else None)
        return {"type": "string"} | _known(
            minLength=bare.min_length, maxLength=bare.max_length, pattern=pattern, format=meta.format
        )
    if isinstance(bare, types.IntType):
        is_small = bare.le is not None and bare.le < 2**31
        schema: dict[str, object] = {"type": "integer", "format": "int32" if is_small else "int64"}
        return schema | _known(minimum=bare.ge, maximum=bare.le)
    if isinstance(bare, types.BoolType):
        return {"type": "boolean"}
    if isinstance(bare, types.FloatType):
        return {"type": "number"}
    raise TypeError(f"no schema for {bare}")


def _validation(rule: CelRule) -> dict[str, object]:
    found: dict[str, object] = {"rule": rule.rule, "message": rule.message}
    if rule.field:
        found["fieldPath"] = f".{rule.field}"
    if rule.reason is not Reason.INVALID_VALUE:  # which is what the server says of itself
        found["reason"] = REASONS[rule.reason]
    return found


def _explained(meta: _Meta, default: object, entry: NotServed | None) -> str:
    """Return a description for `kubectl explain`, which shows neither ranges nor defaults."""
    words = [meta.description] if meta.description else []
    bare = meta.bare
    if isinstance(bare, types.IntType) and bare.ge is not None and bare.le is not None:
        words.append(f"From {bare.ge} to {bare.le}.")
    if meta.expected:
        words.append(f"Written as {meta.expected}.")
    if default is not None:
        words.append(f"Default: {_text(default)}.")
    if entry is not None:
        what = f"{' or '.join(entry.values)} not served yet" if entry.values else "Not served yet"
        words.append(f"{what}: {entry.hint}.")
    return " ".join(words)


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
        return "object" if isinstance(kind.value_type, types.CustomType) else "map of text"
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
    elif isinstance(bare, types.DictType):
        if bare.max_length is not None:
            words.append(f"at most {bare.max_length} entries")
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
