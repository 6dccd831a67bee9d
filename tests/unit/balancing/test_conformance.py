"""Every built-in balancer holds to what plugin authors' balancers must hold to."""

from __future__ import annotations

import pytest

from datum_router.model.route import BalancingPolicy
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.testing.balancer import BalancerConformance


class BuiltIn(BalancerConformance):
    """Load the core's own plugin only: what else is installed is no business of these tests."""

    def load(self) -> PluginSet:
        return load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])


class TestRoundRobin(BuiltIn):
    spec_name = "round-robin"


class TestLeastConnections(BuiltIn):
    spec_name = "least-connections"


class TestRandom(BuiltIn):
    spec_name = "random"


class TestSourceIp(BuiltIn):
    spec_name = "source-ip"
    balancing = BalancingPolicy(algorithm="source-ip", table_size=251)


class TestConsistentHash(BuiltIn):
    spec_name = "consistent-hash"
    balancing = BalancingPolicy(algorithm="consistent-hash", table_size=251)


class TestConsistentHashRing(BuiltIn):
    spec_name = "consistent-hash-ring"


class TestFullTable(BuiltIn):
    spec_name = "consistent-hash"

    def test_default_table_size_is_used(self) -> None:
        assert BalancingPolicy().table_size == 65537


def test_every_built_in_balancer_is_tested_here() -> None:
    tested = {
        case.spec_name
        for case in globals().values()
        if isinstance(case, type) and issubclass(case, BuiltIn) and case is not BuiltIn
    }
    assert set(BuiltIn().load().balancers) == tested


def test_an_unknown_spec_name_says_what_is_there() -> None:
    class Unknown(BuiltIn):
        spec_name = "rond-robin"

    with pytest.raises(AssertionError, match=r"found 'rond-robin', expected one of .*round-robin"):
        Unknown().create()
