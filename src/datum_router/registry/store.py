"""The manifest store: what is in force, out of everything that sources say.

Theory of operation. Each source has one claim on each object that it names; a later version of the source replaces an
earlier one. The object in force is that of the owner: the first source whose claim held a good manifest; it stays the
owner until it deletes the object. So a second source that names the same object changes nothing but is told so, and
takes over when the first lets go.

A version that is bad leaves the last good one of its source in force. A version whose content is what it was before
(the echo of our own status write, a comment in a file) changes nothing: `apply` names no change, and no view tells of
one in `changes`, so that nothing is compiled anew. Views give the latest such version all the same, so that who writes
statuses sees the generation, the version and the status that are there now. (An object in force has a mark that lasts
as long as its content; `changes` compares marks.) Whatever the order and repetition of events
that lead to one state of all sources, the view is the same, apart from who came first among several sources.

Views are immutable: the store copies a kind's table before it changes one that a view holds (`registry.bucket`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.manifests.decode import Decoded, decode, decode_json
from datum_router.manifests.meta import DEFAULT_NAMESPACE, ObjectKey, ObjectMeta
from datum_router.manifests.table import KindTable
from datum_router.plugins.protocols import Delete, Mark, Problems, SourceEvent, Synced, Upsert
from datum_router.reasons import Reason
from datum_router.registry.bucket import Bucket, Entry, IndexValue, Name, index_values, is_same

MAX_ANONYMOUS = 1000
"""Objects without a usable name whose diagnostics are kept; sources report most of them themselves."""


class StoreChange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one event changed: objects in force, and whether `diagnostics()` or places of objects differ.

    Attributes:
        is_refreshed: Nothing of what is in force, but views give another version of the event's object (in `get` or
            `refused`): its generation, say, or its status.
    """

    changed: frozenset[ObjectKey] = frozenset()
    diagnostics_changed: bool = False
    is_refreshed: bool = False


NO_CHANGE = StoreChange()

_MSGPACK = msgspec.msgpack.Encoder(order="deterministic")


_EMPTY = Bucket()


class _Claim:
    """What one source says of one object. `manifest`, `origin` and `mark` are the last good version's."""

    __slots__ = (
        "content",
        "diagnostics",
        "file",
        "fingerprint",
        "latest",
        "manifest",
        "mark",
        "origin",
        "refused",
        "status",
    )

    def __init__(self) -> None:
        self.fingerprint = b""  # of the latest version, whose text need not be kept; empty: unknown
        self.latest: Origin | None = None
        self.file = ""
        self.manifest: msgspec.Struct | None = None
        self.origin: Origin | None = None
        self.content: object = None
        self.mark: object = None
        self.refused: ObjectMeta | None = None  # of the latest version, if that is bad
        self.status: msgspec.Struct | None = None  # of the same
        self.diagnostics: tuple[Diagnostic, ...] = ()


class _Claims:
    """The claims on one object, in order of arrival, and whose is in force."""

    __slots__ = ("by_source", "owner")

    def __init__(self) -> None:
        self.by_source: dict[str, _Claim] = {}
        self.owner: str | None = None


class StoreView:
    """What is in force at one moment; never changes."""

    __slots__ = ("_buckets", "_diagnostics", "_refused", "_refused_statuses", "_skipped")

    def __init__(
        self,
        buckets: Mapping[str, Bucket],
        diagnostics: tuple[Diagnostic, ...],
        skipped: Mapping[str, int],
        refused: Mapping[ObjectKey, ObjectMeta],
        refused_statuses: Mapping[ObjectKey, msgspec.Struct],
    ) -> None:
        self._buckets = buckets
        self._diagnostics = diagnostics
        self._skipped = skipped
        self._refused = refused
        self._refused_statuses = refused_statuses

    def get(self, kind: str, namespace: str, name: str) -> msgspec.Struct | None:
        """Return the manifest in force, or None; of versions that are equal in content, the latest."""
        entry = self._buckets.get(kind, _EMPTY).entries.get((namespace, name))
        return None if entry is None else entry.manifest

    def list(self, kind: str) -> Sequence[msgspec.Struct]:
        """Return all manifests of a kind in order of namespace and name; O(1) but for the first call after a change."""
        return self._buckets.get(kind, _EMPTY).manifests()

    def select(self, kind: str, index: str, value: str) -> Sequence[msgspec.Struct]:
        """Return the manifests that an index of their kind has under a value, in order of namespace and name.

        O(manifests with that value) for the first call after a change of the kind, then O(1).

        Raises:
            LookupError: The kind has no such index; not noticed as long as no object of the kind is there.
        """
        bucket = self._buckets.get(kind)
        return () if bucket is None else bucket.select(index, value)

    def changes(self, since: StoreView | None) -> dict[str, dict[Name, frozenset[IndexValue]]]:
        """Return, by kind and name, what came, went or has another content than in an older view.

        Each comes with the values that indexes had it under before or have it under now. Objects that only moved in
        their file, or whose status or bookkeeping is all that differs, have not changed. O(changes) for the view
        before this one of the same store, else O(objects of kinds that were touched).
        """
        changed: dict[str, dict[Name, frozenset[IndexValue]]] = {}
        older: Mapping[str, Bucket] = {} if since is None else since._buckets
        for kind in self._buckets.keys() | older.keys():
            before, now = older.get(kind, _EMPTY), self._buckets.get(kind, _EMPTY)
            if before is now:
                continue
            old, new = before.entries, now.entries
            names = now.touched if now.base is before.mark else old.keys() | new.keys()
            differing = {
                name: _values(old.get(name)) | _values(new.get(name))
                for name in names
                if not is_same(old.get(name), new.get(name))
            }
            if differing:
                changed[kind] = differing
        return changed

    def origin(self, key: ObjectKey) -> Origin | None:
        """Return where the version in force of an object came from, or None."""
        entry = self._buckets.get(key.kind, _EMPTY).entries.get((key.namespace, key.name))
        return None if entry is None else entry.origin

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Return what is wrong with objects and files, in order of file and line."""
        return self._diagnostics

    def refused(self) -> Mapping[ObjectKey, ObjectMeta]:
        """Return the metadata of objects whose latest version is bad, of which an older one may be in force.

        Of an object of several sources, that of the source whose version is in force, else of the first.
        """
        return self._refused

    def status(self, key: ObjectKey) -> msgspec.Struct | None:
        """Return the status that the latest version of an object has, good or bad; None if it has none."""
        if key in self._refused:
            return self._refused_statuses.get(key)
        status = getattr(self.get(key.kind, key.namespace, key.name), "status", None)
        return status if isinstance(status, msgspec.Struct) else None

    def skipped(self) -> Mapping[str, int]:
        """Return how many objects of unknown kinds there are, by `apiVersion kind`."""
        return self._skipped


class Store:
    """Take events of sources, give views. Not thread-safe; pure.

    Args:
        seen: Given by one who wants to know of each object of which any version was taken in, or that went: gets the
            key, and is emptied by whoever gave it.
    """

    __slots__ = (
        "_buckets",
        "_claims",
        "_diagnostics",
        "_indexes",
        "_kinds",
        "_refused",
        "_refused_statuses",
        "_reports",
        "_seen",
        "_skipped",
    )

    def __init__(self, kinds: KindTable, *, seen: set[ObjectKey] | None = None) -> None:
        self._kinds = kinds
        self._seen = seen
        self._indexes = {row.kind: row.indexes for row in kinds if row.indexes}
        self._buckets: dict[str, Bucket] = {}
        self._claims: dict[ObjectKey, _Claims] = {}
        self._reports: dict[tuple[str, str, str], tuple[Diagnostic, ...]] = {}
        self._skipped: dict[tuple[str, ObjectKey], tuple[str, str]] = {}
        self._refused: dict[ObjectKey, ObjectMeta] = {}
        self._refused_statuses: dict[ObjectKey, msgspec.Struct] = {}
        self._diagnostics: tuple[Diagnostic, ...] | None = ()

    def spread_kinds(self) -> frozenset[str]:
        """Return the kinds with `ResourceKind.is_spread`."""
        return frozenset(row.kind for row in self._kinds if row.is_spread)

    def apply(self, event: SourceEvent) -> StoreChange:
        """Take one event and return what it changed. Never raises on what users wrote."""
        if isinstance(event, Upsert):
            return self._upsert(event)
        if isinstance(event, Delete):
            return self._delete(event)
        if isinstance(event, Problems):
            return self._problems(event)
        assert isinstance(event, Synced | Mark)
        return NO_CHANGE

    def view(self) -> StoreView:
        """Return what is in force now. Cheap: tables are shared until they change."""
        for bucket in self._buckets.values():
            bucket.is_shared = True
        if self._diagnostics is None:
            self._diagnostics = tuple(
                sorted(
                    (one for report in self._reports.values() for one in report),
                    key=lambda one: (one.file, one.line, one.object, one.path, one.reason, one.message),
                )
            )
        skipped: dict[str, int] = {}
        for api_version, _ in self._skipped.values():
            skipped[api_version] = skipped.get(api_version, 0) + 1
        return StoreView(
            dict(self._buckets), self._diagnostics, skipped, dict(self._refused), dict(self._refused_statuses)
        )

    # --- events ----------------------------------------------------------------------------------------------------

    def _upsert(self, event: Upsert) -> StoreChange:
        origin, raw = event.origin, event.raw
        fingerprint = b""  # versions of an API differ at least in their number: there is nothing to save
        if isinstance(raw, msgspec.Raw):
            api_version: object = event.api_version
            decoded = decode_json(raw, origin, self._kinds, api_version=event.api_version, kind=event.kind)
        else:
            fingerprint = _fingerprint(raw)
            known = self._claim_on(event, raw, fingerprint)
            if known is not None:
                before = known[2]
                if before.latest == origin:
                    return NO_CHANGE
                if before.manifest is not None and before.latest == before.origin and not before.diagnostics:
                    return self._move(*known, event)
            api_version = raw.get("apiVersion") if isinstance(raw, Mapping) else ""
            decoded = decode(raw, origin, self._kinds)
        key = decoded.key
        if key is None:
            return self._anonymous(event, decoded)
        if decoded.is_unknown_kind:
            name = f"{api_version} {key.kind}"
            self._skipped[event.source, key] = (name, origin.file)
            return StoreChange(
                diagnostics_changed=self._report(("skipped", event.source, _text(key)), decoded.diagnostics)
            )
        if self._seen is not None:
            self._seen.add(key)
        claims = self._claims.get(key)
        if claims is None:
            claims = self._claims[key] = _Claims()
        claim = claims.by_source.get(event.source)
        if claim is None:
            claim = claims.by_source[event.source] = _Claim()
        claim.fingerprint, claim.latest, claim.file = fingerprint, origin, origin.file
        claim.diagnostics = decoded.diagnostics
        claim.refused, claim.status = decoded.metadata, decoded.status
        is_changed = False
        is_moved = False
        if decoded.manifest is not None and decoded.kind is not None:
            content = decoded.kind.content_of(decoded.manifest)
            is_changed = claim.manifest is None or claim.content != content
            is_moved = claim.origin != origin
            claim.manifest, claim.origin, claim.content = decoded.manifest, origin, content
            if is_changed:
                claim.mark = object()
        elif claim.manifest is not None:
            claim.diagnostics = (*claim.diagnostics, _last_good(key, origin))
        owner_before = claims.owner
        owner_changed = self._elect(key, claims)
        if is_changed or is_moved or owner_changed or decoded.manifest is not None:
            self._put(key, claims)
        diagnostics_changed = self._report_object(key, claims)
        is_owner = claims.owner == event.source
        is_in_force = owner_changed or (is_changed and is_owner)
        return StoreChange(
            changed=frozenset({key}) if is_in_force else frozenset(),
            diagnostics_changed=diagnostics_changed or (is_moved and is_owner and owner_before is not None),
            is_refreshed=not is_in_force and (is_owner or claims.owner is None),
        )

    def _delete(self, event: Delete) -> StoreChange:
        key = event.key
        kind = self._kinds.named(key.kind)
        if key.namespace and kind is not None and not kind.namespaced:  # a source need not know which kinds have none
            is_meant = kind.is_scope_open and (key.namespace != DEFAULT_NAMESPACE or self._is_claimed(key, event))
            if not is_meant:
                key = ObjectKey(kind=key.kind, namespace="", name=key.name)
        skipped = self._skipped.get((event.source, event.key))
        diagnostics_changed = False
        if skipped is not None and (not event.file or event.file == skipped[1]):
            del self._skipped[event.source, event.key]
            diagnostics_changed = self._report(("skipped", event.source, _text(event.key)), ())
        claims = self._claims.get(key)
        claim = None if claims is None else claims.by_source.get(event.source)
        if claims is None or claim is None or (event.file and event.file != claim.file):
            return StoreChange(diagnostics_changed=diagnostics_changed)
        if self._seen is not None:
            self._seen.add(key)
        del claims.by_source[event.source]
        diagnostics_changed |= self._report(("object", event.source, _text(key)), ())
        owner_changed = self._elect(key, claims)
        if owner_changed:
            self._put(key, claims)
        diagnostics_changed |= self._report_object(key, claims)
        if not claims.by_source:
            del self._claims[key]
        return StoreChange(
            changed=frozenset({key}) if owner_changed else frozenset(), diagnostics_changed=diagnostics_changed
        )

    def _is_claimed(self, key: ObjectKey, event: Delete) -> bool:
        claims = self._claims.get(key)
        claim = None if claims is None else claims.by_source.get(event.source)
        return claim is not None and event.file in ("", claim.file)

    def _problems(self, event: Problems) -> StoreChange:
        is_changed = self._report(("scope", event.source, event.scope), event.diagnostics)
        if event.scope:
            prefix = f"{event.scope}:"
            for index in [item for item in self._reports if item[:2] == ("anonymous", event.source)]:
                if index[2].startswith(prefix):
                    is_changed |= self._report(index, ())
        return StoreChange(diagnostics_changed=is_changed)

    def _anonymous(self, event: Upsert, decoded: Decoded) -> StoreChange:
        if decoded.is_unknown_kind:
            return NO_CHANGE
        index = ("anonymous", event.source, f"{event.origin.file}:{event.origin.line}")
        count = sum(1 for item in self._reports if item[0] == "anonymous")
        if index not in self._reports and count >= MAX_ANONYMOUS:
            return NO_CHANGE
        return StoreChange(diagnostics_changed=self._report(index, decoded.diagnostics))

    def _claim_on(
        self, event: Upsert, raw: Mapping[str, object], fingerprint: bytes
    ) -> tuple[ObjectKey, _Claims, _Claim] | None:
        """Return the claim whose latest version has the very text of this event's, without decoding it."""
        metadata = raw.get("metadata") if fingerprint and isinstance(raw, dict) else None
        if not isinstance(metadata, dict):
            return None
        kind, namespace, name = raw.get("kind"), metadata.get("namespace", DEFAULT_NAMESPACE), metadata.get("name")
        if not isinstance(kind, str) or not isinstance(namespace, str) or not isinstance(name, str):
            return None
        key = ObjectKey(kind=kind, namespace=namespace, name=name)
        claims = self._claims.get(key)
        claim = None if claims is None else claims.by_source.get(event.source)
        if claims is None or claim is None or claim.fingerprint != fingerprint:
            return None
        return key, claims, claim

    def _move(self, key: ObjectKey, claims: _Claims, claim: _Claim, event: Upsert) -> StoreChange:
        """Take another place of a version that is good and was read before."""
        claim.latest = claim.origin = event.origin
        claim.file = event.origin.file
        is_owner = claims.owner == event.source
        if is_owner:
            self._put(key, claims)
        return StoreChange(diagnostics_changed=self._report_object(key, claims) or is_owner)

    # --- state -----------------------------------------------------------------------------------------------------

    def _elect(self, key: ObjectKey, claims: _Claims) -> bool:
        """Choose the owner; return whether another source's version, or none, is in force from now on."""
        before = claims.owner
        owner = claims.by_source.get(before) if before is not None else None
        if owner is not None and owner.manifest is not None:
            return False
        claims.owner = next((source for source, claim in claims.by_source.items() if claim.manifest is not None), None)
        return claims.owner != before

    def _put(self, key: ObjectKey, claims: _Claims) -> None:
        """Bring the table of a kind in line with the owner's claim."""
        indexes = self._indexes.get(key.kind, {})
        bucket = self._buckets.get(key.kind)
        if bucket is None:
            bucket = self._buckets[key.kind] = Bucket(indexes, base=_EMPTY.mark)
        elif bucket.is_shared:
            bucket = self._buckets[key.kind] = bucket.fork()
        owner = None if claims.owner is None else claims.by_source[claims.owner]
        entry = None
        if owner is not None and owner.manifest is not None and owner.origin is not None:
            values = index_values(owner.manifest, indexes)
            entry = Entry(manifest=owner.manifest, origin=owner.origin, mark=owner.mark, values=values)
        bucket.put((key.namespace, key.name), entry)

    def _report_object(self, key: ObjectKey, claims: _Claims) -> bool:
        """Bring the diagnostics of all claims on an object up to date; return whether any differ."""
        is_changed = False
        owner = None if claims.owner is None else claims.by_source.get(claims.owner)
        speaker = owner if owner is not None else next(iter(claims.by_source.values()), None)
        self._refused_statuses.pop(key, None)
        if speaker is not None and speaker.refused is not None:
            self._refused[key] = speaker.refused
            if speaker.status is not None:
                self._refused_statuses[key] = speaker.status
        elif self._refused:
            self._refused.pop(key, None)
        for source, claim in claims.by_source.items():
            found = claim.diagnostics
            if owner is not None and claim is not owner and claim.manifest is not None and claim.origin is not None:
                found = (*found, _duplicate(key, claim.origin, claims.owner or "", owner.origin))
            if found or self._reports:
                is_changed |= self._report(("object", source, _text(key)), found)
        return is_changed

    def _report(self, index: tuple[str, str, str], found: tuple[Diagnostic, ...]) -> bool:
        if self._reports.get(index, ()) == found:
            return False
        if found:
            self._reports[index] = found
        else:
            del self._reports[index]
        self._diagnostics = None
        return True


def _fingerprint(raw: object) -> bytes:
    """Return a hash that two texts share only if they decode alike; empty if there is none."""
    try:
        # MessagePack keeps apart what JSON would not: numbers and texts as keys, integers and floats.
        return hashlib.blake2b(_MSGPACK.encode(raw), digest_size=16).digest()
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return b""


def _values(entry: Entry | None) -> frozenset[IndexValue]:
    return frozenset() if entry is None else entry.values


def _text(key: ObjectKey) -> str:
    return f"{key.kind}/{key.namespace}/{key.name}"


def _last_good(key: ObjectKey, origin: Origin) -> Diagnostic:
    return Diagnostic(
        severity=Severity.INFO,
        object=str(key),
        reason=Reason.INVALID_VALUE,
        message="this version is not used; the last good version stays in force",
        file=origin.file,
        line=origin.line,
    )


def _duplicate(key: ObjectKey, origin: Origin, owner_source: str, owner: Origin | None) -> Diagnostic:
    where = f"source {owner_source}"
    if owner is not None and owner.file:
        where = f"{owner.file}:{owner.line}" if owner.line else owner.file
    return Diagnostic(
        severity=Severity.ERROR,
        object=str(key),
        reason=Reason.DUPLICATE_OBJECT,
        message=f"the object is also defined by {where}, which is used",
        hint="remove one of them",
        file=origin.file,
        line=origin.line,
    )
