"""Section C of the threat list: what a path or host means is decided once, for the matcher and the upstream alike."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.routing.regex import compile_regex, load_engine
from datum_router_proxy import testing as h2
from tests.threats.kit import (
    CANARY,
    CLOSE,
    HOST,
    Arena,
    Client2,
    cpu_s,
    eventually,
    get,
    head2,
    read_until,
    running,
    statuses,
)

pytestmark = pytest.mark.e2e

SERVICE = """
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {{name: a}}
spec: {{protocol: HTTP, port: 80, endpoints: [{{address: 127.0.0.1, port: {port}}}]}}
"""
OTHERS = """
---
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: dead}
spec: {protocol: HTTP, port: 80, endpoints: [{address: 127.0.0.1, port: 9}]}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: foreign, namespace: elsewhere}
spec: {protocol: HTTP, port: 80, endpoints: [{address: 127.0.0.1, port: 9}]}
"""


def route(name: str, match: str = "{}", *, service: str = "{name: a}", extra: str = "", created: str = "") -> str:
    """Return a VPCRoute that tells the upstream its own name in `x-rule`, as YAML."""
    stamp = f", creationTimestamp: {created}" if created else ""
    return f"""
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {{name: {name}{stamp}}}
spec:
  match: {match}
  destinations: [{{vpcServiceRef: {service}}}]
  filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-rule, value: {name}}}]}}}}]
  {extra}
"""


def redirect(name: str, path: str, spec: str) -> str:
    """Return a VPCRoute that redirects what is under `path`, as YAML."""
    return f"""
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {{name: {name}}}
spec:
  hostnames: [a.test]
  match: {{pathPrefix: {path}}}
  filters: [{{type: RequestRedirect, requestRedirect: {spec}}}]
"""


ROUTES = (
    route("root", "{pathPrefix: /}", extra="hostnames: [a.test]")
    + route("api", "{pathPrefix: /api}", extra="hostnames: [a.test]")
    + route("api-v1", "{pathPrefix: /api/v1/}", extra="hostnames: [a.test]")
    + route("admin", "{exactPath: /admin}", extra="hostnames: [a.test]")
    + route("cafe", "{pathPrefix: /café}", extra="hostnames: [a.test]")
    + route("regex", '{pathRegex: "/r/(a+)+"}', extra="hostnames: [a.test]")
    + route(
        "regex-header",
        '{exactPath: /h, headerMatches: [{name: x, type: RegularExpression, value: "(a+)+$"}]}',
        extra="hostnames: [a.test]",
    )
    + route("star", extra='hostnames: ["*.x.test"]')
    + route("apex", extra="hostnames: [y.test, '*.y.test']")
    + route("idn", extra="hostnames: [xn--bcher-kva.test]")
    + route("dead", "{pathPrefix: /dead}", service="{name: dead}", extra="hostnames: [a.test]")
    + route("gone", "{pathPrefix: /gone}", service="{name: nobody}", extra="hostnames: [a.test]")
    + route(
        "foreign",
        "{pathPrefix: /foreign}",
        service="{name: foreign, namespace: elsewhere}",
        extra="hostnames: [a.test]",
    )
    + redirect("to-https", "/to-https", "{scheme: https}")
    + redirect("to-host", "/to-host", "{hostname: b.test, port: 8443, statusCode: 301}")
    + redirect("to-prefix", "/to-prefix", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}")
    + redirect("to-full", "/to-full", "{path: {type: ReplaceFullPath, replaceFullPath: /new}}")
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """A gateway with routes that tell the upstream who they are."""
    directory = tmp_path_factory.mktemp("threats") / "manifests"
    with running(directory, routes=SERVICE, extra=OTHERS + ROUTES) as arena:
        yield arena


def routed(arena: Arena, message: bytes) -> tuple[bytes, str]:
    """Send a request and return the target that the upstream got and the rule that was taken."""
    arena.upstream.requests.clear()
    assert statuses(arena.sees_whole(message)) == [200]
    ((head, _),) = arena.upstream.requests
    rule = re.search(rb"\r\nx-rule: (\S+)", head)
    assert rule is not None
    return head.split(b" ")[1], rule[1].decode()


@pytest.mark.parametrize(
    ("path", "forwarded", "rule"),
    [
        (b"/api/./x", b"/api/x", "api"),
        (b"/x/../api/y", b"/api/y", "api"),
        (b"/x/%2e%2e/api", b"/api", "api"),
        (b"/x/%2E./api", b"/api", "api"),
        (b"/x/.%2e/api", b"/api", "api"),
        (b"/api/..", b"/", "root"),
        (b"/api/../admin", b"/admin", "admin"),
        (b"/api/v1/../../admin/.", b"/admin/", "root"),
        (b"/%61dmin", b"/admin", "admin"),
        (b"/...", b"/...", "root"),
        (b"/x?a=/../b&c=%2e%2e", b"/x?a=/../b&c=%2e%2e", "root"),
    ],
)
def test_c1_dot_segments_are_resolved_before_matching(arena: Arena, path: bytes, forwarded: bytes, rule: str) -> None:
    assert routed(arena, get(path)) == (forwarded, rule)


def refused(arena: Arena, path: bytes, *statuses_: int) -> None:
    """Require a 400 over HTTP/1 and a 400 or reset over HTTP/2, counted, and nothing upstream."""
    assert statuses(arena.sees_whole(get(path))) == [400]
    with Client2(arena) as peer:
        peer.send(h2.headers(1, head2(path=path)))
        assert peer.verdict() in ("status 400", "reset 1")
    counts = arena.rejected()
    assert sum(count for name, count in counts.items() if name.startswith("h1|bad_")) == 1
    assert sum(count for name, count in counts.items() if name.startswith("h2|")) == 1
    assert arena.upstream.raw == b""


@pytest.mark.parametrize(
    "path",
    [b"/..", b"/../smuggled", b"/a/../../smuggled", b"/%2e%2E/smuggled", b"/a/%2e./../smuggled", b"//../x", b"/./../x",
     b"/x/..;/admin", b"/x/.;a/admin", b"/x/..%3Ba/admin"],
)  # fmt: skip
def test_c1_above_the_root_or_with_parameters_is_400(arena: Arena, path: bytes) -> None:
    refused(arena, path)


@pytest.mark.parametrize(
    "path",
    [b"/a%2fsmuggled", b"/a%2Fsmuggled", b"/api%2f..%2fadmin", b"/a%5csmuggled", b"/a%5Csmuggled", b"/a\\..\\smuggled",
     b"/\\evil.test"],
)  # fmt: skip
def test_c2_an_encoded_slash_or_a_backslash_is_400(arena: Arena, path: bytes) -> None:
    """Always: no kind has a field by which a route could say `keep`."""
    refused(arena, path)


def test_c2_in_a_query_they_are_text(arena: Arena) -> None:
    assert routed(arena, get(b"/x?a=%2F%5c\\")) == (b"/x?a=%2F%5c\\", "root")


@pytest.mark.parametrize(
    ("path", "forwarded", "rule"),
    [
        (b"//admin", b"/admin", "admin"),
        (b"///api//v1///x", b"/api/v1/x", "api-v1"),
        (b"/admin//", b"/admin/", "root"),
        (b"//", b"/", "root"),
        (b"/api//../admin", b"/admin", "admin"),
    ],
)
def test_c3_runs_of_slashes_are_merged_before_matching(arena: Arena, path: bytes, forwarded: bytes, rule: str) -> None:
    assert routed(arena, get(path)) == (forwarded, rule)


@pytest.mark.parametrize(
    "path",
    [b"/a%00", b"/a%0a", b"/a%0D%0Ax", b"/a%1f", b"/a%7F", b"/a%4", b"/a%", b"/a%zz", b"/a%u0041", b"/%c3%28%",
     b"/\xe9", b"/\xc3\xa9", b"/a?\xe9", b"/a#b", b"/#", b"/a?b#c"],
)  # fmt: skip
def test_c4_control_bytes_bad_escapes_non_ascii_and_fragments_are_400(arena: Arena, path: bytes) -> None:
    refused(arena, path)


@pytest.mark.parametrize(
    ("path", "forwarded", "rule"),
    [
        (b"/%2561dmin", b"/%2561dmin", "root"),
        (b"/x/%252e%252e/admin", b"/x/%252e%252e/admin", "root"),
        (b"/api%252fx", b"/api%252fx", "root"),
        (b"/%25%36%31dmin", b"/%2561dmin", "root"),
        (b"/%2500", b"/%2500", "root"),
    ],
)
def test_c5_what_is_encoded_twice_is_decoded_once(arena: Arena, path: bytes, forwarded: bytes, rule: str) -> None:
    assert routed(arena, get(path)) == (forwarded, rule)
    assert routed(arena, get(forwarded)) == (forwarded, rule)


TOKENS = [
    "/", "/", "/", ".", "..", "//", "api", "v1", "admin", "caf%C3%A9", "caf%c3%A9", "%61", "%2e", "%2E", "%2f", "%5C",
    "%25", "%252e", "%00", "%zz", ";", "a", "~", "%7e", "r/aa", "'", "<", "|", "%C3", "+", "*", "%20",
]  # fmt: skip
BATCH, BATCHES = 100, 100


def paths_of(rng: random.Random) -> list[bytes]:
    """Return a batch of paths that are hard to read."""
    return [("/" + "".join(rng.choices(TOKENS, k=rng.randrange(9)))).encode() for _ in range(BATCH)]


def test_c6_the_matcher_and_the_upstream_see_the_same_path(arena: Arena) -> None:
    """10,000 paths: what arrives upstream is sent again as it is, and must take the same rule and arrive unchanged."""
    with arena.connect() as sock:

        def send(paths: list[bytes]) -> list[tuple[bytes, bytes]]:
            arena.upstream.requests.clear()
            sock.sendall(b"".join(map(get, paths)) + get(b"/end"))
            data = b""
            while len(statuses(data)) < len(paths) + 1 or not data.endswith(b"ok"):
                data += sock.recv(1 << 20)
            assert set(statuses(data)) <= {200, 400, 500, 503}
            seen = []
            for head, _ in arena.upstream.requests[:-1]:
                rule = re.search(rb"\r\nx-rule: (\S+)", head)
                seen.append((head.split(b" ")[1], rule[1] if rule else b""))
            return seen

        @settings(max_examples=BATCHES)
        @given(st.randoms(use_true_random=True))
        def check(rng: random.Random) -> None:
            first = send(paths_of(rng))
            assert send([path for path, _ in first]) == first
            for path, rule in first:
                prefixes = {b"api": b"/api", b"api-v1": b"/api/v1", b"admin": b"/admin", b"cafe": b"/caf%C3%A9"}
                assert path.startswith(prefixes.get(rule, b"/"))
                assert b"/../" not in path
                assert b"//" not in path

        check()


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        (b"/api", "api"), (b"/api/", "api"), (b"/api/x", "api"), (b"/apiary", "root"), (b"/api.x", "root"),
        (b"/api;x", "root"), (b"/API", "root"), (b"/ap", "root"), (b"/x/api", "root"), (b"/api/v1", "api-v1"),
        (b"/api/v10", "api"), (b"/api/v1/x", "api-v1"), (b"/admin/", "root"), (b"/admin", "admin"),
        (b"/caf%C3%A9/x", "cafe"), (b"/caf%c3%a9", "cafe"), (b"/caf%C3%A9s", "root"), (b"/api%20", "root"),
    ],
)  # fmt: skip
def test_c7_prefixes_match_whole_segments(arena: Arena, path: bytes, rule: str) -> None:
    assert routed(arena, get(path))[1] == rule


# --- C8: precedence ------------------------------------------------------------------------------------------------

OVERLAPPING = [
    route("all", "{pathPrefix: /}"),
    route("long", "{pathPrefix: /p/q}"),
    route("short", "{pathPrefix: /p}"),
    route("exact", "{exactPath: /p/q}"),
    route("method", "{pathPrefix: /p/q/r, methods: [POST]}"),
    route("headers", "{pathPrefix: /p/q/r, headers: {x: y}}"),
    route("two-headers", "{pathPrefix: /p/q/r, headers: {x: y, z: w}}"),
    route("query", "{pathPrefix: /p/q/r, queryParams: {a: b}}"),
    route("bare", "{pathPrefix: /p/q/r}"),
    route("young", "{pathPrefix: /t}", created='"2026-02-01T00:00:00Z"'),
    route("old", "{pathPrefix: /t}", created='"2026-01-01T00:00:00Z"'),
    route("no-age", "{pathPrefix: /t}"),
    route("name-b", "{pathPrefix: /n}"),
    route("name-a", "{pathPrefix: /n}"),
]
WINNERS = [
    (get(b"/"), "all"),
    (get(b"/p"), "short"),
    (get(b"/p/q"), "exact"),
    (get(b"/p/q/"), "long"),
    (get(b"/p/q/r"), "bare"),
    (get(b"/p/q/r?a=b"), "query"),
    (get(b"/p/q/r?a=b", b"X: y\r\n"), "headers"),
    (get(b"/p/q/r", b"X: y\r\nZ: w\r\n"), "two-headers"),
    (b"POST" + get(b"/p/q/r?a=b", b"X: y\r\nZ: w\r\n")[3:], "method"),
    (get(b"/t/x"), "old"),
    (get(b"/n"), "name-a"),
]


def test_c8_the_order_of_arrival_never_decides(tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    rng = random.Random(8)
    with running(directory, routes=SERVICE, extra="".join(OVERLAPPING)) as arena:
        arena.begin()
        for turn in range(5):
            if turn:
                shuffled = rng.sample(OVERLAPPING, len(OVERLAPPING))
                at = rng.randrange(1, len(shuffled))
                generation = redirect("turn", "/turn", f"{{path: {{type: ReplaceFullPath, replaceFullPath: /{turn}}}}}")
                # What was in one file is in two, in another order, whose names sort either way.
                for name in (f"{rng.random()}.yaml", "a.yaml"):
                    part = shuffled[:at] if name != "a.yaml" else shuffled[at:]
                    text = "".join(part) if name != "a.yaml" else arena_file(directory, part) + generation
                    stage = directory / f".{name}"
                    stage.write_text(text)
                    stage.rename(directory / name)
                for old in directory.glob("0.*.yaml"):
                    if old.read_text() != "".join(shuffled[:at]):
                        old.unlink()
                location = b"/%d\r\n" % turn
                eventually(
                    lambda wanted=location: wanted in arena.ask(get(b"/turn", CLOSE)), "the new order is in force"
                )
            for message, rule in WINNERS:
                assert routed(arena, message)[1] == rule, (turn, message)
        arena.end()


def redirects_to(arena: Arena, location: bytes) -> bool:
    """Tell whether the marker of a generation of manifests is served."""
    return location in arena.ask(get(b"/turn", CLOSE))


def arena_file(directory: Path, routes: list[str]) -> str:
    """Return the arena's own objects followed by `routes`."""
    text = (directory / "a.yaml").read_text()
    documents = [part for part in text.split("\n---\n") if "kind: VPCService" in part]
    return "\n---\n".join(documents) + "".join(routes)


# --- C9 to C12 -----------------------------------------------------------------------------------------------------


def test_c9_a_pattern_that_would_backtrack_costs_linear_time(arena: Arena) -> None:
    assert routed(arena, get(b"/r/" + b"a" * 8000))[1] == "regex"
    bad_path = get(b"/r/" + b"a" * 8000 + b"!")
    bad_field = get(b"/h", b"X: " + b"a" * 16000 + b"!\r\n")
    assert routed(arena, get(b"/h", b"X: " + b"a" * 16000 + b"\r\n"))[1] == "regex-header"
    for message in (bad_path, bad_field):
        before = cpu_s(arena.pids)
        for _ in range(20):
            assert routed(arena, message)[1] == "root"
        assert (cpu_s(arena.pids) - before) / 20 <= 0.05  # the rest of the request and the bystander's included


def test_c9_64_kib_against_the_classic_take_at_most_50_ms() -> None:
    engine = load_engine()
    assert engine is not None, "the development environment has RE2"
    pattern = compile_regex("(a+)+$", engine)
    assert hasattr(pattern, "fullmatch"), pattern
    for text, matches in ((b"a" * 65536, True), (b"a" * 65535 + b"!", False)):
        before = time.process_time()
        assert (pattern.fullmatch(text) is not None) is matches
        assert time.process_time() - before <= 0.05


@pytest.mark.parametrize(
    "pattern",
    ["a" * 513, "(a{1000}){1000}", "(?=a)b", r"(a)\1", "(a"],
    ids=["513-B", "1-MiB", "lookahead", "backref", "open"],
)
def test_c9_what_the_engine_cannot_run_in_linear_time_is_rejected_at_admission(pattern: str) -> None:
    assert not hasattr(compile_regex(pattern, load_engine()), "fullmatch")


@pytest.mark.parametrize(
    ("host", "rule"),
    [
        (b"A.Test", "root"), (b"a.test.", "root"), (b"a.test:80", "root"), (b"a.test.:8080", "root"),
        (b"q.x.test", "star"), (b"Q.X.Test.", "star"), (b"p.q.x.test", "star"), (b"y.test", "apex"),
        (b"z.y.test:1", "apex"), (b"XN--BCHER-KVA.test", "idn"),
    ],
)  # fmt: skip
def test_c10_hosts_are_compared_in_canonical_form(arena: Arena, host: bytes, rule: str) -> None:
    assert routed(arena, get(b"/", host=b"Host: " + host + b"\r\n"))[1] == rule


@pytest.mark.parametrize(
    "host", [b"x.test", b"ax.test", b"qx.test", b"x.test.evil", b"b.a.test", b"a.testx", b"[::1]", b"127.0.0.1"]
)
def test_c10_a_wildcard_never_matches_its_apex_nor_anybody_else(arena: Arena, host: bytes) -> None:
    assert statuses(arena.sees_whole(get(b"/", host=b"Host: " + host + b"\r\n"))) == [404]
    assert arena.upstream.raw == b""


@pytest.mark.parametrize("host", ["bücher.test".encode(), b".x.test", b"a..x.test", b"*.x.test", b"q%2ex.test"])
def test_c10_what_is_no_host_is_400(arena: Arena, host: bytes) -> None:
    assert statuses(arena.ask(get(b"/", CLOSE, host=b"Host: " + host + b"\r\n"))) == [400]
    assert arena.rejected() == {"h1|bad_host": 1}


@pytest.mark.parametrize(
    ("path", "host", "location"),
    [
        (b"/to-https/x?y=z", b"a.test", b"https://a.test/to-https/x?y=z"),
        (b"/to-https//evil.test", b"a.test", b"https://a.test/to-https/evil.test"),
        (b"//to-https/x", b"a.test:8080", b"https://a.test/to-https/x"),
        (b"/to-https/?https://evil.test", b"A.Test", b"https://a.test/to-https/?https://evil.test"),
        (b"/to-host/x", b"a.test", b"http://b.test:8443/to-host/x"),
        (b"/to-prefix//evil.test/x", b"a.test", b"http://a.test/evil.test/x"),
        (b"/to-prefix/%2e/evil.test", b"a.test", b"http://a.test/evil.test"),
        (b"/to-prefix/@evil.test", b"a.test:81", b"http://a.test:81/@evil.test"),
        (b"/to-prefix", b"a.test", b"http://a.test/"),
        (b"/to-full/x", b"a.test", b"http://a.test/new"),
        (b"http://a.test/to-full", b"evil.test", b"http://a.test/new"),
    ],
)
def test_c11_a_redirect_is_built_of_typed_parts(arena: Arena, path: bytes, host: bytes, location: bytes) -> None:
    data = arena.sees_whole(get(path, host=b"Host: " + host + b"\r\n"))
    assert statuses(data) in ([301], [302])
    assert re.findall(rb"\r\nlocation: ([^\r]*)\r\n", data) == [location]
    assert arena.upstream.raw == b""


@pytest.mark.parametrize("host", [b"evil.test/..", b"a.test@evil.test", b"a.test\\evil", b"a.test, evil.test"])
def test_c11_a_host_that_is_none_never_becomes_a_location(arena: Arena, host: bytes) -> None:
    data = arena.ask(get(b"/to-https", CLOSE, host=b"Host: " + host + b"\r\n"))
    assert statuses(data) == [400]
    assert b"location" not in data


@pytest.mark.parametrize(
    ("message", "status", "reason"),
    [
        (get(b"/", host=b"Host: nowhere.test\r\n"), 404, "no_route"),
        (get(b"/gone"), 500, "backend_not_found"),
        (get(b"/foreign"), 500, "backend_not_found"),
        (get(b"/dead"), 503, "connect_failed"),
    ],
    ids=["no-route", "not-found", "not-permitted", "nobody-listens"],
)
def test_c12_without_a_usable_backend_the_status_says_why(
    arena: Arena, message: bytes, status: int, reason: str
) -> None:
    data = arena.sees_whole(message)
    assert statuses(data) == [status]
    assert data.partition(b"\r\n\r\n")[2].startswith(reason.encode())
    assert arena.upstream.raw == b""


def test_c12_after_an_answer_of_our_own_the_connection_goes_on(arena: Arena) -> None:
    with arena.connect() as sock:
        for _ in range(3):
            sock.sendall(get(b"/gone") + get(CANARY) + get(b"/x", host=b"Host: nowhere.test\r\n") + get(b"/end"))
            data = b""
            while len(statuses(data)) < 4 or not data.endswith(b"ok"):
                data += sock.recv(65536)
            assert statuses(data) == [500, 200, 404, 200]
        sock.sendall(b"GET /end HTTP/1.1\r\n" + HOST + b"\r\n")
        assert statuses(read_until(sock, b"ok")) == [200]
