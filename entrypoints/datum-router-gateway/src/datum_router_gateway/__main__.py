"""Entry point of `datum-router-gateway`: everything comes from the environment, see README.md."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from datum_router_runtime.app import run_gateway
from datum_router_runtime.mainprogram import run_program
from datum_router_runtime.settings import (
    GatewaySettings,
    parse_address,
    parse_admin_address,
    parse_host,
    settings_from_environment,
)
from datum_router_runtime.sourceenv import cluster_of, source_from_environment

HELP = """Usage: datum-router-gateway

  Serve the manifests of a directory or a cluster until SIGTERM; SIGHUP replaces the workers.
  Takes no arguments; settings come from the environment:

  DATUM_ROUTER_SOURCE            files or kubernetes [default: files]
  DATUM_ROUTER_DIR               files: directory of manifests [default: /etc/datum-router]
  KUBECONFIG                     kubernetes: how to reach it [default: as the Pod it runs in, else ~/.kube/config]
  DATUM_ROUTER_KUBE_CONTEXT      kubernetes: which context of it [default: the current one]
  DATUM_ROUTER_NAMESPACES        kubernetes: namespaces, separated by commas [default: all]
  DATUM_ROUTER_LABEL_SELECTOR    kubernetes: which of our objects, such as tier=edge [default: all]
  DATUM_ROUTER_SOURCE_CONFIG     other settings of the source, as name=value,name=value
  DATUM_ROUTER_SNAPSHOT_FILE     where the last good configuration is kept for a restart while the
                                 source cannot be reached [default: nowhere]
  DATUM_ROUTER_IDENTITY          what it is called where it reports [default: POD_NAME, else the host's name]
  DATUM_ROUTER_LISTEN            HOST:PORT of one plain listener for all routes
                                 [default: listeners of the VPCIngresses, else 127.0.0.1:8080]
  DATUM_ROUTER_BIND              IP address of the VPCIngresses' listeners [default: 0.0.0.0], and
                                 of port 8080 while there are none [default: 127.0.0.1]
  DATUM_ROUTER_ADMIN             loopback HOST:PORT of the admin listener [default: off]
  DATUM_ROUTER_PROBES            HOST:PORT of /healthz and /readyz alone [default: off]
  DATUM_ROUTER_METRICS           HOST:PORT of /metrics alone [default: off]
  DATUM_ROUTER_EGRESS_LISTEN     HOST:PORT of a forward proxy for what VPCEgresses allow [default: off]
  DATUM_ROUTER_EGRESS_TLS_LISTEN HOST:PORT for redirected TLS connections, by server name [default: off]
  DATUM_ROUTER_EGRESS_SOURCE     NAMESPACE/NAME of the VPCAttachment whose traffic it is, if neither
                                 interface nor address says so [default: nobody's]
  DATUM_ROUTER_WORKERS           worker processes [default: 1]
  DATUM_ROUTER_LOG               log filter, such as info or router=debug [default: info]
  DATUM_ROUTER_LOG_FORMAT        text or json [default: text]
  DATUM_ROUTER_TOPOLOGY          where this gateway is, by topology keys
  DATUM_ROUTER_LOCATION          where this gateway is, by name, latitude and longitude
  DATUM_ROUTER_LABELS            labels of this gateway, which gatewaySelector of VPCIngresses selects by
  DATUM_ROUTER_DATA_PLANE_CONFIG limits and timeouts
  DATUM_ROUTER_DISABLE_PLUGINS   plugins that are not loaded, separated by commas
  ROUTER_TLS_CERT, ROUTER_TLS_KEY
                                 files with a certificate and key for clients: HTTPS on 8443 [default: none]
  ROUTER_CLIENT_CERT, ROUTER_CLIENT_KEY
                                 files with an identity for services in mode Mutual [default: none]
  ROUTER_CLIENT_CA               file with CAs of upstreams that name none [default: the system's]
  ROUTER_CLIENT_VERIFY_SERVER    false: such upstreams are not verified [default: true]
  DATUM_ROUTER_LAMEDUCK_SECS, DATUM_ROUTER_GRACE_SECS
                                 graceful end [default: 5, 30]

  All of them: docs/reference/settings.md. `datum-router run DIR` is the same gateway with options.
  Exit status: 0 after a clean end, 2 bad settings, 1 anything else.

Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.
"""


def settings(environ: Mapping[str, str]) -> GatewaySettings:
    """Return the settings that `DATUM_ROUTER_*` variables ask for.

    Raises:
        ConfigError: A variable that is missing or cannot be read; names it.
    """
    found = settings_from_environment(environ)
    source, config = source_from_environment(environ, default="files", role="gateway")
    found |= {"source": source, "source_config": config, "cluster": cluster_of(source)}
    if listen := environ.get("DATUM_ROUTER_LISTEN"):
        found["listen"] = parse_address(listen, name="DATUM_ROUTER_LISTEN")
    if bind := environ.get("DATUM_ROUTER_BIND"):
        found["bind"] = parse_host(bind, name="DATUM_ROUTER_BIND")
    if admin := environ.get("DATUM_ROUTER_ADMIN"):
        found["admin"] = parse_admin_address(admin, name="DATUM_ROUTER_ADMIN")
    return GatewaySettings.from_mapping(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; 0 after a clean drain, 2 for settings that cannot work, 1 for anything else.

    Args:
        arguments: Those of the command line if None. None are taken but `--help` and `--version`.
    """
    return run_program(
        "datum-router-gateway",
        arguments,
        lambda environ: run_gateway(settings(environ)),
        help_text=HELP,
        instead=", options belong to `datum-router run`",
    )


if __name__ == "__main__":
    sys.exit(main())
