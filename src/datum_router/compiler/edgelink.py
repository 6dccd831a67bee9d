"""Linked policies of VPCIngresses: which answer redirects to HTTPS, which fields every answer has, what may be asked on
a connection.

Theory of operation. A rule may serve hosts of several VPCIngresses on several listeners, so what a VPCIngress wants for
its hosts cannot stand in the rule. It stands in the listener, and a rule that wins for a host whose policy changes
anything is dressed: a second `LinkedRule` with the same balancers, and with the policy's field in front of its filters,
which therefore has the last word on responses. It is made when it is first wanted and lives as long as the snapshot,
so that whoever remembers which rule won for a head remembers this one. Listeners without such policies have no table.
"""

from __future__ import annotations

from collections.abc import Iterable

from datum_router.compiler.link import LinkedRule
from datum_router.filters.base import build_filter
from datum_router.model.listener import HostPolicy, Listener
from datum_router.model.request import RequestHead
from datum_router.model.route import Redirect, Rule, RuleId
from datum_router.routing.normalize import Authority, parse_authority

REDIRECT_STATUS = 308
"""Permanent, and the method stays (RFC 9110 section 15.4.9; RFC 6797 section 7.2 asks for a permanent one)."""
HTTP_PORT = 80


class HostTable:
    """The most specific of some host names that a host falls under: O(labels of the host).

    Wildcards stand for one or more labels, as in `routing.host`. A policy without host names is for any other host.
    """

    __slots__ = ("_any", "_exact", "_wildcard")

    def __init__(self, policies: Iterable[HostPolicy]) -> None:
        self._exact: dict[str, HostPolicy] = {}
        self._wildcard: dict[str, HostPolicy] = {}
        self._any: HostPolicy | None = None
        for policy in policies:
            if not policy.hostnames:
                self._any = self._any or policy
            for name in policy.hostnames:
                table, key = (self._wildcard, name[2:]) if name.startswith("*.") else (self._exact, name)
                table.setdefault(key, policy)

    def find(self, host: str) -> HostPolicy | None:
        """Return the policy of a canonical host, None if it is nobody's."""
        found = self._exact.get(host)
        if found is None and self._wildcard:
            _, _, parent = host.partition(".")
            while parent and found is None:
                found = self._wildcard.get(parent)
                _, _, parent = parent.partition(".")
        return found or self._any


class Edge:
    """One listener's policies, linked."""

    __slots__ = ("_dressed", "_is_dressing", "_redirects", "_table", "has_identities")

    def __init__(self, listener: Listener) -> None:
        policies = listener.policies
        self._table = HostTable(policies)
        self._dressed: dict[tuple[RuleId, str, bool], LinkedRule] = {}
        self._is_dressing = any(one.hsts or not one.is_logged for one in policies)
        self.has_identities = len({one.identity for one in policies}) > 1
        self._redirects: dict[str, tuple[LinkedRule, LinkedRule]] = {}
        for policy in policies:
            if policy.redirect_port is not None:
                self._redirects[policy.owner] = (_redirect(policy, None), _redirect(policy, policy.redirect_port))

    @property
    def is_needed(self) -> bool:
        """Tell whether any request has to be looked at."""
        return self._is_dressing or self.has_identities or bool(self._redirects)

    def policy(self, host: str) -> HostPolicy | None:
        """Return the policy of a canonical host, None if it is nobody's."""
        return self._table.find(host)

    def redirect(self, head: RequestHead) -> LinkedRule | None:
        """Return the rule that redirects a request to HTTPS, None if it is to be served, as one that came by HTTPS is.

        Trusted proxies that end TLS tell how the client came: what has come by HTTPS must not be sent back for ever.
        A client that named a port has reached the listener itself, so it is sent to the HTTPS listener's; one that
        named none has come by port 80, whatever that is mapped to, and goes to 443.
        """
        policy = self._table.find(head.host) if self._redirects and head.scheme != "https" else None
        pair = None if policy is None else self._redirects.get(policy.owner)
        if pair is None:
            return None
        asked = parse_authority(head.authority)
        is_direct = isinstance(asked, Authority) and asked.port not in (None, HTTP_PORT)
        return pair[is_direct]

    def dress(self, linked: LinkedRule, head: RequestHead) -> LinkedRule:
        """Return a rule that has won for a request with what the policy of its host adds to it."""
        policy = self._table.find(head.host) if self._is_dressing else None
        if policy is None:
            return linked
        hsts = policy.said_hsts(head.scheme)
        if policy.is_logged and not hsts:
            return linked
        key = (linked.rule.id, hsts, policy.is_logged)
        found = self._dressed.get(key)
        if found is None:
            found = self._dressed[key] = linked.dressed(hsts=hsts, is_logged=policy.is_logged)
        return found

    def is_misdirected(self, host: str, identity: str) -> bool:
        """Tell whether a host is served in another way than a connection was opened for (RFC 9110 section 15.5.20).

        Args:
            identity: Of the binding that the TLS handshake was made with.
        """
        if not self.has_identities:
            return False
        policy = self._table.find(host)
        return policy is not None and policy.identity != identity


def _redirect(policy: HostPolicy, port: int | None) -> LinkedRule:
    name = f"ingress:{policy.owner}"
    config = Redirect(scheme="https", port=port, status=REDIRECT_STATUS)
    rule = Rule(id=RuleId(f"{name}#https"), route=name, hostnames=policy.hostnames, filters=(config,))
    linked = LinkedRule(rule, (build_filter(config, rule),), {})
    linked.is_logged = policy.is_logged
    return linked


def link_edges(listeners: Iterable[Listener]) -> dict[str, Edge]:
    """Return the edges of listeners that need one, by name."""
    made = {listener.name: Edge(listener) for listener in listeners if listener.policies}
    return {name: edge for name, edge in made.items() if edge.is_needed}
