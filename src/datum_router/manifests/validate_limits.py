"""Rules of what limits traffic that a type cannot say."""

from __future__ import annotations

from collections.abc import Iterator

from datum_router.manifests.parts import RateLimit
from datum_router.manifests.problem import Problem
from datum_router.manifests.rules import check_header, exclusive

_HEADER_KEY = "Header:"


def check_rate_limit(path: str, limit: RateLimit | None) -> Iterator[Problem]:
    """Check a `rateLimit`: what its keys name."""
    if limit is None:
        return
    seen: dict[str, int] = {}
    for index, key in enumerate(limit.keys):
        where = f"{path}.keys[{index}]"
        if key.startswith(_HEADER_KEY):
            yield from check_header(where, key[len(_HEADER_KEY) :])
        if key.lower() in seen:
            yield exclusive(where, f"{key} is that of keys[{seen[key.lower()]}], too", "name each key once")
        seen.setdefault(key.lower(), index)
