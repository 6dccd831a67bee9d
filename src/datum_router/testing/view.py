"""A view of manifests that are given: what resolvers are tested with, without a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.table import ResourceKind
from datum_router.registry.bucket import Bucket, Entry, index_values


class FixedView:
    """A `ManifestView` of these manifests, which have `kind` and `metadata`.

    Args:
        kinds: Rows whose indexes `select` knows.
    """

    __slots__ = ("_buckets",)

    def __init__(self, *manifests: msgspec.Struct, kinds: Iterable[ResourceKind] = ()) -> None:
        indexes = {row.kind: row.indexes for row in kinds}
        self._buckets = {kind: Bucket(names) for kind, names in indexes.items()}
        for manifest in manifests:
            kind, meta = getattr(manifest, "kind", None), getattr(manifest, "metadata", None)
            assert isinstance(kind, str)
            assert isinstance(meta, ObjectMeta)
            bucket = self._buckets.setdefault(kind, Bucket())
            values = index_values(manifest, indexes.get(kind, {}))
            bucket.put(
                (meta.namespace, meta.name), Entry(manifest=manifest, origin=Origin(source="test"), values=values)
            )

    def get(self, kind: str, namespace: str, name: str) -> msgspec.Struct | None:
        """Return a manifest, or None."""
        bucket = self._buckets.get(kind)
        entry = None if bucket is None else bucket.entries.get((namespace, name))
        return None if entry is None else entry.manifest

    def list(self, kind: str) -> Sequence[msgspec.Struct]:
        """Return all manifests of a kind, sorted by namespace and name."""
        bucket = self._buckets.get(kind)
        return () if bucket is None else bucket.manifests()

    def select(self, kind: str, index: str, value: str) -> Sequence[msgspec.Struct]:
        """Return the manifests that an index has under a value, sorted by namespace and name."""
        bucket = self._buckets.get(kind)
        return () if bucket is None else bucket.select(index, value)
