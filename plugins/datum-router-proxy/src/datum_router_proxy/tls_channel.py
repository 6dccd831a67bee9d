"""TLS over a plain channel: an SSL object between two memory buffers.

Theory of operation
===================
Compared with a non-blocking SSLSocket this reads a whole batch of records with one system call (OpenSSL asks the
socket twice for each record) and writes likewise: measured, 10 to 25 % less time for 64 KiB either way, the same for a
request of 300 bytes with an answer of 1 KiB, a little more for single full records. And all edge-trigger rules stay in
one place, the plain channel.

`readable` is True as well while records wait in the buffers between the socket and us. OpenSSL never waits to write
here, since memory takes everything; back-pressure comes from `buffered` as on a plain channel. It may want to read
before it writes (a renegotiation, which our contexts refuse); plaintext is kept then and counted as buffered.

An end without close_notify is a truncation and raises: contexts switch OpenSSL's leniency off (`certificate`,
`upstream.connect`).
"""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from collections.abc import Callable

from datum_router.reasons import Reason
from datum_router_proxy.channel import LINGER_BYTES, LINGER_S, RECV_BYTES, ChannelError, PlainChannel
from datum_router_proxy.client_identity import ClientSession
from datum_router_proxy.loop import Deferrable, Task, park

TLS_RECORD_BYTES = 16_384
"""Most plaintext in one record (RFC 8446 section 5.1)."""
TLS_JOIN_BYTES = 65_536
"""Several buffers up to this size together are joined before encryption: small records cost more than the copy."""
TLS_FEEDS = 4
"""Reads of `RECV_BYTES` that may yield no plaintext: a flood of empty records or key updates is cut off then."""

_REFUSALS = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV1_ALERT_DECRYPT_ERROR",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)
"""How a server says that it does not take our certificate, by OpenSSL's names. In TLS 1.3 it does so after a handshake
that is complete for us (RFC 8446 section 4.4.2.4)."""


class NamedSSLObject(ssl.SSLObject):
    """An SSL object that remembers the server name the client asked for (see `TlsChannel.expect_name`)."""

    requested_name: str | None = None
    is_name_known: bool = False


class TlsChannel:
    """TLS over a plain channel; see `Channel`. `await handshake()` before anything else.

    Args:
        context: Must use `NamedSSLObject` as its `sslobject_class` if the server name is wanted.
        server_hostname: For clients: SNI and verification.

    Attributes:
        client: As the listener has found it out; see `Channel`.
    """

    __slots__ = (
        "_is_ended",
        "_is_finishing",
        "_is_fresh",
        "_object",
        "_plain",
        "_raw",
        "_received",
        "_sent",
        "_unsent",
        "client",
    )

    is_tls = True

    def __init__(
        self,
        raw: PlainChannel,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> None:
        self._raw = raw
        self._received = ssl.MemoryBIO()
        self._sent = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._received, self._sent, server_side=server_side, server_hostname=server_hostname
        )
        self.client: ClientSession | None = None
        # Both are made when they are needed: empty ones would cost each connection 1.5 KB.
        self._plain: deque[bytes] | None = None  # decrypted early, by finish_writes
        self._unsent: deque[memoryview] | None = None  # not encrypted yet: OpenSSL wants to read first
        self._is_ended = False
        self._is_finishing = False
        self._is_fresh = False  # records may be waiting between the socket and us

    # --- delegation ------------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task | None:
        """The task that events wake."""
        return self._raw.task

    @task.setter
    def task(self, task: Task | None) -> None:
        self._raw.task = task

    @property
    def eager(self) -> Callable[[], bool] | None:
        """What is asked before the task is woken."""
        return self._raw.eager

    @eager.setter
    def eager(self, eager: Callable[[], bool] | None) -> None:
        self._raw.eager = eager

    @property
    def deferrable(self) -> Deferrable | None:
        """Who waits for its turn; see `Channel`."""
        return self._raw.deferrable

    @deferrable.setter
    def deferrable(self, deferrable: Deferrable | None) -> None:
        self._raw.deferrable = deferrable

    @property
    def watcher(self) -> Task | None:
        """The task that is cancelled when the peer hangs up."""
        return self._raw.watcher

    @watcher.setter
    def watcher(self, task: Task | None) -> None:
        self._raw.watcher = task

    @property
    def on_close(self) -> Callable[[PlainChannel], None] | None:
        """Called once when the descriptor is given back."""
        return self._raw.on_close

    @on_close.setter
    def on_close(self, done: Callable[[PlainChannel], None] | None) -> None:
        self._raw.on_close = done

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of the peer."""
        return self._raw.peer

    @peer.setter
    def peer(self, peer: tuple[str, int]) -> None:
        self._raw.peer = peer

    @property
    def reset_reason(self) -> Reason:
        """The reason of this channel's errors."""
        return self._raw.reset_reason

    @reset_reason.setter
    def reset_reason(self, reason: Reason) -> None:
        self._raw.reset_reason = reason

    @property
    def readable(self) -> bool:
        """True if a recv may return data or the end: on the socket, or decrypted, or waiting to be."""
        return self._raw.readable or self._is_fresh

    @property
    def hangup(self) -> bool:
        """True once the peer has closed its sending side or reset."""
        return self._raw.hangup or self._is_ended

    @property
    def buffered(self) -> int:
        """Bytes that the kernel has not taken yet, encrypted or not."""
        if self._unsent:
            return self._raw.buffered + sum(map(len, self._unsent))
        return self._raw.buffered

    @property
    def last_progress(self) -> float:
        """When bytes last moved either way."""
        return self._raw.last_progress

    @property
    def is_closed(self) -> bool:
        """True once closed."""
        return self._raw.is_closed

    @property
    def alpn(self) -> str | None:
        """The negotiated protocol."""
        return self._object.selected_alpn_protocol()

    @property
    def sni(self) -> str | None:
        """The server name the client asked for."""
        return self._object.requested_name if isinstance(self._object, NamedSSLObject) else None

    @property
    def version(self) -> str | None:
        """The protocol version, for example `TLSv1.3`."""
        return self._object.version()

    def expect_name(self, name: str) -> None:
        """Note the server name that a client's hello was read to ask for, empty for none; before the handshake."""
        if isinstance(self._object, NamedSSLObject):
            self._object.requested_name = name or None
            self._object.is_name_known = True

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """The SSL object, to ask for certificates; reading and writing are not for others."""
        return self._object

    def check(self) -> None:
        """Raise ChannelError if the stream is broken or closed."""
        self._raw.check()

    # --- handshake ---------------------------------------------------------------------------------------------------

    async def handshake(self) -> None:
        """Complete the handshake; the calling task must be the channel's and sets the deadline.

        Raises:
            ssl.SSLError: It failed; an alert has been sent. The caller closes.
            ChannelError: The peer went away.
            DeadlineExpired, TaskCancelled: As `park`.
        """
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._push()
            except ssl.SSLError:
                with contextlib.suppress(ChannelError):
                    self._push()  # the alert
                raise
            else:
                with contextlib.suppress(ChannelError):
                    self._push()  # tickets; a client that has left already may have left a request behind
                self._is_fresh = self._received.pending > 0
                return
            while not self._feed():
                await park()

    def _feed(self) -> bool:
        """Move one recv from the socket to OpenSSL; False if there is nothing."""
        if not self._raw.readable or self._is_ended:
            return False
        data = self._raw.recv()
        if data is None:
            return False
        if data:
            self._received.write(data)
        else:
            self._received.write_eof()
        return True

    def _push(self) -> None:
        """Hand to the socket whatever OpenSSL has written."""
        if self._sent.pending:
            self._raw.write(self._sent.read())

    # --- reading -----------------------------------------------------------------------------------------------------

    def recv(self, size: int = RECV_BYTES) -> bytes | None:
        """Return decrypted bytes of one or several records; see `Channel.recv`."""
        if self._plain:
            return self._plain.popleft()
        read = self._object.read
        received = self._received
        chunks: list[bytes] | None = None
        got = b""
        total = feeds = 0
        # What has been decrypted is never longer than what it came from, so this many bytes hold it; a larger buffer
        # would be made for nothing. To read where nothing waits would cost an exception: the socket is asked first.
        waiting = received.pending + self._object.pending()
        while not self._is_ended:
            if not waiting:
                if feeds >= TLS_FEEDS:
                    raise self._broken("too many records without data")
                feeds += 1
                if not self._feed():
                    break
                waiting = received.pending or 1  # 1: the end, which read says
            try:
                data = read(min(waiting, size - total))
            except ssl.SSLWantReadError:
                waiting = 0  # OpenSSL has taken the part of a record that was there
                if total:
                    break
                continue
            except ssl.SSLEOFError as exc:
                if total:
                    break
                raise self._broken("ended without close_notify", is_truncated=True) from exc
            except ssl.SSLError as exc:
                if total:
                    break  # the next call meets the same error
                with contextlib.suppress(ChannelError):
                    self._push()
                if not self._object.server_side and exc.reason in _REFUSALS:
                    self._raw.reset_reason = Reason.UPSTREAM_TLS
                raise self._broken(exc.reason or "tls error") from exc
            if not data:
                self._is_ended = True
                break
            if chunks is not None:
                chunks.append(data)
            elif total:
                chunks = [got, data]
            else:
                got = data
            total += len(data)
            waiting = received.pending + self._object.pending()
            if not waiting or total >= size:
                break
        self._is_fresh = waiting > 0 or self._is_ended
        if self._sent.pending or self._unsent:
            self._encrypt_unsent()
        if total:
            return got if chunks is None else b"".join(chunks)
        return b"" if self._is_ended else None

    def _broken(self, said: str, *, is_truncated: bool = False) -> ChannelError:
        self._raw._failure = self._raw._failure or f"tls: {said}"
        self._is_fresh = True
        error = self._raw._error()
        error.is_truncated = is_truncated
        return error

    # --- writing -----------------------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview) -> None:
        """Encrypt and send one buffer; see `Channel.send`."""
        if self._is_finishing or self._unsent or len(data) > TLS_RECORD_BYTES:
            self.write(data)
            return
        raw = self._raw
        raw.check()
        try:
            self._object.write(data)
        except ssl.SSLWantReadError:
            self._unsent = deque((memoryview(data),))
            self._push()
            return
        except ssl.SSLError as exc:
            raise self._broken(exc.reason or "tls error") from exc
        raw.send(self._sent.read())

    def write(self, *buffers: bytes | memoryview) -> None:
        """Encrypt and send in order; see `Channel.write`."""
        self._raw.check()
        if self._is_finishing:
            raise AssertionError("write: called after finish_writes")
        if len(buffers) > 1 and sum(map(len, buffers)) <= TLS_JOIN_BYTES:
            buffers = (b"".join(buffers),)
        if len(buffers) == 1 and not self._unsent and 0 < len(buffers[0]) <= TLS_RECORD_BYTES:
            self.send(buffers[0])
            return
        if self._unsent is None:
            self._unsent = deque()
        self._unsent.extend(memoryview(data) for data in buffers if len(data))
        self._encrypt_unsent()

    def _encrypt_unsent(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                data = unsent[0]
                size = len(data)
                done = 0
                while done < size:
                    done += self._object.write(data[done : done + TLS_RECORD_BYTES])
                    unsent[0] = data[done:]
                unsent.popleft()
            self._unsent = None
        except ssl.SSLWantReadError:
            pass  # only within a renegotiation, which our contexts refuse; recv tries again
        except ssl.SSLError as exc:
            raise self._broken(exc.reason or "tls error") from exc
        if self._sent.pending:
            self._push()

    def finish_writes(self) -> None:
        """Send close_notify, the half close of TLS; see `Channel.finish_writes`. The socket stays open both ways."""
        if self._is_finishing or self.is_closed:
            return
        self._is_finishing = True
        # SSL_shutdown looks for the peer's close_notify and would drop data it meets: take that out first.
        plain: deque[bytes] = deque()
        while not self._is_ended:
            try:
                data = self._object.read(RECV_BYTES)
            except ssl.SSLError:
                break
            if not data:
                self._is_ended = True
            else:
                plain.append(data)
        if plain:
            self._plain = plain
        with contextlib.suppress(ssl.SSLError, ChannelError):
            self._object.unwrap()
        with contextlib.suppress(ChannelError):
            self._push()
        self._is_fresh = bool(self._plain) or self._is_ended

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Send close_notify and what is buffered, then give the descriptor back; waits for no answer."""
        if not self.is_closed:
            self.finish_writes()
            self._raw.close()

    def linger(self, most_bytes: int = LINGER_BYTES, most_s: float = LINGER_S) -> None:
        """Send close_notify, half close, discard what still comes, then close; see `Channel.linger`."""
        if not self.is_closed:
            self.finish_writes()
            self._raw.linger(most_bytes, most_s)

    def abort(self) -> None:
        """Reset the connection; see `Channel.abort`."""
        self._raw.abort()

    def handle(self, events: int) -> None:
        """Pass events on; only for tests, the loop calls the plain channel."""
        self._raw.handle(events)
