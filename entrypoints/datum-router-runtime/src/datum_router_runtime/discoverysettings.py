"""What a discovery daemon is told from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.errors import ConfigError
from datum_router.reasons import Reason
from datum_router_runtime.settings import Address, convert_settings, parse_pairs, require_duration, require_loopback

MAX_CONCURRENT_WRITES = 64
MAX_KEPT_S = 10 * 365 * 86_400.0
"""The longest that endpoints of a cluster that is gone may be kept (seconds)."""
DISCOVERY_ENVIRONMENT = {
    "DISCOVERY_INTERVAL_SECS": "interval_s",
    "DISCOVERY_STALE_SECS": "stale_s",
    "DISCOVERY_REMOVED_SECS": "removed_s",
}
"""Environment variable -> field, of those that are seconds."""
RANGES = {"interval_s": (0.1, 3600.0), "stale_s": (0.0, MAX_KEPT_S), "removed_s": (0.0, MAX_KEPT_S)}
"""Field -> least and most seconds."""
REMOTE_CONFIG = "DISCOVERY_REMOTE_CONFIG"
DISCOVERY_NAMES = (*DISCOVERY_ENVIRONMENT, REMOTE_CONFIG)
REMOTE_SETTINGS = ("maxObjects", "maxBytes", "labelSelector", "pageSize", "watchIdleSeconds")
"""Settings of the source that may be chosen for remote clusters; the rest is each cluster's own, or fixed."""


class DiscoverySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a discovery daemon is told from outside.

    Attributes:
        source: Name of the source plugin, of the own cluster and of remote ones.
        source_config: Its text settings for the own cluster.
        remote_config: Its text settings for remote clusters: maxObjects, maxBytes, labelSelector, pageSize, or
            watchIdleSeconds.
        cluster: Name of the plugin's cluster that is written to; it takes the source's settings.
        identity: What this process is called where it leads; empty = POD_NAME, else the host's name.
        lease: Name of the lease, in the namespace of this process, by which one of several daemons leads.
        admin: Loopback address of /healthz, /readyz, /clusters, /plugins, /stats and /metrics; None = off.
        probes: Address of /healthz and /readyz, which say a status and nothing else; None = off.
        metrics: Address of /metrics; None = off.
        interval_s: How often everything is compared anew, whether or not anything was heard; 0.1 to 3600.
        stale_s: How long endpoints of a cluster are kept that cannot be reached; 0 = for ever.
        removed_s: How long endpoints of a cluster are kept whose Secret is gone.
        debounce_s: Changes that follow another within this time are gathered.
        debounce_max_s: Never gathered for longer than this while they keep coming.
        concurrent_writes: Slices that are written at once.
        disabled_plugins: Entry-point names that are not loaded.
    """

    source: str = "kubernetes"
    source_config: Mapping[str, str] = {}
    remote_config: Mapping[str, str] = {}
    cluster: str = "kubernetes"
    identity: str = ""
    lease: str = "router-discovery"
    admin: Address | None = None
    probes: Address | None = None
    metrics: Address | None = None
    interval_s: float = 30.0
    stale_s: float = 86_400.0
    removed_s: float = 300.0
    debounce_s: float = 0.05
    debounce_max_s: float = 1.0
    concurrent_writes: int = 8
    disabled_plugins: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> DiscoverySettings:
        """Return settings from keyword values of the right types; those that only others have are passed over.

        Raises:
            ConfigError: A value of the wrong type or out of range.
        """
        return convert_settings({name: value for name, value in values.items() if name in cls.__struct_fields__}, cls)

    def __post_init__(self) -> None:
        if self.admin is not None:
            require_loopback(self.admin, "admin")
        for name in ("debounce_s", "debounce_max_s"):
            require_duration(getattr(self, name), name)
        _require_remote(self.remote_config, "remote_config")
        for name, (low, high) in RANGES.items():
            _within(name, getattr(self, name), low, high)
        _within("concurrent_writes", self.concurrent_writes, 1, MAX_CONCURRENT_WRITES)


def _require_remote(config: Mapping[str, str], variable: str) -> None:
    for name in config:
        if name not in REMOTE_SETTINGS:
            hint = did_you_mean(name, REMOTE_SETTINGS) or f"expected some of {', '.join(REMOTE_SETTINGS)}"
            raise ConfigError(f"{variable}: found {name} ({hint})", reason=Reason.UNKNOWN_FIELD)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: found {value:g}, expected {low:g} to {high:g}", reason=Reason.INVALID_VALUE)


def discovery_variables(environ: Mapping[str, str]) -> dict[str, object]:
    """Return what `DISCOVERY_*` variables say, as keyword values.

    Raises:
        ConfigError: One is no number in range, or are no pairs of known names; names it.
    """
    found: dict[str, object] = {}
    for variable, field in DISCOVERY_ENVIRONMENT.items():
        if text := environ.get(variable, ""):
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise ConfigError(
                    f"{variable}: found {text!r}, expected seconds such as 30", reason=Reason.INVALID_VALUE
                )
            _within(variable, value, *RANGES[field])
            found[field] = value
    if text := environ.get(REMOTE_CONFIG, ""):
        pairs = found["remote_config"] = parse_pairs(text, REMOTE_CONFIG, "maxBytes=134217728")
        _require_remote(pairs, REMOTE_CONFIG)
    return found
