"""What `validate_filters` says of VPCRoutes, for the API server."""

from __future__ import annotations

from typing import Final

from datum_router.filters.cors import ORIGIN_PATTERN
from datum_router.filters.reply import PLACEHOLDER_PATTERN, PLACEHOLDERS
from datum_router.manifests.cel import CelRule, filled, given, header_matched, text, texts
from datum_router.reasons import Reason


def _without_credentials(name: str, message: str) -> CelRule:
    return CelRule(
        rule=f"!self.allowCredentials || !has(self.{name}) || !self.{name}.exists(one, one == '*')",
        message=message,
        field=name,
        reason=Reason.MUTUALLY_EXCLUSIVE,
    )


CORS: Final = (
    CelRule(
        rule=filled("allowedOrigins"),
        message="no origin may ask: expected at least one",
        field="allowedOrigins",
        reason=Reason.MISSING_FIELD,
    ),
    CelRule(
        on="allowedOrigins[]",
        rule=f"self.matches({text(ORIGIN_PATTERN)})",
        message="expected an origin such as https://shop.example.com or https://*.example.com, or *",
    ),
    _without_credentials(
        "allowedOrigins", "with allowCredentials name the origins: by * any page could act as the user"
    ),
    *(
        rule
        for name in ("allowedHeaders", "exposeHeaders")
        for rule in (
            header_matched(f"{name}[]"),
            _without_credentials(name, f"with allowCredentials name the {name}: browsers take * for a name"),
        )
    ),
)

FAULT: Final = (
    CelRule(
        rule=f"{given('delay')} || {given('abort')}",
        message="the filter does nothing: expected delay or abort",
        reason=Reason.MISSING_FIELD,
    ),
)
FAULT_ABORT: Final = (
    CelRule(
        rule=f"{given('status')} || {given('grpcStatus')}",
        message="abort needs a status: expected status, or grpcStatus for gRPC calls alone",
        field="status",
        reason=Reason.MISSING_FIELD,
    ),
)
_KNOWN: Final = [f"%{one}%" for one in PLACEHOLDERS]
REPLY: Final = (
    CelRule(
        on="body",
        rule=f"self.findAll({text(PLACEHOLDER_PATTERN)}).all(found, found in {texts(_KNOWN)})",
        message=f"expected no placeholder but {', '.join(_KNOWN)}",
    ),
)
