"""The plan, the command line, the manifests, and our gateway as the harness runs it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import pytest

from datum_router_cli.load import load_directory
from gatebench import manifests, state
from gatebench.bars import BARS
from gatebench.cli import TITLES, UNITS, main, parse_options
from gatebench.measures import MEASURES, Measure, Stage
from gatebench.processes import BenchError, Child, cpu_seconds, free_ports, memory_bytes, session_of
from gatebench.proxies import HOST, PEERS, Site, fill, make_certificate, start_proxy
from gatebench.runner import Plan, half_of_envoy, run_measure
from gatebench.samples import Sample
from gatebench.tools import Load


def test_every_bar_is_about_a_measure_that_its_proxies_take_part_in():
    part = {measure.key: measure.proxies for measure in MEASURES}
    for bar in BARS:
        assert bar.measure in TITLES
        for name in (bar.proxy, *bar.against):
            assert name in part.get(bar.base or bar.measure, ("datum",))


def test_every_measure_has_a_unit_that_tables_know():
    assert set(UNITS.values()) <= {"requests/s", "bytes/s", "us", "bytes", "s"}


def test_a_full_run_keeps_its_bound():
    options = parse_options([])
    plan = Plan(measures=MEASURES, proxies=options.proxies, rounds=options.rounds)
    assert plan.estimate_s(options.seconds) < 30 * 60


def test_proxies_that_were_not_asked_for_are_left_out():
    workers = next(measure for measure in MEASURES if measure.key == "workers")
    assert Plan(measures=MEASURES, proxies=["datum"], rounds=1).takes_part(workers) == ["datum", "datum-2w"]
    assert Plan(measures=MEASURES, proxies=["envoy"], rounds=1).takes_part(workers) == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--only", "h3"], "h3: not one of h1,"),
        (["--proxies", "squid"], "squid: not one of datum,"),
        (["--rounds", "0"], "at least 1"),
        (["--seconds", "0.5"], "at least 1"),
    ],
)
def test_unknown_names_and_useless_numbers_are_refused(arguments, why, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_comparing_a_file_that_is_not_there_says_so(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "a.json" in capsys.readouterr().out


def test_a_tail_is_measured_more_often_than_a_median():
    plan = Plan(measures=MEASURES, proxies=("datum",), rounds=5)
    rounds = {measure.key: plan.rounds_of(measure) for measure in MEASURES}
    assert (rounds["latency"], rounds["h1"], rounds["memory-idle"]) == (15, 5, 1)


def test_half_of_envoy_is_of_good_rounds_of_h1_alone():
    samples = [
        Sample(measure="h1", proxy="envoy", round=1, value=1000),
        Sample(measure="h1", proxy="envoy", round=2, value=3000, errors=1),
        Sample(measure="h2", proxy="envoy", round=1, value=9000),
        Sample(measure="h1", proxy="nginx", round=1, value=9000),
    ]
    assert half_of_envoy(samples) == 500
    assert half_of_envoy(samples[1:]) == 0


@pytest.mark.parametrize(
    "name", sorted(path.name for path in PEERS.iterdir() if path.suffix in (".conf", ".cfg", ".yaml"))
)
def test_templates_have_no_other_placeholders_than_the_harness_fills(name):
    names = ("DIR", "HTTP1", "HTTP2", "TLS", "UPSTREAM", "GRPC_UPSTREAM", "CERT", "KEY", "PEM", "PORT", "KIB", "BODIES")
    left = fill(name, dict.fromkeys(names, "1"))
    assert not [word for word in left.replace("@type", "").split() if word.count("@") > 1]


def test_manifests_are_good_and_all_in_force(tmp_path):
    certificate, key, _ = make_certificate(tmp_path)
    directory = tmp_path / "manifests"
    directory.mkdir()
    manifests.write_services(directory, http_port=1, grpc_port=2)
    manifests.write_routes(directory, 50)
    manifests.write_ingress(directory, http_port=3, https_port=4, certificate=certificate, key=key)
    edited = manifests.other_route(state.EDITED, version="7")
    (directory / "edited.yaml").write_text(edited)
    loaded = load_directory(str(directory))
    assert not loaded.diagnostics
    assert len(loaded.data.rules) == 50 + 2 + 1
    assert not [line for line in edited.splitlines() if "methods" in line or "headers" in line]


class _Kib(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "1024")
        self.end_headers()
        self.wfile.write(b"x" * 1024)

    def log_message(self, *_arguments: object) -> None:
        return


@pytest.fixture
def site(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Kib)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    certificate, key, pem = make_certificate(tmp_path)
    yield Site(
        scratch=tmp_path,
        http_port=server.server_port,
        grpc_port=free_ports(1)[0],
        certificate=certificate,
        key=key,
        pem=pem,
        bodies=tmp_path,
        bench_bin=Path(sys.executable).parent,
        datum=Path(sys.executable).parent / "datum-router",
    )
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.e2e
def test_our_gateway_serves_is_pinned_and_takes_an_edit(site):
    proxy = start_proxy("datum", site, routes=40)
    try:
        client = state.Client(proxy.ports["http1"])
        assert client.get("/users/42", HOST).startswith(b"HTTP/1.1 200")
        client.sock.close()
        (worker,) = proxy.serving()
        assert os.sched_getaffinity(worker) == {0}
        assert proxy.child.pid in proxy.everything()
        assert worker in proxy.everything()
        assert cpu_seconds([worker]) > 0
        rss, pss = memory_bytes([worker])
        assert rss >= pss > 2**20
        load = state.edits(proxy, count=1, route=21)
        assert (load.requests, load.errors) == (1, 0)
        assert load.figure is not None
        assert load.figure > 0
    finally:
        proxy.stop()
    assert not session_of(proxy.child.pid)


@pytest.mark.e2e
def test_a_proxy_that_does_not_start_fails_its_row_and_no_other(site, tmp_path):
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "envoy").write_text("#!/bin/sh\necho cannot start >&2\nexit 3\n")
    (broken / "envoy").chmod(0o755)
    measure = Measure(
        key="own",
        title="",
        unit="requests/s",
        proxies=("envoy", "datum"),
        drive=lambda _stage, _proxy, _seconds: Load(requests=10, errors=0, duration_s=1.0),
        routes=20,
    )
    stage = Stage(
        site=replace(site, bench_bin=broken), vegeta="", uris=tmp_path / "u", message=tmp_path / "m", seconds=1.0
    )
    told: list[Sample] = []
    plan = Plan(measures=[measure], proxies=["envoy", "datum"], rounds=2)
    samples = run_measure(measure, plan, stage, told.append)
    assert samples == told
    assert [(item.round, item.proxy, item.is_good) for item in samples] == [
        (1, "envoy", False),
        (1, "datum", True),
        (2, "envoy", False),
        (2, "datum", True),
    ]
    assert "ended with status 3: cannot start" in samples[0].error


def test_a_child_that_ignores_sigterm_is_killed_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr("gatebench.processes.STOP_PATIENCE_S", 0.2)
    script = "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + (
        "subprocess.Popen(['sleep', '60']); print('up', flush=True); signal.pause()"
    )
    child = Child("stubborn", [sys.executable, "-c", script], core=0, log=tmp_path / "log")
    while "up" not in child.log.read_text():
        assert child.process.poll() is None
    assert len(session_of(child.pid)) == 2
    (grandchild,) = session_of(child.pid) - {child.pid}
    descriptor = os.pidfd_open(grandchild)
    child.stop()
    assert child.process.returncode == -signal.SIGKILL
    assert select.select([descriptor], [], [], 10)[0], "the grandchild was not killed"  # a killed one takes a moment
    os.close(descriptor)
    # The grandchild is init's now; it is gone, or waits to be reaped.
    left = [pid for pid in session_of(child.pid) if Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"]
    assert not left


def test_a_child_that_ends_early_is_reported_with_its_log(tmp_path):
    child = Child("short", ["sh", "-c", "echo no such option; exit 4"], core=0, log=tmp_path / "log")
    with pytest.raises(BenchError, match="short ended with status 4: no such option"):
        child.wait_for_port(1)
    child.stop()


def test_a_port_that_a_closed_connection_of_another_address_holds_is_not_free():
    """Clients of many addresses leave thousands of them behind, which a proxy on all addresses meets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []
        for _ in range(20):
            client = socket.create_connection(server.getsockname()[:2], source_address=("127.0.1.1", 0))
            peer, _ = server.accept()
            held.append(client.getsockname()[1])
            client.close()  # first, so that it is the client's side that waits (RFC 9293 section 3.6.1)
            assert peer.recv(1) == b""
            peer.close()
        offered = iter([*held, 0])

        def create_server(address: tuple[str, int]) -> socket.socket:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for port in offered:  # what the kernel could have offered
                with contextlib.suppress(OSError):
                    listener.bind((address[0], port))
                    break
            return listener

        with mock.patch("gatebench.processes.socket.create_server", create_server):
            (port,) = free_ports(1)
        assert port not in held


def test_children_do_not_outlive_a_harness_that_is_killed(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from gatebench.processes import Child\n"
        "child = Child('sleeper', ['sleep', '60'], core=0, log=Path(sys.argv[2]))\n"
        "print(child.pid, flush=True); child.process.wait()\n"
    )
    command = [sys.executable, "-c", script, str(PEERS.parent), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        descriptor = os.pidfd_open(pid)
        parent.kill()
        # Killed outright, the harness can end nothing itself: its children get SIGTERM from the kernel, or see
        # for themselves that it is gone.
        assert select.select([descriptor], [], [], 10)[0], "the child outlived the harness"
        os.close(descriptor)


def test_a_child_whose_harness_is_gone_before_it_asked_ends_at_once(tmp_path):
    script = (
        "import os, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from gatebench.processes import pinned\n"
        "command = pinned(0, ['touch', sys.argv[2]])\n"
        "if os.fork() == 0:\n"
        "    os.read(0, 1)\n"  # returns when this test closes the pipe: the harness has been waited for by then
        "    os.execvp(command[0], command)\n"
    )
    started = tmp_path / "started"
    command = [sys.executable, "-c", script, str(PEERS.parent), str(started)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.wait(10) == 0
        parent.stdin.close()
        assert parent.stdout.read() == b""  # the end of the child's output: it has ended
    assert not started.exists(), "a child began its work without a harness"
