"""Which file an object is taken from, if several hold it.

Theory of operation. The first scan takes the first file in order of path, the same in every process. From then on the
file that is in force stays so until it lets the object go, wherever a second one comes from: what works is not replaced
by a slip. A file in doubt (being written, or gone for a moment) gives way to a file that has just got the object,
because that is what moving it looks like, but neither to one that was told before to hold a duplicate nor for good:
if it turns out to hold the object still, it is in force again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from datum_router.manifests.meta import ObjectKey
from datum_router_files.documents import Document

Identity = tuple[str, ObjectKey]
"""API group and key. Two groups may have kinds of one name (core and Knative `Service`): they are no duplicates."""
Documents = Mapping[Identity, Document]


class Duplicate(NamedTuple):
    """A document that is not used, and the one that is."""

    identity: Identity
    document: Document
    used: Document


class Holders:
    """Remembers, of objects that stand in several files, which file is in force and which were reported."""

    __slots__ = ("_owners", "_reported")

    def __init__(self) -> None:
        self._owners: dict[Identity, str] = {}
        self._reported: dict[Identity, set[str]] = {}

    def forget(self) -> None:
        """Learn that no object stands in two files."""
        self._owners.clear()
        self._reported.clear()

    def choose(
        self, certain: Mapping[str, Documents], doubtful: Mapping[str, Documents], in_force: Documents
    ) -> tuple[dict[Identity, Document], list[Duplicate]]:
        """Return the documents to be in force, and those of certain files that are not, both in order of path.

        Args:
            certain, doubtful: Documents by path of files, none of which is in both.
            in_force: What was chosen last.
        """
        sure, unsure = _by_identity(certain), _by_identity(doubtful)
        wanted: dict[Identity, Document] = {}
        duplicates: list[Duplicate] = []
        owners: dict[Identity, str] = {}
        reported: dict[Identity, set[str]] = {}
        for identity in (*sure, *(one for one in unsure if one not in sure)):
            paths, others = sure.get(identity, []), unsure.get(identity, [])
            if len(paths) + len(others) == 1:
                path = (paths or others)[0]
                wanted[identity] = (certain if paths else doubtful)[path][identity]
                continue
            before = in_force.get(identity)
            owner = self._owners.get(identity, "" if before is None else before.origin.file)
            told = self._reported.get(identity, set())
            fresh = [path for path in paths if path not in told]
            if owner in paths or (owner in others and not fresh):
                used = owner
            else:
                used = (fresh or paths or others)[0]
            document = wanted[identity] = (certain if used in paths else doubtful)[used][identity]
            owners[identity] = owner if owner in others else used
            losers = [path for path in paths if path != used]
            duplicates += [Duplicate(identity, certain[path][identity], document) for path in losers]
            reported[identity] = told.intersection(others).union(losers)
        self._owners, self._reported = owners, reported
        return wanted, duplicates


def _by_identity(files: Mapping[str, Documents]) -> dict[Identity, list[str]]:
    paths: dict[Identity, list[str]] = {}
    for path in sorted(files):
        for identity in files[path]:
            paths.setdefault(identity, []).append(path)
    return paths


def first_or_known(documents: Sequence[Document], known: Document | None) -> Document:
    """Return which of one file's documents for one object is used: the one that was before, else the first."""
    if known is None:
        return documents[0]
    return next((document for document in documents if document.encoded == known.encoded), documents[0])
