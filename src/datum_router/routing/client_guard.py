"""Which requests a TLS connection may carry where client certificates are asked for: by host, and by rule.

Theory of operation. On one port, some hosts may ask clients for certificates and others not, or others by other CAs.
What a connection is good for is settled in its handshake, by the server name that it asked for; the host of a request
is the client's to choose afterwards. So a request is admitted only if its host asks for exactly what the connection was
held to: else it is answered with 421, and belongs on a connection of its own (RFC 9110 section 15.5.20).

Rules have host names of their own. One for `*.shop.example` also takes `a.shop.example` if that has none that fits; if
`*.shop.example` asks for certificates and `a.shop.example` does not, that rule is not to be had without one. So the
name by which a rule takes the request is held to the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.model.listener import ClientAuth, Listener
from datum_router.routing.host import best_hostname, canonical_hostname


class ClientGuard:
    """What the hosts of one listener ask of clients."""

    __slots__ = ("_default", "_policies")

    def __init__(self, listener: Listener) -> None:
        self._policies: dict[str, ClientAuth | None] = {}
        for binding in listener.tls:
            for name in binding.hostnames:
                self._policies.setdefault(canonical_hostname(name), binding.client_auth)  # as `server.tls` does
        self._default = listener.tls[0].client_auth if listener.tls else None

    def policy_of(self, host: str) -> ClientAuth | None:
        """Return what a host asks of clients; None = nothing. Unknown hosts: what the listener's first binding asks."""
        policies = self._policies
        if host in policies:
            return policies[host]
        parent = host.partition(".")[2]
        while parent:  # the longest wildcard first, as `best_hostname` has it, without a look at all of them
            wildcard = f"*.{parent}"
            if wildcard in policies:
                return policies[wildcard]
            parent = parent.partition(".")[2]
        return self._default

    def admits(self, policy: ClientAuth | None, host: str, hostnames: Sequence[str] = ()) -> bool:
        """Tell whether a request may be served on a connection that was held to `policy`.

        Args:
            host: The request's, canonical.
            hostnames: The rule's, canonical or not; empty = any.
        """
        if self.policy_of(host) != policy:
            return False
        name = best_hostname([canonical_hostname(one) for one in hostnames], host)
        return name is None or name not in self._policies or self._policies[name] == policy


def make_guard(listener: Listener) -> ClientGuard | None:
    """Return a listener's guard; None if it asks nobody for a certificate."""
    return ClientGuard(listener) if any(one.client_auth is not None for one in listener.tls) else None
