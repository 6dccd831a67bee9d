"""What a filter says that cannot decide yet: whom to ask, and how to go on with the answer.

Theory of operation. A filter does no I/O. One that needs somebody else's word returns a `Pending` in place of a head or
a reply: a `Call`, which the data plane makes as it makes every request (balancer, health, permits and TLS of a
VPCService, within the request's deadline and the call's own), and `resume`, a function that makes of its outcome what
the filter would have returned. So a filter's decision stays a function of values, and is tested without a network.

A call that fails is an outcome like any other: what it means is the filter's to say. Whoever asks about access must
refuse then.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from datum_router.model.request import FieldList, Headers, LocalReply, RequestHead
from datum_router.model.service import ServiceKey
from datum_router.reasons import Reason

MAX_CALLS = 4
"""Calls that one filter may make for one request; it is refused with 500 beyond."""
MAX_ANSWER_BYTES = 1 << 20
"""Most of a body that a call may ask for."""


class Call(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request that the data plane is to make.

    Attributes:
        service: One that the manifest names for this filter: `PluginFilter.service`.
        target: Origin-form, ASCII.
        timeout_s: From now to the last byte of the answer, above 0; the request's own deadline holds as well.
        most_bytes: Of the answer's body; what is longer is cut, and says so.
        outlives_client: The call goes on, and `resume` is called, if the client leaves or its request's time is over.
            For what is kept for other requests, too: else clients that leave could keep it from ever arriving.
    """

    service: ServiceKey
    method: str = "GET"
    target: str = "/"
    authority: str
    headers: FieldList = ()
    timeout_s: float = 1.0
    most_bytes: int = 65_536
    outlives_client: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What came back; `is_cut`: its body is longer than was asked for."""

    status: int
    headers: Headers = Headers()
    body: bytes = b""
    is_cut: bool = False


class Failed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """There was no answer."""

    reason: Reason


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """See the module.

    Attributes:
        resume: Makes of the outcome what `on_request` would return. It may not be called at all: the client may leave
            (but see `Call.outlives_client`).
        meanwhile: Given: the request goes on with it at once, the call is made on the side, and what `resume` returns
            is of no interest. For what a filter wants to know of for later requests.
    """

    call: Call
    resume: Callable[[Answer | Failed], RequestHead | LocalReply | Pending]
    meanwhile: RequestHead | LocalReply | None = None
