"""The load: an open loop, so that a slow gateway gets no fewer requests, and a verdict on every answer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Mapping

import trio

from datum_soak.client_h1 import Answer, Http1Connection, Http1Pool
from datum_soak.config import Promises
from datum_soak.outcomes import Address, Cause, Failure, Kind, Ledger, Record
from datum_soak.payload import digest, first_difference, make_body

REQUEST_TIMEOUT_S = 60.0
"""Longer than the gateway's own limit, and than a new worker takes to start on a busy machine: a connection in the
queue of a killed worker waits for the next one, which is slow but no loss."""
MAX_IN_FLIGHT = 3000
"""More than this at once and the generator stops sending: then it, not the gateway, is the subject."""

MIX: Mapping[Kind, float] = {
    Kind.H1_GET: 36,
    Kind.H1_CHUNKED: 8,
    Kind.H1_UPLOAD: 8,
    Kind.H1_SLOW: 1,
    Kind.H1_NEW: 3,
    Kind.H1_FLIP: 8,
    Kind.H1_CUT: 0.5,
}
"""Shares of the open loop. The other kinds have generators of their own."""

EXTRA_PATH = "/extra/body/10"
SIZES = (0, 1, 100, 1024, 1024, 1024, 4096, 16384, 65536, 262144)


class Attempt:
    """What is known of a request while it is under way; becomes its record."""

    __slots__ = ("has_answer_begun", "is_reused", "kind", "local", "request_id", "resent", "started_s")

    def __init__(self, kind: Kind, request_id: str, started_s: float) -> None:
        self.kind = kind
        self.request_id = request_id
        self.started_s = started_s
        self.local: Address | None = None
        self.is_reused = False
        self.has_answer_begun = False
        self.resent = 0


Send = Callable[[Attempt], Awaitable[None]]


def check_status(status: int, text: bytes) -> None:
    """Take 200 only; the gateway's own answers begin with their reason.

    Raises:
        Failure: Another status.
    """
    if status != 200:
        reason = text[:80].decode("latin-1").partition(":")[0].strip()
        raise Failure(Cause.STATUS, status=status, reason=reason)


def check_body(found: bytes, expected: bytes) -> None:
    """Compare byte by byte.

    Raises:
        Failure: Says where the first difference is.
    """
    if found != expected:
        at = first_difference(found, expected)
        raise Failure(Cause.CORRUPT, f"{len(found)} bytes, expected {len(expected)}, differ at {at}")


class Load:
    """Sends requests and enters each one's end into the ledger.

    Args:
        clock: The soak's seconds.
    """

    def __init__(
        self, gateway: Address, ledger: Ledger, promises: Promises, *, seed: int, clock: Callable[[], float]
    ) -> None:
        self.ledger = ledger
        self.promises = promises
        self.clock = clock
        self.not_sent = 0
        self.in_flight = 0
        self.is_extra_there = False
        self.h1 = Http1Pool(gateway)
        self.random = random.Random(seed)
        self._ids = itertools.count(1)
        self._sends: dict[Kind, Send] = {
            Kind.H1_GET: self._get,
            Kind.H1_CHUNKED: self._chunked,
            Kind.H1_UPLOAD: self._upload,
            Kind.H1_SLOW: self._slow,
            Kind.H1_NEW: self._new_connection,
            Kind.H1_FLIP: self._flip,
            Kind.H1_EXTRA: self._extra,
            Kind.H1_CUT: self._cut,
        }

    def add(self, kind: Kind, send: Send) -> None:
        """Add a kind of request."""
        self._sends[kind] = send

    async def run(self, rate: float, mix: Mapping[Kind, float], until: trio.Event) -> None:
        """Send `rate` requests a second until told to stop; returns when all have ended."""
        kinds, weights = list(mix), list(mix.values())
        async with trio.open_nursery() as nursery:
            due = trio.current_time()
            while not until.is_set():
                due += 1 / rate
                await trio.sleep_until(due)
                if self.in_flight >= MAX_IN_FLIGHT:
                    self.not_sent += 1
                    continue
                nursery.start_soon(self.send, self.random.choices(kinds, weights)[0])

    async def send(self, kind: Kind) -> Cause:
        """Send one request and return how it ended; never raises a failure."""
        attempt = Attempt(kind, f"r{next(self._ids)}", self.clock())
        self.ledger.begin(kind)
        self.in_flight += 1
        failure = Failure(Cause.ANSWERED)
        try:
            # Shielded: whoever asked may be cancelled, but every request has an end.
            with trio.fail_after(REQUEST_TIMEOUT_S, shield=True):
                await self._sends[kind](attempt)
        except Failure as error:
            failure = error
        except trio.TooSlowError:
            failure = Failure(Cause.TIMEOUT)
        except Exception as error:  # a fault of ours is an end, too, and never excused
            failure = Failure(Cause.CLIENT, f"{type(error).__name__}: {error}")
        finally:
            self.in_flight -= 1
        self.ledger.end(
            Record(
                kind=kind,
                started_s=attempt.started_s,
                ended_s=self.clock(),
                cause=failure.cause,
                detail=failure.detail,
                status=failure.status,
                reason=failure.reason,
                local=attempt.local,
                is_reused=attempt.is_reused,
                has_answer_begun=attempt.has_answer_begun,
                resent=attempt.resent,
            )
        )
        return failure.cause

    # --- HTTP/1.1 --------------------------------------------------------------------------------------------------

    async def exchange(
        self,
        attempt: Attempt,
        connection: Http1Connection,
        path: str,
        *,
        body: bytes | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> Answer:
        """Do one HTTP/1.1 exchange and check what every answer must have."""
        attempt.local = connection.local
        attempt.is_reused = connection.exchanges > 0
        try:
            answer = await connection.exchange(
                "GET" if body is None else "POST", path, {"x-soak-id": attempt.request_id, **(fields or {})}, body
            )
        except BaseException:
            with trio.CancelScope(shield=True):
                await connection.aclose()
            raise
        finally:
            attempt.has_answer_begun = connection.has_answer_begun
        self.check(attempt, answer.status, answer.fields, answer.body)
        return answer

    def check(self, attempt: Attempt, status: int, fields: Mapping[str, str], body: bytes) -> None:
        """Check status, whose answer it is, and who gave it."""
        check_status(status, body)
        if fields.get("x-soak-id") != attempt.request_id:
            raise Failure(Cause.MIXED_UP, f"got {fields.get('x-soak-id')}, sent {attempt.request_id}")
        self.promises.check_backend(fields.get("x-backend", ""), attempt.started_s)

    async def pooled(
        self, attempt: Attempt, path: str, *, body: bytes | None = None, pool: Http1Pool | None = None
    ) -> Answer:
        """Do one exchange on a connection of the pool."""
        pool = pool or self.h1
        connection = await pool.take()
        try:
            return await self.exchange(attempt, connection, path, body=body)
        finally:
            with trio.CancelScope(shield=True):
                await pool.give_back(connection)

    async def _download(self, attempt: Attempt, path: str, size: int) -> None:
        answer = await self.pooled(attempt, path)
        check_body(answer.body, make_body(attempt.request_id, size))

    async def _get(self, attempt: Attempt) -> None:
        size = self.random.choice(SIZES)
        await self._download(attempt, f"/main/body/{size}", size)

    async def _chunked(self, attempt: Attempt) -> None:
        size = self.random.choice(SIZES)
        await self._download(attempt, f"/main/chunked/{size}", size)

    async def _slow(self, attempt: Attempt) -> None:
        await self._download(attempt, "/main/slow/40000/2000", 40000)

    async def _cut(self, attempt: Attempt) -> None:
        await self._download(attempt, "/cut/cut/60000", 60000)

    async def _upload(self, attempt: Attempt) -> None:
        body = make_body(attempt.request_id, self.random.choice(SIZES))
        answer = await self.pooled(attempt, "/main/sum", body=body)
        check_body(answer.body, digest(body).encode())

    async def _flip(self, attempt: Attempt) -> None:
        required = self.promises.generation
        answer = await self.pooled(attempt, "/flip/body/64")
        check_body(answer.body, make_body(attempt.request_id, 64))
        self.promises.check_generation(answer.fields.get("x-edit", ""), required)

    async def _extra(self, attempt: Attempt) -> None:
        """Ask for the route that comes and goes, on a new connection: any worker may be the one."""
        is_there = self.is_extra_there
        connection = await self.h1.open()
        try:
            await self.exchange(attempt, connection, EXTRA_PATH, fields={"connection": "close"})
        except Failure as failure:
            if is_there or failure.status != 404:
                raise
        else:
            if not is_there:
                raise Failure(Cause.STALE_CONFIG, "a route that is gone still answers")
        finally:
            with trio.CancelScope(shield=True):
                await connection.aclose()

    async def _new_connection(self, attempt: Attempt) -> None:
        connection = await self.h1.open()
        try:
            answer = await self.exchange(attempt, connection, "/main/body/100", fields={"connection": "close"})
        finally:
            with trio.CancelScope(shield=True):
                await connection.aclose()
        check_body(answer.body, make_body(attempt.request_id, 100))
