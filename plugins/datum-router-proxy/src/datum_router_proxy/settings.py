"""Settings of the data plane: every limit and timeout that is not a wire engine's, each with its default and unit."""

from __future__ import annotations

import difflib
import ipaddress
import math
from collections.abc import Mapping

import msgspec

from datum_router.egress.address import Network, parse_networks
from datum_router.errors import ConfigError
from datum_router.reasons import Reason
from datum_router_proxy.vpc import VpcInterfaces, parse_interfaces
from datum_router_proxy.wire.hpack_codec import CODECS

_KINDS: Mapping[object, tuple[type[float] | type[int] | type[bool], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (bool, "true or false"),
}
"""Type of a field -> what its text is converted to, and what to call that."""


DNS_PORT = 53
"""Where name servers listen (RFC 1035 section 4.2)."""


class ProxySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bound what peers may make the data plane hold or wait for; the row of the threat list stands beside each.

    Attributes:
        first_byte_timeout_s: From accept to the first byte of a request (E2).
        preface_timeout_s: From the first byte of an HTTP/2 preface to its last (D18).
        head_timeout_s: From the first byte of a head to its last, absolute; 408 (E1).
        keep_alive_timeout_s: Silence between requests, and an HTTP/2 connection without streams (E2).
        body_idle_timeout_s: Silence in a request body that we wait for; 408 (E3).
        body_min_rate: Bytes per second a request body must have after `body_idle_timeout_s` of waiting (E3).
        write_timeout_s: A client that takes nothing while we have something for it (E4, D10).
        tcp_idle_timeout_s: A connection whose bytes are carried on (protocol TLS or TCP) without a byte either way.
        tunnel_idle_timeout_s: A WebSocket tunnel without a byte either way (B3).
        buffer_bytes: Kept per direction of an HTTP/1 exchange before reading stops (E5).
        stream_window_bytes, connection_window_bytes: HTTP/2 receive windows, both roles (D10).
        connection_output_bytes: Output queued on an HTTP/2 connection before its streams must wait (D10).
        max_concurrent_streams: Streams of one downstream HTTP/2 connection (D1).
        upstream_streams: Streams of one upstream HTTP/2 connection, if the peer allows as many.
        upstream_idle_per_endpoint: Idle HTTP/1 connections kept for one endpoint.
        pool_wait_s: How long a request waits for a connection when the service has as many as it may (U8).
        retry_body_bytes: Request body kept for another attempt; a longer one is sent once only (U5).
        max_via_hops: Routers of ours a request may have passed; 508 beyond (U11).
        mirror_requests: Copies of requests under way in one worker; more are dropped.
        mirror_body_bytes: Longest request body that is copied; requests with a longer one are not.
        mirror_timeout_s: How long a copy may last.
        max_interim: 1xx responses of an upstream for one request; 502 beyond (A16).
        max_connections_per_listener: Open client connections of one listener in one worker; reset at once beyond (E6).
        max_connections: The same of all listeners (E6).
        max_connections_per_address: The same of one client address (E6).
        max_handshakes_per_address: Handshakes, PROXY headers included, that one client address may have under way;
            reset at once beyond (E9).
        tls_handshake_timeout_s: From accept to the end of the handshake, a PROXY header included (E9).
        linger_bytes, linger_s: What is still read and discarded of a client that goes on sending after our last answer,
            before its connection is closed (A18).
        memory_limit_bytes: At 95 % of it caches and keep-alive go, at 98 % new requests are answered 503; -1 = the
            container's (cgroup v2 `memory.max`) if it has one, 0 = off, else of one worker's resident memory (E8).
        rate_limit_timeout_s: How long a request waits for a shared store of rate limits (hook rate_limit_stores).
        rate_limit_fail_closed: What then: true answers 503, false lets it through.
        shed_queue_age_s: How old the event loop's queue may stand before requests are shed with 503; 0 = never.
        moves_per_turn: Pieces of body one request moves before others get the loop (trap in section J).
        vpc_interfaces: Interfaces that lead into VPCs, `namespace/name=interface,...`: what is dialled in a VPC is
            bound to its interface (SO_BINDTODEVICE), so that equal addresses of two VPCs never mix. A VPC that has no
            object here is named by its identifier in base62: `/jU=interface`.
        vpc_attachments: VPCAttachments of this gateway and their interfaces, in the same form: what comes in by an
            interface matches `sourceVpcAttachment` of routes.
        vpc_required: Never dial into a VPC that `vpc_interfaces` does not name; else the main routing table is used.
        egress_nameservers: Name servers that are asked for destinations of outbound traffic, as `ADDRESS` or
            `ADDRESS:PORT` (IPv6 in brackets) with commas between them; empty: those of /etc/resolv.conf.
        egress_closed: Networks that are closed to outbound traffic beside those that always are, with commas between
            them: what is inside the cluster and has public addresses.
        egress_lookup_timeout_s: How long name servers may take for one name (U14).
        egress_lookups: Names that are asked for at once; who asks for another one meanwhile is refused (U14).
        egress_addresses: Addresses of one name that are looked at; more are left out (U14).
        egress_ttl_min_s, egress_ttl_max_s: How long an answer is kept at least and at most, whatever its TTL says; that
            a name is not there is kept for the former (U14).
        hpack_codec: Header compression of HTTP/2, both roles: `table` (ours) or `hpack` (the package, several times
            slower; for comparison, or should ours be in doubt). Limits and verdicts are the same (D4, D5).
    """

    first_byte_timeout_s: float = 10.0
    preface_timeout_s: float = 5.0
    head_timeout_s: float = 10.0
    keep_alive_timeout_s: float = 60.0
    body_idle_timeout_s: float = 30.0
    body_min_rate: int = 1024
    write_timeout_s: float = 30.0
    tcp_idle_timeout_s: float = 3600.0
    tunnel_idle_timeout_s: float = 300.0
    buffer_bytes: int = 32_768
    stream_window_bytes: int = 65_536
    connection_window_bytes: int = 1_048_576
    connection_output_bytes: int = 262_144
    max_concurrent_streams: int = 100
    upstream_streams: int = 100
    upstream_idle_per_endpoint: int = 1_024
    pool_wait_s: float = 3.0
    retry_body_bytes: int = 65_536
    max_via_hops: int = 10
    mirror_requests: int = 128
    mirror_body_bytes: int = 65_536
    mirror_timeout_s: float = 10.0
    max_interim: int = 16
    max_connections_per_listener: int = 10_000
    max_connections: int = 50_000
    max_connections_per_address: int = 200
    max_handshakes_per_address: int = 100
    tls_handshake_timeout_s: float = 5.0
    linger_bytes: int = 65_536
    linger_s: float = 1.0
    memory_limit_bytes: int = -1
    rate_limit_timeout_s: float = 0.05
    rate_limit_fail_closed: bool = False
    shed_queue_age_s: float = 0.1
    moves_per_turn: int = 16
    vpc_interfaces: str = ""
    vpc_attachments: str = ""
    vpc_required: bool = False
    egress_nameservers: str = ""
    egress_closed: str = ""
    egress_lookup_timeout_s: float = 5.0
    egress_lookups: int = 256
    egress_addresses: int = 32
    egress_ttl_min_s: float = 5.0
    egress_ttl_max_s: float = 300.0
    hpack_codec: str = CODECS[0]

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, str | bool):
                continue
            if name == "memory_limit_bytes":
                if value < -1:
                    raise ConfigError(
                        f"proxy setting {name}: found {value}, expected bytes, 0 (off) or -1 (the container's limit)",
                        reason=Reason.INVALID_VALUE,
                    )
                continue
            may_be_off = name == "shed_queue_age_s"
            if not (math.isfinite(value) and value > 0) and not (may_be_off and value == 0):
                raise ConfigError(
                    f"proxy setting {name}: found {value:g}, expected a number above 0{', or 0 (off)' * may_be_off}",
                    reason=Reason.INVALID_VALUE,
                )
        if self.hpack_codec not in CODECS:
            raise ConfigError(
                f"proxy setting hpack_codec: found {self.hpack_codec!r}, expected {' or '.join(CODECS)}",
                reason=Reason.INVALID_VALUE,
            )
        self.vpcs()
        self.attachments()
        self.nameservers()
        self.closed_networks()
        if self.egress_ttl_min_s > self.egress_ttl_max_s:
            raise ConfigError(
                f"proxy setting egress_ttl_min_s: found {self.egress_ttl_min_s:g}, expected at most egress_ttl_max_s, "
                f"{self.egress_ttl_max_s:g}",
                reason=Reason.INVALID_VALUE,
            )
        if self.connection_window_bytes < 65_535:
            raise ConfigError(
                f"proxy setting connection_window_bytes: found {self.connection_window_bytes}, expected at least 65535",
                reason=Reason.INVALID_VALUE,
            )

    def vpcs(self) -> VpcInterfaces:
        """Return what upstream sockets are bound to."""
        interfaces = parse_interfaces(self.vpc_interfaces, name="vpc_interfaces", may_be_nameless=True)
        return VpcInterfaces(interfaces, is_required=self.vpc_required)

    def attachments(self) -> dict[str, str]:
        """Return interface -> attachment (`namespace/name`)."""
        by_interface: dict[str, str] = {}
        for attachment, interface in parse_interfaces(self.vpc_attachments, name="vpc_attachments").items():
            if interface in by_interface:
                raise ConfigError(
                    f"proxy setting vpc_attachments: {interface} is given to {by_interface[interface]} and to "
                    f"{attachment}, expected one attachment for each interface",
                    reason=Reason.INVALID_VALUE,
                )
            by_interface[interface] = attachment
        return by_interface

    def nameservers(self) -> tuple[tuple[str, int], ...]:
        """Return addresses and ports of `egress_nameservers`."""
        found: list[tuple[str, int]] = []
        for text in filter(None, (part.strip() for part in self.egress_nameservers.split(","))):
            host, colon, port = text.rpartition(":") if text.count(":") == 1 or "]:" in text else (text, "", "")
            try:
                address = str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
                number = int(port) if colon and port.isascii() and port.isdecimal() else 0 if colon else DNS_PORT
                if not 1 <= number <= 65535:
                    raise ValueError
            except ValueError as error:
                raise ConfigError(
                    f"proxy setting egress_nameservers: found {text!r}, expected ADDRESS or ADDRESS:PORT such as "
                    "10.96.0.10 or [fd00::10]:53",
                    reason=Reason.INVALID_VALUE,
                ) from error
            found.append((address, number))
        return tuple(found)

    def closed_networks(self) -> tuple[Network, ...]:
        """Return the networks of `egress_closed`."""
        try:
            return parse_networks(self.egress_closed)
        except ValueError as error:
            raise ConfigError(
                f"proxy setting egress_closed: found {str(error)!r}, expected networks such as 203.0.113.0/24",
                reason=Reason.INVALID_VALUE,
            ) from error


def from_text(values: Mapping[str, str]) -> ProxySettings:
    """Return settings from text values, defaults for what is not named.

    Raises:
        ConfigError: A name is unknown (the message says which one is near), or a value is no number in range.
    """
    known = {field.name: field.type for field in msgspec.structs.fields(ProxySettings)}
    found: dict[str, float | int | str] = {}
    for name, text in values.items():
        kind = known.get(name)
        if kind is None:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"proxy setting {name}: unknown{hint}", reason=Reason.UNKNOWN_FIELD)
        if kind is str:
            found[name] = text
            continue
        wanted, expected = _KINDS[kind]
        try:
            found[name] = msgspec.convert(text, wanted, strict=False)
        except msgspec.ValidationError as exc:
            raise ConfigError(
                f"proxy setting {name}: found {text!r}, expected {expected}", reason=Reason.INVALID_VALUE
            ) from exc
    return msgspec.convert(found, ProxySettings)
