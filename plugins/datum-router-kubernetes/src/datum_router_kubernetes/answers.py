"""What requests to the Kubernetes API are called, and what its answers mean: pure, for `client`."""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Mapping

import msgspec

from datum_router.errors import (
    ClusterConflict,
    ClusterError,
    ClusterForbidden,
    ClusterNotFound,
    ClusterRejected,
    ClusterUnavailable,
)

MAX_MESSAGE_CHARS = 1024
"""How much of what the API says is passed on."""
MAX_CAUSES = 64
"""How many causes of a rejection are passed on."""
MAX_RETRY_AFTER_S = 300.0
"""The longest wait that the API can ask for (seconds)."""

_FROM_THE_FUTURE = "ResourceVersionTooLarge"
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_SECONDS = re.compile(r"[0-9]{1,9}\Z")


class ResponseTooLarge(ClusterError):
    """Report an answer, or a line of a watch, beyond the limit; a smaller page may do."""


class VersionUnusable(ClusterError):
    """Report a resourceVersion, or a place in a list, that the API cannot go on from: too old (410), or not there yet.

    The latter is what an API whose data was restored from a copy says; waiting would not help.
    """


class _Cause(msgspec.Struct, frozen=True):
    field: str | None = None
    message: str | None = None
    reason: str | None = None


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    causes: list[_Cause] | None = None
    retry_after_seconds: int | None = None


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """The part of a metav1 Status that is read: what the API says of a request that failed."""

    kind: str = ""
    code: int = 0
    reason: str | None = None
    message: str | None = None
    details: _Details | None = None


_STATUS = msgspec.json.Decoder(Status)


def describe(method: str, path: str, query: Mapping[str, str] = {}) -> str:
    """Return what a request is in RBAC's words: `list vpcroutes.router.datum.net in namespace shop`.

    Nothing of the query but field selectors' names is shown.
    """
    verb = _VERBS.get(method, method.lower())
    steps = [step for step in path.split("/") if step]
    group = ""
    if steps[:1] == ["apis"] and len(steps) >= 4:
        group, steps = steps[1], steps[3:]
    elif steps[:1] == ["api"] and len(steps) >= 3:
        steps = steps[2:]
    else:
        return f"{verb} {path}"
    namespace = ""
    if steps[0] == "namespaces" and len(steps) >= 3 and steps[2] not in ("status", "finalize"):
        namespace, steps = steps[1], steps[2:]
    resource = steps[0] + (f".{group}" if group else "")
    name = steps[1] if len(steps) > 1 else ""
    if len(steps) > 2:
        resource += f"/{steps[2]}"
    selector = query.get("fieldSelector", "")
    if not name and selector.startswith("metadata.name="):
        name = selector.partition("=")[2]
    if method == "GET" and len(steps) == 1:
        verb = "watch" if query.get("watch") in ("1", "true") else "list"
    return f"{verb} {resource}" + (f" {name}" if name else "") + (f" in namespace {namespace}" if namespace else "")


def error_of(what: str, status: int, retry_after: str, body: bytes, *, note: str = "") -> ClusterError:
    """Return the error that an answer other than 2xx stands for.

    Args:
        what: `describe` of the request.
        retry_after: The field's value, empty if it is not there.
        note: What else there is to know, such as where credentials come from.
    """
    return error_of_status(what, status, status_of(body), retry_after=retry_after, note=note)


def error_of_status(
    what: str, status: int, said: Status | None, *, retry_after: str = "", note: str = ""
) -> ClusterError:
    """Return the error for a `Status` object, as bodies of answers and `ERROR` events of watches hold it."""
    details = None if said is None else said.details
    wait_s = float(retry_after) if _SECONDS.match(retry_after) else 0.0
    if not wait_s and details is not None and details.retry_after_seconds:
        wait_s = float(max(0, details.retry_after_seconds))
    wait_s = min(wait_s, MAX_RETRY_AFTER_S)
    text = "" if said is None or not said.message else said.message[:MAX_MESSAGE_CHARS]
    reason = "" if said is None or not said.reason else f" {said.reason[:64]}"
    message = (
        f"{what}: the API answered {status}{reason}" + (f": {text}" if text else "") + (f" ({note})" if note else "")
    )
    causes = (None if details is None else details.causes) or []
    if status in (400, 413, 422):
        told = tuple(
            ((cause.field or "")[:MAX_MESSAGE_CHARS], (cause.message or "")[:MAX_MESSAGE_CHARS])
            for cause in causes[:MAX_CAUSES]
        )
        return ClusterRejected(message, status=status, causes=told)
    made: type[ClusterError] = ClusterError
    if status == 410 or any(cause.reason == _FROM_THE_FUTURE for cause in causes):
        made = VersionUnusable
    elif status in (401, 403):
        made = ClusterForbidden
    elif status == 404:
        made = ClusterNotFound
    elif status == 409:
        made = ClusterConflict
    elif status == 429 or status >= 500:
        made = ClusterUnavailable
    return made(message, status=status, retry_after_s=wait_s)


def status_of(body: bytes | msgspec.Raw) -> Status | None:
    """Return the `Status` that a body holds, or None if it is something else."""
    try:
        found = _STATUS.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return found if found.kind == "Status" else None


def unreachable(error: BaseException, what: str, server: str) -> ClusterUnavailable:
    """Return the error for a request that had no answer, or half of one."""
    return ClusterUnavailable(f"{what}: no answer from {server}: {_root(error)}")


def _root(error: BaseException) -> str:
    """Return the first cause in a chain of exceptions, in the system's words if there are any."""
    seen: set[int] = set()
    found = error
    while id(found) not in seen:
        seen.add(id(found))
        inner: object = found.__cause__ or getattr(found, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((one for one in found.args if isinstance(one, BaseException)), None)
        if not isinstance(inner, BaseException):
            break
        found = inner
    if isinstance(found, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {found.verify_message}"
    if isinstance(found, TimeoutError):
        return "it was silent for too long"
    if isinstance(found, http.client.IncompleteRead | http.client.RemoteDisconnected | ConnectionResetError):
        return "the connection was closed before the answer was whole"
    if isinstance(found, OSError) and found.strerror:
        return found.strerror.lower()
    # What urllib3 puts before it is the address of an object in memory.
    text = re.sub(r"\A<?\S*(?:Pool|Connection)\([^)]*\)[^:]*: |\A<[^>]*>: ", "", str(found))
    return text[:MAX_MESSAGE_CHARS] or type(found).__name__
