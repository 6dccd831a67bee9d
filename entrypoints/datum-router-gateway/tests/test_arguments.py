"""The command takes no arguments, and says so before it opens anything."""

import pytest

from datum_router.errors import ConfigError
from datum_router_gateway import __main__ as gateway
from datum_router_runtime.settings import GatewaySettings
from datum_router_runtime.variables import GATEWAY_VARIABLES


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_gateway(_settings: GatewaySettings) -> None:
        raise AssertionError("the gateway was started")

    monkeypatch.setattr(gateway, "run_gateway", run_gateway)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_the_variables(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gateway.main([option]) == 0
    help_text = capsys.readouterr().out
    assert help_text.startswith("Usage: datum-router-gateway")
    for variable in (*GATEWAY_VARIABLES, "DATUM_ROUTER_WORKERS", "DATUM_ROUTER_LOG"):
        assert f"  {variable} " in help_text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert gateway.main(["--version"]) == 0
    assert capsys.readouterr().out == "datum-router-gateway, version 0.1.0\n"


@pytest.mark.parametrize("arguments", [["./manifests"], ["--listen", ":8080"], ["--help", "x"]])
def test_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert gateway.main(arguments) == 2
    told = capsys.readouterr().err
    assert f"found argument {arguments[0]!r}, expected none" in told
    assert "--help" in told


def test_admin_address_is_named_as_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r"DATUM_ROUTER_ADMIN: found 0\.0\.0\.0:9901, expected a loopback"):
        gateway.settings({"DATUM_ROUTER_ADMIN": ":9901"})


def test_the_address_to_bind_is_read() -> None:
    assert gateway.settings({}).bind == ""
    assert gateway.settings({"DATUM_ROUTER_BIND": "::"}).bind == "::"
    with pytest.raises(ConfigError, match=r"DATUM_ROUTER_BIND: found '0\.0\.0\.0:8080', expected an IP address"):
        gateway.settings({"DATUM_ROUTER_BIND": "0.0.0.0:8080"})
