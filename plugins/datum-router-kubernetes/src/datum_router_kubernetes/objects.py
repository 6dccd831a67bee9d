"""Requests about objects of any kind: paths, bodies of server-side apply, and what the answers hold. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from datum_router.errors import ClusterNotFound, ClusterRejected
from datum_router.manifests.meta import GroupVersionKind, ObjectKey
from datum_router.plugins.cluster import Applied, StatusWrite

APPLY_PATCH = "application/apply-patch+yaml"
"""Server-side apply; JSON is YAML."""


class _Identity(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""


class _Identified(msgspec.Struct):
    metadata: _Identity


_IDENTIFIED = msgspec.json.Decoder(_Identified)


def path_of(
    group: str, version: str, plural: str, *, namespace: str = "", name: str = "", subresource: str = ""
) -> str:
    """Return the path of an object, of its subresource or, without a name, of a collection; not percent-encoded."""
    steps = ["apis", group, version] if group else ["api", version]
    if namespace:
        steps += ["namespaces", namespace]
    steps += [step for step in (plural, name, subresource) if step]
    return "/" + "/".join(steps)


def object_path(gvk: GroupVersionKind, plural: str, key: ObjectKey, *, subresource: str = "") -> str:
    """Return the path of an object, or of its subresource."""
    return path_of(gvk.group, gvk.version, plural, namespace=key.namespace, name=key.name, subresource=subresource)


def status_body(write: StatusWrite, version: str) -> bytes:
    """Return the body that applies a status to one version of an object, and to no other (409).

    Raises:
        ClusterRejected: As `encoded`.
    """
    metadata = {"name": write.key.name, "namespace": write.key.namespace, "resourceVersion": version}
    body = {
        "apiVersion": write.gvk.api_version,
        "kind": write.gvk.kind,
        "metadata": {field: value for field, value in metadata.items() if value},
        "status": write.status,
    }
    return encoded(body, write.key)


def encoded(raw: Mapping[str, object], key: ObjectKey) -> bytes:
    """Return an object as JSON.

    Raises:
        ClusterRejected: JSON cannot say it, for example a lone surrogate.
    """
    try:
        return msgspec.json.encode(raw)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ClusterRejected(f"{key}: cannot be written as JSON: {error}", status=400) from error


def identity_of(body: bytes) -> tuple[str, str]:
    """Return uid and version of the object in an answer.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    metadata = _IDENTIFIED.decode(body).metadata
    return metadata.uid, metadata.resource_version


def identified(raw: Mapping[str, object]) -> tuple[GroupVersionKind, ObjectKey]:
    """Return what an object says it is.

    Raises:
        ClusterRejected: It lacks what is needed for that; as the API would say.
    """
    metadata = raw.get("metadata")
    fields = metadata if isinstance(metadata, Mapping) else {}
    namespace = fields.get("namespace", "")
    values = {"apiVersion": raw.get("apiVersion"), "kind": raw.get("kind"), "metadata.name": fields.get("name")}
    causes = [(path, "expected text") for path, value in values.items() if not isinstance(value, str) or not value]
    if not isinstance(namespace, str | None):
        causes.append(("metadata.namespace", "expected text"))
    if causes:
        missing = ", ".join(path for path, _ in causes)
        raise ClusterRejected(f"an object without {missing} cannot be applied", status=400, causes=tuple(causes))
    group, _, version = str(values["apiVersion"]).rpartition("/")
    kind = str(values["kind"])
    return (
        GroupVersionKind(group=group, version=version, kind=kind),
        ObjectKey(kind=kind, namespace=str(namespace or ""), name=str(values["metadata.name"])),
    )


def applied_of(body: bytes, before: Mapping[str, object] | None, key: ObjectKey) -> Applied:
    """Return what the API made of an object; `before` is what it was, None if it was not there.

    A dry run has the version that is there already, so what counts is whether anything else differs; owners of fields
    and the status, which has writers of its own, do not count.

    Raises:
        msgspec.MsgspecError: The answer is no object.
    """
    metadata = _IDENTIFIED.decode(body).metadata
    after = msgspec.json.decode(body)
    return Applied(
        key=key,
        uid=metadata.uid,
        generation=metadata.generation,
        version=metadata.resource_version,
        is_changed=before is None or _content(before) != _content(after),
    )


_BOOKKEEPING = frozenset({"resourceVersion", "managedFields"})


def _content(raw: Mapping[str, object]) -> dict[str, object]:
    """Return what a person would call the object: not who owns its fields, nor a status that came in between."""
    metadata = raw.get("metadata")
    fields = metadata if isinstance(metadata, Mapping) else {}
    own = {name: value for name, value in raw.items() if name != "status"}
    return {**own, "metadata": {name: value for name, value in fields.items() if name not in _BOOKKEEPING}}


def is_object_missing(error: ClusterNotFound, key: ObjectKey) -> bool:
    """Tell whether an answer 404 is about the object, and not about a kind that the cluster does not have."""
    return f'"{key.name}" not found' in str(error)
