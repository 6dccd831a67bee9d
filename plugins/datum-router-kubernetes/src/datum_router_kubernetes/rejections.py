"""What the API says of objects that it refuses to apply, as field and message: pure."""

from __future__ import annotations

import re

from datum_router.errors import ClusterError, ClusterRejected, ClusterUnavailable
from datum_router_kubernetes.answers import MAX_CAUSES

_TYPED = "failed to create typed patch object"
"""How server-side apply begins what it says of a field that the schema does not have, or has otherwise. It comes with
status 500, as if the server were at fault (Kubernetes 1.36)."""
_TYPED_CAUSE = re.compile(r"(?:^|: )[ \t]*\.(\S.*?): (.+?)$", re.MULTILINE)
_STRICT = "strict decoding error: "
_STRICT_CAUSE = re.compile(r'((?:unknown|duplicate) field) "([^"]+)"')


def rejection_of(error: ClusterError) -> ClusterError:
    """Return the error as it should be told: a `ClusterRejected` with causes if that is what it means, else itself."""
    text = str(error)
    if isinstance(error, ClusterUnavailable) and error.status == 500 and _TYPED in text:
        found = _TYPED_CAUSE.findall(text[text.index(_TYPED) :])
        return ClusterRejected(text, status=error.status, causes=tuple(found[:MAX_CAUSES]))
    if isinstance(error, ClusterRejected) and not error.causes and _STRICT in text:
        pairs = _STRICT_CAUSE.findall(text[text.index(_STRICT) :])
        causes = tuple((field, message) for message, field in pairs[:MAX_CAUSES])
        return ClusterRejected(text, status=error.status, causes=causes)
    return error
