"""Bodies that say whose they are: made from the request's id, so that a cut, shifted or mixed-up one is noticed."""

from __future__ import annotations

import hashlib


def make_body(request_id: str, size: int) -> bytes:
    """Return `size` bytes that no other request has: the id and a running block number, again and again."""
    if size <= 0:
        return b""
    tag = f"{request_id}:".encode()
    blocks = []
    length = 0
    number = 0
    while length < size:
        block = b"%s%08d;" % (tag, number) * 8
        blocks.append(block)
        length += len(block)
        number += 1
    return b"".join(blocks)[:size]


def digest(data: bytes) -> str:
    """Return what the backend says of an upload: its length and SHA-256."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def first_difference(found: bytes, expected: bytes) -> int:
    """Return the offset of the first byte that differs (the shorter length if one begins the other), -1 if equal."""
    if found == expected:
        return -1
    shorter = min(len(found), len(expected))
    low, high = 0, shorter
    while low < high:  # the longest common prefix by halving
        middle = (low + high + 1) // 2
        if found[:middle] == expected[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
