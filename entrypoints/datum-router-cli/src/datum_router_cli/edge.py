"""What a VPCIngress adds to the rules at a listener, for `explain`: redirects, response fields, bytes carried on."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from datum_router.compiler.edgelink import Edge
from datum_router.compiler.streamlink import stream_head
from datum_router.model.listener import Listener, ListenerMode
from datum_router.model.request import RequestHead
from datum_router.model.route import HeaderEdit, Rule
from datum_router.routing.explain import Explanation, explain_match
from datum_router.routing.regex import RegexEngine


def explain_at(
    listener: Listener | None, rules: Sequence[Rule], head: RequestHead, regex: RegexEngine | None
) -> tuple[RequestHead, Explanation]:
    """Return what is decided about, and which rule takes it and why, at a listener; None is one that adds nothing.

    A redirect to HTTPS takes every request to its hosts, whatever the rules say. Where bytes are carried on only rules
    that are bound to the listener count, and they see the server name alone.
    """
    if listener is None:
        return head, explain_match(rules, head, regex)
    if listener.mode is not ListenerMode.HTTP:
        bound = [rule for rule in rules if listener.name in rule.listeners]
        if listener.mode is ListenerMode.TCP:
            bound = [msgspec.structs.replace(rule, hostnames=()) for rule in bound]
        head = stream_head(listener, server_name=head.host, client_ip=head.client_ip)
        return head, explain_match(bound, head, regex)
    edge = Edge(listener)
    redirect = edge.redirect(head) if rules else None
    if redirect is not None:
        return head, Explanation(winner=redirect.rule, candidates=())
    found = explain_match(rules, head, regex)
    policy = edge.policy(head.host)
    hsts = "" if policy is None else policy.said_hsts(head.scheme)
    if found.winner is None or not hsts:
        return head, found
    edit = HeaderEdit(is_response=True, set=(("strict-transport-security", hsts),))
    winner = msgspec.structs.replace(found.winner, filters=(edit, *found.winner.filters))
    return head, msgspec.structs.replace(found, winner=winner)
