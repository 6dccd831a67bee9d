"""The heart of the data plane: plain coroutines on a private epoll that one trio task drains.

Theory of operation
===================
A trio task per connection pays trio's scheduler and two `epoll_ctl` calls for every wait, about a third of the
whole cost of a proxied request. Here every descriptor is registered once, edge-triggered, in an epoll of our own.
The descriptor of that epoll is all that trio watches: `Loop.run` awaits `trio.lowlevel.wait_readable(epoll)`,
drains one bounded *batch*, and gives the other trio tasks a turn.

A batch has at most `ROUNDS` rounds and ends early after `BATCH_S`. A round is: poll without blocking for at most
`EVENTS` events; let each handler note them (it sets flags and wakes a task); let those act that do themselves what is
done over and over (`eager`, see `Channel.eager`), and then at most `ARRIVALS` of those with something new to do
(`arrivals`); step at most `STEPS` tasks of the run queue. If work is left after the batch there is a checkpoint,
otherwise a wait. Before it gives up a batch waits for `LINGER_S` in the epoll itself:
the upstream's answer, or the next request, is often that near, and a wait in trio costs more than a request does.

A `Task` is a coroutine driven by `send(None)`. It is in one of four states:

- *queued*: in the run queue, exactly once however often it is woken;
- *running*: its step is on the stack; a wake now queues it for a later round;
- *parked*: suspended in `park()`, not queued; `wake`, an event, `cancel` or the sweeper queues it;
- *done*: returned, raised or closed; every later call on it does nothing.

Invariants
- Handlers never register a descriptor: so no event of a round can reach a successor that got the number of one that
  was closed. Only tasks do, and they run when the events of their round have been noted.
- Nobody acts before all events of the round are noted: what an upstream said while it was idle is not taken for its
  answer to a request that was noted in the same round.
- What is under way goes on before anything new is begun: so what there is too much of waits where it has cost
  nothing yet, unread, and not as a thousand exchanges whose state no cache holds. While anything waits there all that
  the kernel has is noted, so that its age is known (`on_backlog`).
- Nobody waits for a turn twice, however much comes for it meanwhile: the queues are no longer than there are
  descriptors, and whoever waits has waited since the first of it.
- A task woken during a round runs in a later one, and each round polls first: tasks that wake each other for ever
  starve neither descriptors nor, since batches are bounded, trio.
- Wake-ups may be spurious. Whoever parks re-checks its own condition.
- Deadlines are plain attributes: setting one costs a store. They are compared at every step, and a sweeper wakes
  overdue tasks each `SWEEP_S`, so a parked task notices at most that much late. Looking at every task instead of
  keeping an ordered set costs about 0.1 ms for 10,000 tasks, four times a second. The few that must not be late have
  themselves put into an ordered set (`alarm`).
- What leaves a coroutine is logged and counted; it never ends the loop or another task.
- When `run` ends, cancelled or stopped, every coroutine is closed (GeneratorExit runs its `finally` blocks), then
  every channel still registered is aborted, then the epoll is closed. A task never started is closed unstarted.

What it does not know: sockets, TLS, HTTP, time zones, threads. Coroutines on it must not await trio: they would
block it (an attempt is detected and raises RuntimeError in that task). `Loop.in_trio` is the way there and back.
It belongs to one thread.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import select
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol, TypeVar

import trio

from datum_router_proxy.alarm import WITHIN_S, Alarms
from datum_router_proxy.overload import RecentWorst
from datum_router_proxy.task import CURRENT, Bell, Call, DeadlineExpired, Task, TaskCancelled, current_task, park

__all__ = ["DeadlineExpired", "Loop", "Pollable", "Task", "TaskCancelled", "current_task", "park"]

T = TypeVar("T")

EVENTS = 64
"""Events taken from the kernel in one round."""
BACKLOG_EVENTS = 1024
"""The same while `arrivals` wait."""
ARRIVALS = 32
"""Arrivals that act in one round."""
FEW_ARRIVALS = 8
"""The same while more is under way than one round takes: nobody is to wait for ever."""
STEPS = 64
"""Task steps in one round."""
ROUNDS = 64
"""Rounds in one batch: after them other trio tasks get a turn."""
BATCH_S = 0.002
"""A batch ends after the round that passes this many seconds: how long new configuration, connections and probes may
have to wait while requests keep coming."""
LINGER_S = 0.001
"""How long other trio tasks may have to wait for nothing, at the end of a busy time; epoll counts in milliseconds."""
SWEEP_S = 0.25
"""Seconds between two looks at the deadlines."""
SLOW_STEP_S = 0.1
"""A step that takes longer (seconds) is logged with its task's name."""

EDGE_TRIGGERED = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

log = logging.getLogger(__name__)


class Pollable(Protocol):
    """What can be registered: notes events, and can be cut off when the loop ends."""

    def handle(self, events: int) -> None:
        """Note epoll `events`: set flags, wake tasks; never raise or register a descriptor."""
        ...

    def abort(self) -> None:
        """Give the descriptor back at once; idempotent."""
        ...


class Deferrable(Protocol):
    """Who waits for a turn and may be told to wait longer."""

    @property
    def is_deferred(self) -> bool:
        """Whether it waits to be `released`; False once its peer has left."""
        ...

    def defer(self) -> bool:
        """Leave what has come where it is; False if it is to have its turn now."""
        ...

    def release(self) -> None:
        """Go on, to turn away what was put off."""
        ...


class Eager(Protocol):
    """What acts in place of a task, once the events of a round have been noted."""

    def act(self) -> None:
        """Do it, or wake a task; never register a descriptor."""
        ...

    def abort(self) -> None:
        """Give the descriptor back at once; idempotent."""
        ...


class Arrival(Eager, Protocol):
    """What acts likewise, but begins something new.

    Attributes:
        noted_at: When it was put among the arrivals, on the loop's clock.
        is_noted: It is among them; whoever takes it out without letting it act says that it is not.
        deferrable: Who may be told to wait longer; None: nobody.
    """

    noted_at: float
    is_noted: bool
    deferrable: Deferrable | None


class Loop:
    """Drives tasks and descriptors; see the module's theory of operation.

    Attributes:
        eager: Who is to act when all events of the round are noted; handlers add themselves.
        arrivals: Who is to act when nobody of `eager` is left, the oldest first; handlers add themselves.
        on_backlog: Called when more `arrivals` wait than one round takes; it may take them out.
        now: CLOCK_MONOTONIC seconds, refreshed at every step and sweep (so at most `SWEEP_S` old when idle).
        rng: The data plane's source of randomness.
        lag_s: How late the last sweep was, seconds: what a trio task waits longer because of us (E10).
        lag: The worst of that, and of single slow steps, of late (E10).
        longest_step_s: The longest single step since the loop began.
        slow_steps: Steps longer than `SLOW_STEP_S`; each is logged with its task.
        failures: Exceptions that left a task.
        is_closed: True once `run` has ended; nothing can be registered or spawned then.
    """

    __slots__ = (
        "_alarms", "_bell", "_clock", "_epoll", "_handlers", "_is_stopping", "_nursery", "_queue", "_tasks", "arrivals",
        "eager", "failures", "is_closed", "lag", "lag_s", "longest_step_s", "now", "on_backlog", "rng", "slow_steps",
    )  # fmt: skip

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, rng: random.Random | None = None) -> None:
        self._clock = clock
        self._epoll = select.epoll()
        self._bell = Bell()
        self._epoll.register(self._bell.fd, select.EPOLLIN | select.EPOLLET)
        self._handlers: dict[int, Pollable] = {}
        self.eager: deque[Eager] = deque()
        self.arrivals: deque[Arrival] = deque()
        self.on_backlog: Callable[[], None] | None = None
        self._queue: deque[Task] = deque()
        self._tasks: set[Task] = set()
        self._nursery: trio.Nursery | None = None
        self._is_stopping = False
        self._alarms = Alarms()
        self.is_closed = False
        self.now = clock()
        self.rng = rng if rng is not None else random.Random()
        self.lag_s = 0.0
        self.lag = RecentWorst()
        self.longest_step_s = 0.0
        self.slow_steps = 0
        self.failures = 0

    @property
    def tasks(self) -> int:
        """Live tasks."""
        return len(self._tasks)

    @property
    def descriptors(self) -> int:
        """Registered descriptors."""
        return len(self._handlers)

    def spawn(self, coro: Coroutine[object, None, None], *, name: str) -> Task:
        """Start a coroutine; its first step is in the current or next batch. A closed loop closes it unstarted."""
        task = Task(coro, name, self._queue, self._bell)
        if self.is_closed:
            task.done = True
            coro.close()
            return task
        self._tasks.add(task)
        task.wake()
        return task

    def adopt(self, coro: Coroutine[object, None, None], *, name: str) -> Task:
        """Take a coroutine that has begun and waits: its next step is due when it is woken. The loop must be open."""
        task = Task(coro, name, self._queue, self._bell)
        task.is_started = True
        self._tasks.add(task)
        return task

    def finish(self, task: Task) -> None:
        """End a task that stands between two steps and whose work somebody else has done."""
        self._finished(task)

    def register(self, fd: int, handler: Pollable, events: int = EDGE_TRIGGERED) -> None:
        """Watch a descriptor; its present state arrives as a first event. OSError as from `epoll_ctl`."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def unregister(self, fd: int) -> None:
        """Stop watching; needed where another process holds the same descriptor, harmless if it is not watched."""
        if self._handlers.pop(fd, None) is not None and not self._epoll.closed:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Drop a descriptor that is closed in the same step: the kernel takes it out of the epoll by itself."""
        self._handlers.pop(fd, None)

    async def in_trio(self, fn: Callable[[], Awaitable[T]]) -> T:
        """Run an async function as a trio task and resume with its result; the slow road, for a task of this loop.

        If the asking task is cancelled, expires or is closed meanwhile, so is the call.

        Raises:
            Exception: Whatever `fn` raised.
        """
        nursery = self._nursery
        if nursery is None:
            raise RuntimeError("in_trio: the loop is not running, expected to be called by one of its tasks")
        call = Call(fn, current_task())
        nursery.start_soon(call.run, name=f"in_trio {call.task.name}")
        try:
            while not call.is_done:
                await park()
        finally:
            call.scope.cancel()
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value]  # neither error nor cancelled: it is a T

    async def run(self) -> None:
        """Drive everything until `stop` or cancellation; then close what is left. Runs once.

        Cancelling is the ordinary end: no task awaits anything during clean-up.
        """
        if self.is_closed or self._nursery is not None:
            raise RuntimeError("run: the loop has run already, expected a new one")
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._sweep_forever)
            nursery.start_soon(self._alarms.run, self._clock)
            try:
                await self._drain_forever()
            finally:
                self._close()
                nursery.cancel_scope.cancel()

    def alarm(self, task: Task) -> None:
        """Have the present deadline of `task` noticed when it passes, not at the next sweep; see `alarm`.

        Setting another deadline needs no word here: an alarm that finds none that has passed does nothing.
        """
        if task.deadline - self.now <= WITHIN_S:
            self._alarms.add(task)

    def stop(self) -> None:
        """Let `run` return soon; all tasks are closed."""
        self._is_stopping = True
        self._bell.ring()

    def sweep(self) -> None:
        """Wake every task whose deadline has passed; `run` does so each `SWEEP_S`."""
        self.now = now = self._clock()
        for task in self._tasks:
            if task.deadline <= now:
                task.wake()

    def drain(self, linger_s: float = 0.0) -> bool:
        """Do one batch of work that is ready; True if there may be more.

        Args:
            linger_s: How long to block for more before giving up.
        """
        ends_at = self._clock() + BATCH_S
        for _ in range(ROUNDS):
            if not self._round() and not (linger_s and self._round(linger_s)):
                return False
            if self.now >= ends_at:
                break
        return True

    def _round(self, wait_s: float = 0.0) -> bool:
        arrivals = self.arrivals
        events = self._epoll.poll(wait_s, BACKLOG_EVENTS if arrivals else EVENTS)
        self.now = self._clock()
        if events or arrivals or self.eager:
            handlers = self._handlers
            for fd, bits in events:
                handler = handlers.get(fd)
                if handler is not None:
                    try:
                        handler.handle(bits)
                    except Exception:  # noqa: BLE001  # a broken handler loses its descriptor, not everybody's
                        self._broke(handler)
            eager = self.eager
            if eager:
                self._act(eager, STEPS)
            if arrivals:
                if len(arrivals) > ARRIVALS and self.on_backlog is not None:
                    self.on_backlog()
                self._act(arrivals, FEW_ARRIVALS if eager or len(self._queue) > STEPS else ARRIVALS)
            self._took("handlers")
        queue = self._queue
        if not queue:
            return bool(events or arrivals or self.eager)
        for _ in range(min(len(queue), STEPS)):
            self._step(queue.popleft())
        return True

    def _act(self, waiting: deque[Eager] | deque[Arrival], most: int) -> None:
        for _ in range(min(len(waiting), most)):
            one = waiting.popleft()
            try:
                one.act()
            except Exception:  # noqa: BLE001  # it loses its descriptor, as a broken handler does
                self._broke(one)

    def _broke(self, handler: Eager | Pollable) -> None:
        self.failures += 1
        log.exception("event handler failed", extra={"handler": type(handler).__name__})
        handler.abort()

    def _step(self, task: Task) -> None:
        task.is_queued = False
        if task.done:
            return
        started = self.now
        CURRENT.task = task
        try:
            if (task.pending is None and task.deadline > started) or not task.is_started:
                # An unstarted coroutine must begin, so that its `finally` blocks exist, before anything is raised.
                task.is_started = True
                yielded: object = task.coro.send(None)
                if task.pending is not None:
                    task.wake()
            else:
                error = task.pending or DeadlineExpired(
                    f"task {task.name}: deadline passed", reason=task.deadline_reason
                )
                task.pending = None
                task.deadline = math.inf
                yielded = task.coro.throw(error)
            if yielded is not None:
                task.coro.throw(RuntimeError(f"task {task.name}: awaited trio, expected Loop.in_trio"))
        except (StopIteration, TaskCancelled, DeadlineExpired):
            self._finished(task)
        except Exception:
            self.failures += 1
            self._finished(task)
            log.exception("task failed", extra={"task": task.name})
        except BaseException:
            self._finished(task)
            raise
        finally:
            CURRENT.task = None
        self._took(task.name)

    def _took(self, what: str) -> None:
        """Note the time and how long something took that has begun at `now`."""
        started = self.now
        self.now = now = self._clock()
        took = now - started
        if took > self.longest_step_s:  # noqa: PLR1730  # a call of max() costs more, at every step
            self.longest_step_s = took
        if took > SLOW_STEP_S:
            self.slow_steps += 1
            self.lag.note(took, now)
            log.warning("step blocked the loop", extra={"task": what, "seconds": round(took, 3)})

    def _finished(self, task: Task) -> None:
        task.done = True
        self._tasks.discard(task)

    async def _drain_forever(self) -> None:
        fd = self._epoll.fileno()
        while not self._is_stopping:
            if self.drain(LINGER_S):
                await trio.lowlevel.checkpoint()
                continue
            self._bell.is_armed = True
            try:
                await trio.lowlevel.wait_readable(fd)
            finally:
                self._bell.is_armed = False

    async def _sweep_forever(self) -> None:
        while True:
            due = self._clock() + SWEEP_S
            await trio.sleep(SWEEP_S)
            self.sweep()
            self.lag_s = max(0.0, self.now - due)
            self.lag.note(self.lag_s, self.now)

    def _close(self) -> None:
        self.is_closed = True
        for task in list(self._tasks):
            self._finished(task)
            CURRENT.task = task
            try:
                task.coro.close()
            except Exception:
                self.failures += 1
                log.exception("task failed while it was closed", extra={"task": task.name})
            finally:
                CURRENT.task = None
        self._queue.clear()
        for handler in list(self._handlers.values()):
            handler.abort()
        self._handlers.clear()
        self._epoll.close()
        self._bell.close()
