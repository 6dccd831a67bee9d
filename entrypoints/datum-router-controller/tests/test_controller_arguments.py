from __future__ import annotations

import pytest

from datum_router.errors import ConfigError
from datum_router_controller import __main__ as controller
from datum_router_controller.settings import HELP, settings
from datum_router_runtime.settings import Address, ControllerSettings


def test_help_and_version_say_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert controller.main(["--help"]) == 0
    assert capsys.readouterr().out == HELP


def test_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert controller.main(["--leader"]) == 2
    assert "found argument '--leader', expected none" in capsys.readouterr().err


def test_the_environment_says_everything() -> None:
    found = settings(
        {
            "KUBECONFIG": "/tmp/config",
            "DATUM_ROUTER_NAMESPACES": "a,b",
            "DATUM_ROUTER_LABEL_SELECTOR": "tier=edge",
            "DATUM_ROUTER_SOURCE_CONFIG": "writeQps=100",
            "DATUM_ROUTER_PROBES": ":8081",
            "DATUM_ROUTER_METRICS": "[::]:9090",
            "DATUM_ROUTER_ADMIN": "127.0.0.1:9901",
            "DATUM_ROUTER_IDENTITY": "me",
            "DATUM_ROUTER_DEBOUNCE_SECS": "0.1",
            "DATUM_ROUTER_WORKERS": "4",  # a gateway's, in an environment that both share
            "DATUM_ROUTER_DISABLE_PLUGINS": "proxy",
        }
    )
    assert found == ControllerSettings(
        source_config={"role": "controller", "namespaces": "a,b", "labelSelector": "tier=edge", "writeQps": "100"},
        probes=Address(host="0.0.0.0", port=8081),
        metrics=Address(host="::", port=9090),
        admin=Address(host="127.0.0.1", port=9901),
        identity="me",
        debounce_s=0.1,
        disabled_plugins=("proxy",),
    )


def test_an_empty_environment_is_a_controller_in_a_cluster() -> None:
    assert settings({}) == ControllerSettings(source_config={"role": "controller"})
    assert settings({}).lease == "router-controller"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("DATUM_ROUTER_PROBES", "8081", "DATUM_ROUTER_PROBES: found '8081', expected HOST:PORT"),
        ("DATUM_ROUTER_METRICS", "pod:9090", "DATUM_ROUTER_METRICS: found host 'pod'"),
        ("DATUM_ROUTER_ADMIN", ":9901", "expected a loopback address"),
        ("DATUM_ROUTER_DEBOUNCE_SECS", "soon", "DATUM_ROUTER_DEBOUNCE_SECS: found 'soon'"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(")):
        settings({variable: value})


def test_settings_that_cannot_work_end_it_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATUM_ROUTER_SOURCE", "kubernets")
    assert controller.main([]) == 2
    assert "source 'kubernets' is not installed" in capsys.readouterr().err
