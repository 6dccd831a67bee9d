"""Which listener a URL would reach, for `explain`."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.errors import ConfigError
from datum_router.model.listener import Listener
from datum_router.model.request import RequestHead
from datum_router.reasons import Reason
from datum_router.routing.host import host_matches

DEFAULT_PORTS = {"http": 80, "https": 443}


def choose_listener(listeners: Sequence[Listener], head: RequestHead, wanted: str | None) -> Listener | None:
    """Return the listener that takes the request: the one `wanted`, or the likeliest for scheme, port and host.

    A port in the URL is often one that something in front of the gateway maps, so it decides only among listeners of
    the URL's scheme, and is no reason to find none.

    Raises:
        ConfigError: No listener is called `wanted`; names those that are there.
    """
    names = [listener.name for listener in listeners]
    if wanted is not None:
        if wanted not in names:
            hint = did_you_mean(wanted, names) or f"listeners: {', '.join(names) or 'none'}"
            raise ConfigError(f"--listener: found no listener {wanted!r} ({hint})", reason=Reason.INVALID_VALUE)
        return listeners[names.index(wanted)]
    host, colon, port_text = head.authority.rpartition(":")
    port = int(port_text) if colon and port_text.isdecimal() and host else DEFAULT_PORTS[head.scheme]

    def fitness(listener: Listener) -> tuple[bool, bool, bool]:
        return bool(listener.tls) == (head.scheme == "https"), listener.port == port, serves_host(listener, head.host)

    return max(listeners, key=fitness, default=None)


def serves_host(listener: Listener, host: str) -> bool:
    """Tell whether the listener is there for `host`; a TLS listener answers 421 to others."""
    return not listener.hostnames or any(host_matches(name, host) for name in listener.hostnames)
