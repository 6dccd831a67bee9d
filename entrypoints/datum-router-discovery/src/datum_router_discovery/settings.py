"""What the environment says to a discovery daemon."""

from __future__ import annotations

from collections.abc import Mapping

from datum_router_runtime.discoverysettings import DiscoverySettings, discovery_variables
from datum_router_runtime.settings import parse_admin_address, settings_from_environment
from datum_router_runtime.sourceenv import cluster_of, source_from_environment

HELP = """Usage: datum-router-discovery

  Read remote clusters, whose kubeconfigs are in Secrets of its namespace with the label
  router.datum.net/remote-cluster=true, and publish what they export as EndpointSlices, until SIGTERM.
  Of several, one leads. Serves no traffic.
  Takes no arguments; settings come from the environment:

  DISCOVERY_INTERVAL_SECS        how often everything is compared anew, beside watching [default: 30]
  DISCOVERY_STALE_SECS           how long endpoints of an unreachable cluster are kept, 0 = for ever [default: 86400]
  DISCOVERY_REMOVED_SECS         how long those of a cluster without a Secret are kept [default: 300]
  DISCOVERY_REMOTE_CONFIG        how remote clusters are read: maxObjects, maxBytes, labelSelector, pageSize,
                                 watchIdleSeconds [default: maxObjects=100000,maxBytes=67108864]
  KUBECONFIG                     how to reach the own cluster [default: as the Pod it runs in]
  DATUM_ROUTER_KUBE_CONTEXT      which context of it [default: the current one]
  DATUM_ROUTER_NAMESPACES        namespaces of the own cluster, separated by commas [default: all]
  DATUM_ROUTER_SOURCE            source plugin [default: kubernetes]
  DATUM_ROUTER_SOURCE_CONFIG     other settings of it, such as writeQps=100,writeBurst=200
  DATUM_ROUTER_IDENTITY          what it is called where it leads [default: POD_NAME, else the host's name]
  DATUM_ROUTER_PROBES            HOST:PORT of /healthz and /readyz [default: off]
  DATUM_ROUTER_METRICS           HOST:PORT of /metrics [default: off]
  DATUM_ROUTER_ADMIN             loopback HOST:PORT of these, /clusters and more [default: off]
  DATUM_ROUTER_DEBOUNCE_SECS     changes gathered into one compilation [default: 0.05]
  DATUM_ROUTER_LOG               log filter, such as info or router=debug [default: info]
  DATUM_ROUTER_LOG_FORMAT        text or json [default: text]
  DATUM_ROUTER_DISABLE_PLUGINS   plugins that are not loaded, separated by commas

  All of them: docs/reference/settings.md.
  Exit status: 0 after a clean end, 2 bad settings, 1 anything else.

Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.
"""


def settings(environ: Mapping[str, str]) -> DiscoverySettings:
    """Return the settings that `DATUM_ROUTER_*` and `DISCOVERY_*` variables ask for.

    Raises:
        ConfigError: A variable that cannot be read; names it.
    """
    found = {**settings_from_environment(environ), **discovery_variables(environ)}
    source, config = source_from_environment(environ, default="kubernetes", role="discovery")
    found |= {"source": source, "source_config": config, "cluster": cluster_of(source) or source}
    if admin := environ.get("DATUM_ROUTER_ADMIN"):
        found["admin"] = parse_admin_address(admin, name="DATUM_ROUTER_ADMIN")
    return DiscoverySettings.from_mapping(found)
