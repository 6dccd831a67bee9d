"""What is done to gateway and upstreams: each fault acts, waits until its effect is over, and enters its own checks."""

from __future__ import annotations

import os
import random
import resource
import signal

import trio

from datum_soak.client_h1 import Http1Connection, connect
from datum_soak.load import Attempt, check_body
from datum_soak.outcomes import Failure, Kind
from datum_soak.payload import digest, make_body
from datum_soak.processes import is_stopped, peers_of
from datum_soak.stage import Stage

EXHAUSTED = "descriptors exhausted"
ROLLING = "rolling restart"
KILL = "worker killed"
IDLE_RESTART = "idle upstream restarted"

REPLACED_WITHIN_S = 60.0
"""For a killed worker: what the soak waits; the time it took is in the report."""
EXHAUSTED_S = 4.0
EXHAUSTED_LIMIT = 16
"""Below what any worker has open: every new descriptor is refused."""
RECOVERED_WITHIN_S = 1.0
"""Threat E7."""
RECOVERY_CLIENTS = 8
IDLE_REQUESTS = 12
SHED_COUNTER = "datum_gateway_rejected_total|tcp|too_many_connections"


async def kill_worker(stage: Stage, chooser: random.Random) -> None:
    """SIGKILL one worker; note exactly which connections it held."""
    workers = await stage.gateway.workers()
    index = chooser.choice(sorted(workers))
    pid = workers[index]
    with stage.window(KILL, after_s=1.0):
        # Stopped first, so that it accepts nothing between the look at its connections and its end.
        os.kill(pid, signal.SIGSTOP)
        while not is_stopped(pid):  # noqa: ASYNC110 - another process's state has no event
            await trio.sleep(0.001)
        held = peers_of(pid, stage.gateway.address[1])
        now = stage.clock()
        stage.killed.update(dict.fromkeys(held, now))
        os.kill(pid, signal.SIGKILL)
        started = trio.current_time()
        is_replaced = False
        with trio.move_on_after(REPLACED_WITHIN_S):
            while not is_replaced:
                await trio.sleep(0.02)
                stats = await stage.gateway.stats()
                is_replaced = stats.lagging_workers == 0 and all(worker.pid != pid for worker in stats.workers)
        took = f"{trio.current_time() - started:.2f} s"
    stage.require("killed worker replaced", is_replaced, took, f"in {REPLACED_WITHIN_S:g} s")
    stage.require("connections of the killed worker", bool(held), len(held), "more than 0")


async def rolling_restart(stage: Stage) -> None:
    """SIGHUP: all workers are replaced, one after another; nothing may be refused, reset or lost (threat P4)."""
    options = stage.options
    before = await stage.gateway.workers()
    counter = "datum_router_worker_replacements_total"
    done = (await stage.gateway.stats()).counters.get(counter, 0) + options.workers
    patience_s = options.workers * (REPLACED_WITHIN_S + options.lameduck_s + options.grace_s)
    with stage.window(ROLLING):
        stage.gateway.process.send_signal(signal.SIGHUP)
        is_done = False
        with trio.move_on_after(patience_s):
            while not is_done:
                await trio.sleep(0.1)
                is_done = (await stage.gateway.stats()).counters.get(counter, 0) >= done
        after = await stage.gateway.workers()
    kept = set(before.values()) & set(after.values())
    stage.require(
        "workers replaced by a rolling restart", is_done and not kept, len(after) - len(kept), options.workers
    )


async def exhaust_descriptors(stage: Stage) -> None:
    """Take every new descriptor away from the workers for some seconds (threat E7)."""
    workers = await stage.gateway.workers()
    established = stage.ledger.answered[Kind.H1_ESTABLISHED]
    refused_before = (await stage.gateway.stats()).counters.get(SHED_COUNTER, 0)
    with stage.window(EXHAUSTED, after_s=RECOVERED_WITHIN_S):
        limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in workers.values()}
        try:
            for pid, (_, hard) in limits.items():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (EXHAUSTED_LIMIT, hard))
            await trio.sleep(EXHAUSTED_S)
            established = stage.ledger.answered[Kind.H1_ESTABLISHED] - established
        finally:
            for pid, pair in limits.items():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, pair)
        took = await _time_to_recover(stage)
    refused = (await stage.gateway.stats()).counters.get(SHED_COUNTER, 0) - refused_before
    stage.require("connections shed for want of descriptors", refused > 0, refused, "more than 0")
    stage.require("established connections served meanwhile", established > 0, established, "more than 0")
    stage.require(
        "new connections served again", took <= RECOVERED_WITHIN_S, f"{took:.2f} s", f"in {RECOVERED_WITHIN_S:g} s"
    )


async def _time_to_recover(stage: Stage) -> float:
    """Return how long it takes until several new clients at once, so most likely of every worker, are all served."""
    started = trio.current_time()

    async def try_until_served() -> None:
        while True:
            try:
                connection = Http1Connection(await connect(stage.gateway.address))
                try:
                    await connection.exchange("GET", "/est/body/10", {"connection": "close", "x-soak-id": "recovery"})
                finally:
                    await connection.aclose()
                return
            except Failure:
                await trio.sleep(0.02)

    with trio.move_on_after(10 * RECOVERED_WITHIN_S):
        async with trio.open_nursery() as nursery:
            for _ in range(RECOVERY_CLIENTS):
                nursery.start_soon(try_until_served)
    return trio.current_time() - started


class IdleUpstream:
    """An upstream process that is restarted while no request to it is under way, but idle connections are (U4)."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._count = 0
        stage.load.add(Kind.H1_IDLE, self._send)

    async def restart(self) -> None:
        """Use it, restart it, use it: nothing may fail, for the gateway must not trust its idle connections."""
        stage = self._stage
        before = len(stage.ledger.failures)
        with stage.window(IDLE_RESTART):
            await self._use()
            host, port = stage.addresses["idle"]
            await trio.to_thread.run_sync(stage.idle_backends.restart)
            await stage.idle_backends.open("idle", host, port=port)
            await self._use()
        failed = [record for record in stage.ledger.failures[before:] if record.kind is Kind.H1_IDLE]
        if failed:
            stage.note(f"{len(failed)} requests failed around the restart of their idle upstream")

    async def _use(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(IDLE_REQUESTS):
                nursery.start_soon(self._stage.load.send, Kind.H1_IDLE)

    async def _send(self, attempt: Attempt) -> None:
        """GET and POST in turn: the second must not be lost, either, though it may not be sent twice."""
        load = self._stage.load
        self._count += 1
        if self._count % 2:
            answer = await load.pooled(attempt, "/idle/body/1024")
            check_body(answer.body, make_body(attempt.request_id, 1024))
        else:
            body = make_body(attempt.request_id, 1024)
            answer = await load.pooled(attempt, "/idle/sum", body=body)
            check_body(answer.body, digest(body).encode())
