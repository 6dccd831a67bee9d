"""The table of kinds: which Struct an object decodes into, how it is checked, and what of it is content."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
import msgspec.inspect

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.errors import PluginLoadError
from datum_router.manifests._walk import PlainText, plain_text
from datum_router.manifests.meta import DEFAULT_NAMESPACE, GROUP, VERSION, GroupVersionKind
from datum_router.manifests.problem import Problem

MISSPELT_GROUP_RATIO = 0.8
"""How alike (0 to 1) a group must be to ours for one of our kinds in it to be taken for a slip of the pen."""


class PrinterColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of `kubectl get`.

    Attributes:
        is_wide: It is shown by `-o wide` only.
    """

    name: str
    type: str
    json_path: str
    is_wide: bool = False


class ResourceKind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of manifest. Several rows of one kind are its versions, the preferred one first.

    A source that asks an API follows the first of them and no other: all hold the same objects.

    Attributes:
        group: API group, empty for the core group.
        is_scope_open: Some versions of the CRD have its objects in namespaces, and others in none, so that what an
            object says counts. `namespaced` must be False.
        struct: Its type; `metadata` must be an `ObjectMeta`. Structs that forbid unknown fields get them reported.
        validate: Takes a manifest of that type and returns what a type cannot say; must not raise.
        normalize: Brings a valid manifest into canonical form, such as lower-case host names.
        content: What of a manifest counts as a change; by default all but the bookkeeping of the API server.
        is_status_ours: The status is written by the router: when read it is informative, and a bad one is dropped.
        is_optional: A cluster may lack the kind: then there are no objects of it, and a source looks for it again
            later instead of failing.
        is_metadata_only: Only metadata is read; a source asks an API for PartialObjectMetadata of it, and nothing but
            `apiVersion`, `kind` and `metadata` may be relied on in what it decodes.
        is_spread: What belongs together is spread over several objects of the kind, and moves between them: a change
            waits a moment for the others that belong to it, so that nothing is missing in between.
        indexes: By name of the index, what takes a manifest of this type and returns the values under which
            `ManifestView.select` finds it, few in number. Pure, must not raise, and may read nothing but what
            `content` holds. Rows of one kind (its versions) have the same indexes.
    """

    group: str
    version: str
    kind: str
    plural: str
    struct: type[msgspec.Struct]
    short_names: tuple[str, ...] = ()
    namespaced: bool = True
    is_scope_open: bool = False
    validate: Callable[..., Iterable[Problem]] | None = None
    normalize: Callable[..., msgspec.Struct] | None = None
    content: Callable[..., object] | None = None
    is_status_ours: bool = False
    is_optional: bool = False
    is_metadata_only: bool = False
    is_spread: bool = False
    indexes: Mapping[str, Callable[..., Iterable[str]]] = {}
    columns: tuple[PrinterColumn, ...] = ()

    @property
    def gvk(self) -> GroupVersionKind:
        """Return group, version and kind."""
        return GroupVersionKind(group=self.group, version=self.version, kind=self.kind)

    @property
    def api_version(self) -> str:
        """Return `group/version`, or the version alone for the core group."""
        return self.gvk.api_version

    def namespace_of(self, given: str) -> str:
        """Return the namespace of an object whose metadata names `given`, which is empty if they name none."""
        if self.namespaced:
            return given or DEFAULT_NAMESPACE
        return given if self.is_scope_open else ""

    def content_of(self, manifest: msgspec.Struct) -> object:
        """Return what is compared to find out whether an object changed."""
        return default_content(manifest) if self.content is None else self.content(manifest)


def default_content(manifest: msgspec.Struct) -> object:
    """Return all of a manifest but the metadata that the API server counts up by itself."""
    parts: list[object] = []
    for name in manifest.__struct_fields__:
        part = getattr(manifest, name)
        if name == "metadata":
            part = (part.labels, part.annotations, part.creation_timestamp, part.deletion_timestamp)
        parts.append(part)
    return tuple(parts)


class KindTable:
    """Look up kinds by `(apiVersion, kind)`; immutable, iterates over its rows in order."""

    __slots__ = ("_by_version", "_decoders", "_kinds", "_plain", "_types")

    def __init__(self, kinds: Sequence[ResourceKind]) -> None:
        """Take the rows.

        Raises:
            PluginLoadError: A kind is there twice, or two groups have a kind of one name, which keys could not
                tell apart.
        """
        self._kinds = tuple(kinds)
        self._by_version: dict[tuple[str, str], ResourceKind] = {}
        groups: dict[str, str] = {}
        for kind in self._kinds:
            index = (kind.api_version, kind.kind)
            if index in self._by_version:
                raise PluginLoadError(f"kind {kind.api_version} {kind.kind} is registered twice")
            if groups.setdefault(kind.kind, kind.group) != kind.group:
                raise PluginLoadError(
                    f"kind {kind.kind} is registered in group {groups[kind.kind] or 'core'!r} and in {kind.group!r}; "
                    "a kind's name must be unique"
                )
            self._by_version[index] = kind
        self._types: dict[tuple[str, str], msgspec.inspect.Type] = {}
        self._plain: dict[type[msgspec.Struct], PlainText | None] = {}
        self._decoders: dict[type[msgspec.Struct], msgspec.json.Decoder[msgspec.Struct]] = {}

    def __iter__(self) -> Iterator[ResourceKind]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __contains__(self, index: object) -> bool:
        return index in self._by_version

    def get(self, api_version: str, kind: str) -> ResourceKind | None:
        """Return the row of a kind, or None if it is unknown."""
        return self._by_version.get((api_version, kind))

    def named(self, kind: str) -> ResourceKind | None:
        """Return the first row with this kind's name, or None."""
        return next((row for row in self._kinds if row.kind == kind), None)

    def type_of(self, kind: ResourceKind) -> msgspec.inspect.Type:
        """Return the type information of a kind's Struct; made once per table."""
        index = (kind.api_version, kind.kind)
        found = self._types.get(index)
        if found is None:
            found = self._types[index] = msgspec.inspect.type_info(kind.struct)
        return found

    def plain_text_of(self, kind: ResourceKind) -> PlainText | None:
        """Return `plain_text` of a kind's type; made once per table."""
        if kind.struct not in self._plain:
            self._plain[kind.struct] = plain_text(self.type_of(kind))
        return self._plain[kind.struct]

    def decoder_of(self, kind: ResourceKind) -> msgspec.json.Decoder[msgspec.Struct]:
        """Return the decoder of JSON text of a kind; made once per table."""
        found = self._decoders.get(kind.struct)
        if found is None:
            found = self._decoders[kind.struct] = msgspec.json.Decoder(kind.struct)
        return found

    def near_miss(self, api_version: str, kind: str) -> str:
        """Return a hint for an unknown kind that was probably meant to be one of ours; empty for all others."""
        group, _, version = api_version.rpartition("/")
        ours = [row.kind for row in self._kinds if row.group == GROUP]
        versions = sorted({row.version for row in self._kinds if row.group == GROUP})
        if group == GROUP:
            if version not in versions:
                return f"use apiVersion {GROUP}/{versions[0]}" if versions else ""
            return did_you_mean(kind, ours) or (f"the kinds of {group} are {', '.join(ours)}" if ours else "")
        if kind in ours and difflib.SequenceMatcher(None, group, GROUP).ratio() >= MISSPELT_GROUP_RATIO:
            return f"did you mean apiVersion {GROUP}/{VERSION}?"
        return ""
