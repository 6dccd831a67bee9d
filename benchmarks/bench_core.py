"""Measure the core without a process around it: matching, and from parsed manifests to a snapshot that serves.

Run it in the environment under test, `.venv/bin/python benchmarks/bench_core.py`; prints one JSON object. Each figure
is the best of several: on a quiet machine that is the figure, on a busy one the nearest to it.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from pathlib import Path

import yaml
from bench_match import flat_heads, flat_rules, measure, spread_heads, spread_rules

from datum_router.compiler.compiler import Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.compiler.linker import Linker
from datum_router.plugins.manager import load_plugins
from datum_router.plugins.protocols import Upsert
from datum_router.registry.store import Store
from gatebench import manifests

ROUTES = 10_000
ROUNDS = 3
SLOW_S = 3.0


def parsed_manifests(count: int) -> list[dict[str, object]]:
    """Return the documents that the harness serves under load, with `count` routes."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        manifests.write_services(directory, http_port=80)
        manifests.write_routes(directory, count)
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        paths = sorted(directory.glob("*.yaml"))
        return [document for path in paths for document in yaml.load_all(path.read_text(), loader)]


def compile_seconds(count: int) -> float:
    """Return how long decoding, compiling and linking of `count` routes takes, from parsed documents."""
    events = [
        Upsert(source="bench", raw=document, origin=Origin(source="bench")) for document in parsed_manifests(count)
    ]
    best = float("inf")
    for _ in range(ROUNDS):
        plugins = load_plugins()
        gc.collect()
        start = time.perf_counter()
        store = Store(plugins.kinds)
        for event in events:
            store.apply(event)
        result = Compiler(plugins).compile(store.view())
        snapshot = Linker(plugins).link(result.data)
        took = time.perf_counter() - start
        best = min(best, took)
        if len(snapshot.rules) != count + 1 or result.diagnostics:
            raise AssertionError(f"{len(snapshot.rules)} rules, {result.diagnostics[:2]}")
        if took > SLOW_S:
            break  # the bar is at 1 s: repeating this would not save it
    return best


def main() -> None:
    """Print the figures: microseconds a match, seconds to compile."""
    figures = {}
    for name, count in (("10k", 10_000), ("100k", 100_000)):
        figures[f"match-{name}"] = measure(spread_rules(count), spread_heads(count)).match_s * 1e6
        figures[f"match-flat-{name}"] = measure(flat_rules(count), flat_heads(count)).match_s * 1e6
    figures["compile-10k"] = compile_seconds(ROUTES)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
