"""The conformance suite for balancers: subclass it, name the spec, run pytest.

    from datum_router.testing.balancer import BalancerConformance

    class TestFirstHealthy(BalancerConformance):
        spec_name = "first-healthy"

It holds for every balancer, whatever its algorithm: only given endpoints, none that was tried, None if nobody is left,
nothing changed, the same picks for the same random numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from datum_router.balancing.base import ALL_USABLE, Balancer, HealthView, PickContext
from datum_router.balancing.hashing import hash64
from datum_router.model.endpoint import Endpoint, EndpointKey, make_endpoint
from datum_router.model.route import BalancingPolicy
from datum_router.plugins.manager import PluginSet, load_plugins

PICKS = 300


class SomeUsable:
    """A health view in which the given endpoints are not usable."""

    __slots__ = ("_down",)

    def __init__(self, down: Sequence[EndpointKey]) -> None:
        self._down = frozenset(down)

    def is_usable(self, key: EndpointKey) -> bool:
        """Tell whether the endpoint is not one of the given."""
        return key not in self._down

    def usable_since(self, key: EndpointKey) -> float:
        """Return 0."""
        return 0.0


def sample_endpoints(count: int, *, weights: Sequence[int] = (100,)) -> tuple[Endpoint, ...]:
    """Return `count` (at most 200) endpoints whose weights repeat `weights`; IPv4 and IPv6 in turn."""
    return tuple(
        make_endpoint(
            f"10.9.0.{index + 1}" if index % 2 == 0 else f"fd00::{index + 1:x}",
            8080,
            weight=weights[index % len(weights)],
        )
        for index in range(count)
    )


class BalancerConformance:
    """What every balancer must hold to. `spec_name` is the name it is registered under.

    Attributes:
        balancing: The policy it is created with; None: all defaults, with its own name as the algorithm.
    """

    spec_name: ClassVar[str] = ""
    balancing: ClassVar[BalancingPolicy | None] = None

    def load(self) -> PluginSet:
        """Return the plugins in which `spec_name` is looked up: all that are installed. Override to narrow it."""
        return load_plugins()

    def create(self) -> Balancer:
        """Return a fresh balancer, made as a route's would be. Override to test one that is not registered."""
        specs = self.load().balancers
        assert self.spec_name in specs, (
            f"spec_name: found {self.spec_name!r}, expected one of {', '.join(sorted(specs))}; "
            "is the plugin's distribution installed?"
        )
        return specs[self.spec_name].create(self.balancing or BalancingPolicy(algorithm=self.spec_name))

    def context(
        self,
        rng: random.Random,
        *,
        request: int = 0,
        excluded: frozenset[EndpointKey] = frozenset(),
        has_key: bool = True,
    ) -> PickContext:
        """Return what the `request`-th request brings: a client's key, some load, a moment."""
        return PickContext(
            rng=rng,
            now=request / 10,
            hash_key=hash64(b"client-%d" % (request % 37)) if has_key else None,
            active={},
            excluded=excluded,
        )

    def _picks(
        self, balancer: Balancer, endpoints: Sequence[Endpoint], health: HealthView = ALL_USABLE, *, seed: int = 1
    ) -> list[Endpoint | None]:
        rng = random.Random(seed)
        return [balancer.pick(self.context(rng, request=n), endpoints, health) for n in range(PICKS)]

    def test_empty_candidates_give_none(self) -> None:
        """No candidates: None, without an exception, before and after real picks."""
        balancer = self.create()
        rng = random.Random(1)
        endpoints = sample_endpoints(3)
        assert balancer.pick(self.context(rng), (), ALL_USABLE) is None, "no endpoints: expected None"
        assert balancer.pick(self.context(rng), endpoints, ALL_USABLE) is not None, "3 endpoints: expected one of them"
        assert balancer.pick(self.context(rng), (), ALL_USABLE) is None, "no endpoints any more: expected None"

    def test_only_given_endpoints_are_picked(self) -> None:
        """Every pick is one of the candidates, for one and for many, with equal and with unequal weights."""
        for count in (1, 2, 7):
            for weights in ((100,), (1, 3, 100)):
                endpoints = sample_endpoints(count, weights=weights)
                for picked in self._picks(self.create(), endpoints):
                    assert picked in endpoints, f"found {picked!r}, expected one of the {count} candidates"

    def test_excluded_endpoints_are_never_picked(self) -> None:
        """With each set of tried endpoints, only others are picked."""
        for weights in ((100,), (1, 3, 100)):
            endpoints = sample_endpoints(5, weights=weights)
            balancer = self.create()
            rng = random.Random(2)
            for request in range(PICKS):
                tried = frozenset(e.key for i, e in enumerate(endpoints) if request % 31 >> i & 1)
                picked = balancer.pick(self.context(rng, request=request, excluded=tried), endpoints, ALL_USABLE)
                assert picked in endpoints, f"found {picked!r} although {5 - len(tried)} candidates were not tried"
                assert picked.key not in tried, f"found {picked.key}, which the request has already tried"

    def test_all_excluded_gives_none(self) -> None:
        """When every candidate was tried there is no pick."""
        for weights in ((100,), (1, 3, 100)):
            endpoints = sample_endpoints(4, weights=weights)
            everybody = frozenset(endpoint.key for endpoint in endpoints) | {EndpointKey("192.0.2.1:1")}
            picked = self.create().pick(self.context(random.Random(3), excluded=everybody), endpoints, ALL_USABLE)
            assert picked is None, f"found {picked!r}, expected None: all 4 candidates were tried"

    def test_unhealthy_candidates_are_picked_in_a_panic(self) -> None:
        """If all candidates are unhealthy (the panic rule) one of them is picked nevertheless."""
        endpoints = sample_endpoints(3)
        health = SomeUsable([endpoint.key for endpoint in endpoints])
        for picked in self._picks(self.create(), endpoints, health):
            assert picked in endpoints, f"found {picked!r}, expected a candidate: in a panic health is ignored"

    def test_equal_seeds_give_equal_picks(self) -> None:
        """All randomness comes from the given rng."""
        endpoints = sample_endpoints(6, weights=(1, 2, 3))
        first, second = self._picks(self.create(), endpoints), self._picks(self.create(), endpoints)
        assert first == second, "two balancers picked differently with equal random numbers: is another source used?"

    def test_nothing_given_is_changed(self) -> None:
        """Candidates and the context's load stay as they were."""
        endpoints = list(sample_endpoints(4, weights=(1, 5)))
        before = list(endpoints)
        active = {endpoints[0].key: 3, endpoints[1].key: 1}
        balancer = self.create()
        rng = random.Random(4)
        for request in range(50):
            context = self.context(rng, request=request)
            context.active = active
            balancer.pick(context, endpoints, ALL_USABLE)
        assert endpoints == before, "the candidates were changed"
        assert active == {before[0].key: 3, before[1].key: 1}, "the load table was changed"

    def test_a_request_without_a_key_is_served(self) -> None:
        """`hash_key` None is no reason to give nothing."""
        endpoints = sample_endpoints(3)
        balancer = self.create()
        rng = random.Random(5)
        for request in range(50):
            picked = balancer.pick(self.context(rng, request=request, has_key=False), endpoints, ALL_USABLE)
            assert picked in endpoints, f"found {picked!r} for a request without a key, expected a candidate"

    def test_candidates_may_change_between_picks(self) -> None:
        """Picks follow the candidates of the moment, also when sets alternate or come back."""
        many = sample_endpoints(9, weights=(1, 7))
        sets = [many, many[:1], many[3:], many[::2], many[4:5], tuple(reversed(many))]
        balancer = self.create()
        rng = random.Random(6)
        for request in range(PICKS):
            endpoints = sets[request * 5 % len(sets)]
            picked = balancer.pick(self.context(rng, request=request), endpoints, ALL_USABLE)
            assert picked in endpoints, (
                f"found {picked!r}, expected one of the {len(endpoints)} candidates of the moment"
            )
        for number in range(100):  # many short-lived sets: an old table must not be taken for a new set
            endpoints = sample_endpoints(number % 5 + 1, weights=(number + 1, 3))[number % 2 :] or many
            picked = balancer.pick(self.context(rng, request=number), endpoints, ALL_USABLE)
            assert picked in endpoints, "a set of candidates was confused with an earlier one"
