"""Where manifests come from, as `DATUM_ROUTER_*` variables say it, for every entrypoint that has no argument for it."""

from __future__ import annotations

from collections.abc import Mapping

from datum_router_runtime.settings import parse_pairs

SOURCE_VARIABLES = {
    "files": {"DATUM_ROUTER_DIR": "path"},
    "kubernetes": {
        "DATUM_ROUTER_NAMESPACES": "namespaces",
        "DATUM_ROUTER_LABEL_SELECTOR": "labelSelector",
        "DATUM_ROUTER_KUBE_CONTEXT": "context",
    },
}
"""Variable -> setting, by source; any other setting of a source stands in DATUM_ROUTER_SOURCE_CONFIG."""
DEFAULT_DIRECTORY = "/etc/datum-router"

NAMES = (
    "DATUM_ROUTER_SOURCE",
    "DATUM_ROUTER_SOURCE_CONFIG",
    *(name for one in SOURCE_VARIABLES.values() for name in one),
)
"""Every variable that is read here."""


def source_from_environment(environ: Mapping[str, str], *, default: str, role: str) -> tuple[str, dict[str, str]]:
    """Return the source's name and its settings.

    Args:
        default: The source if none is named.
        role: What the kubernetes source is asked for: `gateway` or `controller`.

    Raises:
        ConfigError: DATUM_ROUTER_SOURCE_CONFIG is not `name=value,name=value`.
    """
    source = environ.get("DATUM_ROUTER_SOURCE", "") or default
    config: dict[str, str] = {}
    if source == "files":
        config["path"] = DEFAULT_DIRECTORY
    elif source == "kubernetes":
        config["role"] = role
    for variable, name in SOURCE_VARIABLES.get(source, {}).items():
        if value := environ.get(variable, ""):
            config[name] = value
    if text := environ.get("DATUM_ROUTER_SOURCE_CONFIG", ""):
        config |= parse_pairs(text, "DATUM_ROUTER_SOURCE_CONFIG", "watchIdleSeconds=70")
    return source, config


def cluster_of(source: str) -> str:
    """Return the cluster that a process with this source writes to; empty if to none."""
    return source if source == "kubernetes" else ""
