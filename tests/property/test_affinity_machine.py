"""Sessions of a route while health, weights, endpoints and time change: where they lead, and when they end.

What is compared with is not the token but what the client has lived through: when its session began, when it was last
answered, and by whom.
"""

from __future__ import annotations

import random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from datum_router.compiler.link import Lease, Snapshot
from datum_router.compiler.linker import Linker
from datum_router.model.affinity import AffinityPolicy
from datum_router.model.endpoint import EndpointKey
from datum_router.model.request import LocalReply, RequestHead
from datum_router.model.route import BackendRef
from datum_router.model.service import ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import HealthChange
from datum_router.policy.affinity import KEY_BYTES, REFRESH_SHARE
from datum_router.reasons import Reason
from datum_router.testing.factories import make_endpoints, make_head, make_rule, make_service

POLICY = AffinityPolicy(name="s", idle_s=80.0, absolute_s=200.0)
IDLE_S, ABSOLUTE_S = 80.0, 200.0
NOTED_S = IDLE_S / REFRESH_SHARE + 1
"""How much older than it is an answer may look in a token: a part of the idle time, and what whole seconds cut off."""
SERVICES = (ServiceKey("default/a"), ServiceKey("default/b"))  # their endpoints have the same addresses
ENDPOINTS = make_endpoints(3)
GATEWAYS, CLIENTS = 2, 2
BEGIN = 1_800_000_000.0

who = st.integers(0, CLIENTS - 1)
gateways = st.integers(0, GATEWAYS - 1)
Place = tuple[ServiceKey, EndpointKey]


def linker() -> Linker:
    plugins = load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])
    return Linker(plugins, session_key=bytes(range(KEY_BYTES)))


class Client:
    """Who keeps the last token that it was given, and what it has lived through."""

    def __init__(self) -> None:
        self.token = ""
        self.place: Place | None = None  # who answered last
        self.began_at = 0.0
        self.answered_at = 0.0

    def head(self) -> RequestHead:
        return make_head(headers={"cookie": f"s={self.token}"} if self.token else {})


class AffinityMachine(RuleBasedStateMachine):
    """Clients ask gateways that have nothing in common but the key, while everything changes."""

    def __init__(self) -> None:
        super().__init__()
        self.at = BEGIN
        self.clients = [Client() for _ in range(CLIENTS)]
        self.linkers = [linker() for _ in range(GATEWAYS)]
        self.down: list[set[Place]] = [set() for _ in range(GATEWAYS)]
        self.version = 0
        self.weights = (1, 1)
        self.counts = (2, 2)
        self.snapshots: list[Snapshot] = []
        self.link()

    def link(self) -> None:
        self.version += 1
        refs = tuple(BackendRef(service=key, weight=weight) for key, weight in zip(SERVICES, self.weights, strict=True))
        services = {
            key: make_service(key, ENDPOINTS[:count], panic_threshold_percent=0)
            for key, count in zip(SERVICES, self.counts, strict=True)
        }
        served = msgspec.structs.replace(make_rule(), destinations=refs, affinity=POLICY)
        data = SnapshotData(version=self.version, rules=(served,), services=services)
        self.snapshots = [one.link(data) for one in self.linkers]

    def open_places(self, gateway: int) -> set[Place]:
        """Return every endpoint that a gateway may choose."""
        return {
            (service, endpoint.key)
            for service, weight, count in zip(SERVICES, self.weights, self.counts, strict=True)
            for endpoint in ENDPOINTS[: count if weight else 0]
        } - self.down[gateway]

    @rule(weights=st.sampled_from([(1, 1), (0, 1), (1, 0), (9, 1), (0, 0)]))
    def change_weights(self, weights: tuple[int, int]) -> None:
        self.weights = weights
        self.link()

    @rule(counts=st.sampled_from([(2, 2), (3, 3), (1, 2), (0, 3), (3, 0)]))
    def change_endpoints(self, counts: tuple[int, int]) -> None:
        self.counts = counts
        self.link()

    @rule(
        gateway=gateways,
        service=st.sampled_from(SERVICES),
        endpoint=st.sampled_from(ENDPOINTS).map(lambda one: one.key),
        is_usable=st.booleans(),
    )
    def change_health(self, gateway: int, service: ServiceKey, endpoint: EndpointKey, is_usable: bool) -> None:
        (set.discard if is_usable else set.add)(self.down[gateway], (service, endpoint))
        change = HealthChange(service=service, endpoint=endpoint, is_usable=is_usable, since=0.0)
        self.linkers[gateway].apply_health([change])

    @rule(who=who)
    def forget(self, who: int) -> None:
        self.clients[who] = Client()

    @precondition(lambda self: any(client.token for client in self.clients))
    @rule(who=who, position=st.integers(0, 33), digit=st.sampled_from("AZaz09-_"))
    def forge(self, who: int, position: int, digit: str) -> None:
        """Change the token of a client: it is as good as none."""
        client = self.clients[who]
        if client.token and client.token[position] != digit and position < 33:  # the last digit has unused bits
            self.clients[who] = Client()
            self.clients[who].token = client.token[:position] + digit + client.token[position + 1 :]

    @rule(who=who, waits=st.lists(st.floats(0, IDLE_S - NOTED_S - 0.1), min_size=1, max_size=5), seed=st.integers(0))
    def keep_asking(self, who: int, waits: list[float], seed: int) -> None:
        """Ask often enough that only its age, or a change, ends a session."""
        for seconds in waits:
            self.at += seconds
            self.ask(who, seed % GATEWAYS, seed)

    @rule(who=who, gateway=gateways, seed=st.integers(0), seconds=st.floats(0, 100))
    def ask_later(self, who: int, gateway: int, seed: int, seconds: float) -> None:
        self.at += seconds
        self.ask(who, gateway, seed)

    @rule(who=who, gateway=gateways, seed=st.integers(0))
    def try_again(self, who: int, gateway: int, seed: int) -> None:
        """Ask for another endpoint than that of the session, which was tried in vain."""
        self.ask(who, gateway, seed, is_tried_in_vain=True)

    def ask(self, who: int, gateway: int, seed: int, *, is_tried_in_vain: bool = False) -> None:
        client = self.clients[who]
        linked = self.snapshots[gateway].match(make_head())
        assert linked is not None
        assert linked.affinity is not None
        session = linked.affinity.read(client.head(), at=self.at)
        age, idle = self.at - client.began_at, self.at - client.answered_at
        if client.place is None or age >= ABSOLUTE_S or idle >= IDLE_S:
            assert session is None
        elif age < ABSOLUTE_S - 1 and idle < IDLE_S - NOTED_S:
            assert session is not None
        kept = client.place if session is not None else None
        excluded = frozenset({kept[1]}) if kept is not None and is_tried_in_vain else frozenset()
        lease = linked.select(
            client.head(),
            rng=random.Random(seed),
            now=1.0,
            excluded=excluded,
            tag=session.tag if session is not None else b"",
        )
        allowed = {place for place in self.open_places(gateway) if place[1] not in excluded}
        if isinstance(lease, LocalReply):
            assert lease.reason == (Reason.NO_HEALTHY_ENDPOINT if any(self.weights) else Reason.NO_WEIGHT)
            assert not allowed
            return
        assert isinstance(lease, Lease)
        lease.release()
        place = (lease.state.service.key, lease.key)
        assert place in allowed
        if kept in allowed:
            assert place == kept
        fields = linked.affinity.fields(session, *place, at=self.at, is_secure=False)
        if place != kept:
            assert fields, "a session that begins is told"
            client.began_at = self.at
        client.place, client.answered_at = place, self.at
        for _, value in fields:
            client.token = value.decode().split(";")[0].removeprefix("s=")


AffinityMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestAffinityMachine = AffinityMachine.TestCase
