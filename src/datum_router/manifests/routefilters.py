"""Parts of a VPCRoute: what filters do beside editing heads."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from datum_router.manifests.meta import Duration, Percent, SpecPart


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
