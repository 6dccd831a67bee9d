from __future__ import annotations

from pathlib import Path

import pytest
from datum_router_discovery import __main__ as discovery
from datum_router_discovery.settings import HELP, settings

from datum_router.errors import ConfigError
from datum_router_runtime.discovery import SOME_KUBECONFIG
from datum_router_runtime.discoverysettings import DISCOVERY_NAMES, DiscoverySettings
from datum_router_runtime.settings import Address


def test_help_says_what_it_is_and_names_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert discovery.main(["--help"]) == 0
    assert capsys.readouterr().out == HELP
    assert all(variable in HELP for variable in DISCOVERY_NAMES)


def test_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert discovery.main(["--leader"]) == 2
    assert "found argument '--leader', expected none" in capsys.readouterr().err


def test_the_environment_says_everything() -> None:
    found = settings(
        {
            "DISCOVERY_INTERVAL_SECS": "10",
            "DISCOVERY_STALE_SECS": "0",
            "DISCOVERY_REMOVED_SECS": "0.5",
            "DISCOVERY_REMOTE_CONFIG": "maxObjects=5, maxBytes=7",
            "DATUM_ROUTER_NAMESPACES": "a,b",
            "DATUM_ROUTER_SOURCE_CONFIG": "writeQps=100",
            "DATUM_ROUTER_PROBES": ":8081",
            "DATUM_ROUTER_ADMIN": "127.0.0.1:9901",
            "DATUM_ROUTER_IDENTITY": "me",
        }
    )
    assert found == DiscoverySettings(
        source_config={"role": "discovery", "namespaces": "a,b", "writeQps": "100"},
        interval_s=10.0,
        stale_s=0.0,
        removed_s=0.5,
        remote_config={"maxObjects": "5", "maxBytes": "7"},
        probes=Address(host="0.0.0.0", port=8081),
        admin=Address(host="127.0.0.1", port=9901),
        identity="me",
    )


def test_an_empty_environment_is_a_daemon_in_a_cluster() -> None:
    found = settings({})
    assert found == DiscoverySettings(source_config={"role": "discovery"})
    assert (found.interval_s, found.lease) == (30.0, "router-discovery")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("DISCOVERY_INTERVAL_SECS", "often", "DISCOVERY_INTERVAL_SECS: found 'often', expected seconds such as 30"),
        ("DISCOVERY_INTERVAL_SECS", "nan", "DISCOVERY_INTERVAL_SECS: found 'nan'"),
        ("DISCOVERY_INTERVAL_SECS", "0", "DISCOVERY_INTERVAL_SECS: found 0, expected 0.1 to 3600"),
        ("DISCOVERY_STALE_SECS", "-1", "DISCOVERY_STALE_SECS: found -1, expected 0 to"),
        (
            "DISCOVERY_REMOTE_CONFIG",
            "maxObject=1",
            r"DISCOVERY_REMOTE_CONFIG: found maxObject \(did you mean maxObjects\?\)",
        ),
        (
            "DISCOVERY_REMOTE_CONFIG",
            "kubeconfig=/x",
            "DISCOVERY_REMOTE_CONFIG: found kubeconfig .expected some of maxObjects",
        ),
        ("DISCOVERY_REMOTE_CONFIG", "many", "DISCOVERY_REMOTE_CONFIG: found"),
        ("DATUM_ROUTER_ADMIN", ":9901", "expected a loopback address"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        settings({variable: value})


def test_settings_that_cannot_work_end_it_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATUM_ROUTER_SOURCE", "kubernets")
    assert discovery.main([]) == 2
    assert "source 'kubernets' is not installed" in capsys.readouterr().err


def test_misspelt_variables_are_told_by_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATUM_ROUTER_SOURCE", "kubernets")  # ends it
    monkeypatch.setenv("DISCOVERY_STALE_SEC", "60")
    assert discovery.main([]) == 2
    said = capsys.readouterr().err
    assert "DISCOVERY_STALE_SEC" in said
    assert "DISCOVERY_STALE_SECS" in said


def test_settings_for_remote_clusters_are_checked_before_there_are_any(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = tmp_path / "kubeconfig"
    own.write_text(SOME_KUBECONFIG)
    monkeypatch.setenv("KUBECONFIG", str(own))
    monkeypatch.setenv("DISCOVERY_REMOTE_CONFIG", "maxBytes=lots")
    assert discovery.main([]) == 2
    assert "setting maxBytes: found 'lots', expected a whole number" in capsys.readouterr().err
