"""Hashes that are equal in every process and after every restart, unlike `hash()`."""

from __future__ import annotations

from hashlib import blake2b

MASK = (1 << 64) - 1


def hash_bytes(data: bytes, *, salt: bytes = b"") -> int:
    """Return a 64-bit hash."""
    return int.from_bytes(blake2b(data, digest_size=8, salt=salt).digest(), "big")


def mix(value: int) -> int:
    """Return a well-mixed 64-bit permutation of a 64-bit value (the finalizer of SplitMix64)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)
