"""What of the lab needs neither root nor SRv6: its plan, what it reads off the wire, what it says if it cannot run."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import network, plan, story, traffic
from lab.__main__ import main

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
    for tenant in plan.TENANTS:
        text = (REPOSITORY / "lab" / "manifests" / f"{tenant.name}.yaml").read_text()
        assert f'identifier: "{tenant.vpc:012x}"' in text
        for pod in plan.PODS:
            if pod.tenant is tenant and pod not in plan.CLIENTS:
                assert f'addresses: [{pod.ipv4}/24, "{pod.ipv6}/64"]' in text
                assert f'identifier: "{pod.attachment:04x}"' in text


def test_the_manifests_pass_the_strict_check() -> None:
    command = [sys.executable, "-m", "datum_router_cli", "check", "--strict", "lab/manifests"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_map_shows_every_node_and_is_straight() -> None:
    lines = plan.draw_map().splitlines()
    for node in plan.NODES:
        assert any(node.locator in line for line in lines)
    assert {len(line) for line in lines if line.startswith(("+", "="))} == {88}


def test_the_access_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    log.write_text(
        "not json\n"
        '{"time": "2026-01-02T03:04:06.500Z", "message": "x", "route": "a/b"}\n'
        '{"time": "2026-01-02T03:04:06.500Z", "route": "a/b", "duration_ms": 500.0, "status": 200, "endpoint": "e",'
        ' "attempts": 2}\n'
        '{"time": "2026-01-02T03:04:06.500Z", "route": "a/c", "duration_ms": 1, "status": 200, "endpoint": "e"}\n'
    )
    assert story.read_log(log, "a/b") == [story.Logged(1767323046.0, 200, "e", 2)]


@pytest.mark.parametrize(("ci", "check", "status"), [("", "--check", 0), ("true", "--check", 1), ("", "", 1)])
def test_where_it_cannot_run_it_says_what_is_missing(
    ci: str, check: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr("sys.argv", ["lab", *filter(None, [check])])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert main() == status
    assert capsys.readouterr().out == (
        "the lab needs what is not here: the program `ip`: install iproute2 (apt-get install iproute2)\n"
    )


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/sbin/ip")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert network.missing().startswith("root, for network namespaces")


def test_only_namespaces_of_labs_that_have_ended_are_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("srp-99999999-aws", f"srp-{os.getpid()}-aws", "srp-of-others", "other"):
        (tmp_path / name).touch()
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(network, "_RUN", tmp_path)
    monkeypatch.setattr(network, "ip", lambda *arguments: asked.append(arguments))
    network.delete_leftovers()
    assert asked == [("netns", "del", "srp-99999999-aws")]
