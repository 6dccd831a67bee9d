"""What a rule does beside matching and choosing: policies that filters are made of. Plain data, no Kubernetes words."""

from __future__ import annotations

import msgspec

from datum_router.model.service import ServiceKey


class CorsPolicy(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which pages of other origins may read the answers of a rule (Fetch, section 3.3).

    Attributes:
        origins: `*`, `scheme://host[:port]`, or that with `*.` in front of the host: lower-case, no default port.
        methods: Beside GET, HEAD and POST, which need no permission.
        headers: Lower-case names, or `*` for all but Authorization; beside what needs no permission.
        exposed: Lower-case names of response fields that a page may read, or `*`.
        allows_credentials: Cookies and other credentials may be sent; `*` among origins is then refused.
        max_age_s: How long a browser may keep the answer to a preflight; None: as long as it likes (5 s).
    """

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    allows_credentials: bool = False
    max_age_s: int | None = None


class Mirror(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag="mirror"):
    """Send a copy of some requests to a second service; its answers are thrown away.

    Attributes:
        problem: As `BackendRef.problem`; if it is not empty nothing is copied.
        percent: Share of the requests, 0 to 100.
    """

    service: ServiceKey
    problem: str = ""
    percent: int = 100


class Fault(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag="fault"):
    """Delay and refuse some requests on purpose, to see what clients make of it.

    Attributes:
        delay_percent, abort_percent: Shares of the requests, 0 to 100, each drawn by itself.
        status: For those that are refused; 0: gRPC calls only are refused.
        grpc_status: For gRPC calls that are refused; None: what stands for `status`.
    """

    delay_s: float = 0.0
    delay_percent: int = 0
    status: int = 0
    grpc_status: int | None = None
    abort_percent: int = 0


class ReplyTemplate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the body of the gateway's own answers is.

    Attributes:
        statuses: For which of them; empty = every status from 400.
        content_type: One of `filters.reply.ESCAPES`.
        body: Text with placeholders, see `filters.reply`.
    """

    statuses: tuple[int, ...] = ()
    content_type: str = "text/plain"
    body: str = ""
