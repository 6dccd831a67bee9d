"""A directory of manifests -> source events. `Scanner.scan()` is a function of the directory and of earlier scans.

Theory of operation. Each scan lists the directory and compares signatures; only files whose signature changed are
read, and only files whose bytes changed are parsed. Where the system tells which files have changed, only those are
looked at, and the next scan in turn looks at all. After reading, the directory is listed again: if anything moved
meanwhile the moved files are read again, so that one scan sees one state of all files, also across the swap of a
ConfigMap. What is to be in force is then computed from scratch out of all files and compared with what was emitted;
the difference is one batch. Nothing depends on which change was seen first.

What protects configuration that works:
- A file with an error keeps the objects it held; its good documents are used. So does one that misspells an object's
  kind or group, for that object (see `misspelt`).
- Content that has an error, or that lacks objects the file held, is believed only when two scans in a row read the
  same bytes, or after `max_hold_rounds` scans: a file that is being written looks exactly like that. Content that is
  good and loses nothing is used at once. A file that is gone is believed on the second scan, too: some editors
  rename the old file away before they write the new one.
- A directory that cannot be listed changes nothing.
- A signature can stay equal across two writes within one tick of the file system's clock, so bytes that were new are
  read once more by the next scan.

An object that stands in two files is taken from the one that is in force already, and by the first scan from the first
in order of path; the other one is reported. Objects of a file that is in doubt as above give way to ones that stand in
another file, without a report: that is what moving an object, or renaming a file, looks like (see `holder`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Mapping

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Severity, has_errors
from datum_router.errors import SourceError
from datum_router.manifests.meta import (
    API_VERSION,
    DEFAULT_NAMESPACE,
    GROUP,
    MAX_NAME_CHARS,
    MAX_NAMESPACE_CHARS,
    ObjectKey,
    is_name,
    is_namespace,
)
from datum_router.manifests.problem import shown
from datum_router.plugins.protocols import Delete, Problems, SourceEvent, Upsert
from datum_router.reasons import Reason
from datum_router_files.documents import Chunk, Document, FileContent
from datum_router_files.holder import Holders, Identity, first_or_known
from datum_router_files.listing import MAX_FILES, MAX_TOTAL_BYTES, Listing, Signature, list_files, relist
from datum_router_files.misspelt import misspelt, miswritten, still_in_force
from datum_router_files.yamlscan import YamlLimits, read_documents

MAX_REREADS = 5
RBAC_GROUP = "rbac.authorization.k8s.io"
_NAMES = {
    "metadata.name": (
        is_name,
        MAX_NAME_CHARS,
        "a DNS-1123 name: lower-case letters, digits, - and .",
    ),
    "metadata.namespace": (
        is_namespace,
        MAX_NAMESPACE_CHARS,
        "a DNS-1123 label: lower-case letters, digits and -",
    ),
}
MAX_HOLD_ROUNDS = 3
MAX_KIND_CHARACTERS = 253
"""Length of an `apiVersion` or a `kind`. An object with a longer one has no name that could be deleted again."""


class ScanLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one directory.

    Attributes:
        max_files, max_total_bytes: Files beyond these, in order of path, are reported and not read.
        max_rereads: How often one scan reads again what changed under its hands.
        max_hold_rounds: Scans after which content that looks unfinished is taken as it is.
    """

    max_files: int = MAX_FILES
    max_total_bytes: int = MAX_TOTAL_BYTES
    max_rereads: int = MAX_REREADS
    max_hold_rounds: int = MAX_HOLD_ROUNDS
    yaml: YamlLimits = YamlLimits()


class _File:
    """What is known of one file.

    `documents` are those in it, and those it held before it broke. `is_doubtful` while the file says otherwise or is
    gone, but has not yet said so twice; `is_missed` once it was gone at one scan that counts.
    """

    __slots__ = (
        "chunks",
        "diagnostics",
        "digest",
        "documents",
        "held_digest",
        "held_rounds",
        "is_doubtful",
        "is_missed",
        "is_settled",
        "signature",
    )

    def __init__(self) -> None:
        self.signature: Signature | None = None
        self.digest = b""
        self.is_settled = False
        self.held_digest = b""
        self.held_rounds = 0
        self.documents: dict[Identity, Document] = {}
        self.chunks: Mapping[bytes, Chunk] = {}
        self.is_doubtful = False
        self.is_missed = False
        self.diagnostics: tuple[Diagnostic, ...] = ()


_Touched = Callable[[], Collection[str] | None]
_Contents = dict[str, tuple[Signature, bytes | OSError]]


class Scanner:
    """Turn the state of a directory into events. Not thread-safe; `scan` blocks on the file system."""

    __slots__ = (
        "_emitted",
        "_files",
        "_holders",
        "_limits",
        "_list",
        "_listing",
        "_problems",
        "_read",
        "_root",
        "_shown",
        "_source",
        "_trouble",
    )

    def __init__(
        self,
        root: str,
        *,
        source: str = "files",
        limits: ScanLimits | None = None,
        list_root: Callable[[str, int, int], Listing] | None = None,
        read: Callable[[str, int], bytes] | None = None,
    ) -> None:
        """Prepare to scan `root`, a directory or one file.

        Args:
            list_root: Replaces the listing of the real file system, in tests.
            read: Replaces reading (path, at most so many bytes), in tests.
        """
        self._root = root
        self._source = source
        self._limits = limits or ScanLimits()
        self._list = list_root or _list_root
        self._read = read or read_regular_file
        self._files: dict[str, _File] | None = None
        self._listing: Listing | None = None
        self._emitted: dict[Identity, Document] = {}
        self._holders = Holders()
        # The documents of each file that are in force; None if some are not, because others take their place.
        self._shown: dict[str, dict[Identity, Document]] | None = None
        self._problems: dict[str, tuple[Diagnostic, ...]] = {}
        self._trouble: dict[str, tuple[Diagnostic, ...]] = {}

    def scan(
        self, *, is_full: bool = False, is_early: bool = False, touched: _Touched | None = None
    ) -> list[SourceEvent]:
        """Return what changed since the last scan as one batch; the first scan returns everything.

        Args:
            is_full: Return every object and problem again, besides the deletes of what is gone.
            is_early: The scan comes out of turn: what is in doubt stays so, since two scans a moment apart that see
                the same bytes prove nothing.
            touched: Returns the files that have changed since the last scan, up to the moment when it is asked;
                None: any may have. What it does not name is not looked at.

        Raises:
            SourceError: The directory is not there (or cannot be read) and no scan has succeeded yet.
        """
        is_first = self._files is None
        try:
            listing, contents = self._read_consistently(touched)
        except OSError as error:
            if is_first:
                raise SourceError(_explain_root(self._root, error), reason=Reason.SOURCE_FAILED) from error
            self._listing = None
            self._trouble = {self._root: (self._root_problem(error),)}
            return self._diff(is_full=is_full)
        if self._files is None:
            self._files = {}
        has_changed = is_first or is_full
        for path, (signature, data) in contents.items():
            file = self._files.setdefault(path, _File())
            has_changed |= self._take(file, path, signature, data, is_first=is_first, is_early=is_early)
        has_changed |= self._forget_missing(listing, is_early=is_early)
        trouble = self._listing_problems(listing)
        has_changed |= trouble != self._trouble
        self._trouble = trouble
        return self._diff(is_full=is_full) if has_changed else []

    # --- reading -----------------------------------------------------------------------------------------------

    def _read_consistently(self, touched: _Touched | None) -> tuple[Listing, _Contents]:
        limits = self._limits
        listing, few = self._look(touched)
        contents: _Contents = {}
        for _ in range(limits.max_rereads):
            is_idle = True
            for path in listing.files if few is None else few:
                signature = listing.files[path]
                if self._is_known(path, signature) or (path in contents and contents[path][0] == signature):
                    continue
                is_idle = False
                try:
                    contents[path] = (signature, self._read(path, limits.yaml.max_file_bytes + 1))
                except OSError as error:
                    contents[path] = (signature, error)
            if is_idle:
                break
            # What may lack files that were listed is not to take their place.
            again, few = self._look(None if few is None else touched)
            if again == listing:
                break
            listing = again
        self._listing = listing
        return listing, {
            path: content
            for path, content in contents.items()
            if path in listing.files and not isinstance(content[1], FileNotFoundError)
        }

    def _look(self, touched: _Touched | None) -> tuple[Listing, Collection[str] | None]:
        """Return what is there, and which files of it may have changed; None: all."""
        limits = self._limits
        paths = touched() if touched is not None and self._listing is not None else None
        if paths is not None and self._listing is not None:
            few = relist(self._listing, paths, max_total_bytes=limits.max_total_bytes)
            if few is not None:
                return few, paths
        return self._list(self._root, limits.max_files, limits.max_total_bytes), None

    def _is_known(self, path: str, signature: Signature) -> bool:
        file = self._files.get(path) if self._files is not None else None
        return file is not None and file.is_settled and file.signature == signature

    def directories(self) -> set[str]:
        """Return the directories that files were found in by the last scan, and the one that was asked for."""
        # Without a trailing slash, as the files have it: a directory is to have one name.
        root = (self._root if os.path.isdir(self._root) else os.path.dirname(self._root) or ".").rstrip(
            os.sep
        ) or os.sep
        return {root, *(os.path.dirname(path) or "." for path in self._files or ())}

    def _take(
        self, file: _File, path: str, signature: Signature, data: bytes | OSError, *, is_first: bool, is_early: bool
    ) -> bool:
        """Update `file` from its bytes; return whether anything visible changed."""
        file.is_missed = False
        if isinstance(data, OSError):
            found = (self._problem(path, f"the file cannot be read: {data.strerror or data}", "check its permissions"),)
            has_changed = file.diagnostics != found
            file.diagnostics, file.digest, file.is_settled = found, b"", False
            return has_changed
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if digest == file.digest:
            file.is_settled = file.signature == signature
            file.signature = signature
            file.held_digest, file.held_rounds = b"", 0
            return False
        content = read_documents(data, file=path, source=self._source, limits=self._limits.yaml, known=file.chunks)
        documents, diagnostics = self._by_key(content, path, file.documents)
        is_broken = has_errors(diagnostics)
        looks_unfinished = is_broken or any(key not in documents for key in file.documents)
        if looks_unfinished and not is_first and (is_early or digest != file.held_digest):
            file.held_rounds += not is_early
            if is_early or file.held_rounds < self._limits.max_hold_rounds:
                if not is_early or digest != file.held_digest:
                    file.held_digest = b"" if is_early else digest
                file.is_doubtful = True
                file.signature, file.digest, file.is_settled = signature, b"", False
                return True
        slips = list(misspelt(file.documents, documents))
        diagnostics += tuple(still_in_force(*slip) for slip in slips)
        kept = file.documents if is_broken else {key: file.documents[key] for key, _ in slips}
        file.documents = kept | documents
        file.diagnostics, file.is_doubtful, file.chunks = diagnostics, False, content.chunks
        file.signature, file.digest, file.is_settled = signature, digest, False
        file.held_digest, file.held_rounds = b"", 0
        return True

    def _forget_missing(self, listing: Listing, *, is_early: bool) -> bool:
        assert self._files is not None
        has_changed = False
        for path in [name for name in self._files if name not in listing.files]:
            file = self._files[path]
            if path in listing.left_out or any(_is_within(path, above) for above in listing.unreadable):
                continue
            if file.is_missed and not is_early:  # the second scan in a row without it
                del self._files[path]
                has_changed = True
                continue
            has_changed |= not file.is_doubtful
            file.is_missed |= not is_early
            file.is_doubtful = True
            file.signature, file.digest, file.is_settled = None, b"", False
        return has_changed

    def _by_key(
        self, content: FileContent, path: str, before: Mapping[Identity, Document]
    ) -> tuple[dict[Identity, Document], tuple[Diagnostic, ...]]:
        found: dict[Identity, list[Document]] = {}
        diagnostics = list(content.diagnostics)
        named = {id(document): key for key, document in before.items()}
        for document in content.documents:
            key = named.get(id(document)) or self._key(document, path, diagnostics)
            if key is not None:
                found.setdefault(key, []).append(document)
        documents = {key: alike[0] for key, alike in found.items()}
        if len(documents) < sum(map(len, found.values())):
            for key, alike in found.items():
                used = documents[key] = first_or_known(alike, before.get(key))
                diagnostics += [self._duplicate(key[1], one, used) for one in alike if one is not used]
        return documents, tuple(diagnostics)

    def _key(self, document: Document, path: str, diagnostics: list[Diagnostic]) -> Identity | None:
        raw = document.raw
        metadata = raw.get("metadata")
        fields: Mapping[str, object] = metadata if isinstance(metadata, dict) else {}
        version, kind, name = raw.get("apiVersion"), raw.get("kind"), fields.get("name")
        namespace = fields.get("namespace")
        namespace = DEFAULT_NAMESPACE if namespace in (None, "") else namespace
        wanted = {"apiVersion": version, "kind": kind, "metadata.name": name, "metadata.namespace": namespace}
        # A directory may also hold files of other tools (a Kustomization has no name): said, but not an error.
        is_ours = not isinstance(version, str) or version.startswith(f"{GROUP}/")
        for where, value in wanted.items():
            if isinstance(value, str) and value:
                if where.startswith("metadata") or (len(value) <= MAX_KIND_CHARACTERS and value.isprintable()):
                    continue
                reason, message, hint = Reason.INVALID_VALUE, f"found {shown(value)}", "write it in plain letters"
                diagnostics.append(self._unnamed(document, where, reason, message, hint, is_ours=is_ours))
                return None
            reason, message, hint = Reason.MISSING_FIELD, "the field is missing or empty", "every object needs it"
            if value is not None and value != "":
                reason, message = Reason.INVALID_VALUE, f"found {_json_type(value)}, expected text"
                hint = "put the value in quotes"
            elif where == "metadata.name" and "generateName" in fields:
                hint = "generateName needs a cluster; give the object a name"
            else:
                if where == "apiVersion":
                    hint = f"every object needs it; those of the router have {API_VERSION}"
                hint = miswritten(where, raw) or hint
            diagnostics.append(self._unnamed(document, where, reason, message, hint, is_ours=is_ours))
            return None
        group = str(version).rpartition("/")[0]
        for where, value in (("metadata.name", str(name)), ("metadata.namespace", str(namespace))):
            is_good, limit, expected = _NAMES[where]
            if is_good(value):
                continue
            if group != RBAC_GROUP:  # the one group whose names are free text; nothing here reads its objects
                message = f"found {value[:limit]!r}, expected {expected}"
                diagnostics.append(
                    self._unnamed(document, where, Reason.INVALID_VALUE, message, "rename it", is_ours=is_ours)
                )
            return None
        return group, ObjectKey(kind=str(kind), namespace=str(namespace), name=str(name))

    def _unnamed(
        self, document: Document, where: str, reason: Reason, message: str, hint: str, *, is_ours: bool
    ) -> Diagnostic:
        return Diagnostic(
            severity=Severity.ERROR if is_ours else Severity.WARNING,
            object=document.origin.file,
            path=where,
            reason=reason,
            message=message,
            hint=hint,
            file=document.origin.file,
            line=document.origin.locate(where),
        )

    # --- events ------------------------------------------------------------------------------------------------

    def _diff(self, *, is_full: bool) -> list[SourceEvent]:
        files = self._files or {}
        few = None if is_full else self._diff_few(files)
        if few is not None:
            return few
        wanted, problems = self._combine(files)
        events: list[SourceEvent] = []
        deleted: set[ObjectKey] = set()
        for identity in [identity for identity in self._emitted if identity not in wanted]:
            deleted.add(identity[1])
            file = self._emitted[identity].origin.file
            events.append(Delete(source=self._source, key=identity[1], file=file))
        events += self._tell_problems(problems, is_full=is_full)
        emitted = self._emitted
        known = emitted.get
        if is_full:
            changed = list(wanted.items())
        else:
            # A delete names no group, so it may have taken a namesake of another group with it: say that one again.
            changed = [
                (identity, document)
                for identity, document in wanted.items()
                if (before := known(identity)) is not document and before != document
            ]
            if deleted:
                told = {identity for identity, _ in changed}
                changed += [item for item in wanted.items() if item[0][1] in deleted and item[0] not in told]
        events += [Upsert(source=self._source, raw=document.raw, origin=document.origin) for _, document in changed]
        self._emitted = wanted
        is_plain = len(wanted) == sum(len(file.documents) for file in files.values())
        self._shown = {path: file.documents for path, file in files.items()} if is_plain else None
        return events

    def _diff_few(self, files: Mapping[str, _File]) -> list[SourceEvent] | None:
        """Return what `_diff` returns, looking only at files that have other documents than at the last diff.

        None if that is not enough: an object is gone or stands in two files, or a file is in doubt.
        """
        shown = self._shown
        if shown is None or len(shown.keys() - files.keys()) or any(file.is_doubtful for file in files.values()):
            return None
        touched = sorted(path for path, file in files.items() if file.documents is not shown.get(path))
        old: dict[Identity, Document] = {}
        new: dict[Identity, Document] = {}
        for path in touched:
            old.update(shown.get(path, {}))
            new.update(files[path].documents)
        if len(new) != sum(len(files[path].documents) for path in touched) or not old.keys() <= new.keys():
            return None
        if any(identity in self._emitted for identity in new.keys() - old.keys()):
            return None
        problems = {path: files[path].diagnostics for path in sorted(files) if files[path].diagnostics}
        events = self._tell_problems(problems, is_full=False)
        for identity, document in new.items():
            before = self._emitted.get(identity)
            if before is not document:
                self._emitted[identity] = document
                if before != document:
                    events.append(Upsert(source=self._source, raw=document.raw, origin=document.origin))
        for path in touched:
            shown[path] = files[path].documents
        return events

    def _tell_problems(self, problems: dict[str, tuple[Diagnostic, ...]], *, is_full: bool) -> list[SourceEvent]:
        """Return what differs from what was told last, trouble with reading included."""
        for scope, diagnostics in self._trouble.items():
            problems[scope] = (*diagnostics, *problems.get(scope, ()))
        told, self._problems = self._problems, problems
        return [
            Problems(source=self._source, scope=scope, diagnostics=problems.get(scope, ()))
            for scope in sorted(problems.keys() | told.keys())
            if is_full or problems.get(scope, ()) != told.get(scope, ())
        ]

    def _combine(
        self, files: Mapping[str, _File]
    ) -> tuple[dict[Identity, Document], dict[str, tuple[Diagnostic, ...]]]:
        """Return what all files together want to be in force, and what is wrong by path."""
        paths = sorted(files)
        problems = {path: files[path].diagnostics for path in paths if files[path].diagnostics}
        wanted: dict[Identity, Document] = {}
        for path in paths:
            wanted.update(files[path].documents)
        if len(wanted) == sum(len(file.documents) for file in files.values()):
            self._holders.forget()
            return wanted, problems
        certain, doubtful = (
            {path: files[path].documents for path in paths if files[path].is_doubtful is is_doubtful}
            for is_doubtful in (False, True)
        )
        wanted, duplicates = self._holders.choose(certain, doubtful, self._emitted)
        for identity, document, used in duplicates:
            path = document.origin.file
            problems[path] = (*problems.get(path, ()), self._duplicate(identity[1], document, used))
        return wanted, problems

    def _listing_problems(self, listing: Listing) -> dict[str, tuple[Diagnostic, ...]]:
        trouble: dict[str, tuple[Diagnostic, ...]] = {
            path: (self._problem(path, f"it cannot be read: {why}; what was read from it before stays in force"),)
            for path, why in listing.unreadable.items()
        }
        if listing.left_out:
            first = min(listing.left_out)
            trouble[self._root] = (
                self._problem(
                    self._root,
                    f"{len(listing.left_out)} files from {first} on are not read: the limits are "
                    f"{self._limits.max_files} files and {self._limits.max_total_bytes} bytes in all",
                    "join small files, or split the directory",
                ),
            )
        return trouble

    def _root_problem(self, error: OSError) -> Diagnostic:
        return self._problem(
            self._root,
            f"the directory cannot be read: {error.strerror or error}; what was read before stays in force",
            "put it back, or stop the router",
        )

    def _problem(self, path: str, message: str, hint: str = "") -> Diagnostic:
        return Diagnostic(
            severity=Severity.ERROR,
            object=path,
            reason=Reason.SOURCE_FAILED,
            message=message,
            hint=hint,
            file=path,
        )

    def _duplicate(self, key: ObjectKey, document: Document, used: Document) -> Diagnostic:
        return Diagnostic(
            severity=Severity.ERROR,
            object=str(key),
            reason=Reason.DUPLICATE_OBJECT,
            message=f"the object is also defined in {used.origin.file}:{used.origin.line}, which is used",
            hint="remove one of them",
            file=document.origin.file,
            line=document.origin.line,
        )


def read_regular_file(path: str, max_bytes: int) -> bytes:
    """Return at most `max_bytes` of a file.

    Raises:
        OSError: It is gone, may not be read, or is no regular file by now.
    """
    # O_NONBLOCK: a FIFO put in the file's place since it was listed must not hang the scan.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a regular file")
        parts: list[bytes] = []
        left = max_bytes
        while left > 0 and (part := stream.read(left)):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def _list_root(root: str, max_files: int, max_total_bytes: int) -> Listing:
    return list_files(root, max_files=max_files, max_total_bytes=max_total_bytes)


def _explain_root(root: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"directory {root}: not found; create it and put the manifests there as *.yaml, *.yml or *.json files"
    if isinstance(error, PermissionError):
        return f"directory {root}: permission denied; allow the router's user to list it and to read its files"
    return f"directory {root}: {error.strerror or error}"


def _is_within(path: str, above: str) -> bool:
    return path == above or path.startswith(above.rstrip(os.sep) + os.sep)


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a list" if isinstance(value, list) else "an object"
