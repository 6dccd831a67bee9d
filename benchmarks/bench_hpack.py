"""Measure header compression: microseconds per block for each codec, in the cases that a gateway meets.

Run it with nothing else on the machine: `.venv/bin/python benchmarks/bench_hpack.py`. Each figure is the best of seven
rounds. Blocks come from the `hpack` package's encoder, so neither codec reads what it wrote itself.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable

import hpack

from datum_router_proxy.wire.hpack_codec import CODECS, Field, LineCache, make_codec

ROUNDS = 7
BLOCKS = 2_000

REQUEST: list[Field] = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"api.example.com"),
    (b":path", b"/api/v1/users"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    (b"accept-language", b"en-US,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"cache-control", b"no-cache"),
    (b"x-tenant", b"blue"),
]
RESPONSE: list[Field] = [
    (b":status", b"200"),
    (b"content-type", b"application/json"),
    (b"content-length", b"1024"),
    (b"date", b"Sat, 28 Nov 2026 15:00:00 GMT"),
    (b"server", b"nginx"),
    (b"cache-control", b"max-age=60"),
    (b"via", b"1.1 datum-router"),
    (b"vary", b"accept-encoding"),
]


def request(path: bytes, agent: bytes | None = None) -> list[Field]:
    """Return the ten fields with a path, and a user agent, of their own."""
    fields = list(REQUEST)
    fields[3] = (b":path", path)
    if agent is not None:
        fields[4] = (b"user-agent", agent)
    return fields


def literal(prefix: int, name_index: int, value: bytes) -> bytes:
    """Return a literal with an indexed name whose value is Huffman coded (at most 126 octets)."""
    coded = hpack.huffman.HuffmanEncoder(
        hpack.huffman_constants.REQUEST_CODES, hpack.huffman_constants.REQUEST_CODES_LENGTH
    ).encode(value)
    return bytes((prefix | name_index, 0x80 | len(coded))) + coded


def per_call_us(call: Callable[[], Iterable[Callable[[], object]]]) -> float:
    """Time what `call` prepares; preparing is not counted."""
    best = float("inf")
    for _ in range(ROUNDS):
        work = list(call())
        start = time.perf_counter()
        for step in work:
            step()
        best = min(best, (time.perf_counter() - start) / len(work))
    return best * 1e6


def decoding(name: str, first: bytes, later: Callable[[int], bytes]) -> float:
    """Time the blocks that follow `first` on one connection; every round has blocks of its own."""
    number = iter(range(10**9))

    def prepare() -> Iterable[Callable[[], object]]:
        codec = make_codec(name)
        codec.decode(first)
        blocks = [later(next(number)) for _ in range(BLOCKS)]
        return [functools.partial(codec.decode, block) for block in blocks]

    return per_call_us(prepare)


def encoding(name: str, later: Callable[[int], list[Field]]) -> float:
    """Time heads of one connection."""
    number = iter(range(10**9))

    def prepare() -> Iterable[Callable[[], object]]:
        codec = make_codec(name, cache=LineCache())
        codec.encode(later(0))
        heads = [later(next(number)) for _ in range(BLOCKS)]
        return [functools.partial(codec.encode, head) for head in heads]

    return per_call_us(prepare)


def main() -> None:
    """Print one line for each case."""
    encoder = hpack.Encoder()
    first = encoder.encode(REQUEST)
    same = encoder.encode(REQUEST)
    # What nghttp2 and curl do: the path is a literal that is never put into the table, the rest is indexed.
    before, after = same[:3], same[4:]

    def new_path(number: int) -> bytes:
        return before + literal(0x00, 4, b"/api/v1/users/%d/orders" % number) + after

    def two_new(number: int) -> bytes:
        path = literal(0x00, 4, b"/api/v1/users/%d/orders" % number)
        # The second one enters the table, so that the indexes behind it mean its neighbours: as much work.
        return before + path + literal(0x40, 58, b"probe/1.0 (build %d)" % number) + after[1:]

    cases: list[tuple[str, Callable[[str], float]]] = [
        ("decode: all indexed, same block again", lambda name: decoding(name, first, lambda _n: same)),
        ("decode: all indexed, another order", lambda name: decoding(name, first, lambda n: rotated(same, n))),
        ("decode: new path, rest indexed", lambda name: decoding(name, first, new_path)),
        ("decode: two new Huffman literals", lambda name: decoding(name, first, two_new)),
        ("decode: first block of a connection", first_block(first)),
        ("encode: response, all lines known", lambda name: encoding(name, lambda _n: RESPONSE)),
        ("encode: response, one new line", lambda name: encoding(name, one_new_line)),
        ("encode: request with new path", lambda name: encoding(name, lambda n: request(b"/users/%d" % n))),
    ]
    print(f"{'microseconds per block of 10 (response: 8) fields':<52}" + "".join(f"{name:>8}" for name in CODECS))
    for label, run in cases:
        print(f"{label:<52}" + "".join(f"{run(name):8.2f}" for name in CODECS))


def rotated(block: bytes, number: int) -> bytes:
    """Return the one-octet fields of a block in one of many orders, so that no block is met twice in a row."""
    order = list(block)
    for position in range(len(order) - 1, 0, -1):
        number, other = divmod(number, position + 1)
        order[position], order[other] = order[other], order[position]
    return bytes(order)


def one_new_line(number: int) -> list[Field]:
    """Return the answer's head with a length of its own."""
    head = list(RESPONSE)
    head[2] = (b"content-length", b"%d" % number)
    return head


def first_block(block: bytes) -> Callable[[str], float]:
    """Return the case of a block on a fresh connection; making the codec is not counted."""

    def run(name: str) -> float:
        def prepare() -> Iterable[Callable[[], object]]:
            codecs = [make_codec(name) for _ in range(BLOCKS)]
            return [functools.partial(codec.decode, block) for codec in codecs]

        return per_call_us(prepare)

    return run


if __name__ == "__main__":
    main()
