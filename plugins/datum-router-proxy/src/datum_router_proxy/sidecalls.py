"""Requests that the gateway makes of its own, for a filter: one head, a body that is here whole, one bounded answer.

They go the way of every request: an endpoint chosen by balancer and health, permits of the service, a kept connection,
an outcome that passive health counts. What they have not is a client that waits for bytes.
"""

from __future__ import annotations

import msgspec

from datum_router.compiler.lease import Lease
from datum_router.errors import UpstreamError
from datum_router.model.outcome import Outcome
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router.policy.retry import IDEMPOTENT
from datum_router.reasons import Reason
from datum_router_proxy.exchange import NOBODY, End, FieldTuple, Upstream, UpstreamHead, UpstreamRequest, Watched
from datum_router_proxy.loop import DeadlineExpired, TaskCancelled, park
from datum_router_proxy.upstream.transport import Transport

PIECE_BYTES = 16_384
"""A body goes in pieces of this size, so that a connection that takes no more is noticed."""

_NOT_THE_ENDPOINT = frozenset((Reason.POOL_OVERFLOW, Reason.LOCAL_RESOURCES))
"""How a call may end that says nothing about its endpoint, as in the pipeline."""


class SideAnswer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What came back.

    Attributes:
        is_cut: There was more of the body than was to be kept.
    """

    status: int
    fields: FieldTuple
    body: bytes = b""
    is_cut: bool = False


class SideCalls:
    """One per pipeline."""

    __slots__ = ("_observer", "_transport")

    def __init__(self, transport: Transport, observer: DataPlaneObserver) -> None:
        self._transport = transport
        self._observer = observer

    async def call(
        self, lease: Lease, request: UpstreamRequest, body: bytes, *, most_bytes: int, client: Watched = NOBODY
    ) -> SideAnswer:
        """Send a request to the lease's endpoint and return the answer, for the calling task, within its deadline.

        The lease is released whatever happens.

        Args:
            most_bytes: Of the answer's body; what comes beyond is not read.
            client: Whoever leaving ends the call.

        Raises:
            UpstreamError: There was no whole answer.
            LocalProtocolError: The request must not be sent.
            DeadlineExpired, TaskCancelled: As the task's own.
        """
        is_fresh = False
        try:
            while True:
                upstream = await self._transport.open(lease, client, is_fresh=is_fresh)
                client.watch()  # opening ends with nobody watching
                try:
                    return await self._exchange(lease, upstream, request, body, most_bytes)
                except UpstreamError as error:
                    may_repeat = error.is_unprocessed or not upstream.is_sent or request.method in IDEMPOTENT
                    if is_fresh or not upstream.is_reused or upstream.has_received or not may_repeat:
                        raise
                    is_fresh = True  # the peer closed an idle connection as we took it (threat U4)
                finally:
                    client.unwatch()
                    upstream.cancel()
        except UpstreamError as error:
            if error.reason not in _NOT_THE_ENDPOINT:
                self._ended(lease, 0, error.reason, is_unprocessed=error.is_unprocessed)
            raise
        except DeadlineExpired as error:
            is_ours = error.reason in (Reason.CONNECT_TIMEOUT, Reason.SIDE_CALL_TIMEOUT)
            self._ended(lease, 0, Reason.RESPONSE_TIMEOUT if is_ours else Reason.DOWNSTREAM_RESET)
            raise
        except TaskCancelled:
            self._ended(lease, 0, Reason.DOWNSTREAM_RESET)
            raise
        finally:
            lease.release()

    async def _exchange(
        self, lease: Lease, upstream: Upstream, request: UpstreamRequest, body: bytes, most_bytes: int
    ) -> SideAnswer:
        upstream.send_head(request)
        sent = 0
        is_ended = False
        head: UpstreamHead | None = None
        parts: list[bytes] = []
        size = 0
        while True:
            could_give = upstream.is_writable
            while sent < len(body) and upstream.is_writable:
                upstream.send_data(body[sent : sent + PIECE_BYTES])
                sent += PIECE_BYTES
            if sent >= len(body) and not is_ended:
                is_ended = True
                upstream.send_end()
            event = upstream.poll()
            if event is None:
                upstream.flush()
                if could_give or not upstream.is_writable or is_ended:
                    await park()
                continue
            if isinstance(event, UpstreamHead):
                head = event
            elif isinstance(event, End):
                assert head is not None  # the engine says so: a message ends after its head
                upstream.finish()
                self._ended(lease, head.status, Reason.ROUTED)
                return SideAnswer(status=head.status, fields=head.fields, body=b"".join(parts))
            elif isinstance(event, bytes):
                parts.append(event)
                size += len(event)
                if size > most_bytes:
                    assert head is not None
                    kept = b"".join(parts)[:most_bytes]
                    self._ended(lease, head.status, Reason.ROUTED)
                    return SideAnswer(status=head.status, fields=head.fields, body=kept, is_cut=True)

    def _ended(self, lease: Lease, status: int, reason: Reason, *, is_unprocessed: bool = False) -> None:
        outcome = _outcome(lease, status, reason, is_unprocessed=is_unprocessed)
        self._observer.attempt_ended(outcome)
        lease.settle(outcome.outcome_class)


def _outcome(lease: Lease, status: int, reason: Reason, *, is_unprocessed: bool = False) -> Outcome:
    return Outcome(
        service=lease.state.service.key,
        endpoint=lease.key,
        status=status,
        reason=reason,
        is_sent=not is_unprocessed,
        is_unprocessed=is_unprocessed,
    )
