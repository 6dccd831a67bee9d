"""Filters: pure transformers of heads, built once per rule when a snapshot is linked.

Everything a filter puts on the wire is checked twice: constants when the filter is built, and what depends on the
request when it is produced. A configuration that fails the first check yields a filter that refuses every request of
its rule with 500 `bad_filter_output`; it never yields one that forwards without the edit, since an edit may be what
keeps a secret inside.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

import msgspec

from datum_router.errors import PluginDisabled
from datum_router.filters.fault import FaultFilter, fault_problem
from datum_router.filters.grammar import field_problem
from datum_router.filters.headers import RequestHeaderEdit, ResponseHeaderEdit, edit_problem
from datum_router.filters.mirror import MirrorFilter
from datum_router.filters.pending import MAX_ANSWER_BYTES, Answer, Call, Failed, Pending
from datum_router.filters.redirect import RedirectFilter, redirect_problem
from datum_router.filters.rewrite import RewriteFilter, rewrite_problem
from datum_router.model.filters import Fault, Mirror
from datum_router.model.request import REQUEST_ID, Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.route import FilterConfig, HeaderEdit, PluginFilter, Redirect, Rewrite, Rule
from datum_router.policy.plugin_guard import PLUGIN_ERRORS, PluginGuard
from datum_router.reasons import Reason
from datum_router.routing.normalize import BadHost, BadPath, normalize_target, parse_authority

# origin-form in ASCII (RFC 9112 section 3.2.1), and a method as the wire engines take it: nothing that a client can
# send may make a filter fail that passes it on
_TARGET = re.compile(rb"/[!-\"$-~]{0,131071}\Z")
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]{1,32}\Z")


MAX_GRPC_STATUS = 16
"""Highest status code of gRPC: unauthenticated."""


class Filter(Protocol):
    """One step on a request's way to the upstream and on its response's way back. Pure; one serves many requests."""

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply | Pending:
        """Return the head to go on with (the same object if nothing changes), or a reply that ends the request.

        Plugins' filters may say that they have to ask somebody first: see `filters.pending`.
        """
        ...

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the response head to go on with. Called in reverse order of the rule's filters."""
        ...


class RefusingFilter:
    """Answer every request with 500: what stands in for a filter that cannot be built."""

    __slots__ = ("_reply", "problem")

    def __init__(self, problem: str, *, reason: Reason = Reason.BAD_FILTER_OUTPUT) -> None:
        self.problem = problem
        self._reply = LocalReply(status=500, reason=reason, detail="a filter of the route cannot be used")

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Refuse."""
        return self._reply

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head unchanged; no request gets this far."""
        return head


class CheckedFilter:
    """Wrap a filter that is not ours: check what it produces, so that it cannot split a request or response.

    A filter that is disabled refuses its requests: an edit may be what keeps a secret inside.

    Args:
        on_request, on_response: Watch the two sides, each by itself: one's success says nothing of the other.

    Raises:
        PluginContractError: It raised, returned something else than it promises, or what must not be sent
            (`bad_filter_output`).
    """

    __slots__ = ("_inner", "_request_guard", "_response_guard", "name")

    def __init__(self, inner: Filter, *, on_request: PluginGuard, on_response: PluginGuard, name: str = "") -> None:
        self.name = name
        self._inner = inner
        self._request_guard = on_request
        self._response_guard = on_response

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply | Pending:
        """Run the filter and check its output."""
        try:
            self._response_guard.begin()
            return self._run(head, lambda: self._inner.on_request(head))
        except PluginDisabled as error:
            return LocalReply(status=500, reason=error.reason, detail="a filter of the route is disabled")

    def _run(self, head: RequestHead, step: Callable[[], object]) -> RequestHead | LocalReply | Pending:
        """Run a step of the filter for a request and check its output."""
        guard = self._request_guard
        began_at = guard.begin()
        try:
            result = step()
        except PLUGIN_ERRORS as error:
            raise guard.raised(error) from error
        if result is head:
            guard.end(began_at)
            return head
        problem = ""
        checked: RequestHead | LocalReply | Pending
        if isinstance(result, LocalReply):
            checked, problem = result, _reply_problem(result)
        elif isinstance(result, RequestHead):
            checked, problem = result, _request_problem(head, result)
        elif isinstance(result, Pending):
            checked, problem = self._pending(head, result)
        else:
            raise guard.failure(f"returned {type(result).__name__}, expected RequestHead, LocalReply or Pending")
        if problem:
            raise guard.failure(f"returned {problem}", reason=Reason.BAD_FILTER_OUTPUT)
        if isinstance(checked, Pending):
            guard.suspend(began_at)  # whoever asks well and fails on every answer has failed
        else:
            guard.end(began_at)
        return checked

    def _pending(self, head: RequestHead, pending: Pending) -> tuple[Pending, str]:
        """Return a pending step whose outcome will be checked as well, and what is wrong with it as it is."""
        meanwhile, problem = pending.meanwhile, call_problem(pending.call)
        if isinstance(meanwhile, LocalReply):
            problem = problem or _reply_problem(meanwhile)
        elif meanwhile is not None and meanwhile is not head:
            problem = problem or _request_problem(head, meanwhile)
        resume = pending.resume

        def go_on(outcome: Answer | Failed) -> RequestHead | LocalReply | Pending:
            return self._run(head, lambda: resume(outcome))

        return Pending(call=pending.call, resume=go_on, meanwhile=meanwhile), problem

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Run the filter and check its output."""
        guard = self._response_guard
        began_at = guard.begin()
        try:
            result: object = self._inner.on_response(head)
        except PLUGIN_ERRORS as error:
            raise guard.raised(error) from error
        if not isinstance(result, ResponseHead):
            raise guard.failure(f"returned {type(result).__name__}, expected ResponseHead")
        problem = "" if result.headers is head.headers else _fields_problem(result.headers)
        if not problem and not 200 <= result.status <= 599:
            problem = f"status {result.status}, expected 200 to 599"
        if problem:
            raise guard.failure(f"returned {problem}", reason=Reason.BAD_FILTER_OUTPUT)
        guard.end(began_at)
        return result


def call_problem(call: Call) -> str:
    """Return why a call may not be made, empty if it may."""
    target = call.target.encode("utf-8", "replace")
    if not _TARGET.match(target) or not _METHOD.match(call.method):
        return "a call whose method or target cannot be sent"
    if isinstance(parse_authority(call.authority), BadHost):
        return "a call with a malformed authority"
    if not 0 < call.timeout_s < math.inf or not 0 <= call.most_bytes <= MAX_ANSWER_BYTES:
        return f"a call without bounds, expected a time above 0 and at most {MAX_ANSWER_BYTES} bytes"
    return _fields_problem(Headers(call.headers))


def _reply_problem(reply: LocalReply) -> str:
    if not 200 <= reply.status <= 599:
        return f"status {reply.status}, expected 200 to 599"
    if reply.body is not None and len(reply.body) > MAX_ANSWER_BYTES:
        return f"a body of {len(reply.body)} bytes, expected at most {MAX_ANSWER_BYTES}"
    if reply.grpc_status is not None and not 0 <= reply.grpc_status <= MAX_GRPC_STATUS:
        return f"grpc-status {reply.grpc_status}, expected 0 to {MAX_GRPC_STATUS}"
    return _fields_problem(Headers(reply.headers)) or field_problem(b"content-type", reply.content_type)


def _fields_problem(headers: Headers) -> str:
    return next((problem for name, value in headers if (problem := field_problem(name, value))), "")


def _request_problem(before: RequestHead, after: RequestHead) -> str:
    if after.headers is not before.headers:
        known = frozenset(before.headers.fields)  # what came may stay, such as TE of a gRPC call
        problem = _fields_problem(Headers(field for field in after.headers if field not in known))
        if problem:
            return problem
    if after.path != before.path or after.query != before.query:
        normalized = normalize_target(after.target.encode("utf-8", "replace"))
        if isinstance(normalized, BadPath):
            return normalized.detail
        if normalized.path != after.path:
            return "a path that is not normalised"
    if after.authority != before.authority and isinstance(parse_authority(after.authority), BadHost):
        return "a malformed authority"
    if after.method != before.method:
        return "another method"
    return ""


def filter_problem(config: FilterConfig, rule: Rule) -> str:
    """Return why a built-in filter cannot be used with `rule`, in one sentence; empty if it can.

    For diagnostics at compile time. `plugin` filters are their plugin's business and pass.
    """
    match config:
        case HeaderEdit():
            return edit_problem(config)
        case Rewrite():
            return rewrite_problem(config, rule.match)
        case Redirect():
            return redirect_problem(config, rule.match)
        case Fault():
            return fault_problem(config)
        case Mirror():
            return ""
        case PluginFilter():
            return ""
        case _:
            assert_never(config)


def build_filter(config: FilterConfig, rule: Rule) -> Filter:
    """Return the filter for a configuration. Never raises on its content: see `RefusingFilter`.

    A `PluginFilter` is made by its plugin's spec and wrapped in `CheckedFilter` by the linker; one that arrives here
    has no plugin, and refuses.
    """
    problem = filter_problem(config, rule)
    if problem:
        return RefusingFilter(problem)
    match config:
        case HeaderEdit():
            return ResponseHeaderEdit(config) if config.is_response else RequestHeaderEdit(config)
        case Rewrite():
            return RewriteFilter(config, rule.match)
        case Redirect():
            return RedirectFilter(config, rule.match)
        case Mirror():
            return MirrorFilter(config)
        case Fault():
            return FaultFilter(config)
        case PluginFilter():
            return RefusingFilter(f"no plugin offers a filter named {config.name}", reason=Reason.PLUGIN_FAILED)
        case _:
            assert_never(config)


def are_repeatable(configs: Sequence[FilterConfig]) -> bool:
    """Tell whether filters make the same of the same head each time, so that their result can be remembered.

    Built-in ones do. What a plugin's reads is not known, and an edit in place of X-Request-Id takes away the one field
    that differs between requests which are alike otherwise.
    """
    return not any(
        isinstance(config, PluginFilter)
        or (
            isinstance(config, HeaderEdit)
            and not config.is_response
            and (REQUEST_ID in config.remove or any(name == REQUEST_ID for name, _ in config.set))
        )
        for config in configs
    )


def response_key(configs: Sequence[FilterConfig]) -> bytes:
    """Return what stands for the effect of repeatable filters on responses: 16 bytes, or none if they have no effect.

    Filters with the same key make the same of the same response head, whatever rule they belong to.
    """
    edits = [config for config in configs if isinstance(config, HeaderEdit) and config.is_response]
    return hashlib.blake2b(msgspec.json.encode(edits), digest_size=16).digest() if edits else b""


CANNOT_ASK = LocalReply(
    status=500, reason=Reason.BAD_FILTER_OUTPUT, detail="a filter of the route has to ask somebody where it cannot"
)


def apply_request(filters: tuple[Filter, ...], head: RequestHead) -> RequestHead | LocalReply:
    """Run a rule's filters over a request head in order; stop at the first reply."""
    for item in filters:
        result = item.on_request(head)
        if not isinstance(result, RequestHead):
            # Nobody is asked here: what a filter would have to ask about is refused.
            return result if isinstance(result, LocalReply) else CANNOT_ASK
        head = result
    return head


def apply_response(filters: tuple[Filter, ...], head: ResponseHead) -> ResponseHead:
    """Run a rule's filters over a response head in reverse order."""
    for item in reversed(filters):
        head = item.on_response(head)
    return head
