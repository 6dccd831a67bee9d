"""Hypothesis strategies for rules and requests, drawn from small pools so that they overlap often.

Hypothesis is needed by this module alone; the core never imports it.
"""

from __future__ import annotations

from hypothesis import strategies as st

from datum_router.model.request import Headers, RequestHead
from datum_router.model.route import Match, PathKind, PathMatch, Rule, RuleId, ValueKind, ValueMatch

HOSTS = ("x", "a.x", "b.x", "a.b.x", "c.a.b.x", "b", "ax", "10.0.0.1", "[::1]", "[fd00::2]")
HOSTNAMES = ("x", "a.x", "a.b.x", "*.x", "*.b.x", "*.a.b.x", "b", "[::1]", "10.0.0.1")
SEGMENTS = ("a", "b", "ab", "pkg.S", "Get", "%20")
METHODS = ("GET", "POST", "HEAD")
NAMES = ("k", "x-a", "x-b")
VALUES = ("", "1", "12", "2", "1, 2", "a b")
ADDRESSES = ("192.0.2.1", "192.0.2.200", "10.1.2.3", "fd00::1", "::ffff:10.1.2.3", "")
CIDRS = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/25", "192.0.2.1", "fd00::/8", "::/0")
ATTACHMENTS = ("default/one", "prod/two")
LISTENER_SETS: tuple[tuple[str, ...], ...] = ((), ("plain",), ("tls", "plain"), ("tls",))
PATTERNS = ("/a.*", "/[ab]+", "/a/b", "/.*/Get", "1.*", "[12]", ".*")


def paths(*, max_segments: int = 4) -> st.SearchStrategy[str]:
    """Draw canonical request paths, with and without a trailing slash."""
    plain = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=max_segments).map(lambda s: "/" + "/".join(s))
    return st.one_of(st.just("/"), plain, plain, plain.map(lambda path: path + "/"))


def prefixes(*, max_segments: int = 3) -> st.SearchStrategy[str]:
    """Draw canonical prefixes."""
    return paths(max_segments=max_segments).map(lambda path: path.rstrip("/") or "/")


def path_matches(*, with_patterns: bool = False) -> st.SearchStrategy[PathMatch]:
    """Draw path conditions; patterns only on demand, since they need an engine."""
    kinds = [
        prefixes().map(lambda value: PathMatch(kind=PathKind.PREFIX, value=value)),
        paths(max_segments=3).map(lambda value: PathMatch(kind=PathKind.EXACT, value=value)),
        st.just(PathMatch()),
    ]
    if with_patterns:
        kinds.append(st.sampled_from(PATTERNS).map(lambda value: PathMatch(kind=PathKind.REGEX, value=value)))
    return st.one_of(kinds)


def value_matches(names: tuple[str, ...] = NAMES, *, with_patterns: bool = False) -> st.SearchStrategy[ValueMatch]:
    """Draw conditions on one header or query parameter."""
    kinds = [ValueKind.EXACT, ValueKind.PREFIX, ValueKind.PRESENT]
    plain = st.builds(
        ValueMatch,
        name=st.sampled_from(names),
        kind=st.sampled_from(kinds),
        value=st.sampled_from(VALUES),
        is_inverted=st.booleans(),
    )
    if not with_patterns:
        return plain
    pattern = st.builds(
        ValueMatch,
        name=st.sampled_from(names),
        kind=st.just(ValueKind.REGEX),
        value=st.sampled_from(PATTERNS),
        is_inverted=st.booleans(),
    )
    return st.one_of(plain, plain, pattern)


def matches(*, with_patterns: bool = False) -> st.SearchStrategy[Match]:
    """Draw condition sets; most have few conditions, as users write them."""

    def few(item: st.SearchStrategy[ValueMatch]) -> st.SearchStrategy[tuple[ValueMatch, ...]]:
        return st.one_of(st.just(()), st.lists(item, max_size=2).map(tuple))

    def some(items: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
        return st.one_of(st.just(()), st.lists(st.sampled_from(items), max_size=2, unique=True).map(tuple))

    return st.builds(
        Match,
        path=path_matches(with_patterns=with_patterns),
        methods=some(METHODS),
        headers=few(value_matches((*NAMES, "Host"), with_patterns=with_patterns)),
        query=few(value_matches(with_patterns=with_patterns)),
        grpc_service=st.sampled_from(("", "", "", "pkg.S", "a")),
        grpc_method=st.sampled_from(("", "", "", "Get", "b")),
        is_grpc_call=st.sampled_from((False, False, False, True)),
        source_cidrs=some(CIDRS),
        source_attachment=st.sampled_from(("", "", *ATTACHMENTS)),
    )


def rule_sets(*, max_size: int = 12, with_patterns: bool = False) -> st.SearchStrategy[list[Rule]]:
    """Draw rules with distinct ids that compete with each other."""
    parts = st.tuples(
        st.one_of(st.just(()), st.lists(st.sampled_from(HOSTNAMES), max_size=3, unique=True).map(tuple)),
        st.sampled_from(LISTENER_SETS),
        matches(with_patterns=with_patterns),
        st.sampled_from((0.0, 0.0, 100.0, 200.0)),
        st.sampled_from(("default/one", "default/two", "prod/one")),
    )

    def build(drawn: list[tuple[tuple[str, ...], tuple[str, ...], Match, float, str]]) -> list[Rule]:
        return [
            Rule(
                id=RuleId(f"{route}#{index}"),
                route=route,
                hostnames=hostnames,
                listeners=listeners,
                match=match,
                created_at=created_at,
                index=index,
            )
            for index, (hostnames, listeners, match, created_at, route) in enumerate(drawn)
        ]

    return st.lists(parts, max_size=max_size).map(build)


def heads() -> st.SearchStrategy[RequestHead]:
    """Draw request heads that some rules of `rule_sets` match."""
    fields = st.tuples(
        st.sampled_from([name.encode() for name in NAMES]), st.sampled_from([value.encode() for value in VALUES])
    )
    parameter = st.tuples(st.sampled_from(("k", "x-a", "%6b", "")), st.sampled_from(("", "=1", "=a+b", "=%31", "=%zz")))
    query = st.one_of(
        st.none(),
        st.lists(parameter.map("".join), max_size=3).map("&".join),
        st.just("&".join(["k=1"] * 100)),
        st.just("&".join(["k=1"] * 101)),
    )

    @st.composite
    def build(draw: st.DrawFn) -> RequestHead:
        host = draw(st.sampled_from(HOSTS))
        return RequestHead(
            method=draw(st.sampled_from(METHODS)),
            authority=draw(st.sampled_from((host, f"{host}:8080"))),
            host=host,
            path=draw(paths()),
            query=draw(query),
            headers=Headers(draw(st.lists(fields, max_size=3))),
            client_ip=draw(st.sampled_from(ADDRESSES)),
            listener=draw(st.sampled_from(("plain", "tls"))),
            attachment=draw(st.sampled_from(("", *ATTACHMENTS))),
        )

    return build()
