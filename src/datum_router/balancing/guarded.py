"""A plugin's balancer as rules use it: what it answers is checked, and what keeps failing is not asked any more."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.balancing.base import Balancer, HealthView, PickContext
from datum_router.model.endpoint import Endpoint
from datum_router.policy.plugin_guard import PLUGIN_ERRORS, PluginGuard


class GuardedBalancer:
    """Wrap a balancer that is not ours; ours are used as they are.

    Raises:
        PluginContractError: From `pick`: the plugin raised, or returned something else than it promises.
        PluginDisabled: From `pick`: it has done so too often.
    """

    __slots__ = ("_guard", "_inner")

    def __init__(self, inner: Balancer, guard: PluginGuard) -> None:
        self._inner = inner
        self._guard = guard

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        """Return what the plugin chose."""
        guard = self._guard
        began_at = guard.begin()
        try:
            picked: object = self._inner.pick(ctx, endpoints, health)
        except PLUGIN_ERRORS as error:
            raise guard.raised(error) from error
        if picked is not None and not isinstance(picked, Endpoint):
            raise guard.failure(f"returned {type(picked).__name__}, expected Endpoint or None")
        guard.end(began_at)
        return picked
