"""YAML text -> JSON values with the line of every field. Pure; never raises on any bytes.

Theory of operation. libyaml turns the text into events; values are built here from those events, one document at
a time, because the usual constructors do three things a router must not do: guess types by YAML 1.1 rules (`NO`
becomes false, `2024-01-01` a date, `1:30` a number), let a repeated key win silently, and expand aliases without
a bound. Building from events also keeps the depth of recursion ours, and gives each path its line for free.

Messages show keys, tags and anchors, never values: a value may be a secret.

Scalars follow the YAML 1.2 core schema (section 10.3.2): `true`, `True` and `TRUE` are booleans, and so for false;
`yes`, `no`, `on`, `off`, `y`, `n` stay text. kubectl reads those as booleans; here a boolean field refuses them with
a message, and a text field keeps them, so no value can mean one thing here and silently another in a cluster.
A number with a leading zero (`0777`) stays text for the same reason: YAML 1.1 and 1.2 disagree about it.

A document with an error yields a diagnostic and the others of the file are still read; an error of syntax ends the
file, and what stood before it is kept. The caller decides what that means for objects already in force.

A file without any error is read chunk by chunk, from `---` to `---`, and chunks that an earlier content had are not
parsed again. A file with an error is read as a whole, so that messages and lines are those of the whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import NoReturn

import msgspec
import yaml

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.manifests.problem import shown
from datum_router.reasons import Reason
from datum_router_files.documents import Chunk, Document, FileContent, split
from datum_router_files.explain import MAX_DEPTH, DocumentError, FileError, explain

MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_NODES = 1_000_000
MAX_ALIASED_NODES = 100_000
MAX_PATH_CHARACTERS = 1024
"""Length of one JSON path whose line is remembered; a longer one has the line of its parent."""
MAX_ALL_PATH_CHARACTERS = 64 * 1024 * 1024
"""Length of all remembered paths of one file, which bounds the memory that long keys can take."""
_SHOWN_CHARACTERS = 80

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")
_LONG_INTEGER = re.compile(r"[-+]?[1-9][0-9]{19,}")
_RADIX = re.compile(r"0o[0-7]{1,21}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_JSON_NUMBER = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# What YAML refuses in a stream (YAML 1.2 section 5.1, c-printable), found by us so that the message has a line.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ufeff\ue000-\ufffd\U00010000-\U0010ffff]")
# JSON writes characters beyond the first plane as two \u escapes (RFC 8259 section 7), YAML as one \U escape.
_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_INDEX = re.compile(r"[0-9]{1,9}")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML without libyaml is slower and gives the same events
_TAG = "tag:yaml.org,2002:"


class YamlLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one file.

    Attributes:
        max_file_bytes: Size of the text.
        max_depth: Levels of nesting in one document.
        max_nodes: Scalars, lists and mappings in the whole file.
        max_aliased_nodes: Nodes that aliases and merge keys repeat, in the whole file ("billion laughs").
    """

    max_file_bytes: int = MAX_FILE_BYTES
    max_depth: int = MAX_DEPTH
    max_nodes: int = MAX_NODES
    max_aliased_nodes: int = MAX_ALIASED_NODES


def read_documents(
    data: bytes,
    *,
    file: str,
    source: str = "files",
    limits: YamlLimits | None = None,
    known: Mapping[bytes, Chunk] = {},
) -> FileContent:
    """Return the documents of one YAML or JSON file, and what is wrong with it.

    Empty documents are skipped and objects of `kind: List` (or `...List` with `items`) are given one by one, with
    paths and lines of their own. Work is linear in the size of `data`, times a bounded repetition by aliases.

    Args:
        data: The whole file; UTF-8, with or without byte order mark.
        file: Its name as a user would type it; `.json` also accepts JSON's paired `\\u` escapes.
        known: The chunks of an earlier content of the same file: what is in it unchanged is not parsed again.
    """
    limits = limits or YamlLimits()
    if len(data) <= limits.max_file_bytes:
        try:
            content = _read_chunks(data.removeprefix(b"\xef\xbb\xbf"), file, source, limits, known)
        except (FileError, yaml.YAMLError):
            content = None  # the whole file says what is wrong, and where
        if content is not None:
            return content
    return _read_whole(data, file, source, limits)


def _read_chunks(
    data: bytes, file: str, source: str, limits: YamlLimits, known: Mapping[bytes, Chunk]
) -> FileContent | None:
    """Return what a file without any error holds, None if it cannot be split or is over a limit."""
    parts = split(data)
    if parts is None:
        return None
    chunks: dict[bytes, Chunk] = {}
    documents: list[Document] = []
    shapes: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
    below = nodes = aliased = path_characters = 0
    for part in parts:
        digest = hashlib.blake2b(part, digest_size=16).digest()
        chunk = chunks.get(digest) or known.get(digest)
        if chunk is None:
            chunk = _read_chunk(bytes(part), below, file, source, limits, shapes)
        chunk = chunks[digest] = chunk.at(below)
        documents += chunk.documents
        below += chunk.breaks
        nodes += chunk.nodes
        aliased += chunk.aliased
        path_characters += chunk.path_characters
    if nodes > limits.max_nodes or aliased > limits.max_aliased_nodes or path_characters > MAX_ALL_PATH_CHARACTERS:
        return None
    return FileContent(documents=tuple(documents), chunks=chunks)


def _read_chunk(
    data: bytes,
    below: int,
    file: str,
    source: str,
    limits: YamlLimits,
    shapes: dict[tuple[tuple[str, int], ...], dict[str, int]],
) -> Chunk:
    """Parse one chunk; `shapes` lets documents of one shape share the lines of their paths."""
    reader = _reader(_decode(data, limits), file, limits)
    documents: list[Document] = []
    while (start := reader.next_document()) is not None:
        raw = reader.read_document()
        if raw is None:
            continue
        for item, lines, line in _expand(raw, reader.lines, _first_line(reader.lines, start)):
            shared = shapes.setdefault(tuple(lines.items()), lines)
            origin = Origin(source=source, file=file, line=line + below, lines=shared, below=below)
            documents.append(_document(item, origin, line))
    return Chunk(
        documents=tuple(documents),
        below=below,
        breaks=data.count(b"\n"),
        nodes=reader.nodes,
        aliased=reader.aliased,
        path_characters=reader.path_characters,
    )


def _read_whole(data: bytes, file: str, source: str, limits: YamlLimits) -> FileContent:
    documents: list[Document] = []
    diagnostics: list[Diagnostic] = []

    def report(error: FileError) -> None:
        diagnostics.append(
            Diagnostic(
                severity=Severity.ERROR,
                object=file,
                reason=Reason.INVALID_SYNTAX,
                message=error.message,
                hint=error.hint,
                file=file,
                line=error.line,
            )
        )

    try:
        reader = _reader(_decode(data, limits), file, limits)
        while (start := reader.next_document()) is not None:
            try:
                raw = reader.read_document()
            except DocumentError as error:
                report(error)
                if not reader.skip_document():
                    break
                continue
            if raw is None:
                continue
            try:
                documents += [
                    _document(item, Origin(source=source, file=file, line=line, lines=lines), line)
                    for item, lines, line in _expand(raw, reader.lines, _first_line(reader.lines, start))
                ]
            except DocumentError as error:
                report(error)
    except FileError as error:
        report(error)
    except yaml.YAMLError as error:
        report(explain(error, data))
    return FileContent(documents=tuple(documents), diagnostics=tuple(diagnostics))


def _reader(text: str, file: str, limits: YamlLimits) -> _Reader:
    if file.endswith(".json"):
        text = _SURROGATES.sub(_join_surrogates, text)
    return _Reader(_Events(iter(yaml.parse(text, Loader=_LOADER))), limits)


def _document(raw: dict[str, object], origin: Origin, line: int) -> Document:
    try:
        return Document(encoded=msgspec.json.encode(raw), origin=origin)
    except UnicodeEncodeError:
        raise DocumentError(line, "a text holds half of a surrogate pair", "remove the escape") from None


# --- text ----------------------------------------------------------------------------------------------------------


def _decode(data: bytes, limits: YamlLimits) -> str:
    if len(data) > limits.max_file_bytes:
        raise FileError(
            0, f"the file has more than {limits.max_file_bytes} bytes, the limit for one file", "split it into several"
        )
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FileError(1, "the file is UTF-16, expected UTF-8", "save it as UTF-8")
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileError(line, f"byte 0x{data[error.start]:02x} is not UTF-8", "save the file as UTF-8") from None
    bad = _UNPRINTABLE.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise FileError(line, f"character U+{ord(bad.group()):04X} cannot stand in YAML", "remove it")
    return text


def _join_surrogates(found: re.Match[str]) -> str:
    high, low = int(found[2], 16), int(found[3], 16)
    return f"{found[1]}\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"


# --- events -> values ------------------------------------------------------------------------------------------------


class _Events:
    """An iterator of libyaml events with one event of look-back for error positions."""

    __slots__ = ("_events", "last")

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self.last: yaml.Event | None = None

    def take(self) -> yaml.Event:
        self.last = next(self._events)
        return self.last


class _Anchored(msgspec.Struct, frozen=True):
    """A value that aliases may repeat: its size and its height count against the limits each time."""

    value: object
    nodes: int
    height: int


class _Reader:
    """Build the values of one file; `lines` belongs to the document read last."""

    __slots__ = ("_anchors", "_deepest", "_events", "_limits", "aliased", "lines", "nodes", "path_characters")

    def __init__(self, events: _Events, limits: YamlLimits) -> None:
        self._events = events
        self._limits = limits
        self.nodes = 0
        self.aliased = 0
        self._deepest = 0
        self.path_characters = 0
        self._anchors: dict[str, _Anchored | None] = {}
        self.lines: dict[str, int] = {}

    def next_document(self) -> int | None:
        """Return the line at which the next document starts, None after the last one."""
        while True:
            event = self._events.take()
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}
                self.lines = {}
                return _line(event)
            if isinstance(event, yaml.StreamEndEvent):
                return None

    def read_document(self) -> dict[str, object] | None:
        """Return the document's mapping, or None if it is empty."""
        event = self._events.take()
        value = self._node(event, "", 0)
        if value is None:
            return None
        if not isinstance(value, dict):
            found = "a list" if isinstance(value, list) else "a single value"
            raise DocumentError(
                _line(event),
                f"found {found}, expected an object with apiVersion, kind and metadata",
                "separate objects by a line with ---" if isinstance(value, list) else "",
            )
        return value

    def skip_document(self) -> bool:
        """Go on to the end of the current document; return False if the text ends in an error before it."""
        try:
            while not isinstance(self._events.last, yaml.DocumentEndEvent):
                self._events.take()
        except yaml.YAMLError:
            return False  # one error for one document is enough: the second is most often its consequence
        return True

    def _node(self, event: yaml.Event, path: str, depth: int) -> object:
        self.nodes += 1
        if self.nodes > self._limits.max_nodes:
            raise FileError(_line(event), f"more than {self._limits.max_nodes} values in one file", "split the file")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        assert isinstance(event, yaml.NodeEvent)  # the parser's grammar: what is no end is a node
        anchor: str | None = event.anchor
        before, deepest = self.nodes + self.aliased, self._deepest
        if anchor is not None:
            self._anchors[anchor] = None
            self._deepest = depth
        value: object
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        else:
            self._descend(depth + 1, event)
            if isinstance(event, yaml.MappingStartEvent):
                value = self._mapping(event, path, depth + 1)
            else:
                assert isinstance(event, yaml.SequenceStartEvent)
                value = self._sequence(event, path, depth + 1)
        if anchor is not None:
            nodes = self.nodes + self.aliased - before + 1
            self._anchors[anchor] = _Anchored(value, nodes, self._deepest - depth)
            self._deepest = max(deepest, self._deepest)
        return value

    def _descend(self, depth: int, event: yaml.Event) -> None:
        if depth > self._limits.max_depth:
            raise DocumentError(
                _line(event), f"nested deeper than {self._limits.max_depth} levels", "flatten the document"
            )
        self._deepest = max(self._deepest, depth)

    def _alias(self, event: yaml.AliasEvent, depth: int) -> object:
        name = event.anchor
        shown = (name or "")[:_SHOWN_CHARACTERS]
        if name not in self._anchors:
            raise DocumentError(_line(event), f"alias *{shown} names no anchor above it", f"define &{shown} before it")
        anchored = self._anchors[name]
        if anchored is None:
            raise DocumentError(_line(event), f"alias *{shown} stands inside its own anchor", "write the value out")
        self._repeat(anchored.nodes, event)
        self._descend(depth + anchored.height, event)
        return anchored.value

    def _repeat(self, nodes: int, event: yaml.Event) -> None:
        self.aliased += nodes
        if self.aliased > self._limits.max_aliased_nodes:
            raise FileError(
                _line(event),
                f"aliases repeat more than {self._limits.max_aliased_nodes} values",
                "write the values out, or split the file",
            )

    def _mark(self, path: str, step: str, event: yaml.Event) -> str:
        """Note the line of `path` + `step` and return that path; beyond the limits the parent stands for it."""
        if len(path) + len(step) > MAX_PATH_CHARACTERS or self.path_characters > MAX_ALL_PATH_CHARACTERS:
            return path
        below = path + step
        self.path_characters += len(below)
        self.lines[below] = _line(event)
        return below

    def _sequence(self, start: yaml.CollectionStartEvent, path: str, depth: int) -> list[object]:
        _plain_tag(start, "seq")
        items: list[object] = []
        while not isinstance(event := self._events.take(), yaml.SequenceEndEvent):
            below = self._mark(path, f"[{len(items)}]", event)
            items.append(self._node(event, below, depth))
        return items

    def _mapping(self, start: yaml.CollectionStartEvent, path: str, depth: int) -> dict[str, object]:
        _plain_tag(start, "map")
        found: dict[str, object] = {}
        key_lines: dict[str, int] = {}
        merged: list[tuple[object, yaml.Event]] = []
        while not isinstance(event := self._events.take(), yaml.MappingEndEvent):
            is_merge = isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]
            if is_merge:
                merged.append((self._node(self._events.take(), f"{path}.<<" if path else "<<", depth), event))
                continue
            key = self._key(event)
            line = _line(event)
            if key in key_lines:
                raise DocumentError(
                    line,
                    f"key `{key[:_SHOWN_CHARACTERS]}` is given twice, "
                    + (f"in line {line}" if key_lines[key] == line else f"in lines {key_lines[key]} and {line}"),
                    "remove one of them",
                )
            key_lines[key] = line
            below = self._mark(path, _step(path, key), event)
            found[key] = self._node(self._events.take(), below, depth)
        for value, where in merged:
            self._merge(found, value, path, where)
        return found

    def _key(self, event: yaml.Event) -> str:
        self.nodes += 1
        if isinstance(event, yaml.AliasEvent):
            key = self._alias(event, 0)
        elif isinstance(event, yaml.ScalarEvent):
            key = _scalar(event)
            if event.anchor is not None:
                self._anchors[event.anchor] = _Anchored(key, 1, 0)
        else:
            raise DocumentError(
                _line(event),
                "a key is a list or a mapping, expected text",
                "quote a value that begins with a brace; render a template first",
            )
        if not isinstance(key, str):
            shown = "empty (null)" if key is None else f"the number {key}"
            if isinstance(key, bool):
                shown = f"the boolean {str(key).lower()}"
            raise DocumentError(_line(event), f"a key is {shown}, expected text", "put the key in quotes")
        return key

    def _merge(self, into: dict[str, object], value: object, path: str, where: yaml.Event) -> None:
        # https://yaml.org/type/merge.html: keys of the mapping itself win, then earlier mappings over later ones.
        mappings = value if isinstance(value, list) else [value]
        for mapping in mappings:
            if not isinstance(mapping, dict):
                raise DocumentError(
                    _line(where), "`<<` takes a mapping or a list of mappings", 'write "<<" if a plain key is meant'
                )
            self._repeat(len(mapping), where)
            for key, item in mapping.items():
                if key not in into:
                    into[key] = item
                    self.lines.setdefault(path + _step(path, key), _line(where))


def _step(path: str, key: str) -> str:
    """Return what a key adds to a JSON path, spelled as `manifests.decode` spells it in diagnostics."""
    if _PLAIN_KEY.fullmatch(key):
        return f".{key}" if path else key
    return f"[{shown(key)}]"


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return int(mark.line) + 1 if mark is not None else 0


def _first_line(lines: Mapping[str, int], start: int) -> int:
    return next(iter(lines.values()), start)


def _plain_tag(event: yaml.CollectionStartEvent, expected: str) -> None:
    tag = event.tag
    if tag is not None and tag not in ("!", _TAG + expected):
        raise DocumentError(_line(event), f"tag {_shown_tag(tag)} is not supported here", "remove the tag")


def _shown_tag(tag: str) -> str:
    return ("!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag)[:_SHOWN_CHARACTERS]


def _scalar(event: yaml.ScalarEvent) -> object:
    text: str = event.value
    tag: str | None = event.tag
    if tag is None:
        return _plain(text, event) if event.implicit[0] else text
    if tag in ("!", _TAG + "str"):
        return text
    value = _plain(text, event)
    kind = tag.removeprefix(_TAG)
    fits = {
        "null": value is None,
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
    }
    if kind not in fits:
        _refuse(event, f"tag {_shown_tag(tag)} is not supported", "remove the tag, and quote the value if it is text")
    if not fits[kind]:
        _refuse(event, f"tag {_shown_tag(tag)} stands before a value that is not of that type", "remove the tag")
    return float(value) if kind == "float" and isinstance(value, int) else value


def _plain(text: str, event: yaml.ScalarEvent) -> object:
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if text[0] not in "+-.0123456789" or _LEADING_ZERO.fullmatch(text):
        return text
    if _INTEGER.fullmatch(text):
        return _fitting(int(text), event)
    if _RADIX.fullmatch(text):
        return _fitting(int(text[2:], 8 if text[1] == "o" else 16), event)
    if _LONG_INTEGER.fullmatch(text) or _NOT_JSON_NUMBER.fullmatch(text):
        _refuse(event, "a number cannot be written in JSON as a 64-bit number", "quote it if it is text")
    if _FLOAT.fullmatch(text):
        value = float(text)
        if value - value != 0.0:
            _refuse(event, "a number is too large for a 64-bit float", "quote it if it is text")
        return value
    return text


def _fitting(value: int, event: yaml.ScalarEvent) -> int:
    if not -(2**63) <= value < 2**63:
        _refuse(event, "an integer does not fit 64 bits", "quote it if it is text")
    return value


def _refuse(event: yaml.Event, message: str, hint: str) -> NoReturn:
    raise DocumentError(_line(event), message, hint)


# --- lists -----------------------------------------------------------------------------------------------------------


def _expand(
    raw: dict[str, object], lines: dict[str, int], line: int
) -> list[tuple[dict[str, object], dict[str, int], int]]:
    """Return the objects in a document: value, lines of paths, first line."""
    kind = raw.get("kind")
    items = raw.get("items")
    if not (isinstance(kind, str) and kind.endswith("List") and isinstance(items, list)):
        return [(raw, lines, line)]
    below: list[dict[str, int]] = [{} for _ in items]
    for path, at in lines.items():
        head, bracket, rest = path.partition("]")
        number = head.removeprefix("items[")
        # A key may itself look like a path, so the number is checked before it is believed.
        if bracket and rest and _INDEX.fullmatch(number) and int(number) < len(items):
            below[int(number)][rest.removeprefix(".")] = at
    found: list[tuple[dict[str, object], dict[str, int], int]] = []
    for index, item in enumerate(items):
        at = lines.get(f"items[{index}]", line)
        if not isinstance(item, dict):
            raise DocumentError(at, f"items[{index}] of a {kind} is not an object", "give every item a kind")
        found += _expand(item, below[index], at)
    return found
