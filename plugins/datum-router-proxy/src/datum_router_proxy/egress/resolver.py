"""Addresses of names: asked once, kept for as long as they say, shared by who asks meanwhile; every one bounded.

Theory of operation. A lookup asks for A and AAAA records at the same time, through dnspython's resolver, on trio: names
are absolute (no search list is tried, no hosts file is read), so that a name means what the policy was written about.
Who asks for a name that is being asked for waits for that answer. An answer is kept for its smallest TTL within limits;
that a name is not there is kept for the shortest time; that nobody answered is not kept at all.

Which of the addresses may be dialled is not decided here: see `egress.desk`.
"""

from __future__ import annotations

import functools
import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from datum_router.model.egress import EgressReason
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router_proxy.loop import Loop, Task, current_task, park
from datum_router_proxy.settings import ProxySettings

if TYPE_CHECKING:
    import dns.asyncresolver

MAX_NAMES: Final = 4096
"""Names whose answers are kept; the one that was not asked for longest goes first."""


Ask = Callable[[str], Awaitable[tuple[Sequence[str], float]]]


class Lookup(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What came of asking.

    Attributes:
        addresses: In the order in which they are tried: IPv4 first.
        failure: Why there are none; None if there are.
    """

    addresses: tuple[str, ...] = ()
    failure: EgressReason | None = None


class _Pending:
    """A lookup under way."""

    __slots__ = ("answer", "waiting")

    def __init__(self) -> None:
        self.answer: Lookup | None = None
        self.waiting: list[Task] = []


class NameResolver:
    """Resolves names for tasks of the loop; one per process.

    Args:
        ask: Takes a name and returns (addresses, TTL in seconds); in tests in place of name servers. Raises `NotFound`,
            `NoAnswer` or `trio.TooSlowError`.
    """

    __slots__ = ("_ask", "_known", "_loop", "_pending", "_results", "_settings")

    def __init__(self, loop: Loop, settings: ProxySettings, ask: Ask | None = None) -> None:
        self._loop = loop
        self._settings = settings
        self._ask: Ask = Asker(settings) if ask is None else ask
        self._known: OrderedDict[str, tuple[float, Lookup]] = OrderedDict()
        self._pending: dict[str, _Pending] = {}
        self._results: Counter[str] = Counter()

    async def resolve(self, name: str) -> Lookup:
        """Return the addresses of a canonical name, or why there are none; never later than the time limit.

        Raises:
            DeadlineExpired, TaskCancelled: As `park`; the lookup goes on for others.
        """
        known = self._known.get(name)
        if known is not None and known[0] > self._loop.now:
            self._known.move_to_end(name)
            self._results["cached"] += 1
            return known[1]
        pending = self._pending.get(name)
        if pending is None:
            if len(self._pending) >= self._settings.egress_lookups:
                self._results["too_many"] += 1
                return Lookup(failure=EgressReason.TOO_MANY_LOOKUPS)
            pending = self._pending[name] = _Pending()
            self._loop.spawn(self._look_up(name, pending), name="egress lookup")
        task = current_task()
        pending.waiting.append(task)
        try:
            while pending.answer is None:
                await park()
        finally:
            pending.waiting.remove(task)
        return pending.answer

    async def _look_up(self, name: str, pending: _Pending) -> None:
        answer = Lookup(failure=EgressReason.RESOLUTION_FAILED)
        try:
            answer, ttl_s = await self._loop.in_trio(functools.partial(self._asked, name))
            if ttl_s > 0:
                self._known[name] = (self._loop.now + ttl_s, answer)
                self._known.move_to_end(name)
                while len(self._known) > MAX_NAMES:
                    self._known.popitem(last=False)
        finally:
            pending.answer = answer
            del self._pending[name]
            for task in pending.waiting:
                task.wake()

    async def _asked(self, name: str) -> tuple[Lookup, float]:
        """Return the answer and for how many seconds it is kept; a trio task."""
        settings = self._settings
        try:
            with trio.fail_after(settings.egress_lookup_timeout_s):
                found, ttl_s = await self._ask(name)
        except NotFound:
            self._results["not_found"] += 1
            return Lookup(failure=EgressReason.NAME_NOT_FOUND), settings.egress_ttl_min_s
        except trio.TooSlowError:
            self._results["timeout"] += 1
            return Lookup(failure=EgressReason.RESOLUTION_TIMEOUT), 0.0
        except NoAnswer:
            self._results["failed"] += 1
            return Lookup(failure=EgressReason.RESOLUTION_FAILED), 0.0
        kept = tuple(dict.fromkeys(found))[: settings.egress_addresses]
        self._results["answered" if len(kept) == len(set(found)) else "cut"] += 1
        return Lookup(addresses=kept), min(max(ttl_s, settings.egress_ttl_min_s), settings.egress_ttl_max_s)

    def forget(self) -> None:
        """Forget all answers (memory pressure)."""
        self._known.clear()

    def take_cells(self) -> list[Cell]:
        """Return what was counted since the last call."""
        cells = [Cell(names.EGRESS_LOOKUPS.name, (result,), count) for result, count in self._results.items()]
        self._results.clear()
        return cells


class NotFound(Exception):
    """The name is not there, or has no address."""


class NoAnswer(Exception):
    """No name server answered, or all refused."""


class Asker:
    """Asks name servers by dnspython.

    Args:
        settings: `egress_nameservers` are asked; those of /etc/resolv.conf if it is empty.
    """

    __slots__ = ("_resolver", "_settings")

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._resolver: dns.asyncresolver.Resolver | None = None

    async def __call__(self, name: str) -> tuple[Sequence[str], float]:
        """Return addresses and their smallest TTL.

        Raises:
            NotFound, NoAnswer, trio.TooSlowError: There are none.
        """
        resolver = self._made()
        answers: list[tuple[list[str], float]] = []
        failures: list[Exception] = []

        async def ask(kind: str) -> None:
            try:
                answers.append(await _query(resolver, name, kind, self._settings.egress_lookup_timeout_s))
            except (NotFound, NoAnswer, trio.TooSlowError) as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for kind in ("A", "AAAA"):
                nursery.start_soon(ask, kind)
        found = sorted((text for texts, _ in answers for text in texts), key=lambda text: ":" in text)
        if found:
            return found, min(ttl_s for texts, ttl_s in answers if texts)
        raise next((one for one in failures if not isinstance(one, NotFound)), NotFound(name))

    def _made(self) -> dns.asyncresolver.Resolver:
        if self._resolver is None:
            import dns.asyncresolver  # 40 ms and 6 MB, which only a gateway with an egress listener needs
            import dns.nameserver
            import dns.resolver

            servers = self._settings.nameservers()
            try:
                resolver = dns.asyncresolver.Resolver(configure=not servers)
            except dns.resolver.NoResolverConfiguration as error:
                raise NoAnswer("no name server is configured") from error
            if servers:
                resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in servers]
            resolver.cache = None
            self._resolver = resolver
        return self._resolver


async def _query(
    resolver: dns.asyncresolver.Resolver, name: str, kind: str, timeout_s: float
) -> tuple[list[str], float]:
    """Return the addresses of one kind and their TTL; none if the name has others only."""
    import dns.exception
    import dns.name
    import dns.resolver

    try:
        question = dns.name.from_text(f"{name}.")
        answer = await resolver.resolve(question, kind, search=False, lifetime=timeout_s, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN as error:
        raise NotFound(name) from error
    except dns.exception.Timeout as error:
        raise trio.TooSlowError from error
    except (dns.exception.DNSException, OSError) as error:
        raise NoAnswer(type(error).__name__) from error
    if answer.rrset is None:
        return [], 0.0
    return [str(ipaddress.ip_address(record.address)) for record in answer.rrset], float(answer.rrset.ttl)
