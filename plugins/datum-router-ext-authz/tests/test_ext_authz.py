"""What is asked, and what becomes of a request by the answer."""

from __future__ import annotations

import json

import msgspec
import pytest
from datum_router_ext_authz.config import problem_of
from datum_router_ext_authz.filter import ExtAuthz
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.filters.pending import Answer, Failed, Pending
from datum_router.model.request import FieldList, Headers, LocalReply, RequestHead
from datum_router.model.route import PluginFilter
from datum_router.model.service import ServiceKey
from datum_router.reasons import Reason
from datum_router.testing.factories import make_head

CANARY = "canary-of-a-token"
HEAD = make_head(
    "/cart?x=1",
    method="PUT",
    authority="shop.test:8443",
    scheme="https",
    headers={
        "authorization": CANARY,
        "cookie": "c=1",
        "x-user": "forged",
        "x-other": "1",
        "x-forwarded-proto": "https",
    },
)


def made(**config: object) -> ExtAuthz:
    return ExtAuthz(PluginFilter(name="ext-authz", config=json.dumps(config), service=ServiceKey("default/authz")))


def asked(item: ExtAuthz, head: RequestHead = HEAD) -> Pending:
    found = item.on_request(head)
    assert isinstance(found, Pending)
    return found


def test_envoys_form_asks_with_the_requests_own_method_and_target() -> None:
    call = asked(made(pathPrefix="/check/", requestHeaders=["X-Other"], timeoutMs=250)).call
    assert (call.service, call.method, call.target) == ("default/authz", "PUT", "/check/cart?x=1")
    assert (call.authority, call.timeout_s) == ("shop.test:8443", 0.25)
    assert dict(call.headers) == {
        b"authorization": CANARY.encode(), b"cookie": b"c=1", b"x-other": b"1", b"x-forwarded-proto": b"https",
    }  # fmt: skip


def test_traefiks_form_asks_one_path_and_says_what_it_is_about() -> None:
    call = asked(made(path="/verify", host="auth.test")).call
    assert (call.method, call.target, call.authority) == ("GET", "/verify", "auth.test")
    said = dict(call.headers)
    assert len(said) == len(call.headers)
    assert {name: value for name, value in said.items() if name.startswith(b"x-forwarded-")} == {
        b"x-forwarded-method": b"PUT", b"x-forwarded-proto": b"https", b"x-forwarded-host": b"shop.test:8443",
        b"x-forwarded-uri": b"/cart?x=1",
    }  # fmt: skip


def test_what_a_question_says_of_the_request_is_not_what_the_request_says_of_itself() -> None:
    names = ["x-forwarded-method", "x-forwarded-host", "x-forwarded-uri"]
    forged = msgspec.structs.replace(
        HEAD, headers=Headers([*HEAD.headers, *((name.encode(), b"/ok") for name in names)])
    )
    fields = asked(made(path="/verify", requestHeaders=names), forged).call.headers
    assert [value for name, value in fields if name.decode() in names] == [b"PUT", b"shop.test:8443", b"/cart?x=1"]


def test_who_may_pass_gets_what_the_answer_says_and_nothing_that_the_client_forged() -> None:
    item = made(upstreamHeaders=["X-User", "X-Role"])
    found = item.decide(HEAD, Answer(status=204, headers=Headers([(b"x-user", b"ann"), (b"x-secret", b"1")])))
    assert isinstance(found, RequestHead)
    assert found.headers.get_all(b"x-user") == [b"ann"]
    assert b"x-secret" not in found.headers
    assert found.headers.get(b"x-other") == b"1"
    found = item.decide(HEAD, Answer(status=200))
    assert isinstance(found, RequestHead)
    assert b"x-user" not in found.headers, "forged, and not given"


def test_who_may_not_gets_status_body_and_some_fields_of_the_answer() -> None:
    fields = [(b"www-authenticate", b"Basic"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"server", b"x"),
              (b"content-type", b"text/html")]  # fmt: skip
    found = made().decide(HEAD, Answer(status=401, headers=Headers(fields), body=b"<p>no"))
    assert found == LocalReply(
        status=401, reason=Reason.AUTH_DENIED, detail="the request may not pass", body=b"<p>no",
        content_type=b"text/html",
        headers=((b"www-authenticate", b"Basic"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")),
    )  # fmt: skip


def test_a_login_page_is_a_refusal_that_leads_somewhere() -> None:
    found = made().decide(HEAD, Answer(status=302, headers=Headers([(b"location", b"https://login.test/")])))
    assert isinstance(found, LocalReply)
    assert (found.status, dict(found.headers)) == (302, {b"location": b"https://login.test/"})


@pytest.mark.parametrize("outcome", [Failed(reason=Reason.CONNECT_FAILED), Answer(status=500), Answer(status=503)])
def test_without_an_answer_nobody_passes_unless_the_settings_say_so(outcome: Answer | Failed) -> None:
    found = made().decide(HEAD, outcome)
    assert isinstance(found, LocalReply)
    assert (found.status, found.reason) == (503, Reason.AUTH_UNAVAILABLE)
    assert CANARY not in repr(found)
    found = made(statusOnError=403).decide(HEAD, outcome)
    assert isinstance(found, LocalReply)
    assert found.status == 403
    found = made(failureModeAllow=True, upstreamHeaders=["x-user"]).decide(HEAD, outcome)
    assert isinstance(found, RequestHead)
    assert b"x-user" not in found.headers


NAMES = st.sampled_from([b"x-user", b"x-role", b"x-other", b"set-cookie", b"content-type", b"www-authenticate"])
LISTS = st.lists(NAMES.map(lambda name: name.decode().title()), max_size=5)
FORGED = st.lists(st.tuples(NAMES, st.just(CANARY.encode())), max_size=6).map(tuple)
SPLIT = b"a\r\nb: c"  # on its way to a service whoever runs plugins' filters refuses it
GIVEN = st.lists(st.tuples(NAMES, st.sampled_from([b"", b"1", b"2", SPLIT])), max_size=6).map(tuple)
OUTCOMES = st.one_of(
    st.sampled_from([Reason.CONNECT_FAILED, Reason.RESPONSE_TIMEOUT]).map(lambda reason: Failed(reason=reason)),
    st.builds(
        Answer,
        status=st.sampled_from([100, 199, 200, 204, 299, 300, 401, 403, 499, 500, 599]),
        headers=GIVEN.map(Headers),
        body=st.sampled_from([b"", b"no"]),
    ),
)


@settings(max_examples=400)
@given(outcome=OUTCOMES, forged=FORGED, upstream=LISTS, downstream=LISTS, is_open=st.booleans())
def test_whatever_is_said_only_an_allowed_request_passes_and_without_anything_forged(
    outcome: Answer | Failed, forged: FieldList, upstream: list[str], downstream: list[str], is_open: bool
) -> None:
    item = made(upstreamHeaders=upstream, clientHeaders=downstream, failureModeAllow=is_open, statusOnError=403)
    head = make_head("/cart?x=1", method="PUT", headers=forged)
    found = asked(item, head).resume(outcome)
    is_answered = isinstance(outcome, Answer) and 200 <= outcome.status < 500
    is_allowed = isinstance(outcome, Answer) and 200 <= outcome.status < 300
    names = {name.lower().encode() for name in upstream}
    said = outcome.headers.fields if isinstance(outcome, Answer) else ()
    if is_allowed or (not is_answered and is_open):
        assert isinstance(found, RequestHead)
        assert msgspec.structs.replace(found, headers=head.headers) == head, "fields alone change"
        theirs = [field for field in found.headers if field[0] in names and field[1] != SPLIT]
        assert theirs == [field for field in said if field[0] in names and is_allowed and field[1] != SPLIT]
        assert [field for field in found.headers if field[0] not in names] == [
            field for field in forged if field[0] not in names
        ]
        return
    assert isinstance(found, LocalReply)
    assert CANARY.encode() not in repr(found).encode()
    if not is_answered:
        assert (found.status, found.reason, found.headers) == (403, Reason.AUTH_UNAVAILABLE, ())
        return
    assert isinstance(outcome, Answer)
    assert (found.status, found.reason, found.body) == (outcome.status, Reason.AUTH_DENIED, outcome.body or None)
    shown = {name.lower().encode() for name in downstream} - {b"content-type"}
    assert list(found.headers) == [field for field in said if field[0] in shown and field[1] != SPLIT]
    assert found.content_type != SPLIT


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, ""),
        ({"path": "/a", "pathPrefix": "/b"}, "path and pathPrefix are both given, expected at most one"),
        ({"pathPrefx": "/b"}, "object contains unknown field `pathPrefx`"),
        ({"upstreamHeaders": ["content-length"]}, "found the field content-length, which only the router itself may"),
        ({"timeoutMs": 0}, "expected `int` >= 1 - at `$.timeoutMs`"),
        ({"host": "auth test"}, "a malformed host - at `$.host`"),
        ({"host": "\u00e4.test"}, "a malformed host - at `$.host`"),
        ({"path": "verify"}, "expected `str` matching regex"),
    ],
)
def test_settings_that_cannot_be_used_are_named(config: dict[str, object], said: str) -> None:
    found = problem_of(json.dumps(config))
    assert found.startswith(said)
    assert bool(found) == bool(said)
