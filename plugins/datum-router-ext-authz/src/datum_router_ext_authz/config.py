"""Settings of the filter, as a VPCRoute states them under `plugin.config`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from datum_router.filters.grammar import name_problem
from datum_router.routing.normalize import BadHost, parse_authority

HeaderName = Annotated[str, Meta(min_length=1, max_length=256)]
HeaderNames = Annotated[tuple[HeaderName, ...], Meta(max_length=32)]
PathText = Annotated[str, Meta(pattern=r"^(/[!-\"$-~]*)?$", max_length=1024)]


class Config(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """See the fields.

    Attributes:
        path: Asked with GET; the request's own method, host and target are in X-Forwarded-Method, -Host and -Uri
            (Traefik's ForwardAuth). Not given: asked with the request's own method and target (Envoy's ext_authz).
        path_prefix: Put before the target if no `path` is given.
        host: The authority that is asked for; empty: that of the request.
        timeout_ms: From the question to the last byte of the answer.
        request_headers: Fields of the request that are shown beside `authorization` and `cookie`.
        upstream_headers: Fields of an answer that allows the request which go to the service; those of the same name
            that the client has sent never do.
        client_headers: Fields of an answer that refuses which go to the client.
        failure_mode_allow: Let requests pass if nobody answers. Off: they are refused, with `status_on_error`.
    """

    path: Annotated[PathText, Meta(min_length=1)] | None = None
    path_prefix: PathText = ""
    host: Annotated[str, Meta(max_length=255)] = ""
    timeout_ms: Annotated[int, Meta(ge=1, le=60_000)] = 1000
    request_headers: HeaderNames = ()
    upstream_headers: HeaderNames = ()
    client_headers: HeaderNames = ("www-authenticate", "location", "set-cookie")
    failure_mode_allow: bool = False
    status_on_error: Annotated[int, Meta(ge=400, le=599)] = 503


def read(text: str) -> Config:
    """Return the settings of a filter.

    Raises:
        msgspec.ValidationError: They cannot be used; the message names the field.
    """
    config = msgspec.json.decode(text, type=Config)
    if config.path is not None and config.path_prefix:
        raise msgspec.ValidationError("path and pathPrefix are both given, expected at most one")
    if config.host and isinstance(parse_authority(config.host), BadHost):
        raise msgspec.ValidationError("a malformed host - at `$.host`")
    for field in ("request_headers", "upstream_headers", "client_headers"):
        for name in getattr(config, field):
            problem = name_problem(name.lower().encode("utf-8"))
            if problem:
                raise msgspec.ValidationError(f"found {problem} - at `$.{field}`")
    return config


def problem_of(text: str) -> str:
    """Return why settings cannot be used, empty if they can."""
    try:
        read(text)
    except msgspec.DecodeError as error:
        return str(error)[:1].lower() + str(error)[1:]
    return ""
