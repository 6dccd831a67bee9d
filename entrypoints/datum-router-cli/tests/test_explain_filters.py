"""`datum-router explain`: what filters do with a request."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from datum_router_cli.commands import cli

SERVICES = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata:
  name: my-api
spec:
  port: 8080
  endpoints: [{address: 10.0.0.1}]
---
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata:
  name: copy
spec:
  port: 8080
  endpoints: [{address: 10.0.0.2}]
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata:
  name: api
spec:
  destinations:
    - vpcServiceRef: {name: my-api}
"""
Explained = Callable[..., list[str]]


@pytest.fixture
def explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Explained:
    """Return what `explain` says of a request to a route with some more fields."""

    def run(fields: str, *arguments: str) -> list[str]:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "all.yaml").write_text(SERVICES + fields)
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(cli, ["explain", "conf", *arguments], prog_name="datum-router")
        assert result.exit_code == 0, result.output
        return [line.strip() for line in result.stdout.splitlines()]

    return run


def test_a_preflight_is_answered_by_the_router(explained: Explained) -> None:
    lines = explained(
        "  match: {methods: [PUT]}\n  cors: {allowedOrigins: ['https://a.test'], allowedMethods: [PUT]}\n",
        *("OPTIONS", "http://localhost/", "-H", "Origin: https://a.test", "-H", "Access-Control-Request-Method: PUT"),
    )
    assert "winner: default/api#0-preflight-PUT (conf/all.yaml:17)" in lines
    assert "CORS: origins https://a.test, methods PUT" in lines
    assert "answered by the router: 204" in lines
