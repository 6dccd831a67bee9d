"""Which environment variables can be meant: a misspelt one would silently set nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from datum_router.compiler.diagnostics import nearest
from datum_router_runtime import sourceenv
from datum_router_runtime.discoverysettings import DISCOVERY_NAMES
from datum_router_runtime.settings import ADDRESSES, DATA_PLANE, ENVIRONMENT, TEXTS

PREFIX = "DATUM_ROUTER_"
GATEWAY_VARIABLES = (*sourceenv.NAMES, "DATUM_ROUTER_LISTEN", "DATUM_ROUTER_BIND", "DATUM_ROUTER_ADMIN")
"""What only `datum-router-gateway` reads; `datum-router` has arguments for it."""
VARIABLES = frozenset(
    {
        *ENVIRONMENT,
        *TEXTS,
        *ADDRESSES,
        *DATA_PLANE,
        *GATEWAY_VARIABLES,
        "DATUM_ROUTER_DATA_PLANE_CONFIG",
        "DATUM_ROUTER_LABELS",
        "DATUM_ROUTER_RATE_LIMIT_STORE_CONFIG",
        "DATUM_ROUTER_DISABLE_PLUGINS",
        "DATUM_ROUTER_LOG",
        "DATUM_ROUTER_LOG_FORMAT",
        "DATUM_ROUTER_LOCATION",
        "DATUM_ROUTER_TOPOLOGY",
        "DATUM_ROUTER_TRACE_PLUGINS",
        "DATUM_ROUTER_WORKERS",
    }
)
DISCOVERY_PREFIX = "DISCOVERY_"
DISCOVERY_VARIABLES = frozenset(DISCOVERY_NAMES)
"""What only `datum-router-discovery` reads."""
_SERVICE_LINK = re.compile(
    r"(?:.*_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.*)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes sets in every container of a namespace that has a Service called datum-router, datum-router-x,
discovery or discovery-x: how such a name goes on after its prefix."""

log = logging.getLogger(__name__)


def warn_of_unknown_variables(environ: Mapping[str, str]) -> None:
    """Log one warning for each variable that has our prefix and is read by nobody; call it after `setup_logging`.

    It is a warning, no error: a plugin may read variables of its own.
    """
    _warn(environ, PREFIX, VARIABLES, "a variable of docs/reference/settings.md")


def warn_of_unknown_discovery_variables(environ: Mapping[str, str]) -> None:
    """Do the same for the variables of the discovery daemon: to be called by it alone, since others do not own them."""
    _warn(environ, DISCOVERY_PREFIX, DISCOVERY_VARIABLES, f"one of {', '.join(sorted(DISCOVERY_VARIABLES))}")


def _warn(environ: Mapping[str, str], prefix: str, known: frozenset[str], otherwise: str) -> None:
    # Without the prefix that they share, so that it does not make all of them look alike.
    bare = [name.removeprefix(prefix) for name in sorted(known)]
    for name in sorted(environ):
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and name not in known and not _SERVICE_LINK.fullmatch(rest):
            near = nearest(rest, bare)
            log.warning(
                "environment variable sets nothing",
                extra={"found": name, "expected": f"{prefix}{near}" if near else otherwise},
            )


def is_tracing(environ: Mapping[str, str]) -> bool:
    """Tell whether calls of plugins' hooks are to be told (`DATUM_ROUTER_TRACE_PLUGINS`)."""
    return environ.get("DATUM_ROUTER_TRACE_PLUGINS", "") not in ("", "0")
