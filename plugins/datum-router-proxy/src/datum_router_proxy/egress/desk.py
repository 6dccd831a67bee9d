"""Where each outbound destination is decided, counted and logged.

Theory of operation. A decision is one call of `decide`: whose traffic it is, what the policy says of the name, what
addresses the name has, what the policy says of those, whether one of them is a listener of our own, whether the rule's
rate is used up. What comes out names the addresses that may be dialled; nobody resolves the name again. So a name
server that answers differently the next moment (DNS rebinding) gains nothing.

A policy is linked when the first decision after its arrival asks for it, and rates go on where a rule has not changed.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections import Counter
from typing import Protocol

import msgspec

from datum_router.compiler.link import Snapshot
from datum_router.egress.address import ClosedRanges
from datum_router.egress.decide import EgressRequest, EgressTable, Verdict, denied
from datum_router.egress.destination import BadDestination, Destination
from datum_router.model.egress import EgressPolicy, EgressReason, EgressRule, EgressSource
from datum_router.model.listener import Listener
from datum_router.model.snapshot import Holder
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.observe.events import RequestEnded
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router.policy.bucket import TokenBucket
from datum_router.reasons import Reason
from datum_router_proxy.egress.resolver import NameResolver
from datum_router_proxy.loop import Loop
from datum_router_proxy.settings import ProxySettings

log = logging.getLogger(__name__)

_NO_POLICY = EgressPolicy()


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict, and what it was about.

    Attributes:
        judged_by: The policy that it is of.
        is_tls: It was asked for by a ClientHello.
    """

    verdict: Verdict
    source: EgressSource
    destination: Destination | None
    judged_by: EgressPolicy = _NO_POLICY
    is_tls: bool = False


class Carried(Protocol):
    """What a tunnel knows of itself at its end. Times are the loop's."""

    bytes_in: int
    bytes_out: int
    began_at: float

    @property
    def endpoint(self) -> str:
        """Whom it was connected with."""
        ...


class EgressDesk:
    """Decides for all egress listeners of a process.

    Attributes:
        own_ports: Ports that listeners of this process have.
    """

    __slots__ = (
        "_buckets", "_closed", "_decisions", "_holder", "_loop", "_observer", "_open", "_policies", "_resolver",
        "_table", "own_ports",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        holder: Holder[Snapshot],
        settings: ProxySettings,
        resolver: NameResolver,
        observer: DataPlaneObserver,
    ) -> None:
        self._observer = observer
        self._loop = loop
        self._holder = holder
        self._closed = ClosedRanges(settings.closed_networks())
        self._resolver = resolver
        self._table = EgressTable(_NO_POLICY, self._closed)
        self._buckets: dict[str, tuple[float, int, TokenBucket]] = {}  # rate and burst that it was made for
        self._decisions: Counter[tuple[str, str]] = Counter()
        self._policies: Counter[tuple[str, str]] = Counter()
        self._open: Counter[str] = Counter()
        self.own_ports: set[int] = set()

    @property
    def snapshot(self) -> Snapshot:
        """Return the snapshot in force."""
        return self._holder.current

    @property
    def policy(self) -> EgressPolicy:
        """Return the policy in force as data; the same object as long as it has not changed."""
        return self._holder.current.data.egress or _NO_POLICY

    @property
    def table(self) -> EgressTable:
        """Return the policy in force."""
        policy = self.policy
        if policy is not self._table.policy:
            self._table = EgressTable(policy, self._closed)
            self._buckets = {
                rule.name: kept
                for rule in policy.rules
                if (kept := self._buckets.get(rule.name)) is not None and kept[:2] == (rule.rate, rule.burst)
            }
        return self._table

    async def decide(
        self,
        listener: Listener,
        client: str,
        destination: Destination | BadDestination,
        *,
        method: str | None = None,
        path: str | None = None,
        is_tls: bool = False,
    ) -> Decision:
        """Return what may be done; counted and logged.

        Args:
            client: The address that the connection came from.

        Raises:
            DeadlineExpired, TaskCancelled: As `park`, while a name is looked up; nothing was counted.
        """
        table = self.table
        egress = listener.egress
        source = table.identify(
            interface=listener.attachment,
            address=client.partition("%")[0],
            configured=egress.source if egress is not None else "",
        )
        if isinstance(destination, BadDestination):
            verdict = denied(EgressReason.BAD_DESTINATION, destination.detail)
            return self._done(Decision(verdict=verdict, source=source, destination=None), listener, method, path)
        request = EgressRequest(destination=destination, method=method, path=path, is_tls=is_tls)
        verdict = table.judge_name(source, request)
        if not verdict.is_final:
            found = await self._resolver.resolve(destination.name)
            if found.failure is not None:
                verdict = denied(found.failure, "the name has no address that could be found")
            else:
                verdict = table.judge_addresses(source, request, found.addresses)
        if verdict.is_allowed:
            verdict = self._without_own(verdict, destination)
        if verdict.is_allowed and verdict.rule is not None and not self._has_token(verdict.rule):
            verdict = denied(EgressReason.RATE_LIMITED, "the rate limit of the VPCEgress is used up", verdict.rule)
        decision = Decision(
            verdict=verdict, source=source, destination=destination, judged_by=table.policy, is_tls=is_tls
        )
        return self._done(decision, listener, method, path)

    def refuse(self, decision: Decision, listener: Listener, reason: EgressReason, detail: str) -> Decision:
        """Count and log that what was allowed is refused after all."""
        verdict = denied(reason, detail, decision.verdict.rule)
        return self._done(msgspec.structs.replace(decision, verdict=verdict), listener, None, None)

    def revoke(self, decision: Decision, listener: Listener, method: str | None, path: str | None) -> None:
        """Count and log that a tunnel which was let through is denied by the policy of today."""
        found = decision.verdict
        verdict = denied(EgressReason.POLICY_CHANGED, found.detail, found.rule)
        revoked = msgspec.structs.replace(decision, verdict=verdict)
        self._done(revoked, listener, method, path, because=found.reason.value)

    def opened(self, policy: str) -> None:
        """Count a tunnel or request that goes on."""
        self._open[policy] += 1

    def closed(self, policy: str) -> None:
        """Count that it has ended."""
        self._open[policy] -= 1

    def unreached(self, protocol: str, reason: Reason) -> None:
        """Count a request for a tunnel that was allowed, and to whose destination there is no way."""
        self._observer.request_reason(protocol, reason)

    def tunnel_ended(
        self, decision: Decision, listener: Listener, protocol: str, carried: Carried, reason: Reason
    ) -> None:
        """Tell the access log of a tunnel at its end, as of a request."""
        if not self._observer.wants_events:
            return
        name = f"egress:{decision.verdict.policy}"
        self._observer.request_ended(
            RequestEnded(
                protocol=protocol,
                listener=listener.name,
                method="CONNECT",
                host=str(decision.destination or ""),
                path="",
                status=200,
                reason=reason,
                route=name,
                rule=name,
                service=name,
                endpoint=carried.endpoint,
                attempts=1,
                bytes_in=carried.bytes_in,
                bytes_out=carried.bytes_out,
                duration_s=self._loop.now - carried.began_at,
                client_ip=decision.source.address,
            )
        )

    def shed(self) -> None:
        """Forget what is only kept to be faster (threat E8)."""
        self._resolver.forget()

    def take_cells(self) -> list[Cell]:
        """Return what was counted since the last call, and gauges."""
        cells = [Cell(names.EGRESS_DECISIONS.name, key, count) for key, count in self._decisions.items()]
        cells += [Cell(names.EGRESS_BY_POLICY.name, key, count) for key, count in self._policies.items()]
        cells += [Cell(names.EGRESS_CONNECTIONS.name, (policy,), count) for policy, count in self._open.items()]
        self._decisions.clear()
        self._policies.clear()
        self._open = Counter({policy: count for policy, count in self._open.items() if count})
        return cells + self._resolver.take_cells()

    # --- parts -----------------------------------------------------------------------------------------------------

    def _without_own(self, verdict: Verdict, destination: Destination) -> Verdict:
        """Leave out our own listeners: a request that comes back to us goes round in circles."""
        if destination.port not in self.own_ports:
            return verdict
        others = tuple(address for address in verdict.addresses if not is_local(address))
        if not others:
            return denied(EgressReason.OWN_LISTENER, "a listener of this gateway", verdict.rule)
        return msgspec.structs.replace(verdict, addresses=others)

    def _has_token(self, rule: EgressRule) -> bool:
        if not rule.rate:
            return True
        kept = self._buckets.get(rule.name)
        if kept is None:
            kept = (rule.rate, rule.burst, TokenBucket(rate=rule.rate, burst=rule.burst))
            self._buckets[rule.name] = kept
        return kept[2].take(self._loop.now) == 0

    def _done(
        self, decision: Decision, listener: Listener, method: str | None, path: str | None, because: str = ""
    ) -> Decision:
        verdict = decision.verdict
        word = "allow" if verdict.is_allowed else "deny"
        self._decisions[word, verdict.reason.value] += 1
        self._policies[verdict.policy or names.NONE, word] += 1
        # What is denied is always worth a line; what is allowed is if its VPCEgress says so.
        is_loud = not verdict.is_allowed or (verdict.rule is not None and verdict.rule.is_logged)
        level = logging.INFO if is_loud else logging.DEBUG
        if log.isEnabledFor(level):
            log.log(
                level,
                "egress decision",
                extra={
                    "verdict": word,
                    "reason": verdict.reason.value,
                    "because": because,
                    "egress": verdict.policy,
                    "source": decision.source.name,
                    "client": decision.source.address,
                    "listener": listener.name,
                    "destination": str(decision.destination or ""),
                    "addresses": ",".join(verdict.addresses),
                    "method": method or "",
                    "path": path or "",
                },
            )
        return decision


def is_local(address: str) -> bool:
    """Tell whether packets to an address come back to this machine; nothing is sent to find out."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
            sock.connect((address, 9))  # a datagram socket asks the routing table, and no more (connect(2))
            near = ipaddress.ip_address(sock.getsockname()[0])
    except OSError:
        return False  # there is no way there, so none to us
    return near == ipaddress.ip_address(address) or ipaddress.ip_address(address).is_loopback
