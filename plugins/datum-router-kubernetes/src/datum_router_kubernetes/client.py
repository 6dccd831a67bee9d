"""HTTP with the Kubernetes API: authenticated, bounded, interruptible; every failure is a `ClusterError`.

Theory of operation. The official client loads the configuration and keeps credentials fresh; bodies go past its models
as bytes, through the connection pool that it set up. `request` reads an answer whole, `stream` gives the lines of a
watch as they come. Both block, for worker threads; `in_thread` has trio wait for a `request`.

Another thread ends what blocks by closing the `Hold` that it was started with: the socket is shut down, so that reads
return at once. Only name resolution, TCP connect and the TLS handshake cannot be interrupted; `CONNECT_TIMEOUT_S`
bounds the latter two.

When the API answers 401, the configuration is read again from the start (files, exec plugin, token) and the request is
sent once more. No message holds bodies of requests, tokens, or what an answer says beyond the API's own `Status`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import trio
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from datum_router.errors import ClusterError, ClusterUnavailable, ConfigError
from datum_router_kubernetes.answers import ResponseTooLarge, describe, error_of, unreachable

if TYPE_CHECKING:
    from datum_router_kubernetes.access import Access

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
"""How long TCP connect, and then the TLS handshake, may take (seconds)."""
REQUEST_TIMEOUT_S = 30.0
"""How long a request may take, its answer included (seconds)."""
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
"""The largest answer that is read, a page of a list for example."""
MAX_LINE_BYTES = 8 * 1024 * 1024
"""The longest line of a watch: etcd holds objects of up to 1.5 MiB, which JSON may double, an `ERROR` less."""
MAX_ERROR_BYTES = 64 * 1024
"""How much of an answer is read that is an error."""
POOL_SIZE = 32
"""How many idle connections are kept."""
MIN_RENEWAL_S = 10.0
"""Least time between two loads of the configuration because of a 401 (seconds)."""
_READ_BYTES = 64 * 1024

KEEPALIVE_IDLE_S = 15
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 3
USER_TIMEOUT_MS = 30_000
"""A peer that acknowledges nothing for so long is gone, whether data or a keepalive probe waits for it."""

SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
)

_IDEMPOTENT = frozenset(("GET", "PUT", "PATCH"))
"""What may be sent again when an idle connection turns out to be closed: our patches are all server-side apply, and a
PUT names the version that it replaces. DELETE and POST may have happened."""


class Hold:
    """The way to end a blocking call from another thread. For one call at a time; once closed, it stays closed."""

    __slots__ = ("_connection", "_lock", "is_closed")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: _PlainConnection | None = None
        self.is_closed = False

    def attach(self, connection: _PlainConnection) -> None:
        """Note the connection that the call uses from now on.

        Raises:
            OSError: The hold is closed.
        """
        with self._lock:
            self._connection = connection
            if self.is_closed:
                raise ConnectionAbortedError("the call was cancelled")

    def detach(self) -> None:
        """Note that the call has ended."""
        with self._lock:
            self._connection = None

    def close(self) -> None:
        """End the call that runs, if one does, and refuse others. Never blocks nor raises."""
        with self._lock:
            self.is_closed = True
            wire = None if self._connection is None else self._connection.wire
        if wire is not None:
            with contextlib.suppress(OSError):
                # The plain socket's method: that of TLS would pull its state from under the thread that reads.
                socket.socket.shutdown(wire, socket.SHUT_RDWR)


_current = threading.local()


def _attach(connection: _PlainConnection) -> None:
    hold: Hold | None = getattr(_current, "hold", None)
    if hold is not None:
        hold.attach(connection)


class _PlainConnection(HTTPConnection):
    """A connection that can be shut down by the hold of the call that uses it."""

    wire: socket.socket | None = None

    def connect(self) -> None:
        super().connect()
        self.wire = self.sock
        _attach(self)

    def request(self, *args: object, **kwargs: object) -> None:
        _attach(self)
        super().request(*args, **kwargs)  # type: ignore[arg-type]  # what the pool gives is passed through


class _TlsConnection(_PlainConnection, HTTPSConnection):
    """The same: what is overridden above comes before what HTTPSConnection overrides."""


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


POOL_CLASSES: Mapping[str, type[HTTPConnectionPool]] = {"http": _PlainPool, "https": _TlsPool}


class ApiClient:
    """One API server, one identity. Thread-safe.

    Attributes:
        server: Address of the API, without credentials.
        namespace: Where this process lives, or what its kubeconfig names, else `default`.
    """

    def __init__(
        self,
        load: Callable[[], Access],
        *,
        user_agent: str = "datum-router",
        clock: Callable[[], float] = time.monotonic,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        """Load the configuration.

        Args:
            load: Reads the configuration from the start; called again after a 401.

        Raises:
            ConfigError: From `load`.
        """
        self._load = load
        self._clock = clock
        self._user_agent = user_agent
        self._max_response_bytes = max_response_bytes
        self._lock = threading.Lock()
        self._access = load()
        self._renewed_at = -MIN_RENEWAL_S
        self.server = self._access.server
        self.namespace = self._access.namespace

    def __repr__(self) -> str:
        return f"ApiClient({self.server!r})"

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] = {},
        body: bytes | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float = REQUEST_TIMEOUT_S,
        hold: Hold | None = None,
    ) -> bytes:
        """Send a request and return the body of its answer. Blocks.

        Args:
            path: Not yet percent-encoded, such as `/api/v1/namespaces/default/secrets/tls`.
            timeout_s: For the whole of it.

        Raises:
            ClusterError: One of its subclasses for everything that is not 2xx, or no answer. `ResponseTooLarge` for
                more than `MAX_RESPONSE_BYTES`.
        """
        deadline = self._clock() + timeout_s
        what = describe(method, path, query)
        with self._opened(
            method, path, query, body, content_type, accept, timeout_s=timeout_s, hold=hold, what=what
        ) as answer:
            return self._read(answer, deadline, what)

    def stream(
        self,
        path: str,
        *,
        query: Mapping[str, str],
        read_timeout_s: float,
        accept: str = "application/json",
        hold: Hold | None = None,
    ) -> Stream:
        """Begin a watch and return its lines. Blocks until the head of the answer is there.

        Args:
            read_timeout_s: How long the API may be silent, at the start and between two reads.

        Raises:
            ClusterError: As `request`; so does iterating, when the watch ends otherwise than in order.
        """
        what = describe("GET", path, query)
        held = Hold() if hold is None else hold
        opened = self._opened("GET", path, query, None, "", accept, timeout_s=read_timeout_s, hold=held, what=what)
        return Stream(opened, held, what, self.server)

    # --- one exchange ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | None,
        content_type: str,
        accept: str,
        *,
        timeout_s: float,
        hold: Hold | None,
        what: str,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Send a request, give the answer if it is 2xx, and let go of the connection."""
        target = urllib.parse.quote(path, safe="/") + (f"?{urllib.parse.urlencode(query)}" if query else "")
        headers = {"accept": accept, "user-agent": self._user_agent}
        if body is not None:
            headers["content-type"] = content_type
        answer: urllib3.BaseHTTPResponse | None = None
        is_whole = False
        try:
            access = self._access
            answer = self._send(access, method, target, headers, body, timeout_s, hold, what)
            if answer.status == 401 and self._renewed(access):
                _finish(answer)
                answer = self._send(self._access, method, target, headers, body, timeout_s, hold, what)
            if not 200 <= answer.status < 300:
                raise self._refusal(answer, what)
            yield answer
            is_whole = True
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(error, what, self.server) from error
        finally:
            if hold is not None:
                hold.detach()
            if answer is not None:
                if is_whole:
                    answer.release_conn()
                else:
                    answer.close()

    def _send(
        self,
        access: Access,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        hold: Hold | None,
        what: str,
    ) -> urllib3.BaseHTTPResponse:
        with self._lock:  # an exec plugin or a token file may be read in here
            try:
                given = {**headers, **access.headers()}
            except Exception as error:
                raise ClusterUnavailable(
                    f"{what}: the credentials cannot be refreshed: {type(error).__name__}"
                ) from error
        timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, timeout_s), read=timeout_s)

        def send() -> urllib3.BaseHTTPResponse:
            return access.pool.request(
                method,
                access.server + target,
                headers=given,
                body=body,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )

        _current.hold = hold
        try:
            return send()
        except urllib3.exceptions.ProtocolError:
            if method not in _IDEMPOTENT or (hold is not None and hold.is_closed):
                raise
            return send()  # the API closed a connection that was idle, just when this request was on its way
        finally:
            _current.hold = None

    def _read(self, answer: urllib3.BaseHTTPResponse, deadline: float, what: str) -> bytes:
        length = answer.headers.get("content-length", "")
        limit = self._max_response_bytes
        if length.isascii() and length.isdigit() and len(length) < 19 and int(length) > limit:
            raise ResponseTooLarge(f"{what}: the answer has {length} bytes, more than the limit of {limit}")
        parts: list[bytes] = []
        size = 0
        while part := answer.read1(_READ_BYTES):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise ResponseTooLarge(f"{what}: the answer has more bytes than the limit of {limit}")
            if self._clock() > deadline:
                raise ClusterUnavailable(f"{what}: the answer was not whole in time, {size} bytes came")
        return b"".join(parts)

    def _refusal(self, answer: urllib3.BaseHTTPResponse, what: str) -> ClusterError:
        parts: list[bytes] = []
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
            size = 0
            while size < MAX_ERROR_BYTES and (part := answer.read1(_READ_BYTES)):
                parts.append(part)
                size += len(part)
        note = self._access.note if answer.status == 401 else ""
        return error_of(what, answer.status, answer.headers.get("retry-after", ""), b"".join(parts), note=note)

    def _renewed(self, used: Access) -> bool:
        """Load the configuration again unless another thread just did; tell whether there is something new to try."""
        with self._lock:
            if self._access is not used:
                return True
            now = self._clock()
            if now - self._renewed_at < MIN_RENEWAL_S:
                return False
            self._renewed_at = now
            try:
                self._access = self._load()
            except ConfigError as error:
                log.warning("configuration of the cluster cannot be read again", extra={"error": str(error)})
                return False
            return True


class Stream:
    """The lines of a watch, without their line ends. A context manager; iterate once, from one thread."""

    __slots__ = ("_answer", "_hold", "_opened", "_server", "_what")

    def __init__(
        self,
        opened: contextlib.AbstractContextManager[urllib3.BaseHTTPResponse],
        hold: Hold,
        what: str,
        server: str,
    ) -> None:
        self._opened = opened
        self._answer = opened.__enter__()
        self._hold = hold
        self._what = what
        self._server = server

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answer.close()  # it may go on for minutes: the connection is of no use to others
        self._opened.__exit__(None, None, None)

    def close(self) -> None:
        """End it, from any thread: iterating raises `ClusterUnavailable`, or ends."""
        self._hold.close()

    def __iter__(self) -> Iterator[bytes]:
        """Give lines until the API ends the watch; a last line without its end is given as well.

        Raises:
            ClusterUnavailable: The connection broke, was closed by `close`, or the API was silent for too long.
            ResponseTooLarge: A line has more than `MAX_LINE_BYTES`.
        """
        for lines in self.batches():
            yield from lines

    def batches(self) -> Iterator[list[bytes]]:
        """Give the same in lists: what arrived together, never an empty list."""
        rest: list[bytes] = []
        size = 0
        while part := self._read():
            *whole, tail = part.split(b"\n")
            if whole:
                if rest:
                    whole[0] = b"".join((*rest, whole[0]))
                    rest.clear()
                    size = 0
                lines = [line for line in whole if line.strip()]
                if lines:
                    yield lines
            if tail:
                rest.append(tail)
                size += len(tail)
                if size > MAX_LINE_BYTES:
                    raise ResponseTooLarge(f"{self._what}: a line has more bytes than the limit of {MAX_LINE_BYTES}")
        if rest:
            yield [b"".join(rest)]

    def _read(self) -> bytes:
        try:
            return self._answer.read1(_READ_BYTES)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise unreachable(error, self._what, self._server) from error


async def in_thread(send: Callable[[Hold], bytes], limiter: trio.CapacityLimiter) -> bytes:
    """Have a worker thread send a request by a hold of its own, which cancelling closes; return what it returns.

    If this is cancelled, the request may have had its effect or not, and its thread ends soon.
    """
    hold = Hold()
    try:
        return await trio.to_thread.run_sync(send, hold, abandon_on_cancel=True, limiter=limiter)
    finally:
        hold.close()


def _finish(answer: urllib3.BaseHTTPResponse) -> None:
    """Let go of an answer that nobody reads, and keep its connection if what is left of it is short."""
    try:
        answer.read1(MAX_ERROR_BYTES)
        answer.close()
    except (urllib3.exceptions.HTTPError, OSError):
        answer.close()


def make_client(settings: Mapping[str, str]) -> ApiClient:
    """Make the client that settings describe: `kubeconfig`, `context`, `role`; others are not looked at.

    Reads files and may run an exec plugin, so it blocks; imports the `kubernetes` package, which takes half a second.

    Raises:
        ConfigError: The kubeconfig is missing or wrong, or there is none and this is no pod.
    """
    from datum_router_kubernetes.access import load_access, locate

    place = locate(settings)
    role = settings.get("role", "")
    agent = f"datum-router-{role}" if role else "datum-router"
    return ApiClient(functools.partial(load_access, place), user_agent=agent)
