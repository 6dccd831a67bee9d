"""Normalising is idempotent and safe, so that the matcher and the upstream cannot read two different paths."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.routing.matcher import Matcher
from datum_router.routing.normalize import (
    Authority,
    BadHost,
    BadPath,
    Normalized,
    canonical_host,
    normalize_rule_path,
    normalize_target,
    parse_authority,
)
from datum_router.testing.factories import make_head, make_rule

PIECES = (
    *b"/ // . .. ... %2e %2E. %2f %5C %00 %25 %252e %41 %c3%a9 %zz % a b api %7e".split(b" "),
    *b"~ ; ..; * ? & = # \\ | [ ] @ : \xc3 \x00 \n".split(b" "),
    b" ",
)
targets = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)
batches = st.lists(
    st.one_of(targets, targets.map(lambda t: b"/" + t), st.binary(max_size=30).map(lambda t: b"/" + t)),
    min_size=1,
    max_size=50,
)
RULES = [make_rule(path, route=f"default/r{n}") for n, path in enumerate(("/", "/a", "/api", "/a/b", "/api/a"))]


@settings(max_examples=200, deadline=None)
@given(batches)
def test_match_of_a_path_equals_match_of_what_is_forwarded(raw: list[bytes]) -> None:
    matcher = Matcher(RULES)
    for target in raw:
        first = normalize_target(target)
        if isinstance(first, BadPath):
            continue
        forwarded = first.target.encode("ascii")
        second = normalize_target(forwarded)
        assert second == first
        assert isinstance(second, Normalized)
        assert matcher.match(make_head(first.target)) is matcher.match(make_head(second.target))


@settings(max_examples=200, deadline=None)
@given(batches)
def test_what_comes_out_is_canonical(raw: list[bytes]) -> None:
    for target in raw:
        result = normalize_target(target)
        if isinstance(result, BadPath) or result.path == "*":
            continue
        segments = result.path.split("/")
        assert segments[0] == ""
        assert "" not in segments[1:-1]
        assert not {".", ".."} & set(segments)
        lowered = result.path.lower()
        assert not any(bad in lowered for bad in ("%2f", "%5c", "%00", "%2e", "\\", "#", "?", " "))
        assert result.target.isascii()
        assert result.target.isprintable()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20).map(lambda text: "/" + text))
def test_rule_paths_are_idempotent_too(text: str) -> None:
    once = normalize_rule_path(text)
    if not isinstance(once, BadPath):
        assert normalize_rule_path(once) == once
        assert normalize_target(once.encode("ascii")) == Normalized(once)


host_pieces = st.sampled_from(
    ("a", "A", "xn--b", ".", "..", "-", "_", ":", "80", "0", "99999", "[::1]", "[", "@", "é", "%")
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.lists(host_pieces, max_size=6).map("".join), st.text(max_size=12), st.binary(max_size=12)))
def test_canonical_hosts_are_idempotent(raw: str | bytes) -> None:
    parsed = parse_authority(raw)
    host = canonical_host(raw)
    if isinstance(parsed, BadHost):
        assert host == parsed
        return
    assert isinstance(parsed, Authority)
    assert host == parsed.host
    assert parse_authority(parsed.text) == parsed
    assert canonical_host(parsed.host) == parsed.host
    assert parsed.host == parsed.host.lower()
    assert not parsed.host.endswith(".")
