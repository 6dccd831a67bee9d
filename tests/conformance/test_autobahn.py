"""Autobahn's WebSocket test suite through the gateway, its fuzzer once at each side; the other end is its own testee.

The suite needs Python 2.7, which Debian 12 does not offer. `make conformance` installs it where a Python 2.7 is found;
elsewhere the frame cases of test_websocket.py stand alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.external]
REPOSITORY = Path(__file__).resolve().parents[2]
HOME = REPOSITORY / ".run" / "autobahn"
WSTEST = HOME / "bin" / "wstest"
ENVIRONMENT = {**os.environ, "PYTHONUSERBASE": str(HOME)}
# All of sections 1 to 7 and 10; of the large cases those that take seconds: 9.3 and 9.4 cut 4 MiB into many fragments,
# 12 and 13 (compression) send 1,000 messages each.
SECTIONS = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
LARGE = [*(f"9.{part}.*" for part in (1, 2, 5, 6, 7, 8)), "9.3.6", "9.4.6", "12.1.1", "13.3.1"]
# The suite calls "informational" what RFC 6455 leaves open: a close after a large message, and close codes above 4999.
GOOD = {"OK", "INFORMATIONAL"}

needs_suite = pytest.mark.skipif(
    not WSTEST.exists(), reason="Autobahn's suite is not here: it needs Python 2.7, and none was found"
)


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


# Autobahn's servers refuse a Host whose port is not theirs. Behind a gateway the public port is not theirs: they are
# given the public address and listen elsewhere.
BEHIND = """
import sys
from twisted.internet import reactor
port, sys.argv[:2] = int(sys.argv[1]), ["wstest"]
listen = reactor.listenTCP
reactor.listenTCP = lambda _public, factory, *_rest, **_options: listen(port, factory, interface="127.0.0.1")
from autobahntestsuite import wstest
wstest.run()
"""


@contextlib.contextmanager
def server(log: Path, port: int, kit: Any, *arguments: str) -> Iterator[None]:
    """Run a mode of Autobahn that serves, on the port."""
    python = WSTEST.read_text().splitlines()[0].removeprefix("#!")
    with log.open("w") as output:
        process = subprocess.Popen(
            [python, "-W", "ignore", "-c", BEHIND, str(port), *arguments],
            cwd=log.parent,
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        kit.eventually(lambda: accepts(port) or process.poll() is not None, f"wstest listens: {arguments}")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(10)


def run(log: Path, *arguments: str) -> None:
    with log.open("w") as output:
        subprocess.run(
            [WSTEST, *arguments],
            cwd=log.parent,
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=100,
            check=True,
        )


def judge(reports: Path, at_least: int, title: str, record_property: Callable[[str, object], None]) -> None:
    (results,) = json.loads((reports / "index.json").read_text()).values()
    bad = {
        case: (result["behavior"], result["behaviorClose"])
        for case, result in results.items()
        if not {result["behavior"], result["behaviorClose"]} <= GOOD
    }
    assert bad == {}
    assert len(results) >= at_least
    counts = Counter(result["behavior"] for result in results.values())
    record_property(title, ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))


@needs_suite
def test_fuzzing_client(
    tmp_path: Path, directory: Path, start_gateway: Callable[..., Any], kit: Any, peers: Any, record_property: Any
) -> None:
    port = free_port()
    peers.write_service(directory, "HTTP", port)
    gateway = start_gateway()
    public = f"ws://127.0.0.1:{gateway.port}"
    specification = {
        "outdir": str(tmp_path / "reports"),
        "servers": [{"agent": "gateway", "url": public}],
        "cases": SECTIONS + LARGE,
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    (tmp_path / "client.json").write_text(json.dumps(specification))
    with server(tmp_path / "server.log", port, kit, "-m", "testeeserver", "-w", public):
        run(tmp_path / "client.log", "-m", "fuzzingclient", "-s", "client.json")
    judge(tmp_path / "reports", 285, "Autobahn, fuzzing client", record_property)
    assert "Traceback" not in gateway.log.read_text()


@needs_suite
def test_fuzzing_server(
    tmp_path: Path, directory: Path, start_gateway: Callable[..., Any], kit: Any, peers: Any, record_property: Any
) -> None:
    port = free_port()
    peers.write_service(directory, "HTTP", port)
    gateway = start_gateway()
    public = f"ws://127.0.0.1:{gateway.port}"
    specification = {
        "outdir": str(tmp_path / "reports"),
        "url": public,
        "cases": SECTIONS,
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    (tmp_path / "server.json").write_text(json.dumps(specification))
    with server(tmp_path / "server.log", port, kit, "-m", "fuzzingserver", "-s", "server.json", "-u", "0"):
        run(tmp_path / "client.log", "-m", "testeeclient", "-w", public)
    judge(tmp_path / "reports", 240, "Autobahn, fuzzing server", record_property)
    assert "Traceback" not in gateway.log.read_text()
