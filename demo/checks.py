"""The checks of `make demo-check`, with clients that share no code with the router: curl, grpcio, websockets."""

from __future__ import annotations

import collections
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import httpcore
from rich.console import Console
from websockets.sync.client import connect

console = Console()
PATIENCE_S = 15.0
"""How long a change may take before a check fails; each waits for the thing itself, in small steps."""

IN_FORCE_S = 1.0
"""An edited manifest must act within this time."""


def get_json(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


class Answer:
    """One HTTP answer."""

    def __init__(self, status: int, version: str, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.version = version
        self.headers = headers
        self.body = body

    @property
    def cloud(self) -> str:
        return self.headers.get("x-cloud", "")


def fetch(
    address: str,
    path: str,
    *,
    http2: bool = False,
    method: str = "GET",
    headers: Sequence[str] = (),
    body: bytes | None = None,
) -> Answer:
    """Send one request with curl, or with httpcore where curl is not installed."""
    if shutil.which("curl"):
        return _curl(f"http://{address}{path}", http2=http2, method=method, headers=headers, body=body)
    pairs = [tuple(item.split(": ", 1)) for item in headers]
    with httpcore.ConnectionPool(http1=not http2, http2=http2) as pool:
        found = pool.request(method, f"http://{address}{path}", headers=pairs, content=body)
        version = "2" if found.extensions["http_version"] == b"HTTP/2" else "1.1"
        fields = {key.decode().lower(): value.decode("latin-1") for key, value in found.headers}
        return Answer(found.status, version, fields, found.content)


def _curl(url: str, *, http2: bool, method: str, headers: Sequence[str], body: bytes | None) -> Answer:
    command = ["curl", "-sS", "-i", "--max-time", "10", "-w", "\n%{http_code} %{http_version}"]
    command += ["--http2-prior-knowledge"] if http2 else ["--http1.1"]
    command += ["--head"] if method == "HEAD" else ["-X", method]
    for item in headers:
        command += ["-H", item]
    if body is not None:
        command += ["--data-binary", "@-"]
    done = subprocess.run([*command, url], input=body, capture_output=True, timeout=20, check=False)
    if done.returncode != 0:
        raise AssertionError(f"curl {url}: exit {done.returncode}: {done.stderr.decode().strip()}")
    text, _, summary = done.stdout.rpartition(b"\n")
    status, version = summary.decode().split()
    while text.startswith(b"HTTP/") and text.split(b" ", 2)[1].startswith(b"1"):
        text = text.split(b"\r\n\r\n", 1)[1]  # an interim response
    head, _, content = text.partition(b"\r\n\r\n")
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        fields[name.decode().lower()] = value.strip().decode("latin-1")
    return Answer(int(status), version, fields, content)


def eventually(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> float:
    """Wait until `condition` holds; return the seconds it took."""
    started = time.monotonic()
    while time.monotonic() - started < patience_s:
        if condition():
            return time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {patience_s:g} s")


def expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r}, expected {wanted!r}")


class Run:
    """All checks against one running gateway."""

    def __init__(
        self,
        *,
        address: str,
        admin: str,
        directory: Path,
        kill: Callable[[str], None],
        revive: Callable[[str], None],
    ) -> None:
        self.address = address
        self.admin = admin
        self.directory = directory
        self.kill = kill
        self.revive = revive

    def all(self) -> tuple[int, int]:
        """Run every check; return how many passed and failed."""
        passed = failed = 0
        for name in [name for name in dir(self) if name.startswith("check_")]:
            title = name.removeprefix("check_").split("_", 1)[1].replace("_", " ")
            try:
                note = getattr(self, name)()
            except Exception as error:
                failed += 1
                console.print(
                    f"[red]FAIL[/red] {title}: {type(error).__name__}: {error}", highlight=False, soft_wrap=True
                )
            else:
                passed += 1
                console.print(
                    f"[green]ok[/green]   {title}{': ' + note if note else ''}", highlight=False, soft_wrap=True
                )
        return passed, failed

    def clouds(self, path: str, count: int, *, http2: bool = False, headers: Sequence[str] = ()) -> dict[str, int]:
        """Send `count` requests; return how many each cloud answered."""
        seen: collections.Counter[str] = collections.Counter()
        for _ in range(count):
            answer = fetch(self.address, path, http2=http2, headers=headers)
            expect(answer.status, 200, f"GET {path}")
            seen[answer.cloud] += 1
        return dict(sorted(seen.items()))

    def _versions(self, path: str) -> str:
        for http2, version in ((False, "1.1"), (True, "2")):
            found = self.clouds(path, 9, http2=http2)
            expect(found, {"aws": 3, "gcp": 3, "on-prem": 3}, f"round robin over HTTP/{version}")
            expect(fetch(self.address, path, http2=http2).version, version, "version")
        return "aws, gcp and on-prem in turn over HTTP/1.1 and HTTP/2"

    def check_01_basic_example_goes_round_robin_over_three_clouds(self) -> str:
        return self._versions("/api/v1/users")

    def check_02_production_example_serves_its_prefix(self) -> str:
        found = self.clouds("/api/orders", 8)
        expect(found, {"aws": 4, "gcp": 4}, "attachment in gcp, binding to aws")
        return "attachment (gcp) and binding (aws) in turn"

    def check_03_post_bodies_arrive_over_both_versions(self) -> str:
        body = b"x" * 300_000
        for http2 in (False, True):
            answer = fetch(self.address, "/api/v1/users", http2=http2, method="POST", body=body)
            expect(answer.status, 200, "status")
            expect(json.loads(answer.body)["body_bytes"], len(body), "body bytes at the backend")
        return f"{len(body)} bytes each"

    def check_04_head_and_refused_methods(self) -> str:
        expect(fetch(self.address, "/api/orders", method="HEAD").body, b"", "HEAD body")
        answer = fetch(self.address, "/api/v1/users", method="DELETE")
        # /api/v1 takes GET and POST only; DELETE falls through to the production route /api.
        expect(answer.status, 200, "DELETE /api/v1/users")
        expect(json.loads(answer.body)["method"], "DELETE", "method at the backend")
        return "DELETE /api/v1 falls through to /api"

    def check_05_no_route_is_404_with_a_reason(self) -> str:
        answer = fetch(self.address, "/nowhere")
        expect(answer.status, 404, "status")
        expect(b"no_route" in answer.body, True, "reason in the body")
        return answer.body.decode().strip().splitlines()[0]

    def check_06_forwarding_fields_reach_the_backend(self) -> str:
        headers = json.loads(fetch(self.address, "/api/orders").body)["headers"]
        expect(headers["x-forwarded-for"], "127.0.0.1", "x-forwarded-for")
        expect(headers["x-forwarded-proto"], "http", "x-forwarded-proto")
        expect("via" in headers, True, "via is there")
        expect("forwarded" in headers, True, "forwarded is there")
        expect(bool(headers["x-request-id"]), True, "x-request-id is there")
        return f"via {headers['via']}"

    def check_07_weights_and_canary_header(self) -> str:
        found = self.clouds("/", 60, headers=["Host: shop.example.com"])
        expect(set(found), {"aws", "gcp"}, "both destinations are used")
        expect(found["aws"] > found["gcp"], True, f"80 to 20, found {found}")
        canary = self.clouds("/", 5, headers=["Host: shop.example.com", "X-Canary: always"])
        expect(canary, {"gcp": 5}, "canary header")
        return f"{found} of 60; canary {canary}"

    def check_08_sticky_cookie_keeps_its_endpoint(self) -> str:
        owners = set()
        for user in ("ada", "grace", "edsger", "barbara", "donald", "leslie", "tony", "frances"):
            found = self.clouds("/sticky", 4, headers=[f"Cookie: user={user}"])
            expect(len(found), 1, f"endpoints of user {user}")
            owners.update(found)
        expect(len(owners) > 1, True, f"users are spread, found {owners}")
        return f"8 users on {len(owners)} endpoints, each on one"

    def check_09_filters_rewrite_and_redirect(self) -> str:
        answer = fetch(self.address, "/v0/users")
        value = json.loads(answer.body)
        expect(value["path"], "/api/v1/users", "rewritten path")
        expect(value["headers"]["x-api-version"], "0", "added request field")
        expect(answer.headers["x-served-by"], "datum-router", "added response field")
        moved = fetch(self.address, "/old/page")
        expect(moved.status, 301, "redirect")
        expect(moved.headers["location"].endswith("/new/page"), True, f"location {moved.headers['location']}")
        return moved.headers["location"]

    def check_10_grpc_unary_and_all_streaming_kinds(self) -> str:
        with grpc.insecure_channel(self.address) as channel:
            unary = channel.unary_unary("/datum.demo.Echo/Unary")
            answer, call = unary.with_call(b"hi", timeout=10)
            cloud, _, text = answer.partition(b":")
            expect(text, b"hi", "unary")
            expect(dict(call.trailing_metadata()).get("x-cloud"), cloud.decode(), "trailer")
            server = channel.unary_stream("/datum.demo.Echo/ServerStream")
            expect([item.split(b":")[1] for item in server(b"s", timeout=10)][-1], b"s#4", "server stream")
            client = channel.stream_unary("/datum.demo.Echo/ClientStream")
            joined = client(iter([b"a", b"b", b"c"]), timeout=10)
            expect(joined.split(b":")[1], b"a,b,c", "client stream")
            bidi = channel.stream_stream("/datum.demo.Echo/Bidi")
            sent = [f"m{index}".encode() for index in range(20)]
            expect([item.split(b":")[1] for item in bidi(iter(sent), timeout=10)], sent, "bidi")
        return "unary, server, client and bidirectional streaming, with trailers"

    def check_11_grpc_status_deadline_and_cancellation(self) -> str:
        with grpc.insecure_channel(self.address) as channel:
            codes = []
            for method, timeout in (("Fail", 10.0), ("Sleep", 0.3), ("Missing", 10.0)):
                try:
                    channel.unary_unary(f"/datum.demo.Echo/{method}")(b"x", timeout=timeout)
                except grpc.RpcError as error:
                    codes.append(error.code())
            expect(
                codes,
                [
                    grpc.StatusCode.FAILED_PRECONDITION,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.StatusCode.UNIMPLEMENTED,
                ],
                "codes",
            )
            future = channel.unary_unary("/datum.demo.Echo/Sleep").future(b"x", timeout=30)
            future.cancel()
            expect(future.cancelled(), True, "cancelled")
        eventually(lambda: self.stat("gauges").get("requests_in_flight", 0) == 0, "cancelled calls end at the gateway")
        return "FAILED_PRECONDITION, DEADLINE_EXCEEDED, UNIMPLEMENTED, cancelled"

    def check_12_websocket_echoes_through_the_upgrade(self) -> str:
        with connect(f"ws://{self.address}/ws", open_timeout=10, close_timeout=5) as socket:
            for index in range(10):
                socket.send(f"message {index}")
                cloud, _, text = str(socket.recv(timeout=10)).partition(":")
                expect(text, f"message {index}", "echo")
            data = bytes(range(256)) * 1024
            socket.send(data)
            expect(socket.recv(timeout=10), data, "binary echo")
        return f"10 texts and {len(data)} bytes through {cloud}"

    def check_13_failover_when_a_backend_dies_and_back(self) -> str:
        expect(self.clouds("/failover", 3), {"aws": 3}, "priority 0 first")
        self.kill("aws")
        found = self.clouds("/failover", 10)
        expect(found, {"gcp": 10}, "requests that reach nobody are tried elsewhere, none is lost")
        took = eventually(lambda: not self.usable("default/ledger", "127.0.10.1"), "probes take the dead endpoint out")
        expect(self.clouds("/api/v1/users", 6).keys() <= {"gcp", "on-prem"}, True, "other services fail over too")
        with grpc.insecure_channel(self.address) as channel:
            unary = channel.unary_unary("/datum.demo.Echo/Unary")
            clouds = {unary(b"x", timeout=10).split(b":")[0] for _ in range(6)}
            expect(clouds <= {b"gcp", b"on-prem"}, True, f"gRPC fails over, found {clouds}")
        self.revive("aws")
        back = eventually(lambda: self.usable("default/ledger", "127.0.10.1"), "probes bring it back")
        eventually(lambda: fetch(self.address, "/failover").cloud == "aws", "traffic returns")
        return f"0 of 10 requests lost, out after {took:.1f} s, back after {back:.1f} s"

    def check_14_nobody_left_is_503_with_a_reason(self) -> str:
        path = self.directory / "lonely.yaml"
        path.write_text(LONELY)
        eventually(lambda: fetch(self.address, "/lonely").status != 404, "new route is in force", IN_FORCE_S * 2)
        answer = fetch(self.address, "/lonely")
        expect(answer.status, 503, "status")
        return answer.body.decode().strip().splitlines()[0]

    def check_15_route_edit_is_in_force_within_a_second(self) -> str:
        path = self.directory / "filters.yaml"
        old = path.read_text()
        assert "/new" in old
        path.write_text(old.replace("replacePrefixMatch: /new", "replacePrefixMatch: /newer"))
        took = eventually(
            lambda: fetch(self.address, "/old/page").headers["location"].endswith("/newer/page"),
            "edited redirect",
            IN_FORCE_S,
        )
        return f"after {took * 1000:.0f} ms"

    def check_16_broken_file_keeps_the_last_good_version(self) -> str:
        path = self.directory / "filters.yaml"
        good = path.read_text()
        path.write_text(good.replace("pathPrefix: /old", "pathPrefx: /old"))

        def findings() -> list[dict]:
            return [item for item in get_json(f"http://{self.admin}/diagnostics") if "pathPrefx" in item["path"]]

        eventually(lambda: bool(findings()), "diagnostic appears", IN_FORCE_S * 2)
        found = findings()[0]
        expect("pathPrefix" in found["hint"], True, f"near miss in {found}")
        expect(found["file"].endswith("filters.yaml") and found["line"] > 0, True, "file and line")
        expect(fetch(self.address, "/old/page").status, 301, "last good version serves on")
        path.write_text(good)
        eventually(lambda: not findings(), "diagnostic goes when the file is mended", IN_FORCE_S * 2)
        return f"{Path(found['file']).name}:{found['line']}: {found['hint']}"

    def check_17_preflights_are_answered_by_the_gateway(self) -> str:
        asked = ["Host: cors.example", "Origin: https://shop.example.com", "Access-Control-Request-Method: PUT"]
        answer = fetch(self.address, "/", method="OPTIONS", headers=asked)
        expect((answer.status, answer.cloud), (204, ""), "preflight")
        expect(answer.headers["access-control-allow-origin"], "https://shop.example.com", "allowed origin")
        return answer.headers["access-control-allow-methods"]

    def check_18_a_session_stays_at_its_endpoint(self) -> str:
        first = fetch(self.address, "/session")
        cookie = first.headers["set-cookie"].partition(";")[0]
        found = self.clouds("/session", 6, headers=[f"Cookie: {cookie}"])
        expect(found, {first.cloud: 6}, "endpoints of the session")
        return f"6 requests on {first.cloud}"

    def check_19_log_ins_are_limited(self) -> str:
        asked = ["Host: accounts.example.com"]
        answers = [fetch(self.address, "/login", method="POST", headers=asked, body=b"x") for _ in range(6)]
        expect([answer.status for answer in answers], [200] * 5 + [429], "statuses")
        expect(0 < int(answers[5].headers["retry-after"]) <= 12, True, "Retry-After, for 5 a minute")
        return f"the sixth may come in {answers[5].headers['retry-after']} s"

    def check_20_long_bodies_get_an_answer_in_the_routes_own_words(self) -> str:
        answer = fetch(self.address, "/", method="POST", headers=["Host: mirror.example"], body=bytes(1048577))
        expect((answer.status, answer.headers["content-type"]), (413, "application/json"), "refused")
        expect(json.loads(answer.body)["status"], 413, "status in the body")
        return json.loads(answer.body)["reason"]

    def stat(self, name: str) -> dict:
        return get_json(f"http://{self.admin}/stats")[name]

    def usable(self, service: str, host: str) -> bool:
        """Tell whether the supervisor calls an endpoint of a service usable."""
        for item in get_json(f"http://{self.admin}/health")["endpoints"]:
            if item["service"] == service and item["endpoint"].startswith(host):
                return bool(item["is_usable"])
        return True


LONELY = """
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: lonely}
spec:
  protocol: HTTP
  port: 1
  endpoints: [{address: 127.0.99.1}]
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: lonely}
spec:
  match: {pathPrefix: /lonely}
  destinations: [{vpcServiceRef: {name: lonely}}]
"""
