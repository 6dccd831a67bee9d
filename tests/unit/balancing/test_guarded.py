from __future__ import annotations

import random

import pytest

from datum_router.balancing.base import ALL_USABLE, PickContext
from datum_router.balancing.guarded import GuardedBalancer
from datum_router.errors import PluginContractError, PluginDisabled
from datum_router.model.endpoint import make_endpoint
from datum_router.policy.plugin_guard import MAX_FAILURES, PluginHook, PluginPart, PluginWatch

PART = PluginPart(plugin="p", hook=PluginHook.BALANCER, name="mine", route="default/r")
ENDPOINTS = (make_endpoint("10.0.0.1", 80),)


class Saying:
    """A balancer that returns, or raises, what it was given."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked = 0

    def pick(self, *_: object) -> object:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def guarded(inner: Saying) -> GuardedBalancer:
    return GuardedBalancer(inner, PluginWatch().guard(PART))  # type: ignore[arg-type]  # it may break its promise


def pick(balancer: GuardedBalancer) -> object:
    return balancer.pick(PickContext(rng=random.Random(1)), ENDPOINTS, ALL_USABLE)


@pytest.mark.parametrize("answer", [ENDPOINTS[0], None])
def test_what_it_promises_passes(answer: object) -> None:
    assert pick(guarded(Saying(answer))) is answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("10.0.0.1:80", "returned str, expected Endpoint or None"),
        (ValueError("oops"), "raised ValueError: oops"),
        (SystemExit(3), "raised SystemExit: 3"),
        (BaseExceptionGroup("all", [SystemExit(3)]), "raised BaseExceptionGroup: all"),
    ],
    ids=["type", "error", "exit", "group"],
)
def test_what_breaks_its_promise_is_named_and_after_five_times_not_asked(answer: object, said: str) -> None:
    inner = Saying(answer)
    balancer = guarded(inner)
    for _ in range(MAX_FAILURES):
        with pytest.raises(PluginContractError, match=rf"^balancer mine of default/r: {said}"):
            pick(balancer)
    with pytest.raises(PluginDisabled):
        pick(balancer)
    assert inner.asked == MAX_FAILURES
