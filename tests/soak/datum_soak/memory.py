"""Is memory flat? A robust slope over the samples of one process."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

ARENA_MIB = 1.0
"""CPython takes memory for small objects in arenas of 1 MiB (Objects/obmalloc.c): one more is no growth yet."""

AIM_MIB_PER_H = 1.0
"""The aim of a long run (threat P8)."""


def slope_per_hour(samples: Sequence[tuple[float, float]]) -> float:
    """Return the Theil-Sen slope (median of the slopes of all pairs) of (seconds, MiB) samples in MiB/h.

    Outliers of less than 29 % of the samples don't move it. 0.0 for fewer than two samples; O(n^2), so samples are
    thinned to 200.
    """
    step = max(1, len(samples) // 200)
    thinned = samples[::step]
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(thinned)
        for later in thinned[index + 1 :]
        if later[0] > earlier[0]
    ]
    return statistics.median(slopes) * 3600.0 if slopes else 0.0


def slope_bound(duration_s: float) -> float:
    """Return the slope in MiB/h that `duration_s` of samples can tell from none: the aim, plus one arena."""
    return AIM_MIB_PER_H + ARENA_MIB * 3600.0 / duration_s
