"""Token buckets by key in a table of fixed size."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.policy.bucket import TokenBucket
from datum_router.policy.buckets import (
    KEY_BYTES,
    MAX_KEYS,
    SECRET_BYTES,
    SETS,
    WAYS,
    BucketTable,
    local_table,
    table_bytes,
)


def key(number: int) -> bytes:
    return hashlib.blake2b(b"%d" % number, digest_size=KEY_BYTES).digest()


def table(sets: int = SETS) -> BucketTable:
    return local_table(bytes(range(SECRET_BYTES)), sets=sets)


def test_the_secret_stands_in_the_memory_for_whoever_maps_it() -> None:
    memory = bytearray(table_bytes(4))
    memory[:SECRET_BYTES] = bytes(range(SECRET_BYTES))
    one, other = BucketTable(memory, sets=4), BucketTable(memory, sets=4)
    assert one.secret == other.secret == bytes(range(SECRET_BYTES))
    assert one.draw(key(1), burst=1, period_s=1.0, now=5.0).wait_s == 0
    assert other.draw(key(1), burst=1, period_s=1.0, now=5.0).wait_s == pytest.approx(1.0)


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.floats(0, 3), st.booleans()), max_size=80),
    burst=st.integers(1, 5),
    rate=st.floats(0.1, 50),
)
def test_each_key_has_a_bucket_that_behaves_as_the_plain_one(
    steps: list[tuple[int, float, bool]], burst: int, rate: float
) -> None:
    buckets = table(sets=2)
    oracle = {number: TokenBucket(rate=rate, burst=burst) for number in range(6)}
    now = 1000.0
    for number, gap, is_given_back in steps:
        now += gap
        drawn = buckets.draw(key(number), burst=burst, period_s=1 / rate, now=now)
        assert drawn.wait_s == pytest.approx(oracle[number].take(now), abs=1e-6)
        assert 0 <= drawn.left <= burst
        if is_given_back and not drawn.wait_s:
            buckets.give_back(key(number), period_s=1 / rate)
            oracle[number].give_back()
    assert buckets.forgotten == 0


def test_a_full_set_forgets_the_bucket_that_is_full_first_and_counts_it() -> None:
    buckets = table(sets=1)
    for number in range(WAYS):
        for _ in range(number + 1):  # the first one has least to forget
            buckets.draw(key(number), burst=100, period_s=1.0, now=0.0)
    assert buckets.forgotten == 0
    assert buckets.draw(key(WAYS), burst=100, period_s=1.0, now=0.0).left == 99
    assert buckets.forgotten == 1
    assert buckets.draw(key(WAYS - 1), burst=100, period_s=1.0, now=0.0).left == 100 - WAYS - 1
    assert buckets.draw(key(0), burst=100, period_s=1.0, now=0.0).left == 99, "the first one begins anew"


def test_buckets_that_are_full_again_make_room_without_being_missed() -> None:
    buckets = table(sets=1)
    for number in range(100):
        assert buckets.draw(key(number), burst=1, period_s=1.0, now=2.0 * number).wait_s == 0
    assert buckets.forgotten == 0


def test_as_many_keys_as_the_limit_says_are_kept_nearly_all() -> None:
    buckets = table()
    for number in range(MAX_KEYS // 2):
        buckets.draw(key(number), burst=2, period_s=60.0, now=0.0)
    assert buckets.forgotten < MAX_KEYS // 2 // 50, "half full, hardly a set overflows"
    for number in range(MAX_KEYS // 2, 2 * MAX_KEYS):
        buckets.draw(key(number), burst=2, period_s=60.0, now=0.0)
    assert buckets.forgotten >= MAX_KEYS, "beyond the limit what comes makes something else go"


class Taken:
    """A lock that somebody else holds."""

    def acquire(self, index: int) -> bool:
        return False

    def release(self, index: int) -> None:
        raise AssertionError("released a lock that was not taken")


def test_who_gets_no_lock_goes_on_without_it_and_counts_that() -> None:
    buckets = BucketTable(bytearray(table_bytes(1)), sets=1, lock=Taken())
    assert buckets.draw(key(1), burst=1, period_s=1.0, now=0.0).wait_s == 0
    assert buckets.draw(key(1), burst=1, period_s=1.0, now=0.0).wait_s == 1
    assert buckets.unlocked == 2


def test_part_of_one_key_across_two_slots_is_no_key() -> None:
    buckets = table(sets=1)
    one, two = bytes(4) + b"a" * 12, bytes(4) + b"a" * 12
    across = b"a" * 12 + bytes(4)
    buckets.draw(one, burst=1, period_s=9.0, now=0.0)
    buckets.draw(bytes(4) + b"b" * 12, burst=1, period_s=9.0, now=0.0)
    assert buckets.draw(across, burst=1, period_s=9.0, now=0.0).wait_s == 0
    assert buckets.draw(two, burst=1, period_s=9.0, now=0.0).wait_s == 9
