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


def test_copies_faults_sizes_and_edits_of_a_destination_are_named(explained: Explained) -> None:
    lines = explained(
        "      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-a]}}]\n"
        "  maxRequestBodyBytes: 10\n"
        "  filters:\n"
        "    - {type: RequestMirror, requestMirror: {vpcServiceRef: {name: copy}, percent: 10}}\n"
        "    - {type: RequestMirror, requestMirror: {vpcServiceRef: {name: gone}}}\n"
        "    - type: FaultInjection\n"
        "      faultInjection:\n"
        "        {delay: {duration: 250ms, percent: 5}, abort: {status: 503, grpcStatus: 14, percent: 1}}\n",
        *("GET", "http://localhost/"),
    )
    assert lines[lines.index("mirror: 10% of the requests to default/copy") :][:5] == [
        "mirror: 10% of the requests to default/copy",
        "mirror: 100% of the requests to default/gone (not now: VPCServiceNotFound)",
        "fault: 5% wait 0.25 s, 1% are answered with 503, 1% of gRPC calls are answered with grpc-status 14",
        "for default/my-api: request headers: remove x-a",
        "request bodies of at most 10 bytes",
    ]


def test_a_filter_of_a_plugin_that_is_not_installed_keeps_its_route_out_of_force(explained: Explained) -> None:
    lines = explained("  filters: [{type: Plugin, plugin: {name: nowhere}}]\n", "GET", "http://localhost/")
    assert any("spec.filters[0].plugin.name: found 'nowhere', expected one of " in line for line in lines), lines
    assert "no route: 404" in lines
