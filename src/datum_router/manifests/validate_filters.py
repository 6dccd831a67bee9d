"""Rules of what a VPCRoute does beside matching and choosing, that a type cannot say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from datum_router.filters.cors import ANY, origin_problem
from datum_router.filters.reply import template_problem
from datum_router.manifests.problem import Problem, shown
from datum_router.manifests.routefilters import FaultInjection, LocalReply, PluginRef
from datum_router.manifests.rules import check_header, check_regex, exclusive, invalid, missing
from datum_router.manifests.vpcroute import GRPC_METHOD_PATTERN, GRPC_SERVICE_PATTERN, Cors, GrpcMatchType, RouteMatch

MAX_CONFIG_BYTES = 65_536
"""Longest settings of a plugin's filter, as JSON."""

_GRPC_NAMES = (
    ("grpc_service", "grpcService", re.compile(GRPC_SERVICE_PATTERN.removesuffix("$") + r"\Z"), "shop.v1.Cart"),
    ("grpc_method", "grpcMethod", re.compile(GRPC_METHOD_PATTERN.removesuffix("$") + r"\Z"), "AddItem"),
)
_REGEX_SIGNS = frozenset("*+?|()[]\\^$")


def check_grpc(path: str, match: RouteMatch) -> Iterator[Problem]:
    """Check names of a gRPC service and method, or the expressions for them."""
    for attribute, name, pattern, example in _GRPC_NAMES:
        text: str | None = getattr(match, attribute)
        if text is None:
            continue
        if match.grpc_match_type is GrpcMatchType.REGULAR_EXPRESSION:
            yield from check_regex(f"{path}.{name}", text)
        elif not pattern.match(text):
            yield invalid(
                f"{path}.{name}",
                f"found {shown(text)}, expected a gRPC name such as {example}",
                "set grpcMatchType: RegularExpression" if set(text) & _REGEX_SIGNS else "",
            )


def check_fault(path: str, fault: FaultInjection) -> Iterator[Problem]:
    """Check faults that are injected on purpose."""
    if fault.delay is None and fault.abort is None:
        yield missing(path, "the filter does nothing", "give delay or abort")
    if fault.abort is not None and fault.abort.status is None and fault.abort.grpc_status is None:
        yield missing(f"{path}.abort.status", "abort needs a status", "give status, or grpcStatus for gRPC calls alone")


def check_replies(path: str, replies: Sequence[LocalReply]) -> Iterator[Problem]:
    """Check templates of the gateway's own answers."""
    for index, reply in enumerate(replies):
        problem = template_problem(reply.body, reply.content_type.value)
        if problem:
            yield invalid(f"{path}[{index}].body", f"found {problem}")


def check_plugin(path: str, plugin: PluginRef) -> Iterator[Problem]:
    """Check how long the settings of a plugin's filter are; what they say is for the plugin to check."""
    size = len(msgspec.json.encode(plugin.config)) if plugin.config is not None else 0
    if size > MAX_CONFIG_BYTES:
        yield invalid(f"{path}.config", f"found {size} bytes as JSON, expected at most {MAX_CONFIG_BYTES}")


def check_cors(path: str, cors: Cors) -> Iterator[Problem]:
    """Check a policy for requests of other origins."""
    if not cors.allowed_origins:
        yield missing(f"{path}.allowedOrigins", "no origin may ask, expected at least one", "remove cors, or give '*'")
    for index, origin in enumerate(cors.allowed_origins):
        where = f"{path}.allowedOrigins[{index}]"
        problem = origin_problem(origin)
        if problem:
            yield invalid(where, f"found {problem}", _origin_hint(origin))
        elif origin == ANY and cors.allow_credentials:
            yield exclusive(
                f"{path}.allowedOrigins",
                "every origin may ask, with credentials: any page could act as the user, and browsers refuse it",
                "name the origins, or remove allowCredentials",
            )
    for name, headers in (("allowedHeaders", cors.allowed_headers), ("exposeHeaders", cors.expose_headers)):
        for index, header in enumerate(headers):
            where = f"{path}.{name}[{index}]"
            if header == ANY and cors.allow_credentials:
                yield exclusive(
                    f"{path}.{name}", "* means nothing to browsers if credentials are allowed", "name the headers"
                )
            yield from check_header(where, header)


def _origin_hint(text: str) -> str:
    if "://" not in text:
        return f"write https://{text}" if text.isascii() and text.replace(".", "").replace("-", "").isalnum() else ""
    return "leave out the path" if text.count("/") > 2 else ""
