"""The documents of a file: what is kept of each, and where in the file's bytes each begins and ends."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Origin

_AFTER_MARK = b" \t\r\n"
# Line breaks of YAML 1.1 that are none for us, and byte order marks: files with them are read as a whole.
_ODD = (b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9", b"\xef\xbb\xbf")


class Document(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One mapping of the file, `List` items counted one by one. Kept as JSON text, a tenth of the size of its values.

    Attributes:
        encoded: JSON text of the mapping.
    """

    encoded: bytes
    origin: Origin

    @property
    def raw(self) -> Mapping[str, object]:
        """Return the mapping: JSON types only, the caller's own."""
        found: dict[str, object] = msgspec.json.decode(self.encoded)
        return found


class Chunk(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a part of a file holds that begins with `---`, or with the file.

    Attributes:
        below: Lines above it, as its documents' origins have it.
        breaks: Line breaks in it.
        nodes, aliased, path_characters: What it counts against the limits of a file.
    """

    documents: tuple[Document, ...]
    below: int
    breaks: int
    nodes: int
    aliased: int
    path_characters: int

    def at(self, below: int) -> Chunk:
        """Return the same chunk with so many lines above it."""
        if below == self.below:
            return self
        documents = tuple(
            msgspec.structs.replace(
                document,
                origin=msgspec.structs.replace(
                    document.origin, line=document.origin.line - self.below + below, below=below
                ),
            )
            for document in self.documents
        )
        return msgspec.structs.replace(self, documents=documents, below=below)


class FileContent(msgspec.Struct, frozen=True, kw_only=True):
    """What one file holds.

    Attributes:
        diagnostics: Empty if every document could be read.
        chunks: By the hash of their bytes, for the next reading of the file; empty if it had to be read as a whole.
    """

    documents: tuple[Document, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    chunks: Mapping[bytes, Chunk] = {}


def split(data: bytes) -> list[memoryview] | None:
    """Return the chunks of a file, each of which can be read by itself; None if that cannot be said.

    `---` at the begin of a line ends a document whatever stands before it: no scalar may hold it (YAML 1.2 section
    6.6, c-forbidden). Directives and `...` reach across documents, so files with them are not split.
    """
    if data.startswith((b"%", b"...")) or b"\n%" in data or b"\n..." in data:
        return None
    if any(odd in data for odd in _ODD) or data.count(b"\r") != data.count(b"\r\n"):
        return None
    view = memoryview(data)
    chunks: list[memoryview] = []
    begin, at = 0, data.find(b"\n---")
    while at >= 0:
        if data[at + 4 : at + 5] in _AFTER_MARK:  # at the end of the file: an empty slice, which is in everything
            chunks.append(view[begin : at + 1])
            begin = at + 1
        at = data.find(b"\n---", at + 4)
    if begin < len(data):
        chunks.append(view[begin:])
    return chunks
