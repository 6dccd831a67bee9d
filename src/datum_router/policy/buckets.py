"""Token buckets by key in a table of fixed size, which several processes may share.

Theory of operation. The table is a piece of memory: a secret, then sets of `WAYS` slots. A key, which is a keyed hash
(so that nobody outside can aim at a set), belongs to one set and may stand in any slot of it. A slot holds the key and
the moment, in monotonic seconds, at which its bucket is full again (`policy.bucket`); a bucket that is full is as good
as a free slot. If no slot of the set is free, the bucket that is full first makes room: it forgets the least. So memory
is bounded whatever clients send, and what is forgotten is counted.

Processes on one machine have the same monotonic clock. They share the memory by a map of a file, and a lock for each
set. Whoever does not get the lock at once goes on without: two processes that change one set at the same moment may
let one request more through, while waiting would stop everybody else's requests, for long if the holder is stopped.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

import msgspec

from datum_router.policy.bucket import draw, tokens_left

WAYS: Final = 8
"""Slots of a set."""
SETS: Final = 8192
MAX_KEYS: Final = WAYS * SETS
"""Buckets of one gateway that are not full, over all of its rate limits: 65,536, in 1.5 MiB."""
KEY_BYTES: Final = 16
SECRET_BYTES: Final = 16

_TIME: Final = struct.Struct("=d")
_TIMES: Final = struct.Struct(f"={WAYS}d")
_KEYS_BYTES: Final = WAYS * KEY_BYTES
_SET_BYTES: Final = _KEYS_BYTES + _TIMES.size
_HEAD_BYTES: Final = 64


class Memory(Protocol):
    """A `bytearray` or a `mmap.mmap`, as far as it is used here."""

    def find(self, sub: bytes, start: int, end: int, /) -> int:
        """Return where `sub` begins, -1 if it is not there."""
        ...

    def __getitem__(self, key: slice, /) -> bytes | bytearray:
        """Return some bytes."""
        ...

    def __setitem__(self, key: slice, value: bytes, /) -> None:
        """Write as many bytes as are there."""
        ...


class SetLock(Protocol):
    """Keeps other processes away from one set."""

    def acquire(self, index: int) -> bool:
        """Lock a set if that can be done at once; tell whether it could."""
        ...

    def release(self, index: int) -> None:
        """Unlock a set."""
        ...


def table_bytes(sets: int = SETS) -> int:
    """Return the size of the memory of a table."""
    return _HEAD_BYTES + sets * _SET_BYTES


class Draw(msgspec.Struct, frozen=True, gc=False):
    """What came of asking a bucket for a token.

    Attributes:
        wait_s: 0: a token was taken; else the seconds until there is one.
        left: Tokens that could be taken now.
        full_s: Seconds until the bucket is full.
    """

    wait_s: float
    left: int
    full_s: float


class BucketTable:
    """See the module. Single-threaded.

    Attributes:
        secret: What keys are to be hashed with.
        forgotten: Buckets that were not full and had to make room, since telemetry has last set it back.
        unlocked: Draws that did not get the lock at once, likewise.
    """

    __slots__ = ("_lock", "_memory", "_sets", "forgotten", "secret", "unlocked")

    def __init__(self, memory: Memory, *, sets: int = SETS, lock: SetLock | None = None) -> None:
        """Use memory of `table_bytes(sets)` bytes that begins with `SECRET_BYTES` random ones; all else was 0 once."""
        self._memory = memory
        self._sets = sets
        self._lock = lock
        self.secret = bytes(memory[0:SECRET_BYTES])
        self.forgotten = 0
        self.unlocked = 0

    def draw(self, key: bytes, *, burst: int, period_s: float, now: float) -> Draw:
        """Take a token out of the bucket of a key of `KEY_BYTES` bytes if there is one. O(1)."""
        index = int.from_bytes(key[:4], "little") % self._sets
        lock = self._lock
        is_locked = lock is not None and lock.acquire(index)
        if lock is not None and not is_locked:
            self.unlocked += 1
        try:
            at = self._find(key, index)
            full_at = 0.0 if at < 0 else _TIME.unpack(self._memory[at : at + 8])[0]
            debt_s, wait_s = draw(max(0.0, full_at - now), burst=burst, period_s=period_s)
            if not wait_s:
                if at < 0:
                    at = self._take_slot(key, index, now)
                self._memory[at : at + 8] = _TIME.pack(now + debt_s)
        finally:
            if lock is not None and is_locked:
                lock.release(index)
        return Draw(wait_s, tokens_left(debt_s, burst=burst, period_s=period_s), debt_s)

    def give_back(self, key: bytes, *, period_s: float) -> None:
        """Put a token back that was taken just now: the request did not go through after all."""
        index = int.from_bytes(key[:4], "little") % self._sets
        at = self._find(key, index)
        if at >= 0:
            full_at: float = _TIME.unpack(self._memory[at : at + 8])[0]
            self._memory[at : at + 8] = _TIME.pack(full_at - period_s)

    def _find(self, key: bytes, index: int) -> int:
        """Return where the time of a key stands, -1 if the key is not there."""
        base = _HEAD_BYTES + index * _SET_BYTES
        found = base
        while (found := self._memory.find(key, found, base + _KEYS_BYTES)) >= 0:
            slot, rest = divmod(found - base, KEY_BYTES)
            if not rest:
                return base + _KEYS_BYTES + 8 * slot
            found += 1
        return -1

    def _take_slot(self, key: bytes, index: int, now: float) -> int:
        """Write a key over the one whose bucket is full first; return where its time stands."""
        base = _HEAD_BYTES + index * _SET_BYTES
        times = _TIMES.unpack(self._memory[base + _KEYS_BYTES : base + _SET_BYTES])
        first = min(times)
        if first > now:
            self.forgotten += 1
        slot = times.index(first)
        self._memory[base + slot * KEY_BYTES : base + (slot + 1) * KEY_BYTES] = key
        return base + _KEYS_BYTES + 8 * slot


def local_table(secret: bytes, *, sets: int = SETS) -> BucketTable:
    """Return a table of one process's own; `secret` has `SECRET_BYTES` random bytes."""
    memory = bytearray(table_bytes(sets))
    memory[:SECRET_BYTES] = secret
    return BucketTable(memory, sets=sets)
