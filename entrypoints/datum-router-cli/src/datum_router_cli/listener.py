"""Which listener a URL would reach, and what holds there whatever the rule, for `explain`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.errors import ConfigError
from datum_router.model.listener import Listener, ListenerMode, TlsBinding
from datum_router.model.request import RequestHead
from datum_router.policy.shedding import TARGET_S, describe_shedding
from datum_router.reasons import Reason
from datum_router.routing.host import best_hostname, canonical_hostname, host_matches
from datum_router_cli.condition import describe_reply

DEFAULT_PORTS = {"http": 80, "https": 443}


def choose_listener(listeners: Sequence[Listener], head: RequestHead, wanted: str | None) -> Listener | None:
    """Return the listener that takes the request: the one `wanted`, or the likeliest for scheme, port and host.

    A port in the URL is often one that something in front of the gateway maps, so it decides only among listeners of
    the URL's scheme, and is no reason to find none.

    Args:
        wanted: A name, or a port: names of listeners are made by the compiler, ports stand in the manifests.

    Raises:
        ConfigError: No listener is called `wanted` or has that port; names those that are there.
    """
    host, colon, port_text = head.authority.rpartition(":")
    port = int(port_text) if colon and port_text.isdecimal() and host else DEFAULT_PORTS[head.scheme]

    def fitness(listener: Listener) -> tuple[bool, bool, bool]:
        is_tls = bool(listener.tls) or listener.mode is ListenerMode.PASSTHROUGH
        return is_tls == (head.scheme == "https"), listener.port == port, serves_host(listener, head.host)

    found = listeners if wanted is None else _called(listeners, wanted)
    return max(found, key=fitness, default=None)


def _called(listeners: Sequence[Listener], wanted: str) -> list[Listener]:
    """Return the listener of this name, or those of this port; at least one."""
    found = [listener for listener in listeners if listener.name == wanted]
    if not found and wanted.isascii() and wanted.isdecimal():
        found = [listener for listener in listeners if str(listener.port) == wanted.lstrip("0")]
    if not found:
        hint = did_you_mean(wanted, [listener.name for listener in listeners])
        there = ", ".join(f"{listener.name} (port {listener.port})" for listener in listeners) or "none"
        raise ConfigError(
            f"--listener: found {wanted!r}, expected the name or port of a listener; there "
            f"{'is' if len(listeners) == 1 else 'are'} {there}" + (f" ({hint})" if hint else ""),
            reason=Reason.INVALID_VALUE,
        )
    return found


def serves_host(listener: Listener, host: str) -> bool:
    """Tell whether the listener is there for `host`; a TLS listener answers 421 to others."""
    return not listener.hostnames or any(host_matches(name, host) for name in listener.hostnames)


def shed_queue_age_s(config: Mapping[str, str]) -> float:
    """Return how old the queue of a gateway with these settings of the data plane may stand, seconds; 0 = any age.

    Raises:
        ConfigError: It is no such number.
    """
    text = config.get("shed_queue_age_s")
    if text is None:
        return TARGET_S
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise ConfigError(
            f"shed_queue_age_s: found {text!r}, expected a number above 0, or 0 (off)", reason=Reason.INVALID_VALUE
        )
    return found


def describe_listener(listener: Listener | None, host: str, *, shed_s: float) -> list[str]:
    """Return what a listener does with every request for `host`, one in a text each: TLS, proxies in front, limits.

    Client certificates are not among them, see `identity.describe_client`.

    Args:
        shed_s: How old the queue may stand before requests are shed, 0 = any age; only those that are read can be.
    """
    if listener is None:
        return []
    found = [_describe_tls(listener, host)] if listener.tls else []
    whom = f", if the peer is in {' or '.join(listener.trusted_proxies)}" if listener.trusted_proxies else ""
    if listener.has_proxy_protocol:
        found.append(f"each connection begins with a PROXY header{whom}, else it is closed")
    if listener.trusted_hops:
        found.append(f"trusted hops in X-Forwarded-For: {listener.trusted_hops}{whom}")
    if listener.max_request_body_bytes:
        found.append(f"request bodies of at most {listener.max_request_body_bytes} bytes")
    found += [describe_reply(item) for item in listener.replies]
    return found + [describe_shedding(shed_s)] * (listener.mode is ListenerMode.HTTP)


def _describe_tls(listener: Listener, host: str) -> str:
    binding = _binding(listener, host)
    if binding is None:
        return f"TLS: no handshake for {host}, no certificate is for it and requireSni is set"
    parts = [f"{binding.min_version or listener.min_tls_version} or later"]
    parts += [f"suites of 1.2 {' '.join(binding.ciphers)}"] if binding.ciphers else []
    parts.append(f"offers {' '.join(binding.alpn or listener.alpn)}")
    parts += [f"certificate of VPCIngress {binding.owner}"] if binding.owner else []
    parts += ["no handshake without a server name that it has"] if listener.is_sni_required else []
    return f"TLS: {', '.join(parts)}"


def _binding(listener: Listener, host: str) -> TlsBinding | None:
    """Return the certificate that a client is shown which asks for `host`; None: it gets no handshake."""
    named: dict[str, TlsBinding] = {}
    for binding in listener.tls:
        for name in binding.hostnames:
            named.setdefault(canonical_hostname(name), binding)
    best = best_hostname(named, host)
    if best is not None:
        return named[best]
    return None if listener.is_sni_required else listener.tls[0]
