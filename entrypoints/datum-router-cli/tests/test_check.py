"""`datum-router check`: exact lines, JSON, exit status."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from datum_router_cli.commands import cli

Invoke = Callable[..., Result]

SERVICE = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata:
  name: my-api
spec:
  protocol: HTTP
  port: 8080
  endpoints:
    - address: 10.0.0.1
    - address: 10.0.0.2
"""
ROUTE = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata:
  name: api-routes
spec:
  match:
    pathPrefix: /api/v1
    methods: [GET, POST]
  destinations:
    - vpcServiceRef:
        name: my-api
      weight: 100
"""


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATUM_ROUTER_LOG", raising=False)
    (tmp_path / "conf").mkdir()
    return lambda *arguments: CliRunner().invoke(cli, list(arguments), prog_name="datum-router")


def write(**files: str) -> None:
    for name, text in files.items():
        Path("conf", f"{name}.yaml").write_text(text)


def test_good_directory_says_what_is_in_force(invoke: Invoke) -> None:
    write(service=SERVICE, route=ROUTE)
    result = invoke("check", "conf")
    assert result.stdout == "good: 0 errors, 0 warnings; in force: 1 VPCRoute, 1 VPCService\n"
    assert (result.exit_code, result.stderr) == (0, "")


def test_unknown_field_names_file_line_field_and_the_right_one(invoke: Invoke) -> None:
    write(service=SERVICE, route=ROUTE.replace("pathPrefix", "pathPrefx"))
    result = invoke("check", "conf")
    assert result.stdout.splitlines() == [
        "conf/route.yaml:7: error: vpcroute default/api-routes: spec.match.pathPrefx: unknown field [UnknownField]"
        " (did you mean pathPrefix?)",
        "bad: 1 error, 0 warnings; in force: 1 VPCService",
    ]
    assert result.exit_code == 2


def test_json_is_one_document_with_stable_names(invoke: Invoke) -> None:
    write(service=SERVICE, route=ROUTE.replace("pathPrefix", "pathPrefx"))
    result = invoke("check", "conf", "--output", "json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert set(document) == {"directory", "ok", "strict", "errors", "warnings", "objects", "diagnostics"}
    assert (document["ok"], document["errors"], document["objects"]) == (False, 1, {"VPCService": 1})
    assert document["diagnostics"] == [
        {
            "severity": "error",
            "object": "vpcroute default/api-routes",
            "path": "spec.match.pathPrefx",
            "reason": "UnknownField",
            "message": "unknown field",
            "hint": "did you mean pathPrefix?",
            "file": "conf/route.yaml",
            "line": 7,
            "is_reference": False,
        }
    ]


def test_reference_to_what_is_elsewhere_is_a_warning_and_an_error_when_strict(invoke: Invoke) -> None:
    write(route=ROUTE)
    loose, strict = invoke("check", "conf"), invoke("check", "conf", "--strict")
    assert (
        "conf/route.yaml:11: warning: vpcroute default/api-routes: spec.destinations[0].vpcServiceRef" in loose.stdout
    )
    assert "[VPCServiceNotFound]" in loose.stdout
    assert loose.stdout.splitlines()[-1].startswith("good: 0 errors, 1 warning;")
    assert loose.exit_code == 0
    assert "conf/route.yaml:11: error: vpcroute default/api-routes" in strict.stdout
    assert strict.exit_code == 2


@pytest.mark.parametrize(("method", "code"), [("endpointslice", 0), ("kubernetes", 2)])
def test_what_other_clusters_give_is_missing_in_no_directory(invoke: Invoke, method: str, code: int) -> None:
    write(service=f"{SERVICE.partition('  endpoints:')[0]}  discovery: {{method: {method}}}\n")
    result = invoke("check", "conf", "--strict")
    assert "[NoEndpoints]" in result.stdout
    assert result.exit_code == code


def test_broken_yaml_names_line_and_remedy_and_the_rest_is_checked(invoke: Invoke) -> None:
    write(service=SERVICE, broken="kind: VPCRoute\nspec: [1\n")
    result = invoke("check", "conf")
    assert result.stdout.splitlines()[0] == (
        "conf/broken.yaml:3: error: a list in brackets is not closed (column 1) [InvalidSyntax]"
        " (add the missing ',' or ']')"
    )
    assert "in force: 1 VPCService" in result.stdout
    assert result.exit_code == 2


def test_kinds_of_other_tools_do_no_harm(invoke: Invoke) -> None:
    write(service=SERVICE, deployment="apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n")
    result = invoke("check", "conf")
    assert result.exit_code == 0
    assert "1 VPCService" in result.stdout


def test_one_file_can_be_checked(invoke: Invoke) -> None:
    write(service=SERVICE)
    assert invoke("check", "conf/service.yaml").exit_code == 0


def test_missing_directory_says_what_to_create(invoke: Invoke) -> None:
    result = invoke("check", "nothing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "datum-router: error: directory nothing: not found; create it and put the manifests there"
        " as *.yaml, *.yml or *.json files\n"
    )


def test_missing_directory_as_json_is_one_document(invoke: Invoke) -> None:
    result = invoke("check", "nothing", "--output", "json")
    assert (result.exit_code, result.stderr) == (2, "")
    assert json.loads(result.stdout)["error"]["reason"] == "SourceFailed"


def test_manifest_text_cannot_steer_the_terminal(invoke: Invoke) -> None:
    write(route=ROUTE.replace("pathPrefix:", '"path\\e[2JPrefix":'))
    result = invoke("check", "conf")
    assert result.exit_code == 2
    assert "\x1b" not in result.stdout
    assert result.stdout.startswith("conf/route.yaml:7: error: ")
    assert "spec.match['path\\x1b[2JPrefix']: unknown field" in result.stdout


def test_a_key_of_another_certificate_is_an_error_at_the_key(invoke: Invoke) -> None:
    one, two = (trustme.CA().issue_cert("shop.test") for _ in range(2))
    pair = {"tls.crt": one.cert_chain_pems[0].bytes().decode(), "tls.key": two.private_key_pem.bytes().decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "stringData": pair}
    write(tls=json.dumps(secret, indent=1))
    result = invoke("check", "conf")
    assert result.exit_code == 2
    assert (
        "conf/tls.yaml:9: error: secret default/tls: stringData['tls.key']: certificate and private key"
        in result.stdout
    )
