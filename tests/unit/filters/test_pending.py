"""Filters that have to ask: what they say is checked on the way out and on the way back."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from datum_router.clock import ManualClock
from datum_router.errors import PluginContractError
from datum_router.filters.base import CANNOT_ASK, CheckedFilter, apply_request, call_problem
from datum_router.filters.pending import MAX_ANSWER_BYTES, Answer, Call, Failed, Pending
from datum_router.model.request import Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.service import ServiceKey
from datum_router.policy.plugin_guard import MAX_FAILURES, PluginHook, PluginPart, PluginWatch
from datum_router.reasons import Reason
from datum_router.testing.factories import make_head

HEAD = make_head(headers={"te": "trailers", "x-a": "1"})
CALL = Call(service=ServiceKey("default/s"), authority="s.default")
Outcome = Answer | Failed
Result = RequestHead | LocalReply | Pending


class Asking:
    """Asks, and goes on as it is told to."""

    def __init__(self, go_on: Callable[[Outcome], Result], call: Call = CALL, meanwhile: object = None) -> None:
        self._pending = Pending(call=call, resume=go_on, meanwhile=meanwhile)  # type: ignore[arg-type]  # may be wrong

    def on_request(self, head: RequestHead) -> Result:
        return self._pending

    def on_response(self, head: ResponseHead) -> ResponseHead:
        return head


def checked(inner: Asking) -> CheckedFilter:
    watch = PluginWatch(ManualClock())
    part = PluginPart(plugin="p", hook=PluginHook.FILTER, name="asking", route="default/r")
    return CheckedFilter(inner, on_request=watch.guard(part), on_response=watch.guard(part))


def pending(inner: Asking) -> Pending:
    found = checked(inner).on_request(HEAD)
    assert isinstance(found, Pending)
    return found


def test_what_comes_of_an_answer_is_what_the_filter_makes_of_it() -> None:
    refused = LocalReply(status=403, reason=Reason.AUTH_DENIED)
    item = pending(Asking(lambda outcome: HEAD if isinstance(outcome, Answer) else refused))
    assert item.call is CALL
    assert item.resume(Answer(status=200)) is HEAD
    assert item.resume(Failed(reason=Reason.CONNECT_FAILED)) is refused


def test_a_second_question_is_checked_like_the_first() -> None:
    bad = msgspec.structs.replace(CALL, target="no path")
    item = pending(Asking(lambda _outcome: Pending(call=bad, resume=lambda _: HEAD)))
    with pytest.raises(PluginContractError, match="method or target"):
        item.resume(Answer(status=200))


@pytest.mark.parametrize(
    "made",
    [
        LocalReply(status=101, reason="x"),
        LocalReply(status=403, reason="x", headers=((b"x", b"a\r\nb: c"),)),
        LocalReply(status=403, reason="x", content_type=b"a\nb"),
        LocalReply(status=403, reason="x", grpc_status=17),
        LocalReply(status=403, reason="x", body=b"x" * (MAX_ANSWER_BYTES + 1)),
        msgspec.structs.replace(HEAD, headers=Headers([(b"host", b"evil")])),
        msgspec.structs.replace(HEAD, method="DELETE"),
        "nonsense",
    ],
)
def test_what_must_not_be_sent_is_no_outcome(made: Result) -> None:
    item = pending(Asking(lambda _outcome: made))
    with pytest.raises(PluginContractError):
        item.resume(Answer(status=200))
    if not isinstance(made, str):
        with pytest.raises(PluginContractError):
            checked(Asking(lambda _: HEAD, meanwhile=made)).on_request(HEAD)


def test_fields_that_came_with_the_request_may_stay_beside_new_ones() -> None:
    more = msgspec.structs.replace(HEAD, headers=Headers((*HEAD.headers, (b"x-user", b"ann"))))
    assert pending(Asking(lambda _outcome: more)).resume(Answer(status=200)) is more


def test_a_filter_that_fails_when_it_goes_on_is_disabled_and_refuses() -> None:
    def fail(_outcome: Outcome) -> Result:
        raise ValueError("oops")

    item = checked(Asking(fail))
    for _ in range(MAX_FAILURES):
        found = item.on_request(HEAD)
        assert isinstance(found, Pending)
        with pytest.raises(PluginContractError, match="raised ValueError: oops"):
            found.resume(Answer(status=200))
    reply = item.on_request(HEAD)
    assert isinstance(reply, LocalReply)
    assert reply.reason is Reason.PLUGIN_DISABLED


@pytest.mark.parametrize(
    "change",
    [
        {"method": "get"}, {"method": "A B"}, {"target": ""}, {"target": "/a b"}, {"target": "/é"},
        {"authority": "a b"}, {"timeout_s": 0.0}, {"timeout_s": float("inf")}, {"most_bytes": MAX_ANSWER_BYTES + 1},
        {"headers": ((b"connection", b"close"),)}, {"headers": ((b"x", b"\n"),)},
    ],
)  # fmt: skip
def test_calls_that_may_not_be_made(change: dict[str, object]) -> None:
    assert call_problem(CALL) == ""
    assert call_problem(msgspec.structs.replace(CALL, method="M-SEARCH", target="/?a=%20")) == ""
    assert call_problem(msgspec.structs.replace(CALL, **change))


def test_where_nobody_can_be_asked_the_request_is_refused() -> None:
    assert apply_request((Asking(lambda _outcome: HEAD),), HEAD) is CANNOT_ASK
