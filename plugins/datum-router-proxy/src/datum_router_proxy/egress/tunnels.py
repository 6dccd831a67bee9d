"""Tunnels that are open, and what another policy does to them.

Theory of operation. What was allowed when it began is not allowed for ever: a policy that is taken away is to end what
it let through, too. Each tunnel knows by which policy it was judged last. The data plane asks every tick whether that
is still the one in force (`look`: two comparisons while it is); if not, a task of the loop judges all of them again.

What is pinned stays: client and listener, name and port, the addresses that were dialled (nobody looks the name up
again), and whether the first bytes were seen to be TLS. Whose traffic it is, is asked anew, since attachments are part
of the policy. Rate limits are not: they count what begins. Nor are our own listeners: where the tunnel leads there was
somebody else when it was dialled. What is denied now is reset at once on both sides, so that nobody takes what has come
for all there is.

A step of that task judges for `SLICE_S` at most and then lets others run, so that many tunnels and long policies hold
nobody up. If the policy changes meanwhile it leaves the rest to the next look, which begins anew. A tunnel that was
decided on by an older policy than the one in force when it opens (a name was looked up, a connection made, a
ClientHello awaited in between) is judged at the next look as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from datum_router.egress.decide import EgressRequest, EgressTable, Verdict, denied
from datum_router.model.egress import EgressPolicy, EgressReason, EgressSource
from datum_router.model.endpoint import endpoint_key
from datum_router.model.listener import Listener
from datum_router.reasons import Reason
from datum_router_proxy.egress.desk import Decision, EgressDesk
from datum_router_proxy.loop import Loop, Task, current_task, park
from datum_router_proxy.tunnel import Tunnel

SLICE_S: Final = 0.001
"""How long (seconds) tunnels are judged before others get the loop."""


class OpenTunnel:
    """One tunnel.

    Attributes:
        decision: The last one: that which let it begin, or by another policy since.
        addresses: Of which one was dialled.
        asked: What is judged; `is_tls` in it: the first bytes were seen to be a ClientHello for the destination.
        task: Cancelled when it has to end.
    """

    __slots__ = ("addresses", "asked", "decision", "listener", "task")

    def __init__(
        self, decision: Decision, listener: Listener, addresses: tuple[str, ...], asked: EgressRequest, task: Task
    ) -> None:
        self.decision = decision
        self.listener = listener
        self.addresses = addresses
        self.asked = asked
        self.task = task


_Verdicts = dict[tuple[tuple[str, ...], tuple[str, ...], EgressRequest, tuple[str, ...]], Verdict]
"""What was found in a pass: clients are many, and where they go is often the same."""


class OpenTunnels:
    """All tunnels of a process.

    Args:
        websockets: Those that the pipeline has open, by task; they know which address was dialled.
        clock: Seconds that never go back, for the length of a step.
    """

    __slots__ = ("_clock", "_desk", "_has_late", "_is_judging", "_judged_by", "_loop", "_open", "_websockets")

    def __init__(
        self,
        loop: Loop,
        desk: EgressDesk,
        websockets: Mapping[Task, Tunnel],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._desk = desk
        self._websockets = websockets
        self._clock = clock
        self._open: dict[OpenTunnel, None] = {}  # the oldest first
        self._judged_by: EgressPolicy | None = None
        self._has_late = False
        self._is_judging = False

    def open(
        self,
        decision: Decision,
        listener: Listener,
        addresses: tuple[str, ...],
        *,
        method: str | None = None,
        path: str | None = None,
    ) -> OpenTunnel:
        """Note a tunnel of the current task, and count it; whoever opens it has it closed."""
        assert decision.destination is not None  # it is allowed
        asked = EgressRequest(
            destination=decision.destination,
            method=method,
            path=path,
            is_tls=decision.is_tls or decision.verdict.must_be_tls,
        )
        tunnel = OpenTunnel(decision, listener, addresses, asked, current_task())
        self._open[tunnel] = None
        self._has_late = self._has_late or decision.judged_by is not self._judged_by
        self._desk.opened(decision.verdict.policy)
        return tunnel

    def close(self, tunnel: OpenTunnel) -> None:
        """Note that a tunnel has ended."""
        self._open.pop(tunnel, None)
        self._desk.closed(tunnel.decision.verdict.policy)

    def look(self) -> None:
        """Have tunnels judged again if they were let through by another policy than the one in force."""
        policy = self._desk.policy
        if self._is_judging or (policy is self._judged_by and not self._has_late):
            return
        if not self._open:
            self._judged_by, self._has_late = policy, False
            return
        self._is_judging = True
        self._loop.spawn(self._judge_all(), name="egress policy")

    async def _judge_all(self) -> None:
        policy = self._desk.policy
        self._judged_by, self._has_late = None, False  # until all of them are
        found: _Verdicts = {}
        try:
            ends_at = self._clock() + SLICE_S
            for tunnel in list(self._open):
                if tunnel not in self._open or tunnel.decision.judged_by is policy:
                    continue
                if self._clock() >= ends_at:
                    current_task().wake()
                    await park()
                    if self._desk.policy is not policy:
                        return
                    ends_at = self._clock() + SLICE_S
                self._judge(tunnel, policy, found)
            self._judged_by = policy
        finally:
            self._is_judging = False

    def _judge(self, tunnel: OpenTunnel, policy: EgressPolicy, found: _Verdicts) -> None:
        before, listener = tunnel.decision, tunnel.listener
        table, egress = self._desk.table, listener.egress
        source = table.identify(
            interface=listener.attachment,
            address=before.source.address,
            configured=egress.source if egress is not None else "",
        )
        addresses = self._dialled(tunnel)
        # Labels are those of the first attachment, and nothing is decided by the address of a client.
        key = (source.attachments, source.namespaces, tunnel.asked, addresses)
        verdict = found.get(key)
        if verdict is None:
            verdict = found[key] = _judge_pinned(table, source, tunnel.asked, addresses)
        after = msgspec.structs.replace(before, verdict=verdict, source=source, judged_by=policy)
        if verdict.is_allowed:
            self._desk.closed(before.verdict.policy)
            self._desk.opened(verdict.policy)
            tunnel.decision = after
            return
        del self._open[tunnel]
        self._desk.revoke(after, listener, tunnel.asked.method, tunnel.asked.path)
        tunnel.task.cancel(Reason.POLICY_CHANGED)

    def _dialled(self, tunnel: OpenTunnel) -> tuple[str, ...]:
        """Return the address that a tunnel leads to; all that it may come to lead to while it is made."""
        websocket = self._websockets.get(tunnel.task)
        if websocket is None:
            return tunnel.addresses
        port = tunnel.asked.destination.port
        dialled = tuple(one for one in tunnel.addresses if endpoint_key(one, port) == websocket.endpoint)
        return dialled or tunnel.addresses


def _judge_pinned(
    table: EgressTable, source: EgressSource, asked: EgressRequest, addresses: tuple[str, ...]
) -> Verdict:
    """Return the first verdict on an address of a tunnel that denies, else that on the last one."""
    verdict = denied(EgressReason.NAME_NOT_FOUND, "the tunnel has no address")
    for address in addresses:
        verdict = table.judge_addresses(source, asked, (address,))
        if verdict.is_allowed and verdict.must_be_tls:
            verdict = denied(EgressReason.NOT_TLS, "allowed as TLS alone, and nobody has looked", verdict.rule)
        if not verdict.is_allowed:
            break
    return verdict
