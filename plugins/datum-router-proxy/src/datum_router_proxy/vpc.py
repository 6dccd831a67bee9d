"""Which interface leads into which VPC, and which attachment a connection came in by.

Theory of operation
===================
Addresses mean something within their VPC alone: two VPCs may both have 10.1.0.5. A gateway that is attached to several
has an interface in each. A socket that is bound to an interface (SO_BINDTODEVICE, socket(7)) sends and receives by it
only, whatever the main routing table says; so a dial into a VPC binds before it connects. It costs one system call of
a dial and nothing of a request. Since Linux 5.7 it needs no capability.

The other way round the kernel keeps, for each accepted TCP socket, the index of the interface by which the peer's last
packet of the handshake came (`mc_index` for IPv4, `mcast_oif` for IPv6) and tells it to who asks for packet information
(ip(7) IP_PKTINFO with IP_PKTOPTIONS, RFC 2292 section 4 for IPv6). A local address would not do: Linux takes packets
for any of its addresses by any of its interfaces.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Mapping

from datum_router.errors import ConfigError, UpstreamError
from datum_router.reasons import Reason

MAX_INTERFACES = 64
"""VPCs, and attachments, that one gateway may be told of."""

_OBJECT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_NAMELESS = re.compile(r"/[0-9A-Za-z]{1,9}")  # an identifier of 48 bits in base62: `manifests.indexes.nameless_vpc`
# IFNAMSIZ is 16 with the ending zero; the kernel's dev_valid_name refuses `/`, `:` and blanks
_INTERFACE = re.compile(r"[!-.0-9;-~]{1,15}")

_IP_PKTINFO = 8
_IP_PKTOPTIONS = 9
_IPV6_2292PKTINFO = 2
_IPV6_2292PKTOPTIONS = 6
_PKTOPTIONS_BYTES = 256
_CMSG = struct.Struct("@Nii")  # cmsghdr: length, level, type
_V4_INDEX = struct.Struct("@i")  # in_pktinfo begins with the index
_V6_INDEX = struct.Struct("@16xi")  # in6_pktinfo: address, index


def parse_interfaces(text: str, *, name: str, may_be_nameless: bool = False) -> dict[str, str]:
    """Read `namespace/name=interface,namespace/name=interface`; empty text gives none.

    Args:
        may_be_nameless: `/identifier=interface` is read as well: VPCs that have no object here are called so.

    Raises:
        ConfigError: Anything else, a name given twice, or more than `MAX_INTERFACES`; names the setting.
    """
    found: dict[str, str] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        key, _, interface = (half.strip() for half in part.partition("="))
        is_known = _OBJECT.fullmatch(key) or (may_be_nameless and _NAMELESS.fullmatch(key))
        if not is_known or not _INTERFACE.fullmatch(interface) or interface in (".", ".."):
            raise ConfigError(
                f"proxy setting {name}: found {part!r}, expected NAMESPACE/NAME=INTERFACE such as "
                "production/shop=galactic0",
                reason=Reason.INVALID_VALUE,
            )
        if key in found:
            raise ConfigError(f"proxy setting {name}: {key} is named twice", reason=Reason.INVALID_VALUE)
        found[key] = interface
    if len(found) > MAX_INTERFACES:
        raise ConfigError(
            f"proxy setting {name}: found {len(found)} interfaces, expected at most {MAX_INTERFACES}",
            reason=Reason.INVALID_VALUE,
        )
    return found


class VpcInterfaces:
    """The interfaces that upstream sockets are bound to.

    Args:
        interfaces: VPC (as `Endpoint.vpc` has it) -> interface.
        is_required: Refuse to dial into a VPC that has none, rather than leave it to the main routing table.
    """

    __slots__ = ("_interfaces", "_is_required")

    def __init__(self, interfaces: Mapping[str, str] | None = None, *, is_required: bool = False) -> None:
        self._interfaces = dict(interfaces or {})
        self._is_required = is_required

    def device(self, vpc: str) -> str:
        """Return the interface for an endpoint's VPC, empty for a socket that is bound to none.

        Raises:
            UpstreamError: `connect_failed`: there must be one and there is none; nothing was sent.
        """
        if not vpc:
            return ""
        device = self._interfaces.get(vpc, "")
        if not device and self._is_required:
            known = ", ".join(sorted(self._interfaces)) or "none"
            raise UpstreamError(
                f"vpc {vpc}: this gateway has no interface in it (vpc_interfaces names {known})",
                reason=Reason.CONNECT_FAILED,
                status_hint=503,
                is_unprocessed=True,
            )
        return device


def bind_to_device(sock: socket.socket, device: str) -> None:
    """Have an unconnected socket send and receive by this interface alone.

    Raises:
        OSError: ENODEV if there is no such interface here.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode("utf-8"))


def incoming_interface(sock: socket.socket) -> str:
    """Return the interface that an accepted TCP socket's peer was heard by; empty if the kernel does not say.

    Leaves packet information switched on at this socket, which does nothing else on TCP.
    """
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_2292PKTINFO, 1)
            data = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_2292PKTOPTIONS, _PKTOPTIONS_BYTES)
        elif sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            data = sock.getsockopt(socket.IPPROTO_IP, _IP_PKTOPTIONS, _PKTOPTIONS_BYTES)
        else:
            return ""
        index = interface_index(data)
        return socket.if_indextoname(index) if index else ""
    except OSError:  # it is gone meanwhile, or another kernel
        return ""


def interface_index(data: bytes) -> int:
    """Return the index in the packet information among control messages (cmsg(3)), 0 if there is none."""
    at = 0
    while at + _CMSG.size <= len(data):
        length, level, kind = _CMSG.unpack_from(data, at)
        if length < _CMSG.size or at + length > len(data):
            return 0
        for wanted, layout in (
            ((socket.IPPROTO_IP, _IP_PKTINFO), _V4_INDEX),
            ((socket.IPPROTO_IPV6, _IPV6_2292PKTINFO), _V6_INDEX),
        ):
            if (level, kind) == wanted and length >= _CMSG.size + layout.size:
                index: int = layout.unpack_from(data, at + _CMSG.size)[0]
                return index
        at += -(-length // 8) * 8
    return 0
