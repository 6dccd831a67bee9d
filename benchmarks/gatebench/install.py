"""Install what a run needs and the machine lacks: Debian packages by apt-get, vegeta by Go. PyPI is the Makefile's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gatebench.processes import BenchError, find_program

# program -> Debian package
DEBIAN = {
    "nginx": "nginx",
    "haproxy": "haproxy",
    "wrk": "wrk",
    "h2load": "nghttp2-client",
    "nghttp": "nghttp2-client",
    "nghttpd": "nghttp2-server",
    "openssl": "openssl",
    "setpriv": "util-linux",
    "taskset": "util-linux",
}
VEGETA = "github.com/tsenart/vegeta/v12@v12.13.0"
POLICY = Path("/usr/sbin/policy-rc.d")


def missing_programs() -> list[str]:
    """Return the programs of `DEBIAN` that are not there."""
    missing = []
    for name in DEBIAN:
        try:
            find_program(name)
        except BenchError:
            missing.append(name)
    return missing


def install_debian() -> None:
    """Install the Debian packages of missing programs without letting any start a service.

    Raises:
        BenchError: Something is missing, and this is not root on Debian; or apt-get failed.
    """
    missing = missing_programs()
    if not missing:
        return
    packages = sorted({DEBIAN[name] for name in missing})
    by_hand = f"missing: {', '.join(missing)}; install them: apt-get install {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        raise BenchError(f"{by_hand} (this is no Debian, so the harness cannot)")
    if os.geteuid():
        raise BenchError(f"{by_hand} (this is not root, so the harness cannot)")
    # invoke-rc.d asks this file whether a package may start its service; 101 = no. nginx would take port 80.
    is_ours = not POLICY.exists()
    if is_ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _run(["apt-get", "update", "-qq"], env)
        _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], env)
    finally:
        if is_ours:
            POLICY.unlink(missing_ok=True)
    if left := missing_programs():
        raise BenchError(f"still missing after apt-get: {', '.join(left)}")


def install_vegeta() -> None:
    """Build vegeta into the environment that this runs in; the measure `latency` needs it.

    Raises:
        BenchError: There is no Go, or it cannot build.
    """
    target = Path(sys.executable).parent
    if (target / "vegeta").exists():
        return
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
    if go is None:
        raise BenchError("go: not found; it builds vegeta for the measure `latency` (leave it out with --only)")
    _run([go, "install", VEGETA], {**os.environ, "GOBIN": str(target), "GOFLAGS": "-mod=mod"})


def _run(command: Sequence[str], env: dict[str, str]) -> None:
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()[-800:]}")


def main() -> int:
    """Install everything; 2 with a sentence if that is not possible."""
    try:
        install_debian()
        install_vegeta()
    except BenchError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0
