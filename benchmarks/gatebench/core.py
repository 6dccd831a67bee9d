"""The measures of the core alone: `bench_core.py` in the environment under test, on the proxy's core."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from gatebench.bars import OURS
from gatebench.processes import PROXY_CORE, pinned
from gatebench.proxies import HERE
from gatebench.samples import Sample

TITLES = {
    "match-10k": "match among 10,000 routes (hosts, prefixes, methods, headers)",
    "match-100k": "match among 100,000 routes",
    "match-flat-10k": "match among 10,000 routes by prefix alone",
    "match-flat-100k": "match among 100,000 routes by prefix alone",
    "compile-10k": "compile 10,000 routes: decode, compile and link",
}
UNITS = {key: "s" if key.startswith("compile") else "us" for key in TITLES}
PATIENCE_S = 120.0
ESTIMATE_S = 12.0


def run_core(datum: Path, rounds: int, told: Callable[[Sample], None]) -> list[Sample]:
    """Return the samples of all measures of the core; each round is a fresh process."""
    samples = []
    for number in range(1, rounds + 1):
        command = pinned(PROXY_CORE, [str(datum.parent / "python"), str(HERE / "bench_core.py")])
        error = ""
        figures: dict[str, float] = {}
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
            error = done.stderr.strip()[-500:] if done.returncode else ""
            figures = json.loads(done.stdout) if not error else {}
        except (OSError, ValueError, subprocess.TimeoutExpired) as failure:
            error = repr(failure)
        for key in TITLES:
            value = figures.get(key)
            why = "" if value is not None else error or "no figure"
            sample = Sample(measure=key, proxy=OURS, round=number, value=value, error=why)
            samples.append(sample)
            told(sample)
    return samples
