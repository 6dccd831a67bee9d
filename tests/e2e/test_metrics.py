"""`/metrics`: exact over all workers, also when they are replaced; bounded whatever clients send; no text of theirs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from datum_router.observe import names
from datum_router.observe.names import Kind
from datum_router_proxy.testing_clients import H2Client, client

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
HEALTH = "  healthCheck: {httpPath: /healthz, intervalSeconds: 1, timeoutSeconds: 1}"
CANARY = "canary-5f2b9c"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def page(gateway: Any) -> str:
    with urllib.request.urlopen(f"{gateway.admin}/metrics", timeout=10) as answer:
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return answer.read().decode()


def scrape(gateway: Any) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page(gateway))
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (found, has), value in series.items() if found == name and wanted <= has)


def serving(gateway: Any) -> set[int]:
    """Return the process ids of the workers that serve a snapshot: others may need a while yet on a busy machine."""
    return {item["pid"] for item in gateway.stats()["workers"] if item["is_up"] and item["version"]}


def talk(gateway: Any, message: bytes) -> bytes:
    """Send bytes on a connection of their own, return everything that comes back."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
        sock.sendall(message)
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
        return data


def over_h2(port: int, count: int) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with client(port, "h2") as peer:
                assert isinstance(peer, H2Client)
                for _ in range(count):
                    assert (await peer.request("GET", "/")).status == 200

    trio.run(main)


def hang_up(sock: socket.socket, _rest: bytes) -> None:
    sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def start(directory: Path, start_gateway: Any, start_backend: Any, kit: Any) -> Any:
    """A gateway with two routes: one whose backend answers, one whose backend hangs up."""

    def begin(*, workers: int = 2) -> Any:
        good, bad = start_backend(kit.answer(b"hello")), start_backend(hang_up)
        (directory / "good.yaml").write_text(kit.manifest("good", good))
        (directory / "bad.yaml").write_text(kit.manifest("bad", bad, path="/bad"))
        return start_gateway("--listen", "127.0.0.1:0", "--workers", str(workers))

    return begin


def test_a_scrape_after_so_many_requests_says_exactly_so_many(start: Any) -> None:
    gateway = start()
    for round_number in range(1, 4):
        for _ in range(20):
            assert gateway.get("/")[0] == 200
        over_h2(gateway.port, 10)
        over_h2(gateway.port, 10)
        for _ in range(5):
            assert gateway.get("/bad")[0] == 502
        for _ in range(3):
            assert b" 400 " in talk(gateway, b"GET / HTTP/1.1\r\nhost: a\r\nbad header: x\r\n\r\n")
        for _ in range(2):
            assert b" 400 " in talk(gateway, b"GET /%00 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        # Nothing is waited for: all this has ended, so it must be there, whichever worker it was.
        series = scrape(gateway)
        requests = "datum_router_requests_total"
        assert total(series, requests, route="default/good", code_class="2xx") == 40 * round_number
        assert total(series, requests, route="default/bad", code_class="5xx") == 5 * round_number
        assert total(series, requests, route="none", code_class="4xx") == 2 * round_number
        assert total(series, requests) == 47 * round_number
        assert total(series, "datum_router_protocol_requests_total", protocol="h2") == 20 * round_number
        assert total(series, "datum_router_protocol_requests_total") == 47 * round_number
        assert total(series, "datum_router_request_duration_seconds_count") == 47 * round_number
        assert total(series, "datum_router_request_duration_seconds_bucket", le="+Inf") == 47 * round_number
        assert total(series, "datum_router_response_body_bytes_total", route="default/good") == 200 * round_number
        assert total(series, "datum_router_request_reasons_total", reason="upstream_reset") == 5 * round_number
        assert total(series, "datum_gateway_rejected_total", proto="h1", reason="bad_header") == 3 * round_number
        assert total(series, "datum_gateway_rejected_total", proto="h1", reason="bad_path") == 2 * round_number
        assert total(series, "datum_gateway_rejected_total") == 5 * round_number
        attempts = total(series, "datum_router_attempts_total", service="default/bad", outcome="gateway_error")
        retries = total(series, "datum_router_retries_total", service="default/bad")
        assert attempts == 5 * round_number + retries
        assert total(series, "datum_router_connections_accepted_total") == 32 * round_number
        opened = total(series, "datum_router_upstream_connections_opened_total", service="default/bad")
        assert opened >= attempts
        assert total(series, "datum_router_scrapes_total") == round_number
        assert total(series, "datum_router_scrape_late_workers_total") == 0


def test_counters_never_go_back_when_workers_are_killed_or_drained(start: Any, kit: Any) -> None:
    gateway = start()
    sent = 0
    highest: Series = {}
    for number in (signal.SIGKILL, signal.SIGTERM):
        for _ in range(30):
            assert gateway.get("/")[0] == 200
            sent += 1
        if number == signal.SIGKILL:
            # What is not reported yet dies with the process: let it be reported.
            assert total(scrape(gateway), "datum_router_requests_total") == sent
        before = gateway.worker_pids()
        for pid in before:
            os.kill(pid, number)
        kit.eventually(lambda before=before: serving(gateway).isdisjoint(before), "the old workers are gone")
        kit.eventually(lambda: len(serving(gateway)) == 2, "two new ones serve")
        for _ in range(10):
            assert gateway.get("/")[0] == 200
            sent += 1
        series = scrape(gateway)
        assert total(series, "datum_router_requests_total") == sent
        assert total(series, "datum_router_attempts_total", outcome="success") == sent
        assert total(series, "datum_router_connections_accepted_total") == sent
        kinds = {metric.name: metric.kind for metric in names.METRICS.values()}
        back = {
            key: (value, series.get(key))
            for key, value in highest.items()
            if kinds.get(key[0], Kind.COUNTER) is Kind.COUNTER and series.get(key, 0) < value
        }
        assert back == {}
        highest = series
    assert total(highest, "datum_router_worker_restarts_total") == 4


def test_a_worker_that_hangs_makes_a_scrape_late_but_not_fail(start: Any, kit: Any) -> None:
    gateway = start()
    for _ in range(20):
        assert gateway.get("/")[0] == 200
    assert total(scrape(gateway), "datum_router_requests_total") == 20
    pid = gateway.worker_pids()[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        series = scrape(gateway)
        took_s = time.monotonic() - started
    finally:
        os.kill(pid, signal.SIGCONT)
    assert total(series, "datum_router_requests_total") == 20, "it is shown as it last reported"
    assert total(series, "datum_router_scrape_late_workers_total") == 1
    assert 0.5 <= took_s < 5
    kit.eventually(
        lambda: total(scrape(gateway), "datum_router_scrape_late_workers_total") == 1, "the worker answers again"
    )


def test_k15_what_clients_send_makes_no_series_and_is_never_shown(start: Any) -> None:
    gateway = start(workers=1)
    warm = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    rounds = 10_000

    def send(messages: list[bytes]) -> None:
        """Send many requests on one connection, in batches; read an answer to each."""
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as sock:
            for begin in range(0, len(messages), 100):
                batch = messages[begin : begin + 100]
                sock.sendall(b"".join(batch))
                data = b""
                while data.count(b"HTTP/1.1 ") < len(batch) or not data.endswith(b"hello"):
                    chunk = sock.recv(65536)
                    assert chunk, data[-300:]
                    data += chunk

    send([warm])
    before = scrape(gateway)
    send(
        [
            b"M%d-%b /%b/%d?q=%b HTTP/1.1\r\nhost: h%d.%b.test\r\nx-%b: %b\r\ncookie: %b\r\nauthorization: %b\r\n\r\n"
            % (index, CANARY.encode().upper(), CANARY.encode(), index, CANARY.encode(), index, *[CANARY.encode()] * 5)
            for index in range(rounds)
        ]
    )
    talk(gateway, b"GET /%b HTTP/1.1\r\n%b header: %b\r\n\r\n" % (*[CANARY.encode()] * 3,))
    talk(gateway, b"%b\r\n\r\n" % CANARY.encode())
    talk(gateway, b"GET / HTTP/1.1\r\nhost: a/%b\r\nconnection: close\r\n\r\n" % CANARY.encode())
    started = time.monotonic()
    text = page(gateway)
    assert time.monotonic() - started <= 1.0
    assert CANARY not in text.lower()
    after = scrape(gateway)
    assert total(after, "datum_router_requests_total", route="default/good", code_class="2xx") == rounds + 1
    new = {key for key in after if key not in before}
    objects = {"default/good", "default/bad", "none", "other"}
    for name, labels in after:
        metric = names.METRICS.get(name, names.REQUEST_DURATION)  # a histogram's three names are none of their own
        closed = {label.name: set(label.values) for label in metric.labels}
        for label, value in labels:
            if label in ("route", "service"):
                assert value in objects
            elif closed.get(label):
                assert value in closed[label]
    assert len(new) < 40, "first refusals, a first request without a route: nothing for each of 10,000"


def test_a_small_configuration_has_a_few_hundred_series(start: Any) -> None:
    gateway = start()
    gateway.get("/")
    gateway.get("/bad")
    over_h2(gateway.port, 1)
    assert 100 < len(scrape(gateway)) < 300


def test_configuration_and_health_are_shown(directory: Path, start: Any, start_backend: Any, kit: Any) -> None:
    backend = start_backend(kit.answer(b"ok"))
    (directory / "probed.yaml").write_text(kit.manifest("probed", backend, path="/probed", health=HEALTH))
    gateway = start()
    kit.eventually(
        lambda: total(scrape(gateway), "datum_router_endpoints", service="default/probed", state="healthy") == 1,
        "the first probe",
    )
    before = scrape(gateway)
    assert total(before, "datum_router_routes") == 3
    assert total(before, "datum_router_config_version") == 1
    assert total(before, "datum_router_diagnostics", severity="error") == 0
    assert total(before, "datum_router_config_reload_failures_total") == 0
    assert 0 <= time.time() - total(before, "datum_router_config_last_reload_success_timestamp_seconds") < 600
    assert total(before, "datum_router_endpoints", service="default/good", state="unknown") == 1
    (directory / "good.yaml").write_text("kind: VPCRoute\n")
    backend.close()
    kit.eventually(lambda: total(scrape(gateway), "datum_router_diagnostics", severity="error") > 0, "the error")
    kit.eventually(
        lambda: total(scrape(gateway), "datum_router_endpoints", service="default/probed", state="unhealthy") == 1,
        "the endpoint is found out",
    )
    after = scrape(gateway)
    assert total(after, "datum_router_config_reload_failures_total") >= 1
    reloaded_at = "datum_router_config_last_reload_success_timestamp_seconds"
    assert total(after, reloaded_at) == total(before, reloaded_at)
    assert total(after, "datum_router_probes_total") > total(before, "datum_router_probes_total")
    assert total(after, "datum_router_health_changes_total", change="probe_failed") == 1
    assert total(after, "datum_router_workers_up") == 2
    for process in ("supervisor", "worker-0", "worker-1"):
        assert total(after, "datum_router_process_resident_memory_bytes", process=process) > 10_000_000
        assert total(after, "datum_router_process_open_fds", process=process) > 3
        assert total(after, "datum_router_process_cpu_seconds_total", process=process) > 0


def test_head_and_other_methods(start: Any) -> None:
    gateway = start(workers=1)
    host, port = gateway.admin.removeprefix("http://").split(":")
    for method, status, is_empty in ((b"HEAD", b" 200 ", True), (b"POST", b" 405 ", False)):
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(b"%b /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n" % method)
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        assert status in head
        assert (body == b"") == is_empty


def promtool() -> str:
    unpacked = REPOSITORY / ".run" / "tools" / "promtool"
    found = str(unpacked) if unpacked.exists() else shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not there: `make promtool` unpacks it from Debian's package prometheus")
    return found


def test_promtool_finds_nothing_to_say(start: Any) -> None:
    tool = promtool()
    gateway = start()
    gateway.get("/")
    gateway.get("/bad")
    over_h2(gateway.port, 1)
    done = subprocess.run([tool, "check", "metrics"], input=page(gateway), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
