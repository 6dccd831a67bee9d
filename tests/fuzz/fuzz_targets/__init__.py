"""What is fuzzed: each target is a function of bytes that returns if all its properties hold and raises if not.

Nothing here knows the fuzzer, so that a find is replayed by calling the function (see `test_vectors.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

from . import egress, hpack, http1, http2, llhttp, manifest, seeds


class Target(NamedTuple):
    """One entry for the fuzzer.

    Attributes:
        check: Raises AssertionError, or whatever must never be raised.
        seeds: Inputs to start from.
        words: Byte strings worth inserting (libFuzzer's dictionary).
        longest: Largest input (bytes): limits of the target are set so that they are reached within it.
        mutate: Makes another input from one, where changing octets rarely gives anything sensible.
    """

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...]
    longest: int
    mutate: Callable[[bytes, random.Random], bytes] | None = None


TARGETS: dict[str, Target] = {
    "http1_server": Target(http1.check_server, seeds.http1_requests, http1.WORDS, 2_048),
    "http1_client": Target(http1.check_client, seeds.http1_responses, http1.WORDS, 2_048),
    "llhttp_requests": Target(llhttp.check_requests, seeds.http1_requests, http1.WORDS, 512),
    "llhttp_responses": Target(llhttp.check_responses, seeds.http1_responses, http1.WORDS, 512),
    "http2_server": Target(http2.check_server, seeds.http2_server, http2.WORDS, 1_024, http2.mutate),
    "http2_client": Target(http2.check_client, seeds.http2_client, http2.WORDS, 1_024, http2.mutate),
    "hpack": Target(hpack.check, seeds.hpack_blocks, hpack.WORDS, 1_024),
    "manifest": Target(manifest.check_json, seeds.manifests_json, manifest.WORDS, 4_096),
    "egress": Target(egress.check, seeds.egress, egress.WORDS, 1_024),
    "yaml": Target(manifest.check_yaml, seeds.manifests_yaml, manifest.YAML_WORDS, 4_096),
}

__all__ = ["TARGETS", "Target"]
