"""Edits, rewrites and redirects of anything that may be asked, against what is said of them."""

from __future__ import annotations

import re

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.filters.base import build_filter, filter_problem
from datum_router.filters.grammar import FORBIDDEN_NAMES
from datum_router.model.request import Headers, LocalReply, RequestHead
from datum_router.model.route import FilterConfig, HeaderEdit, Redirect, Rewrite, Rule
from datum_router.reasons import Reason
from datum_router.routing.normalize import Authority, parse_authority
from datum_router.testing.factories import make_head, make_response, make_rule
from datum_router.testing.strategies import paths, prefixes

FORBIDDEN = sorted(name.decode() for name in FORBIDDEN_NAMES)
NAMES = ("x-a", "x-b", "cookie")
VALUES = st.sampled_from(["", "1", "2", "a, b", "é"])


def fields(*names: str) -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    return st.lists(st.tuples(st.sampled_from(names), VALUES), max_size=4).map(tuple)


def edits(*names: str) -> st.SearchStrategy[HeaderEdit]:
    removed = st.lists(st.sampled_from(names), max_size=2).map(tuple)
    return st.builds(HeaderEdit, is_response=st.booleans(), set=fields(*names), add=fields(*names), remove=removed)


def values(headers: Headers, name: str) -> list[str]:
    return [value.decode() for value in headers.get_all(name.encode())]


@given(edit=edits(*NAMES), own=fields(*NAMES, "x-kept", *FORBIDDEN))
def test_an_edit_does_to_each_name_what_it_says_and_nothing_to_any_other(
    edit: HeaderEdit, own: tuple[tuple[str, str], ...]
) -> None:
    built = build_filter(edit, make_rule())
    head, response = make_head(headers=own), make_response(headers=own)
    request = built.on_request(head)
    assert isinstance(request, RequestHead)
    changed = built.on_response(response)
    made, same = (changed.headers, request.headers) if edit.is_response else (request.headers, changed.headers)
    assert same == head.headers, "the other direction stays as it is"
    assert msgspec.structs.replace(request, headers=head.headers) == head
    assert changed.status == response.status
    for name in (*NAMES, "x-kept", *FORBIDDEN):
        expected = [value for key, value in own if key == name]
        last = [value for key, value in edit.set if key == name][-1:]
        expected = (last or expected) + [value for key, value in edit.add if key == name]
        assert values(made, name) == ([] if name in edit.remove else expected)


@given(edit=edits(*NAMES, *FORBIDDEN))
def test_an_edit_that_names_a_field_of_the_connection_lets_no_request_pass(edit: HeaderEdit) -> None:
    named = {name for name, _ in (*edit.set, *edit.add)} | set(edit.remove)
    is_bad = not named.isdisjoint(FORBIDDEN)
    assert bool(filter_problem(edit, make_rule())) is is_bad
    found = build_filter(edit, make_rule()).on_request(make_head())
    assert isinstance(found, LocalReply) is is_bad
    assert not isinstance(found, LocalReply) or (found.status, found.reason) == (500, Reason.BAD_FILTER_OUTPUT)


def segments(path: str) -> list[str]:
    return [one for one in path.split("/") if one]


def with_other_prefix(path: str, prefix: str, replacement: str) -> str:
    """Replace a prefix segment by segment; a slash at the end of the path stays."""
    old, all_of_them = segments(prefix), segments(path)
    if all_of_them[: len(old)] != old:
        return path
    made = "/" + "/".join(segments(replacement) + all_of_them[len(old) :])
    return made if made == "/" or not path.endswith("/") else made + "/"


HOSTNAMES = st.sampled_from(["", "inner.test", "[fd00::1]"])
REPLACEMENTS = st.one_of(st.just(""), paths(max_segments=2))
CHANGES = st.one_of(
    st.just({}),
    paths().map(lambda path: {"full_path": path}),
    REPLACEMENTS.map(lambda path: {"prefix_path": path}),
)


def below(rule: Rule) -> st.SearchStrategy[str]:
    """Draw paths that most often begin with the rule's."""
    prefix = rule.match.path.value.rstrip("/")
    return st.one_of(paths(), paths().map(lambda path: prefix + path), st.just(prefix or "/"))


RULES_AND_PATHS = prefixes().map(make_rule).flatmap(lambda rule: st.tuples(st.just(rule), below(rule)))
QUERIES = st.sampled_from(["", "?", "?q=1", "?/../&a=//b"])
AUTHORITIES = st.sampled_from(["a.test", "a.test:80", "a.test:443", "a.test:8080", "[::1]:81"])


def expected_path(change: dict[str, str], path: str, rule: Rule) -> str:
    if "full_path" in change:
        return change["full_path"]
    return with_other_prefix(path, rule.match.path.value, change["prefix_path"]) if change else path


@settings(max_examples=300)
@given(asked=RULES_AND_PATHS, query=QUERIES, authority=AUTHORITIES, hostname=HOSTNAMES, change=CHANGES)
def test_a_rewrite_changes_host_and_path_alone(
    asked: tuple[Rule, str], query: str, authority: str, hostname: str, change: dict[str, str]
) -> None:
    rule, path = asked
    head = make_head(path + query, method="PUT", authority=authority, headers={"x-a": "1"})
    found = build_filter(Rewrite(hostname=hostname, **change), rule).on_request(head)
    assert isinstance(found, RequestHead)
    assert found.path == expected_path(change, path, rule)
    if hostname:
        assert (found.authority, found.host) == (hostname, hostname)
    kept = ("path", "authority", "host") if hostname else ("path",)
    assert msgspec.structs.replace(found, **{name: getattr(head, name) for name in kept}) == head


@settings(max_examples=300)
@given(
    asked=RULES_AND_PATHS,
    query=QUERIES,
    authority=AUTHORITIES,
    spoken=st.sampled_from(["http", "https"]),
    config=st.builds(
        Redirect,
        scheme=st.sampled_from(["", "http", "https"]),
        hostname=HOSTNAMES,
        port=st.sampled_from([None, 80, 443, 8443]),
        status=st.sampled_from([301, 302, 303, 307, 308]),
    ),
    change=CHANGES,
)
def test_a_redirect_leads_where_its_parts_say(
    asked: tuple[Rule, str], query: str, authority: str, spoken: str, config: Redirect, change: dict[str, str]
) -> None:
    rule, path = asked
    head = make_head(path + query, authority=authority, scheme=spoken)
    found = build_filter(msgspec.structs.replace(config, **change), rule).on_request(head)
    assert isinstance(found, LocalReply)
    assert (found.status, found.reason) == (config.status, Reason.REDIRECTED)
    whence = parse_authority(authority)
    assert isinstance(whence, Authority)
    scheme = config.scheme or spoken
    port = config.port or (None if config.scheme else whence.port)
    host = config.hostname or whence.host
    if port is not None and (scheme, port) not in (("http", 80), ("https", 443)):
        host += f":{port}"
    assert found.headers == ((b"location", f"{scheme}://{host}{expected_path(change, path, rule)}{query}".encode()),)


HOSTILE = st.text(alphabet="/\\@:%?#.;[]ab0-\r\n\t é", max_size=12)
LOCATION = re.compile(rb"(https?)://([a-z0-9\-_.]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?/(?!/)[!-~]*")


@settings(max_examples=400)
@given(
    path=st.one_of(HOSTILE, HOSTILE.map(lambda text: "/" + text), HOSTILE.map(lambda text: "//evil.test" + text)),
    query=st.none() | HOSTILE,
    authority=st.one_of(AUTHORITIES, HOSTILE),
    scheme=st.sampled_from(["http", "https", "javascript", ""]),
    config=st.sampled_from(
        [
            Redirect(),
            Redirect(scheme="https"),
            Redirect(hostname="b.test"),
            Redirect(prefix_path=""),
            Redirect(full_path="/x"),
            Rewrite(prefix_path=""),
        ]
    ),
)
def test_no_text_of_a_client_comes_to_be_another_part_of_a_location(
    path: str, query: str | None, authority: str, scheme: str, config: FilterConfig
) -> None:
    head = msgspec.structs.replace(make_head(authority=authority, scheme=scheme), path=path, query=query)
    found = build_filter(config, make_rule()).on_request(head)
    if isinstance(found, RequestHead):
        assert isinstance(config, Rewrite)
        assert re.match(r"/(?!/)[!-~]*\Z", found.path) or found.path == path
        return
    if found.reason is not Reason.REDIRECTED:
        assert found.status in (400, 500)
        assert found.headers == ()
        return
    assert isinstance(config, Redirect)
    parts = LOCATION.fullmatch(found.headers[0][1])
    assert parts is not None
    asked = parse_authority(authority)
    assert parts[2].decode() == (config.hostname or (asked.host if isinstance(asked, Authority) else ""))
