"""A kubeconfig whose text comes from a Secret: what may stand in it, and what is taken from it. Pure.

Who writes such a text chooses a server that this process talks to; it must choose nothing else. A file name in it would
send this process' own token to that server, an exec plugin would run a program here, and a server that is not verified
could say what it likes. So only inline data is taken, and nothing that could do harm is passed over in silence. No
message holds a value of the text beside names.

Nor may a text cost more than its length: YAML's aliases and merge keys let a kilobyte stand for more than fits into
memory, and no tool writes them into a kubeconfig, so they are refused before anything is built from it.
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
MAX_BYTES = 64 * 1024
"""The longest text: certificates are a few kilobytes each, and reading it must not hold up the rest of the process."""
MAX_DEPTH = 16
"""How deep it may be nested: a kubeconfig is six deep, `extensions` aside."""
MAX_SHOWN_CHARS = 100
"""How much of a name is shown in a message."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML without libyaml is slower and gives the same

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
    cluster_said, user_said = f"cluster {_shown(cluster_name)}", f"user {_shown(user_name)}"
    _check(cluster, cluster_said, CLUSTER_FIELDS)
    _check(user, user_said, USER_FIELDS)
    server = cluster.get("server")
    host = _host(server) if isinstance(server, str) else ""
    if not host:
        raise _bad(f"{cluster_said} has no usable server", "an https:// address without credentials in it")
    if not user:
        raise _bad(f"{user_said} has no credentials", "token, or client-certificate-data and client-key-data")
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
        note=f"{user_said} at {_shown(host)}",
    )


def _shown(name: object) -> str:
    """Return a name for messages: of a bounded length, and nothing in it that a terminal or a log would obey."""
    text = str(name)[:MAX_SHOWN_CHARS] if isinstance(name, str) else ""
    return text if text.isprintable() else ascii(text)


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
        _check_cost(text)
        found = yaml.load(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark  # its own text would show a piece of the credentials
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise _bad(f"it is no YAML{where}", _EXPECTED, reason=Reason.INVALID_KUBECONFIG) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _bad("it is no YAML", _EXPECTED) from None
    if not isinstance(found, dict):
        raise _bad("it is no mapping", _EXPECTED)
    return found


def _check_cost(text: str) -> None:
    """Refuse what would cost more than its length. Raises a YAMLError as parsing does, too."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent) or (isinstance(event, yaml.NodeEvent) and event.anchor):
            raise _bad("it has a YAML anchor or alias", _EXPECTED)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _bad(f"it is nested more than {MAX_DEPTH} deep", _EXPECTED)


def _named(whole: Mapping[str, object], lists: str, field: str, name: object) -> Mapping[str, object]:
    items = whole.get(lists)
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("name") == name and isinstance(name, str):
            found = item.get(field)
            if isinstance(found, dict):
                return found
    said = repr(_shown(name)) if isinstance(name, str) else "without a name that is text"
    raise _bad(f"{lists} has no {field} {said}", "one of that name")


def _check(part: Mapping[str, object], where: str, known: frozenset[str]) -> None:
    for field, value in part.items():
        if field in HARMLESS and not (field == "insecure-skip-tls-verify" and value):
            continue
        if field not in known:
            raise _bad(
                f"{where} has {_shown(field)}, which is not taken from a Secret",
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
