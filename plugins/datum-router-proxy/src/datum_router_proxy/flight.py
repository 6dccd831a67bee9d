"""Requests that need no coroutine: what the express lane does with them fits in two calls.

Theory of operation. `Flights` is where both begin. A request over HTTP/1 is sent upstream (`fly`) when the loop notes
that its head has come, and answered (`arrive`) when it notes that the answer has; its connection's task sleeps through
both. What is not as expected is put before that task.

Over HTTP/2 (`launch`), the connection that has read a whole request sends it upstream at once, in its own step. What is
left is a `Flight`: it stands where a task's coroutine would, and the loop asks it as it asks any other
(`send` when something has come, `throw` when the deadline has passed or the client has left, `close` at the end).
Mostly it is asked once, when the whole answer is there. Whatever else may be the case is not its business: it makes the
stream's ordinary coroutine, hands over what it has begun, and passes everything on to that from then on.

Measured for a gRPC call (`benchmarks/bench_grpc.py`): four nested coroutines and the step that starts
them are a tenth of its cost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from datum_router.compiler.link import Snapshot
from datum_router.model.snapshot import Holder
from datum_router.reasons import Reason
from datum_router_proxy.exchange import ClientGone
from datum_router_proxy.express import MAX_ROUNDS, Begun, ExpressDownstream, ExpressLane
from datum_router_proxy.loop import DeadlineExpired, Loop, Task, TaskCancelled
from datum_router_proxy.request import MAX_BODY_BYTES, Template
from datum_router_proxy.upstream.h1 import H1Upstream
from datum_router_proxy.upstream.h2 import H2Connection, H2Upstream

log = logging.getLogger(__name__)

Way = TypeVar("Way", H1Upstream, H2Connection)


class SinglyDownstream(ExpressDownstream, Protocol):
    """What a request over HTTP/1 asks of its connection, and one over HTTP/2 of its stream."""

    def abort(self, reason: Reason) -> None:
        """Cut the connection, or reset the stream."""
        ...


class FlyingDownstream(SinglyDownstream, Protocol):
    """What a flight asks of a client's stream."""

    def run(self, template: Template, begun: Begun | None = None) -> Coroutine[object, None, None]:
        """Return the ordinary coroutine of the stream, which goes on from what has begun."""
        ...

    def end(self) -> None:
        """Take the stream out, the request being over."""
        ...


class Counts(Protocol):
    """What is known of the process; where requests under way are counted."""

    loop: Loop
    in_flight: int
    is_draining: bool

    def body_limit(self, listener: str) -> int:
        """Return a listener's `max_request_body_bytes`, 0 = none."""
        ...


class Takeoff(Protocol):
    """What connections ask of `Flights`; another that never begins anything will do."""

    def fly(self, template: Template, task: Task, on_input: Callable[[], bool]) -> Begun | None:
        """See `Flights.fly`."""
        ...

    def arrive(self, downstream: SinglyDownstream, template: Template, begun: Begun) -> bool | None:
        """See `Flights.arrive`."""
        ...

    def land(self, template: Template, begun: Begun, error: Exception) -> None:
        """See `Flights.land`."""
        ...

    def crash(self, begun: Begun) -> None:
        """See `Flights.crash`."""
        ...

    def launch(self, downstream: FlyingDownstream, template: Template) -> AnyFlight | Begun | None:
        """See `Flights.launch`."""
        ...


class Flights:
    """Where requests begin that may need no step of a task of their own; one per process."""

    __slots__ = ("_holder", "_lane", "_plane")

    def __init__(self, plane: Counts, lane: ExpressLane, holder: Holder[Snapshot]) -> None:
        self._plane = plane
        self._lane = lane
        self._holder = holder

    # --- HTTP/1 to HTTP/1 ------------------------------------------------------------------------------------------

    def fly(self, template: Template, task: Task, on_input: Callable[[], bool]) -> Begun | None:
        """Send a request without a body upstream at once, if it goes to an HTTP/1 upstream and nothing is unusual.

        Args:
            on_input: Called when something has come of the upstream; see `Channel.eager`.

        Returns:
            What `arrive` or `land` is to be told of if it is flying; else what the task is to let `serve` go on from.
        """
        plane = self._plane
        if not template.is_simple or plane.is_draining:
            return None
        begun: Begun | None = None
        try:
            rule = self._lane.find_rule(template, self._holder.current)
            if rule is None:
                return None
            begun = self._lane.choose(template, rule)
            upstream = self._lane.take(template, begun)
            if upstream is not None and self._lane.send(template, begun, upstream, task, b"", on_input):
                begun.is_flying = True
                plane.in_flight += 1
        except Exception:  # noqa: BLE001  # `serve` meets it again, in a step of the task
            if begun is not None:
                begun.drop()
            return None
        return begun

    def arrive(self, downstream: SinglyDownstream, template: Template, begun: Begun) -> bool | None:
        """Answer by what has come of the upstream; None: nothing yet; False: the task is to let `serve` go on."""
        is_over: bool | None
        try:
            is_over = self._lane.answer(downstream, template, begun, "h1", b"")
        except Exception:
            log.exception("request failed", extra={"route": begun.rule.rule.route})
            begun.drop()
            downstream.abort(Reason.INTERNAL)
            is_over = True
        if is_over is not None:
            begun.is_flying = False
            begun.is_over = is_over
            self._plane.in_flight -= 1
        return is_over

    def land(self, template: Template, begun: Begun, error: Exception) -> None:
        """Let `serve` deal with what has ended the wait for an answer."""
        begun.is_flying = False
        self._plane.in_flight -= 1
        self._lane.land(template, begun, b"", error)

    def crash(self, begun: Begun) -> None:
        """Give everything back: the connection is gone."""
        if begun.is_flying:
            begun.is_flying = False
            self._plane.in_flight -= 1
        begun.drop()

    # --- from HTTP/2 -----------------------------------------------------------------------------------------------

    def launch(self, downstream: FlyingDownstream, template: Template) -> AnyFlight | Begun | None:
        """Send a request upstream at once if it is here whole and a connection is there for it.

        Returns:
            What waits for the answer; or what `serve` is to go on from, which may be nothing.
        """
        plane = self._plane
        if not template.is_simple or plane.is_draining:
            return None
        if template.has_body and plane.body_limit(template.listener):
            return None
        body = downstream.whole_body() if template.has_body else b""
        if body is None or len(body) > MAX_BODY_BYTES:
            return None
        if template.is_plain and template.has_body and len(body) != template.content_length:
            return None
        lane = self._lane
        begun: Begun | None = None
        flight: AnyFlight
        try:
            rule = lane.find_rule(template, self._holder.current)
            if rule is None:
                return None
            begun = lane.choose(template, rule)
            if template.is_plain:
                upstream = lane.take(template, begun)
                if upstream is None:
                    return begun
                flight = PlainFlight(lane, plane, downstream, template, begun, body, upstream)
            else:
                link = lane.find_shared(begun)
                if link is None:
                    return begun
                flight = SharedFlight(lane, plane, downstream, template, begun, body, link)
        except Exception:  # noqa: BLE001  # `serve` meets it again, in a task of the request's own
            if begun is not None:
                begun.drop()
            return None
        flight.start()
        return flight


class Flight(Coroutine[object, None, None], Generic[Way]):
    """One request under way for a stream of a client, by a connection `way`; stands for a coroutine (see `loop`)."""

    __slots__ = ("_begun", "_body", "_counts", "_downstream", "_lane", "_rest", "_template", "_way", "task")

    def __init__(
        self,
        lane: ExpressLane,
        counts: Counts,
        downstream: FlyingDownstream,
        template: Template,
        begun: Begun,
        body: bytes,
        way: Way,
    ) -> None:
        self._lane = lane
        self._counts = counts
        self._downstream = downstream
        self._template = template
        self._begun = begun
        self._body = body
        self._way: Way = way
        self._rest: Coroutine[object, None, None] | None = None
        self.task: Task

    def _send(self) -> bool:
        """Send the request; False if the pipeline is to go on."""
        raise NotImplementedError

    def _look(self) -> bool | None:
        """Answer if the answer has come; None: not yet; False: the pipeline is to go on."""
        raise NotImplementedError

    def _land(self, error: DeadlineExpired | TaskCancelled) -> None:
        """Let the pipeline go on from what has ended the wait."""
        raise NotImplementedError

    def start(self) -> None:
        """Send the request; the flight's task is made here."""
        self.task = task = self._counts.loop.adopt(self, name="stream")
        self._counts.in_flight += 1
        try:
            is_sent = self._send()
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
        if self._begun.upstream is None:
            raise StopIteration  # it has failed before it was sent
        try:
            is_over = self._look()
        except Exception:  # noqa: BLE001  # as above
            self._fail()
            raise StopIteration from None
        if is_over is None:
            return None
        if is_over:
            self._arrived()
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
        self._land(error)
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

    def _arrived(self) -> None:
        self._counts.in_flight -= 1
        self._downstream.end()

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
        self._begun.drop()


class SharedFlight(Flight[H2Connection]):
    """A request that goes to an HTTP/2 upstream."""

    __slots__ = ("_rounds",)

    def _send(self) -> bool:
        self._rounds = MAX_ROUNDS
        return self._lane.send_shared(self._template, self._begun, self._way, self.task, self._body)

    def _look(self) -> bool | None:
        begun = self._begun
        upstream = begun.upstream
        assert isinstance(upstream, H2Upstream)
        if self._downstream.is_gone:
            begun.raised = ClientGone()
            return False
        if upstream.is_silent:
            return None
        if self._rounds and upstream.may_be_whole_soon:
            self._rounds -= 1
            self.task.wake()
            return None
        return self._lane.answer_shared(self._downstream, self._template, begun, upstream, "h2", len(self._body))

    def _land(self, error: DeadlineExpired | TaskCancelled) -> None:
        self._begun.raised = error


class PlainFlight(Flight[H1Upstream]):
    """A request that goes to an HTTP/1.1 upstream."""

    __slots__ = ()

    def _send(self) -> bool:
        return self._lane.send(self._template, self._begun, self._way, self.task, self._body, self._on_answer)

    def _look(self) -> bool | None:
        return self._lane.answer(self._downstream, self._template, self._begun, "h2", self._body)

    def _land(self, error: DeadlineExpired | TaskCancelled) -> None:
        self._lane.land(self._template, self._begun, self._body, error)

    def _on_answer(self) -> bool:
        """Do what a step would do when something has come of the upstream; see `Channel.eager`."""
        task = self.task
        if task.pending is not None or task.deadline <= self._counts.loop.now:
            return False  # the step says so
        try:
            is_over = self._look()
        except Exception:  # noqa: BLE001  # as above
            self._fail()
            self._counts.loop.finish(task)
            return True
        if is_over is None:
            return True
        if is_over:
            self._arrived()
            self._counts.loop.finish(task)
            return True
        self._rest = self._hand_over()
        task.is_started = False  # what it was handed over to has not
        return False


AnyFlight = PlainFlight | SharedFlight
