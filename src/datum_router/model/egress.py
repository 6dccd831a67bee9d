"""Egress policy as data: rules, the attachments that traffic may come from, and what is asked of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from datum_router.model.policy import RetryPolicy, TimeoutPolicy
from datum_router.model.service import UpstreamTls


class EgressMode(enum.StrEnum):
    """What an egress listener speaks."""

    PROXY = "proxy"
    """HTTP/1.1: CONNECT and absolute-form requests."""
    TLS = "tls"
    """Bytes that begin with a TLS ClientHello, passed on as they are to the server that it names."""


class EgressListener(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What makes a listener one for outbound traffic.

    Attributes:
        source: Whose traffic it is if neither interface nor address says so: `namespace/name` of a VPCAttachment, or
            `namespace/` for a whole namespace; empty = nobody's, so it is refused.
    """

    mode: EgressMode
    source: str = ""


class EgressProtocol(enum.StrEnum):
    """What `spec.match.protocols` can say."""

    TCP = "TCP"
    """Everything: all that is carried is TCP."""
    HTTP = "HTTP"
    """Requests that can be read."""
    TLS = "TLS"
    """Connections that begin with a ClientHello whose server name is the destination's."""
    HTTPS = "HTTPS"
    """The same as TLS: what is inside cannot be told."""


class EgressReason(enum.StrEnum):
    """Why a destination was allowed or denied: the closed set of metrics, logs and answers."""

    ALLOWED_BY_RULE = "allowed_by_rule"
    ALLOWED_BY_DEFAULT = "allowed_by_default"
    DENIED_BY_RULE = "denied_by_rule"
    DENIED_BY_DEFAULT = "denied_by_default"
    UNREADABLE = "unreadable"
    UNKNOWN_SOURCE = "unknown_source"
    NO_POLICY = "no_policy"
    BAD_DESTINATION = "bad_destination"
    CLOSED_NAME = "closed_name"
    CLOSED_ADDRESS = "closed_address"
    OWN_LISTENER = "own_listener"
    NOT_TLS = "not_tls"
    RATE_LIMITED = "rate_limited"
    NAME_NOT_FOUND = "name_not_found"
    RESOLUTION_FAILED = "resolution_failed"
    RESOLUTION_TIMEOUT = "resolution_timeout"
    TOO_MANY_LOOKUPS = "too_many_lookups"
    POLICY_CHANGED = "policy_changed"


class EgressTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One of `spec.destinations`.

    Attributes:
        host: A canonical name or address.
        tls: What is spoken to it in place of plain HTTP, for requests that can be read; None = plain.
    """

    host: str
    port: int
    tls: UpstreamTls | None = None


class EgressRule(msgspec.Struct, frozen=True, kw_only=True):
    """One compiled VPCEgress. Empty conditions hold for anything.

    Attributes:
        name: `namespace/name`.
        attachments: Of which VPCAttachments (`namespace/name`) the traffic is; None = of all in the namespace.
        networks: CIDR text.
        paths: Prefixes of whole segments.
        source_labels: Labels that the source must have; None = any.
        is_default_allow: What happens to traffic that no rule matches; None = this rule says nothing.
        idle_s: Silence after which a tunnel is ended; None = the data plane's own limit.
        rate, burst: Decisions per second that are let through, and at once, in each worker; 0 = no limit.
    """

    name: str
    namespace: str
    attachments: tuple[str, ...] | None = None
    is_allow: bool = True
    priority: int = 1000
    hostnames: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    protocols: tuple[EgressProtocol, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    source_labels: Mapping[str, str] | None = None
    targets: tuple[EgressTarget, ...] = ()
    is_default_allow: bool | None = None
    is_logged: bool = False
    rate: float = 0.0
    burst: int = 0
    retry: RetryPolicy = RetryPolicy()
    timeouts: TimeoutPolicy = TimeoutPolicy()
    idle_s: float | None = None


class EgressAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """A VPCAttachment as sources of traffic are found by it.

    Attributes:
        name: `namespace/name`.
        vpc: `namespace/name` of its VPC, empty if it names none.
        addresses: In canonical text, without prefix length.
    """

    name: str
    vpc: str = ""
    labels: Mapping[str, str] = {}
    addresses: tuple[str, ...] = ()


class EgressPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """All rules in order: lower priority first, Deny before Allow, then by name; and all known attachments."""

    rules: tuple[EgressRule, ...] = ()
    attachments: tuple[EgressAttachment, ...] = ()


class EgressSource(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks.

    Attributes:
        attachments: Those that it is behind, the nearest first; empty if only a namespace is known, or nobody.
        namespaces: Of these attachments, or the one that is known.
        labels: Of the nearest attachment; None if they are not known.
    """

    attachments: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None
    address: str = ""

    @property
    def name(self) -> str:
        """Return what it is called in logs."""
        return next(iter((*self.attachments, *(f"{one}/" for one in self.namespaces))), "unknown")
