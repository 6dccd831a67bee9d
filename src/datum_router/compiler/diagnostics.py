"""Diagnostics: what is wrong with a manifest, where, and what would be right."""

from __future__ import annotations

import collections
import difflib
import enum
from collections.abc import Iterable, Mapping

import msgspec

from datum_router.reasons import Reason


class Severity(enum.StrEnum):
    """How bad a diagnostic is: an ERROR keeps the object (or a part of it) out of force."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Origin(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a manifest came from.

    Attributes:
        source: Name of the source plugin, for example `files`.
        file: Path as the user would type it; empty for objects from an API.
        line: 1-based line at which the document begins; 0 if lines mean nothing here.
        lines: JSON path (`spec.match.pathPrefix`, `spec.destinations[0].weight`) -> 1-based line, not counting `below`.
        below: Lines above the part of the file that `lines` counts in, so that alike objects can share `lines`.
    """

    source: str
    file: str = ""
    line: int = 0
    lines: Mapping[str, int] = {}
    below: int = 0

    def locate(self, path: str) -> int:
        """Return the line of `path`, or of its nearest known ancestor, or of the document."""
        while path:
            if path in self.lines:
                return self.below + self.lines[path]
            cut = max(path.rfind("."), path.rfind("["))
            path = path[:cut] if cut > 0 else ""
        return self.line


class Diagnostic(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One finding about one object.

    Attributes:
        object: `kind namespace/name` in lower case, for example `vpcroute default/api-routes`; a file name
            when the object could not be read at all.
        path: JSON path inside the object, empty for the whole.
        reason: Closed enum, also the reason of the condition written to status.
        message: Lower case, no full stop; says what was found and what was expected.
        hint: The nearest valid name or the fix, empty if there is none.
        file, line: Where it stands, empty and 0 if unknown.
        is_reference: True if the finding is about an object that another one refers to and that is not
            (yet) there: `check` reports these as warnings unless `--strict`.
    """

    severity: Severity
    object: str
    path: str = ""
    reason: Reason
    message: str
    hint: str = ""
    file: str = ""
    line: int = 0
    is_reference: bool = False

    def render(self) -> str:
        """Return one line for people: `file:line: error: object: path: message (hint)`."""
        parts = []
        if self.file:
            parts.append(f"{self.file}:{self.line}" if self.line else self.file)
        parts.append(str(self.severity))
        if self.object and self.object != self.file:
            parts.append(self.object)
        if self.path:
            parts.append(self.path)
        text = ": ".join(parts) + f": {self.message} [{self.reason}]"
        return f"{text} ({self.hint})" if self.hint else text


def nearest(name: str, known: Iterable[str], terms: Mapping[str, str] = {}) -> str:
    """Return the known name closest to `name`, or an empty string if none is near.

    A name that differs in case, `_` or `-` only is nearer than any other, and then what `terms` has for it.

    Args:
        terms: What others call it -> the known name.
    """
    candidates = list(known)
    folded: dict[str, str] = {}
    for candidate in candidates:
        folded.setdefault(fold(candidate), candidate)
    wanted = fold(name)
    if wanted in folded:
        return folded[wanted]
    for term, meant in terms.items():
        if fold(term) == wanted and meant in candidates:
            return meant
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if found:
        return found[0]
    found = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else ""


def fold(name: str) -> str:
    """Return a name as names are compared for hints: without regard to case, `_` and `-`."""
    return name.replace("_", "").replace("-", "").casefold()


def did_you_mean(name: str, known: Iterable[str], terms: Mapping[str, str] = {}) -> str:
    """Return `did you mean X?` for the nearest known name, or an empty string; `terms` as for `nearest`."""
    found = nearest(name, known, terms)
    return f"did you mean {found}?" if found else ""


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    """Tell whether any diagnostic is an error."""
    return any(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics)


def count_by_severity(diagnostics: Iterable[Diagnostic]) -> dict[str, int]:
    """Return how many diagnostics there are of each severity that occurs."""
    counts: collections.Counter[str] = collections.Counter(str(item.severity) for item in diagnostics)
    return dict(counts)
