"""Let requests pass that carry a token of the issuer, and tell the service what it says.

The decision is one of values: keys, token and time. Keys that are not here are asked for by a `Pending`; see `keys`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from datum_router.filters.pending import Answer, Call, Failed, Pending
from datum_router.model.request import Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.route import PluginFilter
from datum_router.reasons import Reason
from datum_router_jwt.config import Config
from datum_router_jwt.keys import MAX_JWKS_BYTES, KeyStore
from datum_router_jwt.token import Claims, Refused, verify

log = logging.getLogger(__name__)

Clock = Callable[[], float]
_SCHEME: Final = b"bearer "
UNAVAILABLE: Final = LocalReply(
    status=503,
    reason=Reason.AUTH_UNAVAILABLE,
    detail="the keys that tokens are verified with are not there",
    headers=((b"retry-after", b"1"),),
)


class Jwt:
    """The filter of one route.

    Args:
        store: Where keys are; with those of the settings already in it if the settings state them.
        wall, monotonic: Unix seconds, and seconds for the age of keys.
    """

    __slots__ = ("_config", "_header", "_monotonic", "_payload_header", "_service", "_store", "_wall")

    def __init__(self, made: PluginFilter, config: Config, store: KeyStore, *, wall: Clock, monotonic: Clock) -> None:
        self._config = config
        self._service = made.service
        self._store = store
        self._wall = wall
        self._monotonic = monotonic
        self._header = config.header.lower().encode("ascii")
        self._payload_header = config.forward_payload_header.lower().encode("ascii")

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply | Pending:
        """Verify the request's token."""
        token = self._token(head)
        if token is None:
            if self._config.allow_missing and self._header not in head.headers:
                return self._without_forged(head)
            return self._refuse("the request has no bearer token", error="")
        if not self._service:
            return self._outcome(head, self._verify(token))
        now = self._monotonic()
        if not self._store.usable(now):
            if not self._store.may_wait(now):
                return UNAVAILABLE
            return self._fetch(head, token)
        found = self._verify(token)
        if self._store.is_due(now):
            self._store.begin(now)
            done = self._outcome(head, found)
            return Pending(call=self._call(), resume=functools.partial(self._refreshed, head), meanwhile=done)
        if isinstance(found, Refused) and found.is_key_unknown and self._store.may_ask_for_unknown(now):
            return self._fetch(head, token)
        return self._outcome(head, found)

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head unchanged."""
        return head

    def _token(self, head: RequestHead) -> bytes | None:
        values = head.headers.get_all(self._header)
        if len(values) != 1:
            return None
        value = values[0]
        if self._header != b"authorization":
            return value
        return value[len(_SCHEME) :].strip(b" ") if value[: len(_SCHEME)].lower() == _SCHEME else None

    def _verify(self, token: bytes) -> Claims | Refused:
        return verify(token, self._store.usable(self._monotonic()), self._config, now=self._wall())

    def _outcome(self, head: RequestHead, found: Claims | Refused) -> RequestHead | LocalReply:
        if isinstance(found, Refused):
            return self._refuse(found.said, error="invalid_token")
        kept = self._without_forged(head)
        if not self._config.forward_token:
            kept = _with(kept, tuple(field for field in kept.headers if field[0] != self._header))
        if self._payload_header:
            kept = _with(kept, (*kept.headers, (self._payload_header, found.payload)))
        return kept

    def _without_forged(self, head: RequestHead) -> RequestHead:
        """Take out what only we may tell the service."""
        if not self._payload_header or self._payload_header not in head.headers:
            return head
        return _with(head, tuple(field for field in head.headers if field[0] != self._payload_header))

    def _refuse(self, said: str, *, error: str) -> LocalReply:
        # RFC 6750 section 3: a request without a token is told no error code.
        challenge = f'Bearer error="{error}", error_description="{said}"' if error else "Bearer"
        return LocalReply(
            status=401,
            reason=Reason.AUTH_DENIED,
            detail=said,
            headers=((b"www-authenticate", challenge.encode("ascii")),),
        )

    # --- keys --------------------------------------------------------------------------------------------------------

    def _call(self) -> Call:
        namespace, _, name = self._service.partition("/")
        return Call(
            service=self._service,
            target=self._config.jwks_path,
            authority=self._config.jwks_host or f"{name}.{namespace}",
            headers=((b"accept", b"application/json"),),
            timeout_s=self._config.timeout_ms / 1000,
            most_bytes=MAX_JWKS_BYTES,
            outlives_client=True,  # keys are for everybody: whoever leaves must not take them along
        )

    def _fetch(self, head: RequestHead, token: bytes) -> Pending:
        self._store.begin(self._monotonic())
        return Pending(call=self._call(), resume=lambda outcome: self._fetched(head, token, outcome))

    def _fetched(self, head: RequestHead, token: bytes, outcome: Answer | Failed) -> RequestHead | LocalReply:
        self._take(outcome)
        if not self._store.usable(self._monotonic()):
            return UNAVAILABLE
        return self._outcome(head, self._verify(token))

    def _refreshed(self, head: RequestHead, outcome: Answer | Failed) -> RequestHead:
        self._take(outcome)
        return head

    def _take(self, outcome: Answer | Failed) -> None:
        """Keep the keys that came. What is wrong with them is logged as it comes up, not with every fetch."""
        before = self._store.problem
        if isinstance(outcome, Failed):
            self._store.fail(outcome.reason.value, self._monotonic())
        elif outcome.status != 200:
            self._store.fail(f"status {outcome.status}", self._monotonic())
        elif outcome.is_cut:
            self._store.fail(f"a key set of more than {MAX_JWKS_BYTES} bytes", self._monotonic())
        else:
            self._store.take(outcome.body, self._monotonic())
        if self._store.problem and self._store.problem != before:
            found = {"service": self._service, "path": self._config.jwks_path, "error": self._store.problem}
            log.warning("no keys to verify tokens with could be fetched", extra=found)


def _with(head: RequestHead, fields: tuple[tuple[bytes, bytes], ...]) -> RequestHead:
    return msgspec.structs.replace(head, headers=Headers(fields))
