"""Bring valid manifests into canonical form, so that everything behind them compares equal text for equal meaning."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from msgspec.structs import replace

from datum_router.manifests.vpcingress import IngressRule, PathType, VPCIngress
from datum_router.manifests.vpcroute import RouteMatch, VPCRoute
from datum_router.manifests.vpcservice import VPCService
from datum_router.routing.normalize import BadPath, normalize_rule_path


def canonical_path(text: str) -> str:
    """Return a valid path with canonical escapes (RFC 3986 section 6.2.2)."""
    found = normalize_rule_path(text)
    return text if isinstance(found, BadPath) else found


def canonical_prefix(text: str) -> str:
    """Return a valid path prefix without trailing slash; the root stays `/`."""
    return canonical_path(text).rstrip("/") or "/"


def canonical_hosts(names: Sequence[str]) -> tuple[str, ...]:
    """Return host names in lower case, each once, in order."""
    return tuple(dict.fromkeys([name.lower() for name in names]))


def normalize_service(manifest: VPCService) -> VPCService:
    """Return the service with addresses as the standard library prints them (IPv6: RFC 5952)."""
    if not manifest.spec.endpoints:
        return manifest
    endpoints = tuple(
        replace(item, address=str(ipaddress.ip_address(item.address))) for item in manifest.spec.endpoints
    )
    return replace(manifest, spec=replace(manifest.spec, endpoints=endpoints))


def normalize_route(manifest: VPCRoute) -> VPCRoute:
    """Return the route with canonical host names, paths, networks and header names; itself if they are."""
    spec = manifest.spec
    hostnames = canonical_hosts(spec.hostnames)
    match = None if spec.match is None else _match(spec.match)
    matches = tuple([_match(item) for item in spec.matches])
    if hostnames == spec.hostnames and match is spec.match and matches == spec.matches:
        return manifest
    return replace(manifest, spec=replace(spec, hostnames=hostnames, match=match, matches=matches))


def _match(item: RouteMatch) -> RouteMatch:
    exact = None if item.exact_path is None else canonical_path(item.exact_path)
    prefix = None if item.path_prefix is None else canonical_prefix(item.path_prefix)
    methods = tuple(dict.fromkeys(item.methods))
    if (exact, prefix, methods) == (item.exact_path, item.path_prefix, item.methods) and not (
        item.headers or item.header_matches or item.source_cidrs
    ):
        return item  # most are
    return replace(
        item,
        exact_path=exact,
        path_prefix=prefix,
        methods=methods,
        headers=None if item.headers is None else {name.lower(): value for name, value in item.headers.items()},
        header_matches=tuple(replace(one, name=one.name.lower()) for one in item.header_matches),
        source_cidrs=tuple(dict.fromkeys(str(ipaddress.ip_network(text, strict=False)) for text in item.source_cidrs)),
    )


def normalize_ingress(manifest: VPCIngress) -> VPCIngress:
    """Return the ingress with canonical host names and paths."""
    spec = manifest.spec
    return replace(
        manifest,
        spec=replace(
            spec,
            host=spec.host.lower(),
            hosts=canonical_hosts(spec.hosts),
            rules=tuple(_rule(rule) for rule in spec.rules),
        ),
    )


def _rule(rule: IngressRule) -> IngressRule:
    is_exact = rule.path_type is PathType.EXACT
    return replace(rule, path=canonical_path(rule.path) if is_exact else canonical_prefix(rule.path))
