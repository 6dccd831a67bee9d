"""The conformance suite of stores of rate limits holds for the plainest one, and fails for those that break it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec
import pytest

from datum_router.errors import ConfigError
from datum_router.model.limits import RateLimitPolicy
from datum_router.plugins.protocols import RateLimitStore
from datum_router.plugins.specs import RateLimitStoreSpec
from datum_router.policy.buckets import Draw
from datum_router.reasons import Reason
from datum_router.testing.ratelimit import MemoryStore, RateLimitStoreConformance


def finish(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine that waits for nothing."""
    for _ in main().__await__():
        raise AssertionError("the coroutine waits for something")


class Shared:
    """Makes stores that share one memory, as a server would."""

    def __init__(self, kind: type[MemoryStore] = MemoryStore) -> None:
        self.store = kind(lambda: 100.0)

    def create(self, settings: Mapping[str, str]) -> RateLimitStore:
        for name in settings:
            raise ConfigError(f"setting {name}: unknown, expected none", reason=Reason.UNKNOWN_FIELD)
        return self.store


class TestMemoryStore(RateLimitStoreConformance):
    spec_name = "memory"
    run = staticmethod(finish)
    shared = Shared()

    def spec(self) -> RateLimitStoreSpec:
        return RateLimitStoreSpec(name="memory", create=self.shared.create)


class OneForAll(MemoryStore):
    async def take(self, key: str, policy: RateLimitPolicy) -> Draw:
        return await super().take("", policy)


class Generous(MemoryStore):
    async def take(self, key: str, policy: RateLimitPolicy) -> Draw:
        return await super().take(key, msgspec.structs.replace(policy, burst=policy.burst + 1))


@pytest.mark.parametrize(
    ("kind", "test"),
    [(OneForAll, "test_keys_do_not_mix"), (Generous, "test_a_burst_is_let_through_and_no_more")],
)
def test_a_store_that_breaks_the_contract_is_found_out(kind: type[MemoryStore], test: str) -> None:
    suite = TestMemoryStore()
    suite.shared = Shared(kind)
    with pytest.raises(AssertionError):
        getattr(suite, test)()
