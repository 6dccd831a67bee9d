"""Supervisor and workers: one owner of probes, replaced workers, graceful end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any

import pytest

pytestmark = pytest.mark.e2e
HEALTH = "  healthCheck: {httpPath: /healthz, intervalSeconds: 1, timeoutSeconds: 1}"


def test_probe_load_does_not_grow_with_workers(
    directory: Any, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backend = start_backend(kit.answer(b"ok"))
    (directory / "a.yaml").write_text(kit.manifest("a", backend, health=HEALTH))
    gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "4")
    before = gateway.stats()
    kit.eventually(lambda: gateway.stats()["probes"] >= before["probes"] + 3, "three more probes")
    elapsed_s = gateway.stats()["uptime_s"]
    # One endpoint, one probe a second (10 % jitter): were every worker a prober, there would be four times as many.
    probes = sum(b"/healthz" in head for head in backend.heads)
    assert probes <= elapsed_s * 1.2 + 2
    assert len(gateway.worker_pids()) == 4


def test_a_killed_worker_is_replaced_and_no_waiting_connection_is_refused(
    directory: Any, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backend = start_backend(kit.answer(b"ok"))
    (directory / "a.yaml").write_text(kit.manifest("a", backend))
    gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "1")
    (pid,) = gateway.worker_pids()
    os.kill(pid, signal.SIGKILL)
    # The supervisor holds the listening socket, so this connects and waits for the new worker.
    assert gateway.get("/") == (200, b"ok")
    kit.eventually(lambda: gateway.worker_pids() not in ([], [pid]), "another worker")
    assert gateway.stats()["counters"]["datum_router_worker_restarts_total"] == 1


def test_every_worker_serves_and_counts(directory: Any, start_gateway: Any, start_backend: Any, kit: Any) -> None:
    backend = start_backend(kit.answer(b"ok"))
    (directory / "a.yaml").write_text(kit.manifest("a", backend))
    gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "2")
    for _ in range(40):
        assert gateway.get("/") == (200, b"ok")
    kit.eventually(lambda: _served(gateway) == 40, "40 requests counted once")


def test_sigterm_loses_no_request(directory: Any, start_gateway: Any, start_backend: Any, kit: Any) -> None:
    backend = start_backend(kit.answer(b"ok"))
    (directory / "a.yaml").write_text(kit.manifest("a", backend))
    gateway = start_gateway()
    results: list[str] = []
    may_stop = threading.Event()

    def client() -> None:
        sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
        while True:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            data = b""
            while not data.endswith(b"\r\n\r\nok"):
                chunk = sock.recv(65536)
                if not chunk:
                    results.append(f"lost after {data!r}")
                    return
                data += chunk
            results.append("ok")
            if len(results) > 200:
                may_stop.set()
            if b"connection: close" in data.lower():
                sock.close()
                return

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert may_stop.wait(timeout=20)
    assert gateway.stop() == 0
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert set(results) == {"ok"}


def test_workers_drain_when_the_supervisor_is_gone(
    directory: Any, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backend = start_backend(kit.answer(b"ok"))
    (directory / "a.yaml").write_text(kit.manifest("a", backend))
    gateway = start_gateway()
    (worker,) = gateway.worker_pids()
    gateway.process.kill()
    gateway.process.wait()
    # It serves on meanwhile: the supervisor's end is no client's business.
    assert gateway.get("/") == (200, b"ok")
    os.kill(worker, signal.SIGTERM)
    kit.eventually(lambda: not os.path.exists(f"/proc/{worker}") or _is_zombie(worker), "worker ends after SIGTERM")


def _served(gateway: Any) -> int:
    return gateway.stats()["counters"].get("datum_router_protocol_requests_total|h1|2xx", 0)


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_sighup_replaces_every_worker_and_loses_no_request(
    directory: Any, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backend = start_backend(kit.answer(b"ok"))
    (directory / "a.yaml").write_text(kit.manifest("a", backend))
    gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "2")
    before = set(gateway.worker_pids())
    results: list[str] = []
    is_done = threading.Event()

    def client() -> None:
        while not is_done.is_set():
            try:
                results.append(_requests_until_told_to_close(gateway.port, is_done))
            except OSError as error:
                results.append(repr(error))

    threads = [threading.Thread(target=client) for _ in range(6)]
    for thread in threads:
        thread.start()
    gateway.process.send_signal(signal.SIGHUP)
    counter = "datum_router_worker_replacements_total"
    kit.eventually(lambda: gateway.stats()["counters"].get(counter) == 2, "both workers are replaced")
    is_done.set()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert set(results) == {"ok"}
    after = set(gateway.worker_pids())
    assert len(after) == 2
    assert not after & before
    assert gateway.stats()["counters"].get("datum_router_worker_restarts_total", 0) == 0, "none of them died"
    assert gateway.get("/") == (200, b"ok")
    assert gateway.stop() == 0


def test_sigterm_amid_a_rolling_restart_still_ends_gracefully(
    directory: Any, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backend = start_backend(kit.answer(b"ok"))
    (directory / "a.yaml").write_text(kit.manifest("a", backend))
    gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "2")
    gateway.process.send_signal(signal.SIGHUP)
    kit.eventually(lambda: len(gateway.worker_pids()) == 3, "a successor beside the two")
    assert gateway.stop() == 0


def _requests_until_told_to_close(port: int, is_done: threading.Event) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        while not is_done.is_set():
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            data = b""
            while not data.endswith(b"\r\n\r\nok"):
                chunk = sock.recv(65536)
                if not chunk:
                    return f"lost after {data!r}"
                data += chunk
            if b"connection: close" in data.lower():
                break
    return "ok"
