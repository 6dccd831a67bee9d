"""Outcomes: how one attempt at an endpoint, and one request, ended."""

from __future__ import annotations

import enum

import msgspec

from datum_router.model.endpoint import EndpointKey
from datum_router.model.service import ServiceKey
from datum_router.reasons import Reason


class OutcomeClass(enum.IntEnum):
    """What outlier detection counts. GATEWAY_ERROR is a locally seen failure or 502, 503, 504 (also a 5xx)."""

    SUCCESS = 0
    SERVER_ERROR = 1
    GATEWAY_ERROR = 2


ENDPOINT_FAILURES = frozenset(
    {
        Reason.CONNECT_FAILED,
        Reason.CONNECT_TIMEOUT,
        Reason.UPSTREAM_RESET,
        Reason.UPSTREAM_PROTOCOL,
        Reason.UPSTREAM_TLS,
        Reason.RESPONSE_TIMEOUT,
        Reason.PER_TRY_TIMEOUT,
        Reason.BAD_UPGRADE,
        Reason.TOO_MANY_INTERIM,
        Reason.TRUNCATED,
        # What the wire engines say about a response; a request of the client's that is broken is `downstream_reset`.
        Reason.LENGTH_CONFLICT,
        Reason.BAD_LENGTH,
        Reason.BAD_TRANSFER_ENCODING,
        Reason.UNKNOWN_TRANSFER_CODING,
        Reason.BAD_LINE_END,
        Reason.BAD_HEADER,
        Reason.BAD_CHUNK,
        Reason.BAD_TRAILER,
        Reason.BAD_STATUS_LINE,
        Reason.HEAD_TOO_LARGE,
        Reason.TOO_MANY_FIELDS,
        Reason.BAD_PREFACE,
        Reason.BAD_FRAME,
        Reason.BAD_HEADER_BLOCK,
        Reason.FLOW_CONTROL,
        Reason.STREAM_STATE,
        Reason.FLOOD,
    }
)
"""Reasons that are the endpoint's own doing."""


def class_of(status: int) -> OutcomeClass:
    """Return what a response with this status counts as if it is complete."""
    if status < 500:
        return OutcomeClass.SUCCESS
    return OutcomeClass.GATEWAY_ERROR if status in (502, 503, 504) else OutcomeClass.SERVER_ERROR


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How one attempt ended.

    Attributes:
        status: Response status, 0 if no response head came.
        reason: `routed` for a completed exchange, else why it failed.
        is_sent: True if any request byte may have reached the upstream.
        is_unprocessed: True if the upstream provably did not act on it (connect failure, REFUSED_STREAM, GOAWAY).
    """

    service: ServiceKey
    endpoint: EndpointKey
    status: int = 0
    reason: Reason = Reason.ROUTED
    is_sent: bool = False
    is_unprocessed: bool = False

    @property
    def outcome_class(self) -> OutcomeClass | None:
        """Return what passive health counts this as; None if it says nothing about the endpoint.

        Only what the endpoint (or the way to it) caused counts. A client that left, a deadline the
        client chose, a body it did not send and a limit of our own prove neither health nor sickness: if they counted,
        a client could eject healthy endpoints or clear the record of a dead one.
        """
        if self.reason in ENDPOINT_FAILURES:
            return OutcomeClass.GATEWAY_ERROR  # also after a head: a response that is cut off is no success
        return None if self.status == 0 else class_of(self.status)
