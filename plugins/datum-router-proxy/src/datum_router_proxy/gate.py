"""What has to be looked at for requests of some rules: rate limits, in the gateway or at a shared store, and sessions.

Only requests of rules that `LinkedRule.needs_pipeline`, or of listeners with limits of their own, come here.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import trio

from datum_router.balancing.hashkey import cookie_value
from datum_router.compiler.lease import Lease
from datum_router.compiler.link import LinkedRule, Snapshot
from datum_router.model.endpoint import EndpointKey
from datum_router.model.limits import RateLimitPolicy
from datum_router.model.request import Headers, LocalReply, RequestHead
from datum_router.model.service import ServiceKey
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.plugins.protocols import RateLimitStore
from datum_router.policy.affinity import hash_cookie_field
from datum_router.policy.buckets import Draw
from datum_router.policy.ratelimit import RateLimiter, RateVerdict
from datum_router.reasons import Reason
from datum_router_proxy.loop import DeadlineExpired, Loop, TaskCancelled
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.trace import Trace

log = logging.getLogger(__name__)

_UNKNOWN = LocalReply(
    status=503,
    reason=Reason.RATE_LIMIT_UNKNOWN,
    detail="whether the request is within its limits cannot be found out",
    headers=((b"retry-after", b"1"),),
)


class Gate:
    """Asks limits; one per process."""

    __slots__ = ("_counts", "_is_failing", "_loop", "_settings", "_wall_clock")

    def __init__(self, loop: Loop, settings: ProxySettings, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._loop = loop
        self._settings = settings
        self._counts: Counter[tuple[str, str]] = Counter()
        self._is_failing = False

    async def admit(
        self, snapshot: Snapshot, rule: LinkedRule | None, head: RequestHead, trace: Trace
    ) -> LocalReply | None:
        """Return why a request must not go on, None if it may; what its response is to say is added to the trace.

        Limits of the listener come first and count what no route matches, too.
        """
        limiters = (snapshot.limiter(head.listener, head.host), None if rule is None else rule.limiter)
        for limiter in limiters:
            if limiter is None:
                continue
            verdict = (
                limiter.decide(head, now=self._loop.now)
                if limiter.store is None
                else await self._ask(limiter, limiter.store, head)
            )
            if isinstance(verdict, LocalReply):
                return verdict
            if verdict is None:
                continue
            refused_by = verdict.refused_by
            if refused_by is not None:
                self._count((refused_by,), "limited")
                return verdict.reply
            self._count(limiter.policies, "allowed")
            trace.added += verdict.fields
        return None

    def enter(self, rule: LinkedRule, asked: RequestHead, head: RequestHead, trace: Trace) -> RequestHead:
        """Find the session of a request, and return what its endpoint is to be chosen by.

        Args:
            asked: As the client sent it.
            head: After the filters; it is what is returned, but for a cookie that the client is to be given.
        """
        if rule.affinity is not None:
            trace.session = rule.affinity.read(asked, at=self._wall_clock())
        balancing = rule.rule.balancing
        if balancing.cookie is None or cookie_value(asked, balancing.hash_name.encode("ascii")):
            return head
        value = self._loop.rng.randbytes(16).hex().encode("ascii")
        is_secure = head.scheme == "https"
        trace.added += (hash_cookie_field(balancing.cookie, balancing.hash_name, value, is_secure=is_secure),)
        crumb = (b"cookie", b"%b=%b" % (balancing.hash_name.encode("ascii"), value))
        return msgspec.structs.replace(head, headers=Headers((crumb, *head.headers)))

    def fields(self, rule: LinkedRule, trace: Trace, scheme: str) -> tuple[tuple[bytes, bytes], ...]:
        """Return the fields of ours for a response that an upstream has given."""
        if rule.affinity is None:
            return trace.added
        made = rule.affinity.fields(
            trace.session,
            ServiceKey(trace.service),
            EndpointKey(trace.endpoint),
            at=self._wall_clock(),
            is_secure=scheme == "https",
        )
        return trace.added + made

    def take_cells(self) -> list[Cell]:
        """Return what was counted here since the last call."""
        cells = [Cell(names.RATE_LIMIT_DECISIONS.name, key, count) for key, count in self._counts.items()]
        self._counts.clear()
        return cells

    def _count(self, policies: Sequence[RateLimitPolicy], decision: str) -> None:
        for policy in policies:
            self._counts[str(policy.scope), decision] += 1

    async def _ask(
        self, limiter: RateLimiter, store: RateLimitStore, head: RequestHead
    ) -> RateVerdict | LocalReply | None:
        """Ask the shared store for each limit in turn; None or a reply if it did not answer.

        Cancelled half-way, what was taken stays taken.
        """
        keys = limiter.store_keys(head)

        async def take() -> list[Draw]:
            draws: list[Draw] = []
            with trio.fail_after(self._settings.rate_limit_timeout_s):
                for key, policy in zip(keys, limiter.policies, strict=True):
                    draws.append(await store.take(key, policy))
                    if draws[-1].wait_s:
                        break
            return draws

        try:
            verdict = limiter.verdict(await self._loop.in_trio(take))
        except Exception as error:  # a plugin's; `in_trio` raises cancellations as what they are
            if isinstance(error, DeadlineExpired | TaskCancelled):
                raise
            self._note(error)
            is_closed = self._settings.rate_limit_fail_closed
            self._count(limiter.policies, "failed_closed" if is_closed else "failed_open")
            return _UNKNOWN if is_closed else None
        self._note(None)
        return verdict

    def _note(self, error: Exception | None) -> None:
        """Log when the store begins to fail, and when it works again: once each."""
        if (error is not None) is self._is_failing:
            return
        self._is_failing = error is not None
        if error is not None:
            policy = "refused" if self._settings.rate_limit_fail_closed else "let through"
            log.error("rate limit store failed", extra={"error": repr(error)[:500], "requests": policy})
        else:
            log.info("rate limit store works again")


def is_kept(rule: LinkedRule, lease: Lease, tag: bytes) -> bool:
    """Tell whether a lease is of the endpoint that a session's tag stands for: such a request is not hedged.

    Another endpoint knows nothing of the session, and would take it over if it answered first.
    """
    return rule.affinity is not None and rule.affinity.tag(lease.state.service.key, lease.key) == tag
