"""Ask a service whether a request may pass, and make of its answer what becomes of the request.

An answer of 2xx allows the request. One of 5xx is no answer, as a call that fails is none; every other one refuses, and
its status, body and some of its fields go to the client. Without an answer requests are refused unless the settings say
otherwise. Nothing of a request, its credentials least of all, is in a message made here.
"""

from __future__ import annotations

from typing import Final

import msgspec

from datum_router.filters.grammar import value_problem
from datum_router.filters.pending import Answer, Call, Failed, Pending
from datum_router.model.request import FieldList, Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.route import PluginFilter
from datum_router.reasons import Reason
from datum_router_ext_authz.config import read

MAX_BODY_BYTES: Final = 65_536
"""Of a refusal's body; the rest is cut off."""
_OURS: Final = frozenset((b"x-forwarded-method", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-uri"))
"""What a question to one path says of the request; never what the request says so itself."""
_SHOWN: Final = ("authorization", "cookie", "x-request-id", "x-forwarded-for", "x-forwarded-proto")


def _names(*names: str) -> frozenset[bytes]:
    return frozenset(name.lower().encode("ascii") for name in names)


class ExtAuthz:
    """The filter of one route. Stateless; one serves many requests."""

    __slots__ = ("_config", "_from_answer", "_service", "_shown", "_to_client")

    def __init__(self, made: PluginFilter) -> None:
        """Take settings that `read` takes.

        Raises:
            msgspec.ValidationError: They cannot be used.
        """
        self._config = read(made.config)
        self._service = made.service
        self._shown = _names(*_SHOWN, *self._config.request_headers)
        self._from_answer = _names(*self._config.upstream_headers)
        self._to_client = _names(*self._config.client_headers)

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply | Pending:
        """Ask."""
        config = self._config
        fields: FieldList = tuple(field for field in head.headers if field[0] in self._shown)
        if config.path is not None:
            method, target = "GET", config.path
            fields = tuple(field for field in fields if field[0] not in _OURS)
            fields += (
                (b"x-forwarded-method", head.method.encode("ascii")),
                (b"x-forwarded-proto", head.scheme.encode("ascii")),
                (b"x-forwarded-host", head.authority.encode("ascii")),
                (b"x-forwarded-uri", head.target.encode("ascii")),
            )
        else:
            method, target = head.method, config.path_prefix.rstrip("/") + head.target
        call = Call(
            service=self._service,
            method=method,
            target=target,
            authority=config.host or head.authority,
            headers=fields,
            timeout_s=config.timeout_ms / 1000,
            most_bytes=MAX_BODY_BYTES,
        )
        return Pending(call=call, resume=lambda outcome: self.decide(head, outcome))

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head unchanged."""
        return head

    def decide(self, head: RequestHead, outcome: Answer | Failed) -> RequestHead | LocalReply:
        """Return what becomes of a request, by what was said of it."""
        if isinstance(outcome, Failed) or outcome.status >= 500 or outcome.status < 200:
            if self._config.failure_mode_allow:
                return self._without_forged(head, ())
            return LocalReply(
                status=self._config.status_on_error,
                reason=Reason.AUTH_UNAVAILABLE,
                detail="nobody could say whether the request may pass",
            )
        if outcome.status < 300:
            given = tuple(field for field in outcome.headers if field[0] in self._from_answer)
            return self._without_forged(head, given)
        said = tuple(field for field in outcome.headers if field[0] in self._to_client and not value_problem(field[1]))
        kind = outcome.headers.get(b"content-type")
        return LocalReply(
            status=outcome.status,
            reason=Reason.AUTH_DENIED,
            detail="the request may not pass",
            headers=tuple(field for field in said if field[0] != b"content-type"),
            body=outcome.body or None,
            content_type=kind if kind and not value_problem(kind) else b"text/plain; charset=utf-8",
        )

    def _without_forged(self, head: RequestHead, given: FieldList) -> RequestHead:
        if not self._from_answer:
            return head
        kept = tuple(field for field in head.headers if field[0] not in self._from_answer)
        return msgspec.structs.replace(head, headers=Headers(kept + given))
