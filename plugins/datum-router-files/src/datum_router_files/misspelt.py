"""Objects that a slip of the pen in `kind` or in the group of `apiVersion` would take out of force.

A misspelt kind gives the object another identity: the file seems to have lost one object and got another. What works
is not to end by that, so the object stays as long as the file holds its misspelt double.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from datum_router.compiler.diagnostics import Diagnostic, Severity, nearest
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import GROUP
from datum_router.manifests.table import MISSPELT_GROUP_RATIO
from datum_router.reasons import Reason
from datum_router_files.documents import Document
from datum_router_files.holder import Documents, Identity

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


def _is_slip(other: Identity, meant: Identity) -> bool:
    group, key = other
    wanted = meant[1]
    if (key.namespace, key.name) != (wanted.namespace, wanted.name):
        return False
    if group == GROUP:
        return key.kind not in _OWN_NAMES and nearest(key.kind, [wanted.kind]) == wanted.kind
    return key.kind == wanted.kind and difflib.SequenceMatcher(None, group, GROUP).ratio() >= MISSPELT_GROUP_RATIO
