"""The settings of the source: text values, which it shares with the cluster of the same name. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.errors import ConfigError
from datum_router.manifests.meta import is_namespace
from datum_router.reasons import Reason
from datum_router_kubernetes import NAME

WRITE_SETTINGS = ("writeQps", "writeBurst")
"""Those of the cluster alone, which checks them."""
PAGE_SIZE = 500
"""Objects in one page of a list."""
REMOTE_MAX_OBJECTS = 100_000
"""Objects that are held of a cluster that is somebody else's, of all kinds together."""
REMOTE_MAX_BYTES = 64 * 1024 * 1024
"""Bytes of these, as they came; in memory they take up some times that."""
WATCH_IDLE_S = 70.0
"""A watch that says nothing for so long (seconds), not even that nothing happens, is opened anew."""


KUBECONFIG_TEXT = "kubeconfigText"
"""The text of a kubeconfig from somebody else: it may hold inline data only (see `textconfig`)."""


class Role(enum.StrEnum):
    """What the process is.

    Only gateways read Secrets, those that manifests name; only controllers read the gateways' Leases. Discovery reads
    the EndpointSlices that it writes and, in its own namespace, Secrets with the label for remote clusters; of those
    clusters (`remote`) it reads neither. Of namespaces both read the one that says which cluster it is.
    """

    GATEWAY = "gateway"
    CONTROLLER = "controller"
    CLI = "cli"
    DISCOVERY = "discovery"
    REMOTE = "remote"


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings, checked.

    Attributes:
        kubeconfig: Path, or several as in $KUBECONFIG; empty: see `access.locate`. (Setting `kubeconfigText` gives the
            text itself, which is not kept here: it holds credentials.)
        namespaces: Those whose objects are read; all if empty.
        label_selector: Of our own kinds, only objects with these labels are read.
        max_objects, max_bytes: What is held of the cluster; 0: all there is. By default that is bounded for the role
            `remote` alone.
    """

    kubeconfig: str = ""
    context: str = ""
    namespaces: tuple[str, ...] = ()
    label_selector: str = ""
    role: Role = Role.GATEWAY
    page_size: int = PAGE_SIZE
    watch_idle_s: float = WATCH_IDLE_S
    max_objects: int = 0
    max_bytes: int = 0


KNOWN = (
    "kubeconfig",
    KUBECONFIG_TEXT,
    "context",
    "namespaces",
    "labelSelector",
    "role",
    "pageSize",
    "watchIdleSeconds",
    "maxObjects",
    "maxBytes",
    *WRITE_SETTINGS,
)


def read_settings(settings: Mapping[str, str]) -> ClusterSettings:
    """Return the settings that text values stand for.

    Raises:
        ConfigError: One is unknown, or is not what it must be: says what was found and what would be right.
    """
    for name in settings:
        if name not in KNOWN:
            hint = did_you_mean(name, KNOWN) or f"known settings: {', '.join(KNOWN)}"
            raise ConfigError(f"{NAME}: unknown setting {name} ({hint})", reason=Reason.UNKNOWN_FIELD)
    role = settings.get("role", Role.GATEWAY.value)
    roles = [one.value for one in Role]
    if role not in roles:
        raise _bad("role", role, f"one of {', '.join(roles)}")
    selector = settings.get("labelSelector", "")
    if not selector.isprintable():
        raise _bad("labelSelector", selector, "labels as `kubectl get -l` takes them")
    is_remote = role == Role.REMOTE
    return ClusterSettings(
        kubeconfig=settings.get("kubeconfig", ""),
        context=settings.get("context", ""),
        namespaces=_namespaces(settings.get("namespaces", "")),
        label_selector=selector,
        role=Role(role),
        page_size=int(_number(settings, "pageSize", PAGE_SIZE, low=1, high=10_000, is_whole=True)),
        watch_idle_s=_number(settings, "watchIdleSeconds", WATCH_IDLE_S, low=0.1, high=3600),
        max_objects=_count(settings, "maxObjects", REMOTE_MAX_OBJECTS if is_remote else 0),
        max_bytes=_count(settings, "maxBytes", REMOTE_MAX_BYTES if is_remote else 0),
    )


def _namespaces(text: str) -> tuple[str, ...]:
    found = dict.fromkeys(part.strip() for part in text.split(","))
    found.pop("", None)
    for name in found:
        if not is_namespace(name):
            raise _bad("namespaces", name, "names of namespaces, with commas between them")
    return tuple(found)


def _count(settings: Mapping[str, str], name: str, default: int) -> int:
    return int(_number(settings, name, default, low=0, high=2**40, is_whole=True))


def _number(
    settings: Mapping[str, str], name: str, default: float, *, low: float, high: float, is_whole: bool = False
) -> float:
    text = settings.get(name)
    if text is None:
        return default
    what = "a whole number" if is_whole else "a number"
    try:
        value = float(int(text) if is_whole else float(text)) if text.isascii() and len(text) <= 20 else low - 1
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise _bad(name, text, f"{what} from {low:g} to {high:g}")
    return value


def _bad(name: str, found: str, expected: str) -> ConfigError:
    return ConfigError(f"{NAME}: setting {name}: found {found!r}, expected {expected}", reason=Reason.INVALID_VALUE)
