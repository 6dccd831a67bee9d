"""What the environment says to a controller."""

from __future__ import annotations

from collections.abc import Mapping

from datum_router_runtime.settings import ControllerSettings, parse_admin_address, settings_from_environment
from datum_router_runtime.sourceenv import cluster_of, source_from_environment

HELP = """Usage: datum-router-controller

  Watch a cluster and write the status of VPCServices, VPCRoutes, ServiceBindings, VPCIngresses and
  VPCEgresses until SIGTERM. Of several, one leads. Serves no traffic.
  Takes no arguments; settings come from the environment:

  KUBECONFIG                     how to reach the cluster [default: as the Pod it runs in, else ~/.kube/config]
  DATUM_ROUTER_KUBE_CONTEXT      which context of it [default: the current one]
  DATUM_ROUTER_NAMESPACES        namespaces, separated by commas [default: all]
  DATUM_ROUTER_LABEL_SELECTOR    which of our objects, such as tier=edge [default: all]
  DATUM_ROUTER_SOURCE            source plugin [default: kubernetes]
  DATUM_ROUTER_SOURCE_CONFIG     other settings of it, such as writeQps=100,writeBurst=200
  DATUM_ROUTER_IDENTITY          what it is called where it leads [default: POD_NAME, else the host's name]
  DATUM_ROUTER_PROBES            HOST:PORT of /healthz and /readyz [default: off]
  DATUM_ROUTER_METRICS           HOST:PORT of /metrics [default: off]
  DATUM_ROUTER_ADMIN             loopback HOST:PORT of these and more [default: off]
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


def settings(environ: Mapping[str, str]) -> ControllerSettings:
    """Return the settings that `DATUM_ROUTER_*` variables ask for.

    Raises:
        ConfigError: A variable that cannot be read; names it.
    """
    found = settings_from_environment(environ)
    source, config = source_from_environment(environ, default="kubernetes", role="controller")
    found |= {"source": source, "source_config": config, "cluster": cluster_of(source) or source}
    if admin := environ.get("DATUM_ROUTER_ADMIN"):
        found["admin"] = parse_admin_address(admin, name="DATUM_ROUTER_ADMIN")
    return ControllerSettings.from_mapping(found)
