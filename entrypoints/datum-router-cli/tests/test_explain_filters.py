"""`datum-router explain`: what filters and policies of a route, and of its service, do with a request."""

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
ENDPOINTS = "  endpoints: [{address: 10.0.0.1}]\n"
Explained = Callable[..., list[str]]


@pytest.fixture
def explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Explained:
    """Return what `explain` says of a request to a route with some more fields, and so its service."""

    def run(fields: str, *arguments: str, service: str = "") -> list[str]:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "all.yaml").write_text(SERVICES.replace(ENDPOINTS, ENDPOINTS + service) + fields)
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


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            "  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: a}], "
            "add: [{name: x-b, value: b}], remove: [x-c, x-d]}}]\n",
            "request headers: set x-a: a, add x-b: b, remove x-c, remove x-d",
        ),
        (
            "  filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: cache-control, value: "
            "no-store}]}}]\n",
            "response headers: set cache-control: no-store",
        ),
        (
            "  filters: [{type: URLRewrite, urlRewrite: {hostname: a.test, path: {type: ReplaceFullPath, "
            "replaceFullPath: /all}}}]\n",
            "rewrite: host a.test, path /all",
        ),
        (
            "  match: {pathPrefix: /}\n  filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, "
            "replacePrefixMatch: /v2}}}]\n",
            "rewrite: prefix /v2",
        ),
        (
            "  filters: [{type: Plugin, plugin: {name: ext-authz, vpcServiceRef: {name: copy}}}]\n",
            "filter ext-authz, which asks default/copy",
        ),
        (
            "  filters: [{type: Plugin, plugin: {name: ext-authz, vpcServiceRef: {name: gone}}}]\n",
            "filter ext-authz, which asks default/gone (not now: VPCServiceNotFound)",
        ),
        (
            "  localReplies: [{statuses: [404, 503], contentType: text/html, body: <p>no</p>}, {body: no}]\n",
            "own answers: 404, 503 as text/html",
        ),
        ("  localReplies: [{body: no}]\n", "own answers: errors as text/plain"),
        (
            "  circuitBreaker: {maxParallelRequests: 7, failureThreshold: 3}\n",
            "circuit breaker of the route: at once 7 requests, 3 retries; open for 60 s after 3 failures in a row, "
            "then closed by 2 successes; else 503",
        ),
        (
            "  sessionAffinity: {type: Header, name: X-Session, absoluteTimeout: 24h, idleTimeout: 1h}\n",
            "session affinity by header x-session; a session ends 86400 s after it began or after 3600 s without a "
            "request",
        ),
        (
            "  sessionAffinity: {type: Cookie, name: who}\n",
            "session affinity by cookie who; a session ends with the browser",
        ),
        (
            "  retries: {hedging: {delay: 50ms, maxAttempts: 3}}\n",
            "hedging: without a body, up to 3 at once, another one after each 0.05 s without a response head",
        ),
        ("  loadBalancing: round-robin\n  loadBalancingConfig: {slowStart: 30s}\n", "round-robin, slow start 30 s"),
        (
            "  loadBalancing: consistent-hash\n  loadBalancingConfig: {slowStart: 30s}\n",
            "consistent-hash on SourceIP, slowStart ignored: it is by hash",
        ),
        (
            "  loadBalancing: consistent-hash\n"
            "  loadBalancingConfig: {hashOn: Cookie, cookie: {name: user, ttl: 1h}}\n",
            "consistent-hash on Cookie user, clients without cookie user are given it for 3600 s at path /",
        ),
        (
            "  loadBalancing: consistent-hash\n"
            "  loadBalancingConfig: {hashOn: Cookie, cookie: {name: user, path: /a}}\n",
            "consistent-hash on Cookie user, clients without cookie user are given it until the browser is closed at "
            "path /a",
        ),
    ],
)
def test_what_a_route_does_is_said(explained: Explained, fields: str, said: str) -> None:
    lines = explained(fields, "GET", "http://localhost/")
    assert said in [line.removeprefix("destinations (").removesuffix("):") for line in lines], lines


@pytest.mark.parametrize(
    ("put", "said"),
    [("/v2", "prefix /v3 (not done: the route has put /v2 there before)"), ("/api/v2", "prefix /v3")],
)
def test_a_prefix_that_is_not_there_any_more_is_not_said_to_be_replaced(
    explained: Explained, put: str, said: str
) -> None:
    def rewrite(path: str) -> str:
        return (
            "filters: [{type: URLRewrite, urlRewrite: {hostname: b.test, path: {type: ReplacePrefixMatch, "
            f"replacePrefixMatch: {path}}}}}}}]\n"
        )

    fields = f"      {rewrite('/v3')}  match: {{pathPrefix: /api}}\n  {rewrite(put)}"
    lines = explained(fields, "GET", "http://localhost/api/x")
    assert f"rewrite: host b.test, prefix {put}" in lines
    assert f"for default/my-api: rewrite: host b.test, {said}" in lines


@pytest.mark.parametrize(("method", "is_said"), [("GET", True), ("POST", False)])
def test_a_hedge_is_said_to_spare_sessions_where_there_are_hedges(
    explained: Explained, method: str, is_said: bool
) -> None:
    lines = explained(
        "  sessionAffinity: {type: Cookie}\n  retries: {hedging: {delay: 50ms}}\n", method, "http://localhost/"
    )
    assert ("a request that goes to the endpoint of its session is not hedged" in lines) is is_said


@pytest.mark.parametrize(
    ("route", "service", "said"),
    [
        (
            "",
            "  circuitBreaker: {maxConnections: 9}\n",
            "circuit breaker of the service: at once 1024 requests, 3 retries, 9 connections, 1024 that wait for one; "
            "open for 60 s after 5 failures in a row, then closed by 2 successes; else 503",
        ),
        (
            "",
            "  healthCheck: {httpPath: /live, expectedStatuses: ['204'], unhealthyThreshold: 4}\n",
            "probes: HTTP GET /live every 10 s, for up to 5 s, good is status 204; down after 4 failures in a row, up "
            "after 2 successes, the first probe decides at once",
        ),
        (
            "",
            "  healthCheck: {passive: {consecutive5xx: 2, consecutiveGatewayErrors: 0, maxEjectionPercent: 25}}\n",
            "ejection: after 2 answers with 5xx in a row for 10 s, twice as long each time, up to 300 s; at most 25% "
            "of the endpoints at once, or one; back in by trials, 1 at once",
        ),
        ("", "  healthCheck: {panicThresholdPercent: 0}\n", "panic: health is never ignored"),
        (
            "",
            "  connectTimeout: 2s\n  idleTimeout: 5s\n",
            "connections: made within 2 s, kept without requests for 5 s",
        ),
        (
            "  timeouts: {connect: 500ms}\n",
            "  connectTimeout: 2s\n",
            "connections: made within 0.5 s, kept without requests for 60 s",
        ),
    ],
)
def test_what_a_service_does_is_said(explained: Explained, route: str, service: str, said: str) -> None:
    lines = explained(route, "GET", "http://localhost/", service=service)
    assert said in lines, lines
