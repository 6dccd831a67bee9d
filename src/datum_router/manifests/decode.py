"""From a raw mapping to a typed manifest, or to diagnostics that name everything that is wrong. Never raises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.manifests._walk import KNOWN_METADATA, MAX_PROBLEMS, METADATA_TEXT, Walker, json_type
from datum_router.manifests.meta import (
    DEFAULT_NAMESPACE,
    GROUP,
    MAX_NAME_CHARS,
    ObjectKey,
    ObjectMeta,
    is_name,
    is_namespace,
)
from datum_router.manifests.problem import Problem, shown
from datum_router.manifests.served import refusals
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.reasons import Reason

_METADATA = frozenset(ObjectMeta.__struct_encode_fields__) | KNOWN_METADATA
_JSON = msgspec.json.Encoder()
_PARTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TYPE_FIELDS = frozenset(("apiVersion", "kind"))
_CONVERT_PATH = re.compile(r" - at `\$\.?([^`]*)`\Z")


class Decoded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What became of one raw object.

    Attributes:
        manifest: Typed, valid and in canonical form; None if there are errors or the kind is unknown.
        key: None if the object cannot be told apart from others.
        metadata: Of an object whose kind is known and that is bad, so that it can be told: as much as is readable.
        status: Of the same, if its kind has one that is ours and it is readable: what it has been told already.
        is_unknown_kind: The kind is none of ours and none of a plugin's: to be counted and passed over.
    """

    manifest: msgspec.Struct | None = None
    key: ObjectKey | None = None
    kind: ResourceKind | None = None
    metadata: ObjectMeta | None = None
    status: msgspec.Struct | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    is_unknown_kind: bool = False


def decode(raw: Mapping[str, object], origin: Origin, kinds: KindTable) -> Decoded:
    """Return the typed manifest and everything that is wrong with it, each with JSON path and line.

    Problems of types and names are all reported together; rules between fields are looked at when there are none.
    """
    quick = _decode_plain(raw, kinds)
    return _decode_slowly(raw, origin, kinds) if quick is None else _checked(*quick, origin)


def decode_json(text: msgspec.Raw, origin: Origin, kinds: KindTable, *, api_version: str, kind: str) -> Decoded:
    """Return the same as `decode` does for the object that is written in JSON, in a third of the time.

    Args:
        api_version, kind: What the object is; what its text says of that counts for nothing. (Lists of an API server
            leave it out of their items, or name the form in which part of an object was asked for.)
    """
    quick = _decode_plain_json(text, api_version, kind, kinds)
    if quick is not None:
        return _checked(*quick, origin)
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        message = f"cannot be read as JSON: {shown(str(error))}"
        problem = Problem(path="", reason=Reason.INVALID_SYNTAX, message=message)
        return Decoded(diagnostics=_located([problem], _anonymous(origin), origin))
    named = {**raw, "apiVersion": api_version, "kind": kind} if isinstance(raw, dict) else raw
    return _decode_slowly(named, origin, kinds)


def _checked(manifest: msgspec.Struct, kind: ResourceKind, key: ObjectKey, origin: Origin) -> Decoded:
    checked, found = _check(manifest, kind)
    return Decoded(
        manifest=checked,
        key=key,
        kind=kind,
        metadata=getattr(manifest, "metadata", None) if checked is None else None,
        status=getattr(manifest, "status", None) if checked is None and kind.is_status_ours else None,
        diagnostics=_located(found, str(key), origin) if found else (),
    )


def _decode_slowly(raw: Mapping[str, object], origin: Origin, kinds: KindTable) -> Decoded:
    found_raw: object = raw
    if not isinstance(found_raw, Mapping):  # what a source promises is checked once, here
        message = f"found {json_type(found_raw)}, expected an object"
        problem = Problem(path="", reason=Reason.INVALID_SYNTAX, message=message)
        return Decoded(diagnostics=_located([problem], _anonymous(origin), origin))
    problems, key = _identify(raw, kinds)
    api_version, kind_name = raw.get("apiVersion"), raw.get("kind")
    if not isinstance(api_version, str) or not isinstance(kind_name, str) or key is None:
        name = _anonymous(origin) if key is None else str(key)
        if key is None and not problems:  # of an unknown kind without a name
            return Decoded(is_unknown_kind=True)
        return Decoded(key=key, diagnostics=_located(problems, name, origin))
    kind = kinds.get(api_version, kind_name)
    if kind is None:
        return _unknown_kind(api_version, key, origin, kinds)
    walker = Walker(refusals(kind.kind))
    walker.problems += problems
    body: dict[str, object] = dict(raw)
    status = body.pop("status", None) if kind.is_status_ours else None
    cleaned = walker.walk(body, kinds.type_of(kind), "")
    found = walker.problems
    if walker.is_cut:
        found.append(
            Problem(path="", reason=Reason.INVALID_VALUE, message=f"more than {MAX_PROBLEMS} problems, others left out")
        )
    manifest = None
    if not _is_bad(found) and isinstance(cleaned, dict):
        manifest, more = _convert(cleaned, status, kind, key)
        found += more
    if manifest is not None:
        manifest, more = _check(manifest, kind)
        found += more
    return Decoded(
        manifest=manifest,
        key=key,
        kind=kind,
        metadata=_readable(raw["metadata"], key) if manifest is None else None,
        status=_readable_status(status, kind) if manifest is None and status is not None else None,
        diagnostics=_located(found, str(key), origin),
    )


def _readable(metadata: object, key: ObjectKey) -> ObjectMeta:
    """Return the metadata of a bad object, or what its key says if that is what is bad."""
    try:
        found = msgspec.convert(metadata, ObjectMeta, strict=True)
    except (msgspec.ValidationError, RecursionError, UnicodeError, TypeError, ValueError):
        return ObjectMeta(name=key.name, namespace=key.namespace)
    return msgspec.structs.replace(found, namespace=key.namespace)


def _readable_status(status: object, kind: ResourceKind) -> msgspec.Struct | None:
    for field in msgspec.structs.fields(kind.struct):
        if field.name == "status":
            try:
                found = msgspec.convert(status, field.type, strict=True)
            except (msgspec.ValidationError, RecursionError, UnicodeError, TypeError, ValueError):
                return None
            return found if isinstance(found, msgspec.Struct) else None
    return None


def _decode_plain(raw: Mapping[str, object], kinds: KindTable) -> tuple[msgspec.Struct, ResourceKind, ObjectKey] | None:
    """Return the manifest of an object that msgspec alone can judge, None if the walk has to look at it.

    Nearly every object is fine, and msgspec finds that out twenty times faster than the walk does. What the walk
    reports or mends and msgspec would pass over shows in the object's JSON text: nulls, control characters, numbers
    beyond 64 bits and, by UnicodeEncodeError, lone surrogates; aliases show as an error unless they stand for plain
    text (`PlainText`). A false alarm costs time, nothing else.
    """
    if not isinstance(raw, dict):
        return None
    api_version, kind_name, metadata = raw.get("apiVersion"), raw.get("kind"), raw.get("metadata")
    if not (isinstance(api_version, str) and isinstance(kind_name, str) and isinstance(metadata, dict)):
        return None
    kind = kinds.get(api_version, kind_name)
    plain = None if kind is None else kinds.plain_text_of(kind)
    if kind is None or plain is None or not metadata.keys() <= _METADATA:
        return None
    name, given = metadata.get("name"), metadata.get("namespace", "")
    if not isinstance(name, str) or not isinstance(given, str):
        return None
    namespace = kind.namespace_of(given)
    if not is_name(name) or (namespace and not is_namespace(namespace)):
        return None
    is_said = namespace == metadata.get("namespace", DEFAULT_NAMESPACE)
    body = raw if is_said else {**raw, "metadata": {**metadata, "namespace": namespace}}
    status = None
    if kind.is_status_ours and "status" in body:
        body = dict(body)
        status = body.pop("status")
    try:
        if not plain.accepts(_JSON.encode(body)):
            return None
        if status is not None:
            body["status"] = status
        manifest = msgspec.convert(body, kind.struct, strict=True)
    except (msgspec.ValidationError, RecursionError, UnicodeError, TypeError, ValueError, OverflowError):
        return None
    return manifest, kind, ObjectKey(kind=kind_name, namespace=namespace, name=name)


def _decode_plain_json(
    text: msgspec.Raw, api_version: str, kind_name: str, kinds: KindTable
) -> tuple[msgspec.Struct, ResourceKind, ObjectKey] | None:
    """Return what `_decode_plain` does, for JSON text.

    The text is looked at part by part, since metadata is full of what the walk takes anyway: it says nothing of text in
    there, and tools keep JSON within JSON in annotations. What it does say of metadata shows in the names of fields and
    in numbers, and msgspec refuses the rest.
    """
    kind = kinds.get(api_version, kind_name)
    plain = None if kind is None else kinds.plain_text_of(kind)
    if kind is None or plain is None:
        return None
    try:
        parts = _PARTS.decode(text)
        metadata = parts.get("metadata")
        said = frozenset[str]() if metadata is None else _PARTS.decode(metadata).keys()
        if metadata is None or not said <= _METADATA:
            return None
        for name, part in parts.items():
            if name in _TYPE_FIELDS or (kind.is_status_ours and name == "status"):
                continue
            judge = METADATA_TEXT if name == "metadata" else plain
            if not judge.accepts(bytes(part)):
                return None
        # Of a name that is there twice the last one counts, so what stands at the end is what the object is.
        named = b'%b,"apiVersion":%b,"kind":%b}' % (
            bytes(text)[:-1],
            _JSON.encode(api_version),
            _JSON.encode(kind_name),
        )
        manifest = kinds.decoder_of(kind).decode(named)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    found = getattr(manifest, "metadata", None)
    if not isinstance(found, ObjectMeta):
        return None
    namespace = kind.namespace_of(found.namespace if "namespace" in said else "")
    if not is_name(found.name) or (namespace and not is_namespace(namespace)):
        return None
    if found.namespace != namespace:
        msgspec.structs.force_setattr(found, "namespace", namespace)  # nobody else has seen it yet
    return manifest, kind, ObjectKey(kind=kind_name, namespace=namespace, name=found.name)


def _is_bad(problems: Iterable[Problem]) -> bool:
    return any(problem.severity is Severity.ERROR for problem in problems)


def _identify(raw: Mapping[str, object], kinds: KindTable) -> tuple[list[Problem], ObjectKey | None]:
    """Return what is wrong with the fields that identify an object, and its key if it has one."""
    problems: list[Problem] = []
    for field in ("apiVersion", "kind"):
        value = raw.get(field)
        if value is None or value == "":
            problems.append(Problem(path=field, reason=Reason.MISSING_FIELD, message="the field is missing or empty"))
        elif not isinstance(value, str):
            problems.append(_not_text(field, value))
        elif len(value) > MAX_NAME_CHARS or not value.isprintable():
            problems.append(Problem(path=field, reason=Reason.INVALID_VALUE, message=f"found {shown(value)}"))
    if problems:
        return problems, None
    kind = kinds.get(str(raw["apiVersion"]), str(raw["kind"]))
    is_ours = kind is not None or str(raw["apiVersion"]).rpartition("/")[0] == GROUP
    metadata = raw.get("metadata")
    if not isinstance(metadata, Mapping):
        if is_ours:
            problems.append(
                Problem(
                    path="metadata",
                    reason=Reason.MISSING_FIELD if metadata is None else Reason.INVALID_VALUE,
                    message="the field is missing"
                    if metadata is None
                    else f"found {json_type(metadata)}, expected an object with a name",
                    hint="every object needs metadata.name",
                )
            )
        return problems, None
    name: object = metadata.get("name")
    namespace: object = metadata.get("namespace")
    if kind is not None and not kind.namespaced:
        namespace = (namespace or "") if kind.is_scope_open else ""
    elif namespace is None or namespace == "":
        namespace = DEFAULT_NAMESPACE
    if not isinstance(name, str) or name == "":
        if is_ours:
            missing = name is None or name == ""
            problems.append(
                Problem(
                    path="metadata.name",
                    reason=Reason.MISSING_FIELD,
                    message="the field is missing or empty",
                    hint="every object needs a name",
                )
                if missing
                else _not_text("metadata.name", name)
            )
        return problems, None
    if not isinstance(namespace, str):
        if is_ours:
            problems.append(_not_text("metadata.namespace", namespace))
        return problems, None
    if not is_name(name):
        problems.append(_bad_name("metadata.name", name, "a DNS-1123 name: lower-case letters, digits, - and ."))
    if namespace and not is_namespace(namespace):
        problems.append(
            _bad_name("metadata.namespace", namespace, "a DNS-1123 label: lower-case letters, digits and -")
        )
    if problems:
        return (problems if is_ours else []), None
    return [], ObjectKey(kind=str(raw["kind"]), namespace=namespace, name=name)


def _not_text(path: str, value: object) -> Problem:
    return Problem(
        path=path,
        reason=Reason.INVALID_VALUE,
        message=f"found {json_type(value)}, expected text",
        hint="put the value in quotes" if isinstance(value, bool | int | float) else "",
    )


def _bad_name(path: str, value: str, expected: str) -> Problem:
    return Problem(path=path, reason=Reason.INVALID_VALUE, message=f"found {shown(value)}, expected {expected}")


def _unknown_kind(api_version: str, key: ObjectKey, origin: Origin, kinds: KindTable) -> Decoded:
    hint = kinds.near_miss(api_version, key.kind)
    is_ours = api_version.rpartition("/")[0] == GROUP
    if not hint and not is_ours:
        return Decoded(key=key, is_unknown_kind=True)
    problem = Problem(
        path="apiVersion" if kinds.named(key.kind) is not None else "kind",
        reason=Reason.UNKNOWN_KIND,
        message=f"there is no kind {key.kind} in {shown(api_version)}" + ("" if is_ours else "; it is passed over"),
        hint=hint,
        severity=Severity.ERROR if is_ours else Severity.WARNING,
    )
    # An object of our group is not passed over: this version of it is bad.
    return Decoded(key=key, diagnostics=_located([problem], str(key), origin), is_unknown_kind=not is_ours)


def _convert(
    cleaned: dict[str, object], status: object, kind: ResourceKind, key: ObjectKey
) -> tuple[msgspec.Struct | None, list[Problem]]:
    metadata = cleaned.get("metadata")
    if isinstance(metadata, dict):
        metadata["namespace"] = key.namespace
    problems: list[Problem] = []
    if status is not None:
        try:
            return msgspec.convert({**cleaned, "status": status}, kind.struct, strict=True), problems
        except (msgspec.ValidationError, RecursionError, UnicodeError, TypeError, ValueError):
            pass  # either the status, which is written by us and only informs, or what follows finds it
    try:
        manifest = msgspec.convert(cleaned, kind.struct, strict=True)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _CONVERT_PATH.search(text)
        path = found.group(1) if found else ""
        return None, [Problem(path=path, reason=Reason.INVALID_VALUE, message=_lower(_CONVERT_PATH.sub("", text)))]
    except (RecursionError, UnicodeError, TypeError, ValueError) as error:
        return None, [Problem(path="", reason=Reason.INVALID_VALUE, message=f"cannot be decoded: {shown(str(error))}")]
    if status is not None:
        problems.append(
            Problem(
                path="status",
                reason=Reason.INVALID_VALUE,
                message="the status is not of a form that the router writes; it is passed over",
                severity=Severity.WARNING,
            )
        )
    return manifest, problems


def _check(manifest: msgspec.Struct, kind: ResourceKind) -> tuple[msgspec.Struct | None, list[Problem]]:
    problems: list[Problem] = []
    try:
        if kind.validate is not None:
            problems += kind.validate(manifest)
        if problems and _is_bad(problems):
            return None, problems
        return (manifest if kind.normalize is None else kind.normalize(manifest)), problems
    except Exception as error:  # noqa: BLE001 - a plugin's validator must not stop other objects from being read
        problems.append(
            Problem(
                path="",
                reason=Reason.PLUGIN_FAILED,
                message=f"the validator of {kind.kind} failed: {type(error).__name__}: {shown(str(error))}",
                hint="report it to the author of the plugin",
            )
        )
        return None, problems


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _anonymous(origin: Origin) -> str:
    return origin.file or f"an object of source {origin.source}"


def _located(problems: Iterable[Problem], name: str, origin: Origin) -> tuple[Diagnostic, ...]:
    return tuple(
        Diagnostic(
            severity=problem.severity,
            object=name,
            path=problem.path,
            reason=problem.reason,
            message=problem.message,
            hint=problem.hint,
            file=origin.file,
            line=origin.locate(problem.path),
        )
        for problem in problems
    )
