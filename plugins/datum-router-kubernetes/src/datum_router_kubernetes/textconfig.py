"""A kubeconfig whose text comes from a Secret: what may stand in it, and what is taken from it. Pure.

Who writes such a text chooses a server that this process talks to; it must choose nothing else. A file name in it would
send this process' own token to that server, an exec plugin would run a program here, and a server that is not verified
could say what it likes. So only inline data is taken, and nothing that could do harm is passed over in silence. No
message holds a value of the text beside names.
"""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from collections.abc import Mapping

import msgspec
import yaml

from datum_router.errors import ConfigError
from datum_router.manifests.secret import has_pem_block
from datum_router.reasons import Reason

NAME = "remote"
"""What context, cluster and user are called in what is made of it."""
MAX_BYTES = 256 * 1024
"""The longest text: certificates are a few kilobytes each."""

CLUSTER_FIELDS = frozenset(("server", "certificate-authority-data", "tls-server-name"))
USER_FIELDS = frozenset(("token", "client-certificate-data", "client-key-data"))
HARMLESS = frozenset(("disable-compression", "extensions", "insecure-skip-tls-verify"))
"""Passed over; the last one if it is false."""
_PEM = {
    "certificate-authority-data": "CERTIFICATE",
    "client-certificate-data": "CERTIFICATE",
    "client-key-data": "PRIVATE KEY",
}
_EXPECTED = "what `kubectl config view --raw --minify --flatten` prints"


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken of a text.

    Attributes:
        config: A kubeconfig with one context, `NAME`. Holds credentials.
        note: Whose credentials these are, in words, without them.
    """

    config: dict[str, object]
    namespace: str
    note: str

    def __repr__(self) -> str:
        return f"Chosen({self.note})"


def read(text: str, context: str = "") -> Chosen:
    """Return what a text says.

    Args:
        context: Which of its contexts; empty: its current one.

    Raises:
        ConfigError: It says something else than it may: names the field, never its value.
    """
    whole = _parse(text)
    name = context or whole.get("current-context")
    if not isinstance(name, str) or not name:
        raise _bad("current-context is missing", "the name of a context")
    place = _named(whole, "contexts", "context", name)
    cluster_name, user_name = place.get("cluster"), place.get("user")
    cluster = _named(whole, "clusters", "cluster", cluster_name)
    user = _named(whole, "users", "user", user_name)
    _check(cluster, f"cluster {cluster_name}", CLUSTER_FIELDS)
    _check(user, f"user {user_name}", USER_FIELDS)
    server = cluster.get("server")
    host = _host(server) if isinstance(server, str) else ""
    if not host:
        raise _bad(f"cluster {cluster_name} has no usable server", "an https:// address without credentials in it")
    if not user:
        raise _bad(f"user {user_name} has no credentials", "token, or client-certificate-data and client-key-data")
    namespace = place.get("namespace")
    return Chosen(
        config={
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": NAME,
            "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME}}],
            "clusters": [{"name": NAME, "cluster": {key: cluster[key] for key in CLUSTER_FIELDS & cluster.keys()}}],
            "users": [{"name": NAME, "user": {key: user[key] for key in USER_FIELDS & user.keys()}}],
        },
        namespace=namespace if isinstance(namespace, str) else "",
        note=f"user {user_name} at {host}",
    )


def _host(server: str) -> str:
    """Return the host of a usable address; empty if it is none."""
    try:
        parts = urllib.parse.urlsplit(server)
        is_usable = parts.scheme == "https" and not parts.username and server.isprintable() and (parts.port or 1)
    except ValueError:
        return ""
    return (parts.hostname or "") if is_usable else ""


def _parse(text: str) -> Mapping[str, object]:
    if len(text) > MAX_BYTES:
        raise _bad(f"it has {len(text)} characters", f"at most {MAX_BYTES}")
    try:
        found = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark  # its own text would show a piece of the credentials
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise _bad(f"it is no YAML{where}", _EXPECTED, reason=Reason.INVALID_KUBECONFIG) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _bad("it is no YAML", _EXPECTED) from None
    if not isinstance(found, dict):
        raise _bad("it is no mapping", _EXPECTED)
    return found


def _named(whole: Mapping[str, object], lists: str, field: str, name: object) -> Mapping[str, object]:
    items = whole.get(lists)
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("name") == name and isinstance(name, str):
            found = item.get(field)
            if isinstance(found, dict):
                return found
    raise _bad(f"{lists} has no {field} {str(name)[:100]!r}", "one of that name")


def _check(part: Mapping[str, object], where: str, known: frozenset[str]) -> None:
    for field, value in part.items():
        if field in HARMLESS and not (field == "insecure-skip-tls-verify" and value):
            continue
        if field not in known:
            raise _bad(
                f"{where} has {str(field)[:100]}, which is not taken from a Secret",
                f"inline data only: {', '.join(sorted(known))}",
            )
        if not isinstance(value, str) or not value:
            raise _bad(f"{where}: {field} is no text", "text")
        if field in _PEM and not _is_pem(value, _PEM[field]):
            raise _bad(f"{where}: {field} is no base64 of a PEM block", f"a {_PEM[field].lower()} in PEM, in base64")


def _is_pem(text: str, label: str) -> bool:
    try:
        return has_pem_block(base64.b64decode("".join(text.split()), validate=True).decode(), label)
    except (binascii.Error, ValueError):
        return False


def _bad(found: str, expected: str, *, reason: Reason = Reason.INVALID_KUBECONFIG) -> ConfigError:
    return ConfigError(f"kubeconfig: {found}; expected {expected}", reason=reason)
