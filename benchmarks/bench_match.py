"""Measure the matcher: build time, memory and time per match among 10,000 and 100,000 rules.

Run it with nothing else on the machine: `.venv/bin/python benchmarks/bench_match.py`. Each match figure is the best of
`ROUNDS` rounds over the same `HEADS` heads, each of which has a rule of its own: a core that others use too changes its
speed by a factor of two for seconds, and among 100,000 rules the caches settle only after five to ten rounds. So it is
the cost under steady traffic to 1,000 routes; the first requests after a quiet time cost two to three times as much.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from typing import NamedTuple

from datum_router.model.request import RequestHead
from datum_router.model.route import Rule
from datum_router.routing.matcher import Matcher
from datum_router.testing.factories import make_head, make_rule

ROUNDS = 300
HEADS = 1000


def spread_rules(count: int) -> list[Rule]:
    """Rules as a cluster has them: 20 under each host; every fourth with methods, every tenth with a header."""
    rules = []
    for n in range(count):
        host, item = divmod(n, 20)
        rules.append(
            make_rule(
                f"/api/v{item % 3}/service-{item}",
                route=f"team-{host % 50}/route-{n}",
                hosts=(f"*.h{host}.example" if host % 10 == 0 else f"h{host}.example",),
                methods=("GET", "POST") if n % 4 == 0 else (),
                headers={"x-env": "prod"} if n % 10 == 0 else {},
            )
        )
    return rules


def flat_rules(count: int) -> list[Rule]:
    """All rules under no host, told apart by their prefix alone."""
    return [make_rule(f"/team-{n % 100}/service-{n}", route=f"default/route-{n}") for n in range(count)]


def spread_heads(count: int) -> list[RequestHead]:
    heads = []
    for n in range(HEADS):
        host, item = divmod((n * 7919) % count, 20)
        name = f"a.h{host}.example" if host % 10 == 0 else f"h{host}.example"
        heads.append(make_head(f"/api/v{item % 3}/service-{item}/users/{n}", host=name, headers={"x-env": "prod"}))
    return heads


def flat_heads(count: int) -> list[RequestHead]:
    return [make_head(f"/team-{m % 100}/service-{m}/users/7") for n in range(HEADS) for m in [(n * 7919) % count]]


class Figures(NamedTuple):
    """Seconds a match, seconds to build, bytes of the index."""

    match_s: float
    build_s: float
    size_bytes: int


def measure(rules: list[Rule], heads: list[RequestHead], *, has_size: bool = False) -> Figures:
    """Measure one set of rules; its size only if asked, since tracing takes long.

    Raises:
        AssertionError: A head finds no rule.
    """
    gc.collect()
    start = time.perf_counter()
    matcher = Matcher(rules)
    build_s = time.perf_counter() - start
    assert all(matcher.match(head) is not None for head in heads)
    match = matcher.match
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for head in heads:
            match(head)
        best = min(best, (time.perf_counter() - start) / len(heads))
    size = 0
    if has_size:
        tracemalloc.start()
        again = Matcher(rules)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert not again.problems
    return Figures(best, build_s, size)


def show(label: str, figures: Figures) -> None:
    match_s, build_s, size = figures
    print(f"{label:<24} {match_s * 1e9:7.0f} ns/match   build {build_s * 1e3:7.0f} ms   index {size / 2**20:6.1f} MiB")


def main() -> None:
    """Print one line for each set of rules."""
    for count in (10_000, 100_000):
        show(f"{count:,} by host", measure(spread_rules(count), spread_heads(count), has_size=True))
        show(f"{count:,} by prefix", measure(flat_rules(count), flat_heads(count), has_size=True))


if __name__ == "__main__":
    main()
