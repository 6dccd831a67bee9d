"""Slips of the pen in what identifies an object: one in `kind` or in a group would take it out of force.

A misspelt kind gives the object another identity: the file seems to have lost one object and got another. What works
is not to end by that, so the object stays as long as the file holds its misspelt double.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from datum_router.compiler.diagnostics import Diagnostic, Severity, nearest
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import GROUP, ObjectMeta
from datum_router.manifests.table import MISSPELT_GROUP_RATIO
from datum_router.reasons import Reason
from datum_router_files.documents import Document
from datum_router_files.holder import Documents, Identity

_KNOWN = frozenset({"apiVersion", "kind", "metadata", "spec", "status"} | set(ObjectMeta.__struct_encode_fields__))
_OWN_NAMES = frozenset(kind.kind for kind in OWN_KINDS)


def misspelt(before: Documents, now: Documents) -> Iterator[tuple[Identity, Document]]:
    """Yield what a file held before and does not now, each with the document that looks like it misspelt."""
    for identity in before:
        if identity in now or identity[0] != GROUP or identity[1].kind not in _OWN_NAMES:
            continue
        double = next((document for other, document in now.items() if _is_slip(other, identity)), None)
        if double is not None:
            yield identity, double


def still_in_force(identity: Identity, double: Document) -> Diagnostic:
    """Return what tells that the object goes on; what is wrong with its double is told by whoever decodes it."""
    return Diagnostic(
        severity=Severity.INFO,
        object=str(identity[1]),
        path="",
        reason=Reason.UNKNOWN_KIND,
        message=f"{double.raw.get('apiVersion')} {double.raw.get('kind')} looks like it misspelt; "
        "the last good version stays in force",
        hint="",
        file=double.origin.file,
        line=double.origin.line,
    )


def miswritten(where: str, raw: Mapping[str, object]) -> str:
    """Return a hint if a field that identifies an object is missing and another one looks like it, else nothing.

    Args:
        where: `apiVersion`, `kind` or `metadata.name`.
    """
    parent, _, field = where.rpartition(".")
    place: object = raw
    if parent:
        if parent in raw:
            place = raw[parent]
        else:
            field = parent
    others = [str(key) for key in place if key not in _KNOWN] if isinstance(place, Mapping) else []
    near = nearest(field, [key for key in others if key.isascii() and key.isprintable()])
    return f"write {field} in place of {near}" if near else ""


def _is_slip(other: Identity, meant: Identity) -> bool:
    group, key = other
    wanted = meant[1]
    if (key.namespace, key.name) != (wanted.namespace, wanted.name):
        return False
    if group == GROUP:
        return key.kind not in _OWN_NAMES and nearest(key.kind, [wanted.kind]) == wanted.kind
    return key.kind == wanted.kind and difflib.SequenceMatcher(None, group, GROUP).ratio() >= MISSPELT_GROUP_RATIO
