"""A request to an HTTP/2 upstream that needs no coroutine: what the express lane does with it fits in two calls.

Theory of operation. The connection that has read a whole request sends it upstream at once, in its own step. What is
left is a `Flight`: it stands where a task's coroutine would, and the loop asks it as it asks any other (`send` when
something has come, `throw` when the deadline has passed or the client has left, `close` at the end). Mostly it is asked
once, when the whole answer is there. Whatever else may be the case is not its business: it makes the stream's ordinary
coroutine, hands over what it has begun, and passes everything on to that from then on.

Measured for a gRPC call (`benchmarks/bench_grpc.py`): four nested coroutines and the step that starts
them are a tenth of its cost.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Protocol

from datum_router.model.request import LocalReply
from datum_router.reasons import Reason
from datum_router_proxy.exchange import ClientGone
from datum_router_proxy.express import MAX_ROUNDS, Begun, ExpressDownstream, ExpressLane
from datum_router_proxy.loop import DeadlineExpired, Loop, Task, TaskCancelled
from datum_router_proxy.request import Template
from datum_router_proxy.upstream.h2 import H2Connection, H2Upstream

log = logging.getLogger(__name__)


class FlyingDownstream(ExpressDownstream, Protocol):
    """What a flight asks of a client's stream."""

    def run(self, template: Template, begun: Begun | None = None) -> Coroutine[object, None, None]:
        """Return the ordinary coroutine of the stream, which goes on from what has begun."""
        ...

    def end(self) -> None:
        """Take the stream out, the request being over."""
        ...

    def abort(self, reason: Reason) -> None:
        """Reset the stream."""
        ...


class Counts(Protocol):
    """Where requests under way are counted."""

    in_flight: int


class Flight(Coroutine[object, None, None]):
    """One request under way; stands for a coroutine (see `loop`)."""

    __slots__ = ("_begun", "_body_bytes", "_counts", "_downstream", "_lane", "_rest", "_rounds", "_template", "task")

    def __init__(
        self, lane: ExpressLane, counts: Counts, downstream: FlyingDownstream, template: Template, begun: Begun
    ) -> None:
        self._lane = lane
        self._counts = counts
        self._downstream = downstream
        self._template = template
        self._begun = begun
        self._rest: Coroutine[object, None, None] | None = None
        self._rounds = MAX_ROUNDS
        self._body_bytes = 0
        self.task: Task

    def start(self, loop: Loop, link: H2Connection, body: bytes) -> None:
        """Send the request; the flight's task is made here."""
        self.task = task = loop.adopt(self, name="stream")
        self._counts.in_flight += 1
        self._body_bytes = len(body)
        try:
            is_sent = self._lane.send_shared(self._template, self._begun, link, task, body)
        except Exception:  # noqa: BLE001  # it is logged, and costs this request only
            self._fail()
            task.wake()  # to be told that it is over
            return
        if not is_sent:
            self._rest = self._hand_over()
            task.is_started = False  # what it was handed over to has not
            task.wake()

    def send(self, value: None) -> object:
        """Look whether the answer has come (a step of the loop)."""
        rest = self._rest
        if rest is not None:
            return rest.send(value)
        begun = self._begun
        upstream = begun.upstream
        if not isinstance(upstream, H2Upstream):
            raise StopIteration  # it has failed before it was sent
        if self._downstream.is_gone:
            begun.raised = ClientGone()
        elif upstream.is_silent:
            return None
        elif self._rounds and upstream.may_be_whole_soon:
            self._rounds -= 1
            self.task.wake()
            return None
        else:
            try:
                is_over = self._lane.answer_shared(
                    self._downstream, self._template, begun, upstream, "h2", self._body_bytes
                )
            except Exception:  # noqa: BLE001  # as above
                self._fail()
                raise StopIteration from None
            if is_over:
                self._counts.in_flight -= 1
                self._downstream.end()
                raise StopIteration
        return self._hand_over().send(None)

    def throw(  # type: ignore[override]  # only what the loop throws
        self, error: BaseException, value: BaseException | None = None, traceback: TracebackType | None = None, /
    ) -> object:
        """Let the pipeline deal with what has ended the wait."""
        if self._rest is not None:
            return self._rest.throw(error)
        if not isinstance(error, DeadlineExpired | TaskCancelled):
            raise error
        self._begun.raised = error
        return self._hand_over().send(None)

    def close(self) -> None:
        """Give everything back: the loop ends."""
        if self._rest is not None:
            self._rest.close()
            return
        self._give_back()
        self._downstream.end()

    def __await__(self) -> object:  # type: ignore[override]
        """Nobody awaits a flight."""
        raise NotImplementedError

    def _hand_over(self) -> Coroutine[object, None, None]:
        self._counts.in_flight -= 1
        self._rest = rest = self._downstream.run(self._template, self._begun)
        return rest

    def _fail(self) -> None:
        log.exception("request failed", extra={"route": self._begun.rule.rule.route})
        self._give_back()
        self._downstream.abort(Reason.INTERNAL)
        self._downstream.end()

    def _give_back(self) -> None:
        self._counts.in_flight -= 1
        begun = self._begun
        if begun.upstream is not None:
            begun.upstream.cancel()
            begun.upstream = None
        if not isinstance(begun.lease, LocalReply):
            begun.lease.release()
