"""Fuzz all targets for a while: `make fuzz`, or `python tests/fuzz/run.py [--seconds N] [TARGET ...]`.

Each target runs in a process of its own under atheris (libFuzzer with the coverage of our Python code) and goes on from
the inputs that earlier runs kept under `.run/fuzz/corpus`. A find is written to `.run/fuzz/finds/TARGET-*`; once
understood it becomes `tests/fuzz/vectors/TARGET/NAME`, which the test suite replays.

Exit codes: 0 nothing found, 1 something found, 2 the fuzzer could not run.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
STATE = REPOSITORY / ".run" / "fuzz"
NAMES = (
    "http1_server",
    "http1_client",
    "llhttp_requests",
    "llhttp_responses",
    "http2_server",
    "http2_client",
    "hpack",
    "manifest",
    "egress",
    "yaml",
)
INPUT_TIMEOUT_S = 10
"""One input may take so long; the longest legal ones take a few milliseconds."""
MEMORY_MB = 1_024
GRACE_S = 120.0
"""Imports under instrumentation and the corpus from earlier runs come on top of the time asked for."""


def main() -> int:
    """Run every target for its share of the time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("targets", nargs="*", help=f"some of {', '.join(NAMES)}; all if none is named")
    parser.add_argument("--seconds", type=float, default=120.0, help="time for all of them together")
    parser.add_argument("--seed", type=int, default=0, help="for libFuzzer; 0 is another one each time")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.targets) - set(NAMES)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    targets = options.targets or list(NAMES)
    share = max(1, round(options.seconds / len(targets)))
    if options.inside:
        return fuzz(targets[0], share, options.seed)
    before = set(STATE.glob("finds/*"))
    outcomes = {target: run_apart(target, share, options.seed) for target in targets}
    broken = [target for target, code in outcomes.items() if code != 0]
    for target in targets:
        print(f"{target:<14} {'nothing found' if outcomes[target] == 0 else 'see above'}")
    finds = sorted(set(STATE.glob("finds/*")) - before)
    for find in finds:
        print(f"find: {find.relative_to(REPOSITORY)}")
    if before:
        print(f"{len(before)} finds of earlier runs are still there: make vectors of them, or remove them")
    return 1 if finds else 2 if broken else 0


def run_apart(target: str, seconds: int, seed: int) -> int:
    """Run one target in a process of its own, because libFuzzer ends the process it runs in."""
    command = [sys.executable, __file__, "--inside", "--seconds", str(seconds), "--seed", str(seed), target]
    print(f"--- {target}: {seconds} s", flush=True)
    began = time.monotonic()
    try:
        process = subprocess.run(
            command,
            cwd=REPOSITORY,
            timeout=seconds + GRACE_S,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired:
        print(f"did not end {GRACE_S:.0f} s after its time, and was killed", flush=True)
        return 2
    lines = process.stdout.decode(errors="replace").splitlines()
    # libFuzzer's progress is long; its last word and its statistics say enough unless something was found.
    shown = lines if process.returncode else [line for line in lines if line.startswith(("Done", "stat::"))]
    print("\n".join(shown[-60:]), f"({time.monotonic() - began:.0f} s)", flush=True)
    return process.returncode


def fuzz(name: str, seconds: int, seed: int) -> int:
    """Fuzz one target in this process; returns only if it could not begin."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: it has wheels for Linux on x86-64; see requirements-dev.txt", file=sys.stderr)
        return 2
    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=["datum_router", "datum_router_proxy", "datum_router_files"]):
        from fuzz_targets import TARGETS
    target = TARGETS[name]
    corpus, seeds, finds = (STATE / kind / name for kind in ("corpus", "seeds", "finds"))
    for directory in (corpus, seeds, finds.parent):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed_input in enumerate(target.seeds()):
        (seeds / f"{number:03d}").write_bytes(seed_input[: target.longest])
    for vector in sorted((HERE / "vectors" / name).glob("*")):
        (seeds / f"vector-{vector.name}").write_bytes(vector.read_bytes()[: target.longest])
    words = STATE / f"{name}.dict"
    words.write_text("".join(f'"{quoted(word)}"\n' for word in dict.fromkeys(target.words)))

    def mutator(data: bytes, longest: int, seed: int) -> bytes:
        if target.mutate is None or seed % 3 == 0:
            return bytes(atheris.Mutate(data, longest))
        return target.mutate(data, random.Random(seed))[:longest]

    atheris.Setup(
        [
            name,
            f"-max_total_time={seconds}",
            f"-max_len={target.longest}",
            f"-timeout={INPUT_TIMEOUT_S}",
            f"-rss_limit_mb={MEMORY_MB}",
            f"-dict={words}",
            f"-artifact_prefix={finds}-",
            f"-seed={seed}",
            "-print_final_stats=1",
            "-use_value_profile=1",
            str(corpus),
            str(seeds),
        ],
        target.check,
        enable_python_coverage=True,
        **({} if target.mutate is None else {"custom_mutator": mutator}),
    )
    atheris.Fuzz()
    return 0


def quoted(word: bytes) -> str:
    """Return a word as libFuzzer's dictionaries want it."""
    return "".join(
        chr(octet) if octet in b" " or (chr(octet).isalnum() and octet < 128) else f"\\x{octet:02x}" for octet in word
    )


if __name__ == "__main__":
    sys.exit(main())
