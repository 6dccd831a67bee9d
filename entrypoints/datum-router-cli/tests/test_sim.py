"""`datum-router sim`: what it prints, the same each time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import datum_router_cli.sim as module
from datum_router_cli.commands import cli

SHORT = ["sim", "retry-storm", "--rate", "60", "--fault", "4", "--after", "6"]


def test_json_holds_both_ways_and_the_storm_happens_in_one_of_them() -> None:
    result = CliRunner().invoke(cli, [*SHORT, "--output", "json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(found) == {"per_hop", "budgeted"}
    assert set(found["per_hop"]) == set(found["budgeted"]) == {"attempts_per_arrival", "recovery_s", "recovered"}
    assert found["budgeted"]["attempts_per_arrival"] <= 1.2
    assert found["per_hop"]["attempts_per_arrival"] > 10 * found["budgeted"]["attempts_per_arrival"]
    assert found["budgeted"]["recovered"]
    assert found["per_hop"]["recovery_s"] > found["budgeted"]["recovery_s"]


def test_text_shows_a_chart_and_says_what_it_means() -> None:
    first, again = (CliRunner().invoke(cli, SHORT) for _ in range(2))
    assert first.stdout == again.stdout, "the same seed gives the same result"
    lines = first.stdout.splitlines()
    assert lines[0] == "5 gateways, up to 2 retries each; the service fails for 4 s"
    assert max(len(line) for line in lines) <= 100
    assert lines[-2].startswith("per hop: ")
    assert lines[-1].startswith("budgeted: 1.")
    assert lines[-1].endswith(", well again after 0 s")


def test_progress_is_told_on_standard_error_once_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.6
        return now

    monkeypatch.setattr(module.time, "monotonic", clock)
    result = CliRunner().invoke(cli, [*SHORT, "--hops", "1", "--output", "json"])
    json.loads(result.stdout)
    assert "per hop: 4 of 20 s simulated\n" in result.stderr
    assert "budgeted: 20 of 20 s simulated\n" in result.stderr
    assert "21 of" not in result.stderr


def test_a_mistyped_simulation_gets_the_nearest_one() -> None:
    result = CliRunner().invoke(cli, ["sim", "retry-strom"])
    assert result.exit_code == 2
    assert "retry-storm" in result.stderr


def test_the_command_line_starts_without_the_simulation() -> None:
    code = "import sys, datum_router_cli.commands; print('datum_router.sim.retry_storm' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "False"
