"""A rule's conditions, filters and policies in words, for `explain`."""

from __future__ import annotations

from datum_router.balancing.hashkey import is_sticky
from datum_router.filters.rewrite import replaced_prefix_by
from datum_router.health.breaker import describe_circuit
from datum_router.model.filters import CorsPolicy, Fault, Mirror, ReplyTemplate
from datum_router.model.listener import Listener
from datum_router.model.route import (
    BalancingPolicy,
    HashOn,
    HeaderEdit,
    LocalityMode,
    LocalityPolicy,
    Match,
    PluginFilter,
    Redirect,
    Rewrite,
    Rule,
)
from datum_router.policy.affinity import describe_affinity
from datum_router.policy.ratelimit import describe_rate
from datum_router.routing.host import host_matches
from datum_router.routing.path import describe_path
from datum_router.routing.value import describe_value


def describe_conditions(rule: Rule) -> list[str]:
    """Return the conditions of a rule, one in a text each; `any request` if there are none."""
    match = rule.match
    found: list[str] = []
    if rule.hostnames:
        found.append("host " + " or ".join(rule.hostnames))
    if match.path != Match().path or not (match.grpc_service or match.grpc_method):
        found.append(f"path {describe_path(match.path)}")
    if match.grpc_service or match.grpc_method:
        found.append(f"gRPC {match.grpc_service or '*'}/{match.grpc_method or '*'}")
    if match.is_grpc_call:
        found.append("gRPC call: a path of two segments")
    if match.methods:
        found.append("method " + " or ".join(match.methods))
    found += [f"header {item.name} {describe_value(item)}" for item in match.headers]
    found += [f"query {item.name} {describe_value(item)}" for item in match.query]
    if match.source_cidrs:
        found.append("source " + " or ".join(match.source_cidrs))
    if match.source_attachment:
        found.append(f"came in by attachment {match.source_attachment}")
    return found


def describe_limits(rule: Rule, listener: Listener | None, host: str) -> list[str]:
    """Return what limits requests for `host` that the rule takes at a listener, and keeps them in their place."""
    rates = list(rule.rate_limits)
    if listener is not None:
        held = [one for one in listener.rate_limits if any(host_matches(name, host) for name in one.hostnames)]
        rates[:0] = [one.policy for one in held[:1]]
    found = [describe_rate(policy) for policy in rates]
    if rule.circuit is not None:
        found.append(describe_circuit("route", rule.circuit.limits, rule.circuit.breaker))
    if rule.affinity is not None:
        found.append(describe_affinity(rule.affinity))
    return found


def describe_filters(rule: Rule) -> list[str]:
    """Return what the rule's filters do, one in a text each."""
    found = [_describe_filter(item) for item in rule.filters]
    put = replaced_prefix_by(rule.filters, rule.match)
    for ref in rule.destinations:
        found += [f"for {ref.service}: {_describe_filter(item, replaced_by=put)}" for item in ref.filters]
    if rule.max_request_body_bytes:
        found.append(f"request bodies of at most {rule.max_request_body_bytes} bytes")
    found += [describe_reply(item) for item in rule.replies]
    if rule.cors is not None:
        found.insert(0, _describe_cors(rule.cors))
    return found


def describe_reply(template: ReplyTemplate) -> str:
    """Return which of the gateway's own answers a template is for."""
    return f"own answers: {', '.join(map(str, template.statuses)) or 'errors'} as {template.content_type}"


def _describe_cors(policy: CorsPolicy) -> str:
    parts = [f"origins {' or '.join(policy.origins)}"]
    parts += [f"methods {', '.join(policy.methods)}"] if policy.methods else []
    parts += [f"headers {', '.join(policy.headers)}"] if policy.headers else []
    parts += ["with credentials"] if policy.allows_credentials else []
    return "CORS: " + ", ".join(parts)


def _describe_filter(item: object, *, replaced_by: str = "") -> str:
    """Return what a filter does.

    Args:
        replaced_by: What filters before it have put in place of the prefix that the rule matches; empty: it is there.
    """
    match item:
        case HeaderEdit():
            edits = [f"set {name}: {value}" for name, value in item.set]
            edits += [f"add {name}: {value}" for name, value in item.add]
            edits += [f"remove {name}" for name in item.remove]
            return ("response headers: " if item.is_response else "request headers: ") + ", ".join(edits)
        case Redirect():
            parts = [item.scheme and f"scheme {item.scheme}", item.hostname and f"host {item.hostname}"]
            parts.append(f"port {item.port}" if item.port is not None else "")
            parts.append(f"path {item.full_path}" if item.full_path is not None else "")
            parts.append(f"prefix {item.prefix_path}" if item.prefix_path is not None else "")
            return f"redirect {item.status}: " + ", ".join(part for part in parts if part)
        case Rewrite():
            parts = [item.hostname and f"host {item.hostname}"]
            parts.append(f"path {item.full_path}" if item.full_path is not None else "")
            why = f" (not done: the route has put {replaced_by} there before)" if replaced_by else ""
            parts.append(f"prefix {item.prefix_path}{why}" if item.prefix_path is not None else "")
            return "rewrite: " + ", ".join(part for part in parts if part)
        case Mirror():
            why = f" (not now: {item.problem})" if item.problem else ""
            return f"mirror: {item.percent}% of the requests to {item.service}{why}"
        case Fault():
            return "fault: " + ", ".join(_describe_fault(item))
        case PluginFilter():
            asks = f", which asks {item.service}" if item.service else ""
            why = f" (not now: {item.problem})" if item.problem else ""
            return f"filter {item.name}{asks}{why}"
    raise AssertionError(f"unknown filter {type(item).__name__}")  # the union in model.route is closed


def _describe_fault(fault: Fault) -> list[str]:
    found: list[str] = []
    if fault.delay_percent:
        found.append(f"{fault.delay_percent}% wait {fault.delay_s:g} s")
    if fault.abort_percent and fault.status:
        found.append(f"{fault.abort_percent}% are answered with {fault.status}")
    if fault.abort_percent and fault.grpc_status is not None:
        found.append(f"{fault.abort_percent}% of gRPC calls are answered with grpc-status {fault.grpc_status}")
    return found


def describe_balancing(policy: BalancingPolicy, locality: LocalityPolicy) -> str:
    """Return how an endpoint is chosen."""
    text = policy.algorithm
    if policy.algorithm.startswith("consistent-hash"):
        named = policy.hash_on in (HashOn.HEADER, HashOn.COOKIE, HashOn.QUERY)
        text += f" on {policy.hash_on}" + (f" {policy.hash_name}" if named else "")
    if policy.cookie is not None:
        lasts = f"for {policy.cookie.ttl_s} s" if policy.cookie.ttl_s else "until the browser is closed"
        text += f", clients without cookie {policy.hash_name} are given it {lasts} at path {policy.cookie.path}"
    if policy.slow_start_s:
        text += ", slowStart ignored: it is by hash" if is_sticky(policy) else f", slow start {policy.slow_start_s:g} s"
    if locality.mode is not LocalityMode.NONE:
        text += f", {locality.mode} by {locality.topology_key}"
    if locality.allowed_locations:
        text += f", only in {' or '.join(locality.allowed_locations)}"
    return text


def redirect_status(rule: Rule) -> int | None:
    """Return the status of the rule's redirect, None if it has none."""
    return next((item.status for item in rule.filters if isinstance(item, Redirect)), None)
