"""What all commands share: help, version, near misses, exit status, and no import of a plugin."""

import ast
import inspect
import json
import re
import socket
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import datum_router_cli
from datum_router.model.listener import Listener
from datum_router_cli.commands import cli
from datum_router_cli.run import Printer, gateway_settings
from datum_router_runtime.admin import PAGES
from datum_router_runtime.app import Gateway
from datum_router_runtime.settings import Address, GatewaySettings
from datum_router_runtime.sockets import ListenerGroup


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="datum-router")


def test_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == "datum-router, version 0.1.0\n"


def test_help_lists_commands_environment_and_exit_status() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for word in ("check", "explain", "diff", "run", "plugins", "schema", "sim", "RUST_LOG", "NO_COLOR", "2 bad input"):
        assert word in result.stdout


def test_help_lists_commands_with_whole_sentences() -> None:
    listed = invoke("--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(listed) == len(cli.commands)
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


def test_help_of_run_lists_every_page_of_the_admin_listener(tmp_path: Path) -> None:
    settings = GatewaySettings(source="files", source_config={"path": str(tmp_path)})
    assert set(PAGES) == set(Gateway(settings).pages())
    for words in (invoke("run", "--help").stdout, inspect.getdoc(GatewaySettings) or ""):
        assert set(PAGES) <= set(re.findall(r"/[a-z]+\b", words))


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"datum-router {name}" in result.stdout


def test_mistyped_command_is_answered_with_the_nearest_one() -> None:
    result = invoke("chek", "conf")
    assert result.exit_code == 2
    assert "no such command 'chek' (did you mean check?)" in result.stderr


def test_mistyped_option_is_answered_with_the_nearest_one() -> None:
    result = invoke("check", "--strct", "conf")
    assert result.exit_code == 2
    assert "--strict" in result.stderr


def test_misspelt_plugin_to_disable_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATUM_ROUTER_DISABLE_PLUGINS", "kuberntes")
    result = invoke("plugins")
    assert result.exit_code == 2
    assert "did you mean kubernetes?" in result.stderr


def test_misspelt_variable_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("DATUM_ROUTER_SHARED", raising=False)  # of the tests; the router knows nothing of it
    monkeypatch.setenv("DATUM_ROUTER_WORKRES", "2")
    assert invoke("plugins").exit_code == 0
    assert [record.__dict__["expected"] for record in caplog.records] == ["DATUM_ROUTER_WORKERS"]


def test_an_option_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATUM_ROUTER_WORKERS", "3")
    assert gateway_settings(str(tmp_path), listen=None, workers=None, admin=None).workers == 3
    assert gateway_settings(str(tmp_path), listen=None, workers=2, admin=None).workers == 2


def test_every_command_that_loads_plugins_can_trace_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATUM_ROUTER_TRACE_PLUGINS", "1")
    for arguments in (("plugins",), ("check", str(tmp_path))):
        result = invoke(*arguments)
        assert result.exit_code == 0
        assert "plugin files: calling datum_router_sources()" in result.stderr.splitlines()
        assert "calling" not in result.stdout


def test_misspelt_logger_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("DATUM_ROUTER_SHARED", raising=False)  # of the tests; the router knows nothing of it
    monkeypatch.setenv("DATUM_ROUTER_LOG", "ruoter=debug")
    assert invoke("plugins").exit_code == 0
    assert [record.__dict__["expected"] for record in caplog.records] == ["router"]


def test_bad_log_filter_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATUM_ROUTER_LOG", "router=dbug")
    result = invoke("plugins")
    assert result.exit_code == 2
    assert "DATUM_ROUTER_LOG: unknown level 'dbug'" in result.stderr
    assert "(did you mean debug?)" in result.stderr


def test_plugins_names_what_is_installed() -> None:
    result = invoke("plugins")
    assert result.exit_code == 0
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["PLUGIN", "VERSION", "STABILITY", "POSTURE", "HOOKS"]
    found = {row.split()[0]: row for row in rows}
    assert "sources" in found["files"]
    assert "no-traffic" in found["files"]
    assert next(iter(found)) == "builtin"


def test_plugins_as_json() -> None:
    document = json.loads(invoke("plugins", "--output", "json").stdout)
    files = next(plugin for plugin in document["plugins"] if plugin["entry_point"] == "files")
    assert files == {
        "name": "datum-router-files",
        "entry_point": "files",
        "distribution": "datum-router-files",
        "version": "0.1.0",
        "api": 1,
        "stability": "beta",
        "posture": "no-traffic",
        "hooks": ["datum_router_plugin_info", "datum_router_sources"],
    }


def test_disabled_plugin_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATUM_ROUTER_DISABLE_PLUGINS", "files")
    assert "\nfiles " not in invoke("plugins").stdout
    result = invoke("check", str(tmp_path))
    assert result.exit_code == 2
    assert "source 'files' is not installed" in result.stderr
    assert "DATUM_ROUTER_DISABLE_PLUGINS leaves out files" in result.stderr


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("DATA_PLANE_CONFIG", "keep_alive=30", "proxy setting keep_alive: unknown (did you mean "),
        (
            "DATA_PLANE_CONFIG",
            "shed_queue_age_s=-1",
            "proxy setting shed_queue_age_s: found -1, expected a number above 0, or 0 (off)",
        ),
        ("DATA_PLANE_CONFIG", "pool_wait_s=0", "proxy setting pool_wait_s: found 0, expected a number above 0\n"),
        ("VPC_INTERFACES", "x", "proxy setting vpc_interfaces: found 'x', expected NAMESPACE/NAME=INTERFACE"),
        ("VPC_ATTACHMENTS", "x", "proxy setting vpc_attachments: found 'x', expected NAMESPACE/NAME=INTERFACE"),
        ("VPC_REQUIRED", "maybe", "proxy setting vpc_required: found 'maybe', expected true or false"),
        ("EGRESS_NAMESERVERS", "dns", "proxy setting egress_nameservers: found 'dns', expected ADDRESS"),
        ("EGRESS_CLOSED", "all", "proxy setting egress_closed: found 'all', expected networks such as"),
        ("EGRESS_SOURCE", "shop", "found 'shop', expected NAMESPACE/NAME of a VPCAttachment"),
    ],
)
def test_a_setting_of_the_data_plane_names_the_variable_it_stands_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, text: str, message: str
) -> None:
    monkeypatch.setenv(f"DATUM_ROUTER_{variable}", text)
    result = invoke("run", str(tmp_path), "--listen", "127.0.0.1:0")
    assert result.exit_code == 2
    assert f"error: DATUM_ROUTER_{variable}: {message}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "--workers: found 0, expected 1 to 256"),
        (["--workers", "two"], "'two' is not a valid integer"),
        (["--listen", "8080"], "found '8080', expected HOST:PORT such as 127.0.0.1:8080, [::1]:8080 or :8080"),
        (["--listen", "127.0.0.1:70000"], "--listen: found port 70000, expected 0 to 65535"),
        (["--listen", "::1:8080"], "--listen: found '::1:8080', expected HOST:PORT"),
        (["--listen", "example.com:80"], "--listen: found host 'example.com', expected an IP address or localhost"),
        (["--admin", "0.0.0.0:9901"], "expected a loopback address such as 127.0.0.1:9901"),
    ],
)  # fmt: skip
def test_run_refuses_arguments_that_cannot_work(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = invoke("run", str(tmp_path), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_run_refuses_a_directory_that_is_not_there() -> None:
    result = invoke("run", "/nonexistent/manifests")
    assert result.exit_code == 2
    assert "which does not exist; create the directory" in result.stderr


def test_schema_prints_one_kind_or_all() -> None:
    one = invoke("schema", "VPCRoute")
    assert one.exit_code == 0
    assert "kind: CustomResourceDefinition" in one.stdout
    assert "pathPrefix" in one.stdout
    everything = invoke("schema")
    assert everything.stdout.count("kind: CustomResourceDefinition") == 5


def test_schema_as_json() -> None:
    document = json.loads(invoke("schema", "vpcroute", "--output", "json").stdout)
    assert document["metadata"]["name"] == "vpcroutes.router.datum.net"
    documents = json.loads(invoke("schema", "--output", "json").stdout)
    assert (documents["kind"], len(documents["items"])) == ("List", 5)


def test_schema_of_an_unknown_kind_names_the_nearest_one() -> None:
    result = invoke("schema", "VPCRout")
    assert result.exit_code == 2
    assert "found kind 'VPCRout'" in result.stderr
    assert "(did you mean VPCRoute?)" in result.stderr


def test_commands_import_no_plugin() -> None:
    folder = Path(datum_router_cli.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                package = name.partition(".")[0]
                assert not package.startswith("datum_router_") or package in {
                    "datum_router_cli",
                    "datum_router_runtime",
                }, f"{path.name} imports {name}"


def test_main_is_short() -> None:
    assert len((Path(datum_router_cli.__file__).parent / "__main__.py").read_text().splitlines()) <= 60


def test_group_is_a_click_group() -> None:
    assert isinstance(cli, click.Group)


def test_run_announces_listeners_then_admin_then_ready(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        port = sock.getsockname()[1]
        printer.admin(Address(host="127.0.0.1", port=9901))
        printer.listening(ListenerGroup(Listener(name="plain"), [sock]))
        printer.ready()
    assert capsys.readouterr().out.splitlines() == [
        f"listening on http://[::1]:{port} (plain)",
        "admin on http://127.0.0.1:9901",
        "ready",
    ]


def test_run_that_listens_nowhere_says_what_to_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    Printer().ready()
    said = capsys.readouterr()
    assert said.out == "ready\n"
    assert said.err.startswith("no listener is open: see `datum-router check`, and gatewaySelector")
