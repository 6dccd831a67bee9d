"""What a rule does beside matching and choosing: policies that filters are made of. Plain data, no Kubernetes words."""

from __future__ import annotations

import msgspec


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
