"""From `spec.cors` of a VPCRoute to the model, and to the rules that its preflights need."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from datum_router.filters.cors import canonical_origin
from datum_router.manifests.vpcroute import Cors
from datum_router.model.filters import CorsPolicy
from datum_router.model.route import Rule, RuleId, ValueKind, ValueMatch

_ORIGIN = ValueMatch(name="origin", kind=ValueKind.PRESENT)
_ASKED_METHOD = "access-control-request-method"


def compile_cors(cors: Cors | None) -> CorsPolicy | None:
    """Return the policy as the model's."""
    if cors is None:
        return None
    return CorsPolicy(
        origins=tuple(dict.fromkeys(map(canonical_origin, cors.allowed_origins))),
        methods=cors.allowed_methods,
        headers=tuple(name.lower() for name in cors.allowed_headers),
        exposed=tuple(name.lower() for name in cors.expose_headers),
        allows_credentials=cors.allow_credentials,
        max_age_s=cors.max_age_seconds,
    )


def preflight_rules(rule: Rule) -> Iterator[Rule]:
    """Yield the rules that take the preflights of what `rule` matches, if `rule` does not match them itself.

    A preflight has the target of the request that it asks for, but method OPTIONS, and of its header fields none but
    Origin: so conditions on methods are compared with Access-Control-Request-Method, and others on fields are left out.
    """
    match = rule.match
    if rule.cors is None or not (match.headers or (match.methods and "OPTIONS" not in match.methods)):
        return
    for method in match.methods or ("",):
        asked = (
            ValueMatch(name=_ASKED_METHOD, value=method)
            if method
            else ValueMatch(name=_ASKED_METHOD, kind=ValueKind.PRESENT)
        )
        yield msgspec.structs.replace(
            rule,
            id=RuleId(f"{rule.id}-preflight" + (f"-{method}" if method else "")),
            match=msgspec.structs.replace(match, methods=("OPTIONS",), headers=(asked, _ORIGIN)),
            destinations=(),
            filters=(),
            is_preflight=True,
        )
