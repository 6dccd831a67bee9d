"""`datum-router diff`: what would change for traffic."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from datum_router_cli.commands import cli

Invoke = Callable[..., Result]

SERVICE = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata:
  name: %s
spec:
  port: 8080
  endpoints:
    - address: 10.0.0.1
"""
ROUTE = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata:
  name: api-routes
spec:
  match:
    pathPrefix: /api
  destinations:
    - vpcServiceRef: {name: my-api}
      weight: 100
"""


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text(SERVICE % "my-api" + "---\n" + ROUTE)
    return lambda *arguments: CliRunner().invoke(cli, list(arguments), prog_name="datum-router")


def test_equal_directories_have_no_changes_whatever_their_comments(invoke: Invoke) -> None:
    path = Path("new/a.yaml")
    path.write_text("# a comment\n" + path.read_text().replace("      weight: 100\n", ""))
    result = invoke("diff", "old", "new")
    assert (result.exit_code, result.stdout) == (0, "no changes\n")


def test_changes_are_named_field_by_field(invoke: Invoke) -> None:
    Path("new/a.yaml").write_text(
        SERVICE % "my-api" + "---\n" + SERVICE % "added" + "---\n" + ROUTE.replace("/api\n", "/v2\n")
    )
    Path("old/b.yaml").write_text(SERVICE % "gone")
    result = invoke("diff", "old", "new")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "~ rule default/api-routes#0",
        '    match.path.value: "/api" -> "/v2"',
        "+ service default/added",
        "- service default/gone",
        "3 changes: 1 added, 1 removed, 1 changed",
    ]


def test_json_holds_the_same(invoke: Invoke) -> None:
    Path("new/a.yaml").write_text(SERVICE % "my-api" + "---\n" + ROUTE.replace("/api\n", "/v2\n"))
    document = json.loads(invoke("diff", "old", "new", "--output", "json").stdout)
    assert document == {
        "old": "old",
        "new": "new",
        "added": 0,
        "removed": 0,
        "changed": 1,
        "changes": [
            {
                "kind": "rule",
                "name": "default/api-routes#0",
                "action": "changed",
                "fields": [{"path": "match.path.value", "old": "/api", "new": "/v2"}],
            }
        ],
        "diagnostics": [],
    }


def test_directory_with_errors_is_compared_and_ends_with_status_2(invoke: Invoke) -> None:
    Path("new/b.yaml").write_text("kind: [")
    result = invoke("diff", "old", "new")
    assert result.exit_code == 2
    assert "new/b.yaml:2: error: " in result.stdout
    assert result.stdout.splitlines()[-1] == "no changes"


def test_missing_directory_is_bad_input(invoke: Invoke) -> None:
    result = invoke("diff", "old", "nothing")
    assert result.exit_code == 2
    assert "directory nothing: not found" in result.stderr
