from __future__ import annotations

import pytest

from datum_router.errors import PluginContractError
from datum_router.filters.base import (
    CheckedFilter,
    RefusingFilter,
    apply_request,
    apply_response,
    are_repeatable,
    build_filter,
    filter_problem,
    response_key,
)
from datum_router.filters.grammar import FORBIDDEN_NAMES
from datum_router.model.request import Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.route import FilterConfig, HeaderEdit, PathKind, PluginFilter, Redirect, Rewrite, Rule
from datum_router.policy.plugin_guard import MAX_FAILURES, PluginHook, PluginPart, PluginWatch
from datum_router.reasons import Reason
from datum_router.testing.factories import make_head, make_headers, make_response, make_rule


def request(config: FilterConfig, head: RequestHead, rule: Rule | None = None) -> RequestHead:
    result = build_filter(config, rule or make_rule()).on_request(head)
    assert isinstance(result, RequestHead)
    return result


def location(config: Redirect, head: RequestHead, rule: Rule | None = None) -> str:
    reply = build_filter(config, rule or make_rule()).on_request(head)
    assert isinstance(reply, LocalReply)
    assert reply.status == config.status
    assert reply.reason == Reason.REDIRECTED
    ((name, value),) = reply.headers
    assert name == b"location"
    return value.decode()


def test_header_edit_sets_then_adds_then_removes() -> None:
    config = HeaderEdit(set=(("a", "new"), ("c", "1")), add=(("a", "more"), ("b", "2"), ("d", "3")), remove=("d", "e"))
    head = request(config, make_head(headers=[("a", "1"), ("b", "1"), ("a", "2"), ("e", "1")]))
    assert head.headers == make_headers([("b", "1"), ("a", "new"), ("c", "1"), ("a", "more"), ("b", "2")])


def test_response_edit_leaves_the_request_alone() -> None:
    built = build_filter(HeaderEdit(is_response=True, set=(("server", "datum"),), remove=("x-debug",)), make_rule())
    head = make_head(headers={"server": "x"})
    assert built.on_request(head) is head
    response = built.on_response(make_response(201, {"Server": "nginx", "x-debug": "1", "etag": "2"}))
    assert response == make_response(201, [("etag", "2"), ("server", "datum")])


def test_request_edit_leaves_the_response_alone() -> None:
    response = make_response()
    assert build_filter(HeaderEdit(set=(("a", "b"),)), make_rule()).on_response(response) is response


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", "x\r\nset-cookie: y"),
        ("a", "x\ny"),
        ("a", "x\x00"),
        ("a", "x\x7f"),
        ("a", " x"),
        ("a", "x\t"),
        ("a b", "x"),
        ("a:", "x"),
        ("", "x"),
        ("A", "x"),
        ("a\n", "x"),
        (":path", "x"),
        ("é", "x"),
        *((name.decode(), "x") for name in sorted(FORBIDDEN_NAMES)),
    ],
)
@pytest.mark.parametrize("is_response", [False, True])
def test_fields_that_would_split_or_reframe_a_message_are_refused(name: str, value: str, is_response: bool) -> None:
    for config in (
        HeaderEdit(is_response=is_response, set=((name, value),)),
        HeaderEdit(is_response=is_response, add=((name, value),)),
    ):
        assert filter_problem(config, make_rule())
        reply = build_filter(config, make_rule()).on_request(make_head())
        assert isinstance(reply, LocalReply)
        assert (reply.status, reply.reason) == (500, Reason.BAD_FILTER_OUTPUT)


def test_framing_fields_cannot_be_removed_either() -> None:
    assert filter_problem(HeaderEdit(remove=("content-length",)), make_rule())


def test_values_may_hold_blanks_inside_be_empty_and_hold_utf8() -> None:
    config = HeaderEdit(set=(("a", ""), ("b", "x\t y"), ("c", "é")))
    assert filter_problem(config, make_rule()) == ""
    assert request(config, make_head()).headers.get(b"c") == "é".encode()


@pytest.mark.parametrize(
    ("path", "prefix", "replacement", "expected"),
    [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/foo/a%20b", "/foo", "/caf%c3%a9", "/caf%C3%A9/a%20b"),
        ("/other", "/foo", "/xyz", "/other"),
        ("/foobar", "/foo", "/xyz", "/foobar"),
        ("*", "/", "/xyz", "*"),
    ],
)
def test_prefix_replacement(path: str, prefix: str, replacement: str, expected: str) -> None:
    rule = make_rule(prefix)
    head = request(Rewrite(prefix_path=replacement), make_head(path + "?q=1"), rule)
    assert (head.path, head.query) == (expected, "q=1")
    if path != "*":
        assert location(Redirect(prefix_path=replacement), make_head(path), rule) == f"http://example.test{expected}"


def test_rewrite_of_full_path_and_hostname() -> None:
    head = request(Rewrite(hostname="Backend.Internal.", full_path="/a//b"), make_head("/x?q", authority="a:81"))
    assert (head.path, head.query, head.authority, head.host) == ("/a/b", "q", "backend.internal", "backend.internal")


def test_rewrite_that_changes_nothing_returns_the_same_head() -> None:
    head = make_head("/x")
    assert request(Rewrite(full_path="/x"), head) is head


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (Rewrite(hostname="a b"), make_rule()),
        (Rewrite(hostname="a:80"), make_rule()),
        (Rewrite(hostname="a\r\nb"), make_rule()),
        (Rewrite(full_path="a"), make_rule()),
        (Rewrite(full_path=""), make_rule()),
        (Rewrite(full_path="*"), make_rule()),
        (Rewrite(full_path="/a?b"), make_rule()),
        (Rewrite(full_path="/../a"), make_rule()),
        (Rewrite(full_path="/a\r\nb"), make_rule()),
        (Rewrite(full_path="/a", prefix_path="/b"), make_rule()),
        (Rewrite(prefix_path="b"), make_rule("/a")),
        (Rewrite(prefix_path="/b"), make_rule("/a", PathKind.EXACT)),
        (Redirect(scheme="javascript"), make_rule()),
        (Redirect(hostname="evil\r\nx"), make_rule()),
        (Redirect(port=0), make_rule()),
        (Redirect(port=65536), make_rule()),
        (Redirect(status=200), make_rule()),
        (Redirect(full_path="//a/%2f"), make_rule()),
        (PluginFilter(name="nobody"), make_rule()),
    ],
)
def test_configuration_that_cannot_be_used_refuses_requests(config: FilterConfig, rule: Rule) -> None:
    built = build_filter(config, rule)
    assert isinstance(built, RefusingFilter)
    assert built.problem
    reply = built.on_request(make_head())
    assert isinstance(reply, LocalReply)
    assert reply.status == 500


@pytest.mark.parametrize(
    ("config", "scheme", "authority", "expected"),
    [
        (Redirect(scheme="https"), "http", "a.x", "https://a.x/p?q=1"),
        (Redirect(scheme="https"), "http", "a.x:8080", "https://a.x/p?q=1"),
        (Redirect(scheme="https", port=8443), "http", "a.x", "https://a.x:8443/p?q=1"),
        (Redirect(scheme="https", port=443), "http", "a.x", "https://a.x/p?q=1"),
        (Redirect(scheme="http", port=443), "https", "a.x", "http://a.x:443/p?q=1"),
        (Redirect(hostname="b.x"), "http", "a.x:8080", "http://b.x:8080/p?q=1"),
        (Redirect(hostname="b.x"), "https", "a.x:443", "https://b.x/p?q=1"),
        (Redirect(hostname="[FD00::1]"), "http", "a.x", "http://[fd00::1]/p?q=1"),
        (Redirect(port=80), "http", "a.x:8080", "http://a.x/p?q=1"),
        (Redirect(full_path="/new", status=301), "http", "[::1]:8080", "http://[::1]:8080/new?q=1"),
        (Redirect(hostname="b.x", status=308), "http", "", "http://b.x/p?q=1"),
    ],
)
def test_redirect_target(config: Redirect, scheme: str, authority: str, expected: str) -> None:
    assert location(config, make_head("/p?q=1", scheme=scheme, authority=authority)) == expected


@pytest.mark.parametrize("path", ["//evil.example/x", "///evil.example/x", "/x"])
def test_redirect_path_begins_with_exactly_one_slash(path: str) -> None:
    target = location(Redirect(scheme="https"), make_head(path))
    assert target.removeprefix("https://example.test").startswith("/")
    assert not target.removeprefix("https://example.test").startswith("//")


@pytest.mark.parametrize("path", ["/x\r\nset-cookie: a", "/%2f%2fevil", "/\\evil", "evil"])
def test_redirect_of_a_path_that_was_never_normalised_is_refused(path: str) -> None:
    reply = build_filter(Redirect(scheme="https"), make_rule()).on_request(make_head(path))
    assert isinstance(reply, LocalReply)
    assert (reply.status, reply.headers) == (500, ())


@pytest.mark.parametrize("authority", ["", "u@evil", "a\r\nb", "a b"])
def test_redirect_without_a_valid_host_is_a_bad_request(authority: str) -> None:
    reply = build_filter(Redirect(scheme="https"), make_rule()).on_request(make_head(authority=authority))
    assert isinstance(reply, LocalReply)
    assert (reply.status, reply.reason, reply.headers) == (400, Reason.BAD_HOST, ())


def test_redirect_of_asterisk_goes_to_the_root() -> None:
    assert location(Redirect(scheme="https"), make_head("*", method="OPTIONS")) == "https://example.test/"


class Producing:
    """A plugin's filter that returns what it was given at construction."""

    def __init__(self, request: RequestHead | LocalReply | None = None, response: ResponseHead | None = None) -> None:
        self.request = request
        self.response = response

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        return self.request or head

    def on_response(self, head: ResponseHead) -> ResponseHead:
        return self.response or head


def checked(inner: object) -> CheckedFilter:
    part = PluginPart(plugin="x", hook=PluginHook.FILTER, name="p", route="default/r")
    watch = PluginWatch()
    return CheckedFilter(inner, on_request=watch.guard(part), on_response=watch.guard(part))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "result",
    [
        make_head(headers={"a": "x\r\ny"}),
        make_head(headers=[("content-length", "3")]),
        make_head("/a/../b"),
        make_head("/a b"),
        make_head("/?a b"),
        make_head(authority="a b"),
        make_head(method="POST"),
        LocalReply(status=200, reason="x", headers=((b"a", b"b\r\nc: d"),)),
    ],
)
def test_bad_output_of_a_plugin_filter_never_leaves(result: RequestHead | LocalReply) -> None:
    with pytest.raises(PluginContractError, match=r"^filter p of default/r: returned ") as caught:
        checked(Producing(result)).on_request(make_head())
    assert caught.value.reason is Reason.BAD_FILTER_OUTPUT


def test_good_output_of_a_plugin_filter_passes() -> None:
    changed = make_head("/new?x", headers={"a": "b"}, authority="b.x:81")
    assert checked(Producing(changed)).on_request(make_head()) is changed
    reply = LocalReply(status=403, reason="x", headers=((b"a", b"b"),))
    assert checked(Producing(reply)).on_request(make_head()) is reply
    head, response = make_head(), make_response()
    assert checked(Producing()).on_request(head) is head
    assert checked(Producing()).on_response(response) is response
    teapot = make_response(418, {"a": "b"})
    assert checked(Producing(response=teapot)).on_response(response) is teapot


@pytest.mark.parametrize("bad", [make_response(200, {"a": "x\ny"}), make_response(101), ResponseHead(status=700)])
def test_bad_response_of_a_plugin_filter_breaks_its_contract(bad: ResponseHead) -> None:
    with pytest.raises(PluginContractError) as caught:
        checked(Producing(response=bad)).on_response(make_response())
    assert caught.value.reason is Reason.BAD_FILTER_OUTPUT


class Failing:
    """A plugin's filter that fails on one side, and counts how often it is asked."""

    def __init__(self, side: str, answer: object) -> None:
        self.side = side
        self.answer = answer
        self.asked = 0

    def _on(self, side: str, head: object) -> object:
        self.asked += 1
        if side != self.side:
            return head
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def on_request(self, head: object) -> object:
        return self._on("request", head)

    def on_response(self, head: object) -> object:
        return self._on("response", head)


def exchange(one: CheckedFilter) -> None:
    one.on_request(make_head())
    one.on_response(make_response())


@pytest.mark.parametrize("answer", [ValueError("oops"), SystemExit(3), "nonsense", None], ids=repr)
@pytest.mark.parametrize("side", ["request", "response"])
def test_a_plugin_filter_that_keeps_failing_refuses_its_requests_without_being_asked(side: str, answer: object) -> None:
    inner = Failing(side, answer)
    one = checked(inner)
    for _ in range(MAX_FAILURES):
        with pytest.raises(PluginContractError, match=r"^filter p of default/r: (raised|returned) ") as caught:
            exchange(one)
        assert caught.value.reason is Reason.INTERNAL
    asked = inner.asked
    reply = one.on_request(make_head())
    assert isinstance(reply, LocalReply)
    assert (reply.status, reply.reason) == (500, Reason.PLUGIN_DISABLED)
    assert inner.asked == asked


def test_filters_run_in_order_and_responses_in_reverse() -> None:
    rule = make_rule("/foo")
    filters = tuple(
        build_filter(config, rule)
        for config in (
            Rewrite(prefix_path="/bar"),
            HeaderEdit(is_response=True, set=(("a", "first"),)),
            HeaderEdit(is_response=True, set=(("a", "second"),)),
        )
    )
    head = apply_request(filters, make_head("/foo/x"))
    assert isinstance(head, RequestHead)
    assert head.path == "/bar/x"
    assert apply_response(filters, make_response()).headers == Headers([(b"a", b"first")])


def test_first_reply_ends_the_chain() -> None:
    reply = LocalReply(status=403, reason="x")
    filters = (Producing(reply), RefusingFilter("never reached"))
    assert apply_request(filters, make_head()) is reply


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([], True),
        ([HeaderEdit(add=(("x-request-id", "1"),)), Rewrite(full_path="/"), Redirect()], True),
        ([HeaderEdit(is_response=True, set=(("x-request-id", "1"),), remove=("x-request-id",))], True),
        ([HeaderEdit(set=(("x-request-id", "1"),))], False),
        ([Redirect(), HeaderEdit(remove=("x-request-id",))], False),
        ([Rewrite(), PluginFilter(name="p")], False),
    ],
)
def test_only_plugins_and_edits_in_place_of_the_request_id_have_to_run_each_time(
    configs: list[FilterConfig], expected: bool
) -> None:
    assert are_repeatable(configs) is expected


def test_a_response_key_tells_effects_on_responses_apart_and_nothing_else() -> None:
    one = HeaderEdit(is_response=True, set=(("a", "1"),))
    other = HeaderEdit(is_response=True, add=(("a", "1"),))
    request_only = [HeaderEdit(set=(("a", "1"),)), Rewrite(hostname="b")]
    assert response_key(request_only) == b""
    assert response_key([*request_only, one]) == response_key([one])
    keys = [response_key(configs) for configs in ([one], [other], [one, other], [other, one], [one, one])]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {16}
