"""Settings of the filter, as a VPCRoute states them under `plugin.config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from datum_router.filters.grammar import name_problem
from datum_router.routing.normalize import BadHost, parse_authority

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key pair, nothing else: `none` is no signature, and with HS* the public key would be the secret."""
Text = Annotated[str, Meta(min_length=1, max_length=1024)]


class Config(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """See the fields.

    Attributes:
        issuer: What `iss` must be.
        audiences: One of them must be in `aud`.
        keys: A JWKS (RFC 7517 section 5); else it is fetched of the filter's `vpcServiceRef`.
        jwks_path, jwks_host: What is asked for there; without a host, the service's name.
        algorithms: Which of `ALGORITHMS` are taken.
        leeway_seconds: How far the clocks of issuer and gateway may be apart.
        required_claims: Each must be there with this value: as it is, as an item of a list, or as a word of a text.
        header: Where the token is; `authorization` holds it after `Bearer`, every other field holds nothing else.
        allow_missing: Requests without a token pass; those with a bad one never do.
        forward_token: The service gets the token, too.
        forward_payload_header: The service gets the verified claims in this field, in base64url.
        cache_seconds: Age of fetched keys from which on they are fetched again, while they serve on.
        max_stale_seconds: Age from which on keys that could not be fetched again are used no more.
        timeout_ms: How long fetching may take.
    """

    issuer: Text
    audiences: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=32)]
    keys: Mapping[str, object] | None = None
    jwks_path: Annotated[str, Meta(pattern=r"^/[!-\"$-~]*$", max_length=1024)] = "/.well-known/jwks.json"
    jwks_host: Annotated[str, Meta(max_length=255)] = ""
    algorithms: Annotated[tuple[str, ...], Meta(min_length=1, max_length=len(ALGORITHMS))] = ("RS256", "ES256")
    leeway_seconds: Annotated[int, Meta(ge=0, le=300)] = 60
    required_claims: Annotated[Mapping[str, Text], Meta(max_length=32)] = {}
    header: Annotated[str, Meta(min_length=1, max_length=256)] = "authorization"
    allow_missing: bool = False
    forward_token: bool = False
    forward_payload_header: Annotated[str, Meta(max_length=256)] = ""
    cache_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 300
    max_stale_seconds: Annotated[int, Meta(ge=1, le=604_800)] = 3600
    timeout_ms: Annotated[int, Meta(ge=1, le=60_000)] = 1000


def read(text: str, *, has_service: bool) -> Config:
    """Return the settings of a filter.

    Args:
        has_service: Whether the filter has a `vpcServiceRef`.

    Raises:
        msgspec.ValidationError: They cannot be used; the message names the field.
    """
    config = msgspec.json.decode(text, type=Config)
    unknown = [name for name in config.algorithms if name not in ALGORITHMS]
    if unknown:
        known = ", ".join(ALGORITHMS)
        raise msgspec.ValidationError(f"algorithm {unknown[0]!a}, expected one of {known} - at `$.algorithms`")
    if (config.keys is None) is not has_service:
        raise msgspec.ValidationError("expected either keys, or a vpcServiceRef of the filter to fetch them from")
    if config.jwks_host and isinstance(parse_authority(config.jwks_host), BadHost):
        raise msgspec.ValidationError("a malformed host - at `$.jwksHost`")
    for where, name in (("header", config.header), ("forwardPayloadHeader", config.forward_payload_header)):
        problem = name_problem(name.lower().encode("utf-8")) if name else ""
        if problem:
            raise msgspec.ValidationError(f"{problem} - at `$.{where}`")
    return config
