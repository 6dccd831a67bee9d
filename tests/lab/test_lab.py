"""What of the lab needs neither root nor SRv6: its plan, what it reads off the wire, what it says if it cannot run."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import __main__ as lab_main
from lab import cluster, network, plan, processes, shell, story, traffic, verdict
from tests.cluster import plane

REPOSITORY = Path(__file__).resolve().parents[2]
OUTER = ipaddress.ip_address("2001:db8:a::2").packed + ipaddress.ip_address("fc00:0:2::4d2:2").packed
SEGMENTS = bytes((41, 2, 4, 0, 0, 0, 0, 0)) + ipaddress.ip_address("fc00:0:2::4d2:2").packed


def packet(inner: bytes, *, next_header: int = 43, segments: bytes = SEGMENTS) -> bytes:
    return b"\x60\x00\x00\x00\x00\x00" + bytes((next_header, 64)) + OUTER + segments + inner


def test_an_ipv6_packet_in_srv6_is_read() -> None:
    inner = b"\x60" + b"\x00" * 7 + ipaddress.ip_address("fd10:1:1::2").packed
    found = traffic.read_segment_routed(packet(inner + ipaddress.ip_address("fd10:1:2::10").packed))
    assert found == traffic.SegmentRouted("2001:db8:a::2", "fc00:0:2::4d2:2", "fd10:1:1::2", "fd10:1:2::10")


def test_an_ipv4_packet_in_srv6_is_read() -> None:
    found = traffic.read_segment_routed(packet(b"\x45" + b"\x00" * 11 + bytes((10, 1, 1, 2, 10, 1, 2, 10))))
    assert found == traffic.SegmentRouted("2001:db8:a::2", "fc00:0:2::4d2:2", "10.1.1.2", "10.1.2.10")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x45" + b"\x00" * 60,
        packet(b"\x60" + b"\x00" * 39, next_header=6),
        packet(b"\x60" + b"\x00" * 39, segments=bytes((41, 2, 3)) + SEGMENTS[3:]),
        packet(b"\x60" + b"\x00" * 10),
        packet(b""),
    ],
)
def test_other_packets_are_not_srv6(data: bytes) -> None:
    assert traffic.read_segment_routed(data) is None


def test_the_tenants_have_the_same_addresses_and_no_segment_in_common() -> None:
    for one, other in zip(*([pod for pod in plan.BACKENDS if pod.tenant is t] for t in plan.TENANTS), strict=True):
        assert (one.ipv4, one.ipv6) == (other.ipv4, other.ipv6)
    assert len({pod.ipv6 for pod in plan.CLIENTS}) == 1
    segments = [segment for pod in plan.PODS for segment in (pod.segment4, pod.segment6)]
    assert len(set(segments)) == len(segments)


def test_a_segment_lies_in_its_nodes_network_and_ends_in_the_identifiers() -> None:
    for pod in plan.PODS:
        for segment in (pod.segment4, pod.segment6):
            address = ipaddress.IPv6Address(segment)
            assert address in ipaddress.ip_network(pod.node.locator)
            assert int(address) & (1 << 64) - 1 == pod.tenant.vpc << 16 | pod.attachment


def test_manifests_and_plan_say_the_same() -> None:
    for pod in (*plan.GATEWAYS, *plan.BACKENDS):
        objects = {
            (one["kind"], one["metadata"]["name"]): one
            for one in cluster.documents(cluster.MANIFESTS / pod.node.name)
            if one["metadata"].get("namespace") == pod.tenant.name
        }
        assert objects["VPC", "net"]["status"]["identifier"] == f"{pod.tenant.vpc:012x}"
        attachment = objects["VPCAttachment", "gateway" if pod in plan.GATEWAYS else pod.node.name]
        assert attachment["spec"]["interface"] == {
            "name": pod.interface,
            "addresses": [f"{pod.ipv4}/24", f"{pod.ipv6}/64"],
        }
        assert attachment["status"] == {"ready": True, "identifier": f"{pod.attachment:04x}"}


def test_what_a_cloud_exports_is_asked_for_in_aws() -> None:
    def services(node: plan.Node) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (one["metadata"]["namespace"], one["metadata"]["name"]): one["spec"]
            for one in cluster.documents(cluster.MANIFESTS / node.name)
            if one["kind"] == "VPCService"
        }

    asked = services(plan.AWS)
    assert all(spec["discovery"] == {"method": "endpointslice"} for spec in asked.values())
    exported = [services(node) for node in plan.REMOTES]
    assert {name for one in exported for name in one} == asked.keys()
    for one in exported:
        for name, spec in one.items():
            assert spec["exportTo"] == {"clusters": "All"}
            assert (spec["port"], spec["protocol"]) == (asked[name]["port"], asked[name]["protocol"])


@pytest.mark.parametrize("cloud", [one.name for one in plan.CLOUDS])
def test_the_manifests_are_taken_as_they_are(cloud: str) -> None:
    """Those of AWS alone have no endpoints: they come from the other clusters."""
    command = [sys.executable, "-m", "datum_router_cli", "check", "--strict", f"lab/manifests/{cloud}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    found = [line for line in done.stdout.splitlines() if ": error: " in line or ": warning: " in line]
    assert [line for line in found if "[NoEndpoints]" not in line] == [], done.stdout + done.stderr
    assert len(found) == (4 if cloud == plan.AWS.name else 0)


def test_what_is_written_as_status_is_what_galactic_writes() -> None:
    for node in plan.CLOUDS:
        kinds = {one["kind"] for one in cluster.documents(cluster.MANIFESTS / node.name) if "status" in one}
        assert kinds == cluster.GALACTIC_KINDS


def test_the_map_shows_every_node_and_is_straight() -> None:
    lines = plan.draw_map().splitlines()
    for node in plan.NODES:
        assert any(node.locator in line for line in lines)
    assert {len(line) for line in lines if line.startswith(("+", "="))} == {88}


def test_the_access_log_is_read() -> None:
    text = (
        "not json\n"
        "[]\n"
        '{"time": "2026-01-02T03:04:06.500Z", "message": "x", "route": "a/b"}\n'
        '{"time": "2026-01-02T03:04:06.500Z", "route": "a/b", "duration_ms": 500.0, "status": 200, "endpoint": "e",'
        ' "attempts": 2}\n'
        '{"time": "2026-01-02T03:04:06.500Z", "route": "a/c", "duration_ms": 1, "status": 200, "endpoint": "e"}\n'
    )
    assert verdict.read_log(text, "a/b") == [verdict.Logged(1767323046.0, 200, "e", 2)]
    assert verdict.read_log(text, "a/b", skew_s=1767323000.0) == [verdict.Logged(46.0, 200, "e", 2)]


@pytest.mark.parametrize(("ci", "check", "status"), [("", "--check", 0), ("true", "--check", 1), ("", "", 1)])
def test_where_it_cannot_run_it_says_what_is_missing(
    ci: str, check: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr("sys.argv", ["lab", *filter(None, [check])])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert lab_main.main() == status
    assert capsys.readouterr().out == (
        "the lab needs what is not here: the program `ip`: install iproute2 (apt-get install iproute2)\n"
    )


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/sbin/ip")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert network.missing().startswith("root, for network namespaces")


def test_without_the_clusters_programs_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plane, "PROGRAMS", tmp_path)
    for name in ("etcd", "kube-apiserver"):
        (tmp_path / name).touch(mode=0o755)
    assert cluster.programs_missing() == (
        "kubectl in .run/cluster: install Go, and `make .run/cluster` builds etcd, kube-apiserver and kubectl"
    )
    (tmp_path / "kubectl").touch(mode=0o755)
    assert cluster.programs_missing() == ""


def test_only_what_labs_that_have_ended_left_is_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left, used, others = "99999999", str(os.getpid()), "of-others"
    for owner in (left, used, others):
        (tmp_path / f"srp-{owner}-aws").touch()
        (tmp_path / f"datum-router-lab-{owner}-x").mkdir()
    asked: list[tuple[str, ...]] = []
    killed: list[int] = []

    def ip(*arguments: str) -> str:
        asked.append(arguments)
        return "4194305\n" if arguments[1] == "pids" else ""

    monkeypatch.setattr(network, "_RUN", tmp_path)
    monkeypatch.setattr(network, "ip", ip)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "kill", lambda process, _: killed.append(process))
    network.delete_leftovers()
    assert asked == [("netns", "pids", "srp-99999999-aws"), ("netns", "del", "srp-99999999-aws")]
    assert killed == [4194305]
    assert {one.name for one in tmp_path.glob("datum-*")} == {f"datum-router-lab-{one}-x" for one in (used, others)}


def test_what_is_left_to_try_is_shell_that_works(tmp_path: Path) -> None:
    """Every function is run, with an `ip` that only says what it was asked for."""
    ip = tmp_path / "ip"
    ip.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    ip.chmod(0o755)
    (tmp_path / "try.sh").write_text(shell.functions({"gcp": ["/a dir/kubectl", "--kubeconfig", "/x"]}))
    script = ". ./try.sh; ask blue /shop; inside aws ip -6 rule; gcp get pods -A; cut; mend"
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    name = f"srp-{os.getpid()}"
    rules = ["iif gcp", "to fc00:0:2::/48", "to 2001:db8:c::/48"]
    assert [line for line in done.stdout.splitlines() if line] == [
        f"netns exec {name}-visitor curl -sSg -i -H Host: blue.example.com http://[2001:db8:a:80::80]:8080/shop",
        f"netns exec {name}-aws ip -6 rule",
        f"netns exec {name}-gcp /a dir/kubectl --kubeconfig /x get pods -A",
        *(f"-n {name}-net -6 rule add {way} blackhole pref 10" for way in rules),
        *(f"-n {name}-net -6 rule del {way} blackhole pref 10" for way in rules),
    ]


def test_if_one_of_several_things_fails_the_others_are_made_to_end() -> None:
    is_aborted = threading.Event()
    aborts: list[bool] = []

    def fail() -> None:
        raise network.LabError("broken")

    def abort() -> None:
        aborts.append(True)
        if len(aborts) == 2:  # it was just about to start something when it was told first
            is_aborted.set()

    with pytest.raises(network.LabError, match="broken"):
        cluster.together([fail, is_aborted.wait], abort=abort)
    assert len(aborts) == 2


def test_several_things_that_go_well_are_waited_for() -> None:
    done: list[int] = []
    cluster.together([lambda: done.append(1), lambda: done.append(2)], abort=pytest.fail)
    assert sorted(done) == [1, 2]


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[processes.Processes]:
    """Give processes that are started where the test is."""
    monkeypatch.setattr(processes, "inside_command", lambda _, command: command)
    made = processes.Processes(tmp_path)
    yield made
    made.stop()


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_a_process_that_ends_too_soon_is_told_with_the_end_of_its_log(children: processes.Processes) -> None:
    children.start("gateway", "here", python("import sys; sys.exit('no such setting')"))
    with pytest.raises(network.LabError, match="gateway ended before it was ready: no such setting"):
        children.wait_ready("gateway", lambda: False)


def test_a_process_that_is_never_ready_is_told_with_the_end_of_its_log(
    children: processes.Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "START_TIMEOUT_S", 0.0)
    children.start("gateway", "here", python("import time; time.sleep(60)"))
    with pytest.raises(network.LabError, match="not within 0 s: gateway is ready; its log ends with: "):
        children.wait_ready("gateway", lambda: False)


def test_what_a_process_prints_and_says_is_kept_and_it_has_its_environment(children: processes.Processes) -> None:
    script = "import os, sys; print(os.environ['WORD']); sys.stderr.write('said')"
    children.start("one", "here", python(script), env={"WORD": "printed"})
    traffic.wait_for("both are there", lambda: children.log("one").read_text() == "said")
    children.stop("one")
    assert children.output("one").read_text() == "printed\n"


def test_a_process_that_does_not_want_to_end_is_killed(
    children: processes.Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "END_TIMEOUT_S", 0.0)
    script = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    children.start("stubborn", "here", python(script))
    traffic.wait_for("it ignores SIGTERM", lambda: children.output("stubborn").read_text().endswith("\n"))
    children.stop()
    assert not Path(f"/proc/{children.output('stubborn').read_text().strip()}").exists()


def test_a_step_that_cannot_go_on_is_the_last_and_logs_are_shown_without_requests(
    children: processes.Processes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(_lab: story.Lab, _say: story.Say) -> list[str]:
        raise network.LabError("not within 60 s: something")

    for name in lab_main.SHOWN_LOGS:
        children.log(name).write_text(f"{name} starts\na request of datum_router.access\n")
    monkeypatch.setattr(lab_main, "whole_lab", lambda: contextlib.nullcontext(story.Lab({}, children)))
    steps = (("first", lambda *_: ["is wrong"]), ("second", breaks), ("third", lambda *_: pytest.fail("is not run")))
    monkeypatch.setattr(lab_main, "STEPS", steps)
    assert lab_main.show() == ["is wrong", "not within 60 s: something"]
    printed = capsys.readouterr().out
    assert "\n1. first\n\n2. second\n" in printed
    assert "last lines of discovery's log:\ndiscovery starts\n" in printed
    assert "datum_router.access" not in printed
