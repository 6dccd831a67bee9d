"""Which rule takes a connection whose bytes are carried on: those bound to a listener of mode TLS or TCP, and no
others.

A rule that is bound to no listener serves HTTP everywhere, and must not come to serve a port of which it knows nothing.
Conditions on paths, methods or fields never hold here: nobody has read any. `sourceCIDRs` and host names do, the latter
against the server name of the ClientHello; TCP has none, so that a rule's host names do not count there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from datum_router.model.listener import Listener, ListenerMode
from datum_router.model.request import RequestHead
from datum_router.model.route import Rule
from datum_router.routing.matcher import Matcher
from datum_router.routing.regex import RegexEngine


def link_streams(listeners: Iterable[Listener], rules: Sequence[Rule], regex: RegexEngine | None) -> dict[str, Matcher]:
    """Return the matcher of each listener that carries bytes. O(rules) for each, and nothing if there is none."""
    found: dict[str, Matcher] = {}
    for listener in listeners:
        if listener.mode is ListenerMode.HTTP:
            continue
        bound = [rule for rule in rules if listener.name in rule.listeners]
        if listener.mode is ListenerMode.TCP:
            bound = [msgspec.structs.replace(rule, hostnames=()) for rule in bound]
        found[listener.name] = Matcher(tuple(bound), regex)
    return found


def stream_head(listener: Listener, *, server_name: str, client_ip: str) -> RequestHead:
    """Return what stands for a request: rules and balancers read it as if it asked for `/` of the server name."""
    return RequestHead(
        method="",
        scheme="https" if listener.mode is ListenerMode.PASSTHROUGH else "tcp",
        authority=server_name,
        host=server_name,
        path="/",
        client_ip=client_ip,
        listener=listener.name,
        attachment=listener.attachment,
    )
