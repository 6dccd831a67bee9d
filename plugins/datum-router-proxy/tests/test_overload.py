"""Threats E7, E8 and E10: levels of memory pressure, limits of a container, descriptors, and the worst lag."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from datum_router.model.snapshot import Holder
from datum_router_proxy import dataplane, memory, plugin
from datum_router_proxy.memory import CONTAINER_LIMIT, MemoryGauge, needed_descriptors, raise_descriptor_limit
from datum_router_proxy.overload import LAG_WINDOW_S, Pressure, RecentWorst, pressure
from datum_router_proxy.testing_peers import Recorder, make_snapshot


@pytest.mark.parametrize(
    ("used", "before", "expected"),
    [
        (949, Pressure.NONE, Pressure.NONE),
        (950, Pressure.NONE, Pressure.SHED),
        (945, Pressure.SHED, Pressure.SHED),
        (939, Pressure.SHED, Pressure.NONE),
        (979, Pressure.SHED, Pressure.SHED),
        (980, Pressure.NONE, Pressure.REFUSE),
        (971, Pressure.REFUSE, Pressure.REFUSE),
        (969, Pressure.REFUSE, Pressure.SHED),
        (945, Pressure.REFUSE, Pressure.SHED),
        (100, Pressure.REFUSE, Pressure.NONE),
        (5000, Pressure.NONE, Pressure.REFUSE),
    ],
)
def test_e8_levels_begin_at_95_and_98_percent_and_end_one_below(
    used: int, before: Pressure, expected: Pressure
) -> None:
    assert pressure(used, 1000, before) is expected


def test_e8_without_a_limit_there_is_no_pressure() -> None:
    assert pressure(1 << 40, 0, Pressure.REFUSE) is Pressure.NONE


def group(path: Path, limit: str, current: int = 0, inactive: int = 0) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{current}\n")
    (path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")
    return path


def test_e8_the_tightest_limit_above_the_process_counts_less_what_the_kernel_can_drop(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root / "pod", "1000", current=700, inactive=100)
    group(root / "pod" / "container", "max", current=500)
    membership = tmp_path / "self"
    membership.write_text("1:cpu:/else\n0::/pod/container\n")
    gauge = MemoryGauge(CONTAINER_LIMIT, root=root, membership=membership)
    assert (gauge.limit, gauge.used()) == (1000, 600)
    group(root / "pod" / "container", "800", current=500)
    gauge = MemoryGauge(CONTAINER_LIMIT, root=root, membership=membership)
    assert (gauge.limit, gauge.used()) == (800, 500)


@pytest.mark.parametrize("line", ["0::/gone\n", "4:memory:/old\n", None])
def test_e8_no_container_is_no_limit(tmp_path: Path, line: str | None) -> None:
    membership = tmp_path / "self"
    if line is not None:
        membership.write_text(line)
    assert MemoryGauge(CONTAINER_LIMIT, root=tmp_path, membership=membership).limit == 0


def test_e8_a_stated_limit_is_compared_with_resident_memory() -> None:
    gauge = MemoryGauge(1 << 40)
    assert gauge.limit == 1 << 40
    assert 5 << 20 < gauge.used() < 1 << 40


def test_e10_the_worst_is_remembered_for_one_to_two_windows() -> None:
    worst = RecentWorst()
    assert worst.worst(0.0) == 0.0
    worst.note(0.2, 1.0)
    worst.note(0.1, 2.0)
    assert worst.worst(3.0) == 0.2
    assert worst.worst(1.0 + LAG_WINDOW_S) == 0.2
    worst.note(0.05, 2.0 + LAG_WINDOW_S)
    assert worst.worst(1.0 + 2 * LAG_WINDOW_S) == 0.05
    assert worst.worst(100 * LAG_WINDOW_S) == 0.0


@pytest.fixture
def rlimits(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, int]]:
    """Return the limits of the process, soft and hard, which can be set."""
    limits = {resource.RLIMIT_NOFILE: (1024, 4096)}
    monkeypatch.setattr(memory.resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(memory.resource, "setrlimit", limits.__setitem__)
    return limits


def test_e7_the_descriptor_limit_is_raised_as_far_as_it_goes(rlimits: dict[int, tuple[int, int]]) -> None:
    assert raise_descriptor_limit(2000) == 2000
    assert rlimits[resource.RLIMIT_NOFILE] == (2000, 4096)
    assert raise_descriptor_limit(needed_descriptors(50_000)) == 4096
    assert rlimits[resource.RLIMIT_NOFILE] == (4096, 4096)
    rlimits[resource.RLIMIT_NOFILE] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert raise_descriptor_limit(10**9) == resource.RLIM_INFINITY


def test_e7_a_shortage_of_descriptors_is_said_when_settings_are_checked_and_by_no_worker(
    rlimits: dict[int, tuple[int, int]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataplane, "ProxyDataPlane", lambda *_arguments: None)
    spec = plugin.datum_router_data_planes()[0]
    assert spec.validate is not None
    spec.validate({"max_connections": "2000"})
    assert caplog.records == [], "4,064 can be had"
    spec.validate({})
    assert [(record.__dict__["limit"], record.__dict__["needed"]) for record in caplog.records] == [(4096, 100_064)]
    caplog.clear()
    spec.create(Holder(make_snapshot((), ())), Recorder(), {})
    assert rlimits[resource.RLIMIT_NOFILE] == (4096, 4096)
    assert caplog.records == []
    rlimits[resource.RLIMIT_NOFILE] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    spec.validate({})
    assert caplog.records == []
