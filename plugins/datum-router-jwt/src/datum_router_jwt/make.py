"""Make filters, which share the keys of an issuer: a route that changes need not fetch them again."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable

import msgspec

from datum_router.model.route import PluginFilter
from datum_router_jwt.config import Config, read
from datum_router_jwt.filter import Jwt
from datum_router_jwt.keys import KeyStore, read_keys


class Maker:
    """Makes filters; one per process."""

    __slots__ = ("_monotonic", "_stores", "_wall")

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._stores: weakref.WeakValueDictionary[bytes, KeyStore] = weakref.WeakValueDictionary()

    def make(self, made: PluginFilter) -> Jwt:
        """Return a filter.

        Raises:
            msgspec.ValidationError, ValueError: Its settings cannot be used.
        """
        config = read(made.config, has_service=bool(made.service))
        return Jwt(made, config, self._store(made, config), wall=self._wall, monotonic=self._monotonic)

    def _store(self, made: PluginFilter, config: Config) -> KeyStore:
        same = (
            made.service, config.keys, config.jwks_path, config.jwks_host, config.algorithms, config.cache_seconds,
            config.max_stale_seconds, config.timeout_ms,
        )  # fmt: skip
        key = msgspec.json.encode(same, order="sorted")
        store = self._stores.get(key)
        if store is None:
            is_given = config.keys is not None
            store = KeyStore(
                config.algorithms,
                cache_s=math.inf if is_given else config.cache_seconds,
                stale_s=math.inf if is_given else config.max_stale_seconds,
                timeout_s=config.timeout_ms / 1000,
            )
            if config.keys is not None:
                store.take(msgspec.json.encode(config.keys), self._monotonic())
            self._stores[key] = store
        return store


def problem_of(made: PluginFilter) -> str:
    """Return why settings cannot be used, empty if they can."""
    try:
        config = read(made.config, has_service=bool(made.service))
        if config.keys is not None:
            read_keys(msgspec.json.encode(config.keys), config.algorithms)
    except ValueError as error:  # what msgspec raises is one
        return str(error)[:1].lower() + str(error)[1:]
    return ""
