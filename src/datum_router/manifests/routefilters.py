"""Parts of a VPCRoute: what filters do beside editing heads."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from datum_router.filters.reply import MAX_BODY_CHARS
from datum_router.manifests.meta import LINES_EXTRA, LINES_PATTERN, Duration, ObjectRef, Percent, SpecPart


class FaultDelay(SpecPart, frozen=True, kw_only=True):
    """Requests that wait."""

    duration: Annotated[Duration, Meta(description="How long they wait; the request's time limit goes on.")]
    percent: Annotated[Percent, Meta(description="Share of the requests that waits.")] = 100


class FaultAbort(SpecPart, frozen=True, kw_only=True):
    """Requests that are answered with an error."""

    status: (
        Annotated[
            int,
            Meta(description="Status of the answer; gRPC calls get what stands for it, or grpcStatus.", ge=400, le=599),
        ]
        | None
    ) = None
    grpc_status: (
        Annotated[int, Meta(description="Status of the answer to gRPC calls; others need status.", ge=1, le=16)] | None
    ) = None
    percent: Annotated[Percent, Meta(description="Share of the requests that is answered so.")] = 100


class FaultInjection(SpecPart, frozen=True, kw_only=True):
    """Faults on purpose, to see what clients make of them."""

    delay: Annotated[FaultDelay | None, Meta(description="Requests that wait.")] = None
    abort: Annotated[FaultAbort | None, Meta(description="Requests that are answered with an error.")] = None


class ReplyContentType(enum.StrEnum):
    """Content types of the gateway's own answers, for which values can be escaped."""

    TEXT = "text/plain"
    HTML = "text/html"
    JSON = "application/json"
    PROBLEM = "application/problem+json"


class LocalReply(SpecPart, frozen=True, kw_only=True):
    """The body of answers that the gateway gives by itself."""

    statuses: Annotated[
        tuple[Annotated[int, Meta(ge=400, le=599)], ...],
        Meta(description="Statuses that it is for; every one from 400 if empty.", max_length=32),
    ] = ()
    content_type: Annotated[ReplyContentType, Meta(description="Content type of the body.")] = ReplyContentType.TEXT
    body: Annotated[
        str,
        Meta(
            description="Text with placeholders %STATUS%, %STATUS_TEXT%, %REASON%, %DETAIL% and %REQUEST_ID%, whose "
            "values are escaped as HTML or JSON have it.",
            min_length=1,
            max_length=MAX_BODY_CHARS,
            pattern=LINES_PATTERN,
            extra=LINES_EXTRA,
        ),
    ]


LocalReplies = Annotated[
    tuple[LocalReply, ...],
    Meta(
        description="Bodies of answers that the gateway gives by itself, such as 404 and 503; the first that fits is "
        "taken. gRPC calls get a grpc-status all the same.",
        max_length=8,
    ),
]


class PluginRef(SpecPart, frozen=True, kw_only=True):
    """A filter that a plugin of the gateway adds."""

    name: Annotated[
        str,
        Meta(
            description="Name of the filter, such as jwt or ext-authz; `datum-router plugins` lists those installed.",
            pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$",
            max_length=63,
            extra={"expected": "the name of a filter such as jwt or ext-authz"},
        ),
    ]
    vpc_service_ref: Annotated[ObjectRef | None, Meta(description="Service that the filter asks.")] = None
    config: Annotated[Mapping[str, object] | None, Meta(description="Settings, as the plugin documents them.")] = None
