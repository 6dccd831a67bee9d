from __future__ import annotations

import pytest

from datum_router.reasons import Reason
from datum_router.routing.normalize import (
    MAX_HOST_CHARS,
    Authority,
    BadHost,
    BadPath,
    Normalized,
    canonical_host,
    normalize_rule_path,
    normalize_target,
    parse_authority,
)


@pytest.mark.parametrize(
    ("raw", "path", "query"),
    [
        (b"/", "/", None),
        (b"/a/b", "/a/b", None),
        (b"/a/", "/a/", None),
        (b"/?", "/", ""),
        (b"/a?x=1&y=/../%zz", "/a", "x=1&y=/../%zz"),
        (b"/a/./b", "/a/b", None),
        (b"/a/../b", "/b", None),
        (b"/a/b/..", "/a/", None),
        (b"/a/.", "/a/", None),
        (b"/a/%2e%2E/b", "/b", None),
        (b"/a/.%2e/b", "/b", None),
        (b"//a///b//", "/a/b/", None),
        (b"/a//../b", "/b", None),
        (b"/.well-known/acme", "/.well-known/acme", None),
        (b"/.../..a/a..", "/.../..a/a..", None),
        (b"/%41%2d%7e", "/A-~", None),
        (b"/caf%c3%a9%20x", "/caf%C3%A9%20x", None),
        (b"/a;v=1/b", "/a;v=1/b", None),
        (b"/a|b", "/a%7Cb", None),
        (b"/%252e%252e/x", "/%252e%252e/x", None),
        (b"/%252Fx", "/%252Fx", None),
        (b"*", "*", None),
    ],
)
def test_targets_become_canonical(raw: bytes, path: str, query: str | None) -> None:
    assert normalize_target(raw) == Normalized(path, query)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"a",
        b"?x",
        b"*x",
        b"http://x/",
        b"/..",
        b"/a/../..",
        b"/a//../../b",
        b"/%2e%2e/etc",
        b"/a%2fb",
        b"/a%2Fb",
        b"/a%5cb",
        b"/a%5C..%5Cb",
        b"/a\\b",
        b"/a%00",
        b"/a%1f",
        b"/a%7f",
        b"/a%0d%0aX:y",
        b"/a%",
        b"/a%2",
        b"/a%zz",
        b"/a%+1",
        b"/\xc3\xa9",
        b"/a b",
        b"/a\tb",
        b"/a\n",
        b"/a?b\n",
        b"/a?b c",
        b"/a?\xff",
        b"/a#b",
        b"/a?b#c",
        b"/x/..;/admin",
        b"/x/%2e%2e;a=b/admin",
        b"/x/..%3b/admin",
        b"/.;/admin",
    ],
)
def test_ambiguous_targets_are_refused(raw: bytes) -> None:
    result = normalize_target(raw)
    assert isinstance(result, BadPath)
    assert result.reason is Reason.BAD_PATH
    assert result.detail


@pytest.mark.parametrize("piece", [b"/.", b"/..", b"//", b"/a/..", b"%2e/", b"/;", b"[|"])
def test_long_targets_get_the_verdict_of_short_ones(piece: bytes) -> None:
    # Speed is the benchmark's business; quadratic work on 1 MiB would show as a test that never ends.
    short, long = (normalize_target(b"/" + piece * count) for count in (64, (1 << 20) // len(piece)))
    assert type(long) is type(short)
    if isinstance(long, Normalized) and isinstance(short, Normalized):
        assert long.path[:32] == short.path[:32]


@pytest.mark.parametrize(
    ("text", "path"),
    [("/café x", "/caf%C3%A9%20x"), ("/a//b/", "/a/b/"), ("/caf%c3%a9", "/caf%C3%A9"), ("/a/../b", "/b")],
)
def test_paths_of_manifests_are_encoded_and_normalised(text: str, path: str) -> None:
    assert normalize_rule_path(text) == path


@pytest.mark.parametrize("text", ["", "a", "/a?b", "/a#b", "/a%2fb", "/..", "/a\nb", "/a%zz"])
def test_bad_paths_of_manifests_are_refused(text: str) -> None:
    assert isinstance(normalize_rule_path(text), BadPath)


@pytest.mark.parametrize(
    ("raw", "host", "port"),
    [
        ("a.example", "a.example", None),
        (b"A.Example.:8080", "a.example", 8080),
        ("my_service:080", "my_service", 80),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[::1]", "[::1]", None),
        ("[FD00:0:0::2]:65535", "[fd00::2]", 65535),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
    ],
)
def test_authorities_become_canonical(raw: str | bytes, host: str, port: int | None) -> None:
    assert parse_authority(raw) == Authority(host, port)
    assert canonical_host(raw) == host


@pytest.mark.parametrize(
    "raw",
    [
        *("", ".", "..", "a..b", ".a", "a..", "u@a", "a b", "a:", "a:x", "a:0", "a:65536", "a:-1", "a:٣", "a:80:80"),
        *("bücher.example", b"b\xc3\xbccher", "%61", "a,b", "a/b", "a\n", "*.a"),
        *("[::1", "::1", "[::1%25eth0]", "[1.2.3.4]", "[::1]x"),
        *("a" * 64, ".".join(["a" * 63] * 4)),
    ],
)
def test_bad_authorities_are_refused(raw: str | bytes) -> None:
    result = parse_authority(raw)
    assert isinstance(result, BadHost)
    assert result.reason is Reason.BAD_HOST
    assert canonical_host(raw) == result


def test_longest_host_is_accepted() -> None:
    host = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(host) == MAX_HOST_CHARS
    assert canonical_host(host + ".") == host
    assert isinstance(canonical_host(host + "b"), BadHost)
