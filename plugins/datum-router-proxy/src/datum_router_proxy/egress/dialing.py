"""Connecting to what was allowed, and nothing else."""

from __future__ import annotations

import logging

from datum_router.egress.destination import BadDestination, canonical_name
from datum_router.errors import RemoteProtocolError, UpstreamError
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel
from datum_router_proxy.egress.desk import Decision
from datum_router_proxy.loop import Loop
from datum_router_proxy.upstream.connect import dial
from datum_router_proxy.wire.client_hello import ClientHello, NotTls, read_client_hello

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
"""For one dial, if the VPCEgress does not say."""


async def dial_one(loop: Loop, decision: Decision, *, prefer: str = "") -> Channel:
    """Connect to one of the addresses that a decision allows, in turn.

    Args:
        prefer: The address that the client meant; tried first if it is allowed.

    Raises:
        UpstreamError: None of them can be reached.
        DeadlineExpired, TaskCancelled: As `park`; nothing is left open.
    """
    verdict, destination = decision.verdict, decision.destination
    assert destination is not None
    assert verdict.rule is not None
    rule = verdict.rule
    tried = sorted(verdict.addresses, key=lambda address: address != prefer)[: rule.retry.max_retries + 1]
    timeout_s = rule.timeouts.connect_s or CONNECT_TIMEOUT_S
    failure: UpstreamError | None = None
    for address in tried:
        try:
            channel = await dial(loop, address, destination.port, timeout_s=timeout_s)
        except UpstreamError as error:
            log.info("egress destination not reached", extra={"error": str(error), "egress": rule.name})
            failure = error
        else:
            channel.reset_reason = Reason.UPSTREAM_RESET
            return channel
    assert failure is not None  # an allowed destination has an address
    raise failure


def require_name(hello: ClientHello, decision: Decision) -> None:
    """Check that a handshake is for the destination that was asked for.

    Raises:
        RemoteProtocolError: It is for another name, or for none.
    """
    assert decision.destination is not None
    found = canonical_name(hello.server_name) if hello.server_name else ""
    if isinstance(found, BadDestination) or not found or found != decision.destination.name:
        raise RemoteProtocolError("tls: another server name", reason=Reason.TLS_HANDSHAKE, status_hint=400)


def hello_of(data: bytes) -> ClientHello | None:
    """Return what the first bytes of a connection say, None if more are needed.

    Raises:
        RemoteProtocolError: They are no ClientHello, or none that everybody understands alike.
    """
    hello = read_client_hello(data)
    if isinstance(hello, NotTls):
        raise RemoteProtocolError(f"tls: {hello.why}", reason=Reason.TLS_HANDSHAKE, status_hint=400)
    return hello
