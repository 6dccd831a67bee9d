from __future__ import annotations

import random
from collections import Counter

import pytest

from datum_router.balancing.base import ALL_USABLE, PickContext
from datum_router.balancing.random_choice import RandomChoice
from datum_router.model.endpoint import make_endpoint

PICKS = 10_000


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 3, 4), (1, 99), (1000, 10**12)])
def test_picks_follow_weights_within_three_sigma(weights: tuple[int, ...]) -> None:
    candidates = tuple(make_endpoint(f"10.0.0.{n}", 80, weight=weight) for n, weight in enumerate(weights, 1))
    ctx = PickContext(rng=random.Random(11))
    counts = Counter(RandomChoice().pick(ctx, candidates, ALL_USABLE) for _ in range(PICKS))
    for candidate in candidates:
        share = candidate.weight / sum(weights)
        assert abs(counts[candidate] - PICKS * share) <= 3 * (PICKS * share * (1 - share)) ** 0.5
