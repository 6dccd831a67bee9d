"""Dialling an endpoint: non-blocking connect and TLS handshake, on the loop."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl

from datum_router.errors import UpstreamError
from datum_router.model.service import UpstreamTls
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel, ChannelError, PlainChannel
from datum_router_proxy.loop import DeadlineExpired, Loop, current_task, park
from datum_router_proxy.tls_channel import TlsChannel
from datum_router_proxy.upstream.trust import client_context
from datum_router_proxy.vpc import bind_to_device

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What socket(2) says when this process or machine has run out of something."""


async def dial(
    loop: Loop,
    address: str,
    port: int,
    *,
    timeout_s: float,
    tls: UpstreamTls | None = None,
    alpn: tuple[str, ...] = (),
    server_name: str = "",
    device: str = "",
) -> Channel:
    """Connect to an IP literal and return a channel that belongs to the calling task.

    The task's own deadline stays in force and is restored afterwards; if it is the earlier one it raises as ever.
    Nothing is left open if this raises or is cancelled.

    Args:
        timeout_s: For connect and handshake together; noticed up to `loop.SWEEP_S` late.
        server_name: For SNI and verification; empty = `tls.server_name`, and failing that the address.
        device: Interface that the socket is bound to; empty = none, the routing table decides.

    Raises:
        UpstreamError: `connect_failed`, `connect_timeout` or `upstream_tls`. Nothing of a request was sent, so the
            attempt may be repeated (`is_unprocessed`).
        DeadlineExpired, TaskCancelled: As `park`.
    """
    task = current_task()
    outer, outer_reason = task.deadline, task.deadline_reason
    ends_at = loop.now + timeout_s
    is_ours = ends_at < outer
    if is_ours:
        task.deadline, task.deadline_reason = ends_at, Reason.CONNECT_TIMEOUT
    channel: PlainChannel | None = None
    is_done = False
    try:
        channel = _start(loop, address, port, device)
        channel.task = task
        while channel.is_connecting:
            await park()
        code = channel.connect_errno()
        if code:
            raise _failed(address, port, os.strerror(code).lower())
        if tls is None:
            is_done = True
            return channel
        secured = await _secure(channel, tls, alpn, server_name or tls.server_name or address)
        is_done = True
        return secured
    except DeadlineExpired as exc:
        if not is_ours:
            raise
        raise UpstreamError(
            f"endpoint {address} port {port}: not connected within {timeout_s:g} s",
            reason=Reason.CONNECT_TIMEOUT,
            status_hint=504,
            is_unprocessed=True,
        ) from exc
    except ChannelError as exc:
        # The plain connect reports by errno, so this was the handshake.
        raise _tls_failed(address, port, str(exc)) from exc
    finally:
        if is_ours:
            task.deadline, task.deadline_reason = outer, outer_reason
        if not is_done and channel is not None:
            channel.abort()


def _start(loop: Loop, address: str, port: int, device: str) -> PlainChannel:
    """Begin a connect; the socket is registered after it, since an unconnected one reports a hang-up."""
    try:
        # Names are never accepted: the resolver inside connect would block, and would choose behind our back.
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except ValueError as exc:
        raise _failed(address, port, "not an IP address") from exc
    except OSError as exc:
        said = (exc.strerror or str(exc)).lower()
        if exc.errno in _OURS:
            raise _short_of_resources(address, port, said) from exc
        raise _failed(address, port, said) from exc
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if device:
            _bind(sock, device, address, port)
        code = sock.connect_ex((address, port))
        if code not in (0, errno.EINPROGRESS):
            raise _failed(address, port, os.strerror(code).lower())
        return PlainChannel(
            loop, sock, peer=(address, port), reset_reason=Reason.UPSTREAM_RESET, is_connecting=code != 0
        )
    except (OSError, OverflowError) as exc:
        sock.close()
        raise _failed(address, port, str(exc)) from exc
    except BaseException:
        sock.close()
        raise


def _bind(sock: socket.socket, device: str, address: str, port: int) -> None:
    try:
        bind_to_device(sock, device)
    except OSError as exc:
        raise _failed(address, port, f"interface {device}: {(exc.strerror or str(exc)).lower()}") from exc


async def _secure(channel: PlainChannel, tls: UpstreamTls, alpn: tuple[str, ...], name: str) -> TlsChannel:
    address, port = channel.peer
    try:
        secured = TlsChannel(channel, client_context(tls, alpn), server_side=False, server_hostname=name)
        await secured.handshake()
    except ssl.SSLCertVerificationError as exc:
        raise _tls_failed(address, port, f"certificate not trusted for {name}: {exc.verify_message}") from exc
    except ssl.SSLError as exc:
        raise _tls_failed(address, port, (exc.reason or str(exc)).lower().replace("_", " ")) from exc
    except ValueError as exc:  # a name that cannot be a server name, or settings that make no context
        raise _tls_failed(address, port, str(exc)) from exc
    return secured


def _failed(address: str, port: int, said: str) -> UpstreamError:
    return UpstreamError(
        f"endpoint {address} port {port}: {said}", reason=Reason.CONNECT_FAILED, status_hint=502, is_unprocessed=True
    )


def _short_of_resources(address: str, port: int, said: str) -> UpstreamError:
    """Return what must not count against the endpoint: it was never asked (threat E7)."""
    return UpstreamError(
        f"endpoint {address} port {port}: {said}", reason=Reason.LOCAL_RESOURCES, status_hint=503, is_unprocessed=True
    )


def _tls_failed(address: str, port: int, said: str) -> UpstreamError:
    return UpstreamError(
        f"endpoint {address} port {port}: tls: {said}",
        reason=Reason.UPSTREAM_TLS,
        status_hint=502,
        is_unprocessed=True,
    )
