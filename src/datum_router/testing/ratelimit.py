"""The conformance suite for stores of rate limits: subclass it, name the spec, give the settings, run pytest.

    from datum_router.testing.ratelimit import RateLimitStoreConformance

    class TestRedis(RateLimitStoreConformance):
        spec_name = "redis"
        settings = {"url": "redis://127.0.0.1:6379"}

        def run(self, main):
            trio.run(main)

Each test uses keys of its own, so the store may be one that others use as well. `MemoryStore` is the plainest store
that passes: what tests of a gateway use, and what a store means.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar

from datum_router.errors import ConfigError
from datum_router.model.limits import RateLimitPolicy, RateScope
from datum_router.plugins.manager import load_plugins
from datum_router.plugins.protocols import RateLimitStore
from datum_router.plugins.specs import RateLimitStoreSpec
from datum_router.policy.bucket import draw, tokens_left
from datum_router.policy.buckets import Draw

SLOW = RateLimitPolicy(scope=RateScope.ROUTE, owner="conformance/a", requests=4, window_s=3600, burst=4)
"""Gives no token back while a test runs."""


class MemoryStore:
    """Buckets in a dictionary, which only one process has and which is never emptied.

    Args:
        clock: Gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self.is_closed = False

    async def take(self, key: str, policy: RateLimitPolicy) -> Draw:
        """Take a token out of the bucket of a key if there is one."""
        now = self._clock()
        burst, period_s = policy.burst, policy.period_s
        debt_s, wait_s = draw(max(0.0, self._full_at.get(key, 0.0) - now), burst=burst, period_s=period_s)
        self._full_at[key] = now + debt_s
        return Draw(wait_s, tokens_left(debt_s, burst=burst, period_s=period_s), debt_s)

    async def close(self) -> None:
        """Note that it was closed."""
        self.is_closed = True


class RateLimitStoreConformance:
    """What every store must hold to.

    Attributes:
        spec_name: The name it is registered under.
        settings: What it is created with.
    """

    spec_name: ClassVar[str]
    settings: ClassVar[Mapping[str, str]] = {}

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Run an async function; to be replaced by `trio.run(main)`, which the core does not import."""
        raise NotImplementedError

    def spec(self) -> RateLimitStoreSpec:
        """Return what is tested: what an installed plugin offers under `spec_name`."""
        return load_plugins().rate_limit_stores[self.spec_name]

    def create(self) -> RateLimitStore:
        """Return a new store."""
        return self.spec().create(self.settings)

    def _check(self, test: Callable[[RateLimitStore, str], Awaitable[None]]) -> None:
        async def main() -> None:
            store = self.create()
            try:
                await test(store, f"route:conformance/a:0:{secrets.token_hex(16)}")
            finally:
                await store.close()

        self.run(main)

    def test_a_setting_that_nobody_knows_is_refused(self) -> None:
        """A typing error must not be taken for a default."""
        try:
            self.spec().create({**self.settings, "noSuchSetting": "1"})
        except ConfigError as error:
            assert "noSuchSetting" in str(error)  # noqa: PT017  # no pytest here
        else:
            raise AssertionError("found a store, expected ConfigError")

    def test_a_burst_is_let_through_and_no_more(self) -> None:
        """The bucket is full at first."""

        async def test(store: RateLimitStore, key: str) -> None:
            draws = [await store.take(key, SLOW) for _ in range(6)]
            assert [item.wait_s == 0 for item in draws] == [True] * 4 + [False] * 2
            assert [item.left for item in draws] == [3, 2, 1, 0, 0, 0]

        self._check(test)

    def test_a_wait_is_the_time_until_the_next_token(self) -> None:
        """Within what passes while the test runs."""

        async def test(store: RateLimitStore, key: str) -> None:
            for _ in range(4):
                await store.take(key, SLOW)
            drawn = await store.take(key, SLOW)
            assert SLOW.period_s - 60 < drawn.wait_s <= SLOW.period_s
            assert 4 * SLOW.period_s - 60 < drawn.full_s <= 4 * SLOW.period_s

        self._check(test)

    def test_keys_do_not_mix(self) -> None:
        """Each key has a bucket of its own."""

        async def test(store: RateLimitStore, key: str) -> None:
            for _ in range(4):
                await store.take(key, SLOW)
            assert (await store.take(f"{key}0", SLOW)).left == 3

        self._check(test)

    def test_two_gateways_share_a_bucket(self) -> None:
        """That is what a store is for. A second object stands for another gateway."""

        async def test(store: RateLimitStore, key: str) -> None:
            other = self.create()
            try:
                left = [(await one.take(key, SLOW)).left for one in (store, other, store, other)]
                assert left == [3, 2, 1, 0]
            finally:
                await other.close()

        self._check(test)
