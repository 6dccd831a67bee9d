"""Addresses of destinations: which IPv4 address an IPv6 one stands for, and which ranges are closed.

Theory of operation. A closed range is one that a stranger outside cannot mean: it leads back to the gateway, to its
neighbours, to the cluster or to the cloud's metadata service. Such an address may be dialled only if a rule opens it by
name: by a network that lies within the closed range, or by the address itself. `0.0.0.0/0` opens none of them. Of
ranges in each other the narrowest counts, so that `169.254.0.0/16` does not open the metadata service within.

An IPv6 address that carries an IPv4 one ends up there, so it is judged as what it carries (`faces`).

Sources: IANA IPv4 and IPv6 special-purpose address registries (RFC 6890 and its updates); RFC 4291 section 2.5.5
(mapped, compatible), RFC 6052 (NAT64), RFC 8215, RFC 3056 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP), RFC 2765
(translated).
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RangeKind(enum.StrEnum):
    """What a closed range is for."""

    UNSPECIFIED = "unspecified"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    METADATA = "metadata"
    PRIVATE = "private"
    SHARED = "shared"
    MULTICAST = "multicast"
    RESERVED = "reserved"
    EXTRA = "closed by setting"


CLOSED: Final[tuple[tuple[str, RangeKind], ...]] = (
    ("0.0.0.0/8", RangeKind.UNSPECIFIED),
    ("10.0.0.0/8", RangeKind.PRIVATE),
    ("100.64.0.0/10", RangeKind.SHARED),
    ("100.100.100.200/32", RangeKind.METADATA),
    ("127.0.0.0/8", RangeKind.LOOPBACK),
    ("168.63.129.16/32", RangeKind.METADATA),
    ("169.254.0.0/16", RangeKind.LINK_LOCAL),
    ("169.254.169.254/32", RangeKind.METADATA),
    ("169.254.170.2/32", RangeKind.METADATA),
    ("169.254.170.23/32", RangeKind.METADATA),
    ("172.16.0.0/12", RangeKind.PRIVATE),
    ("192.0.0.0/24", RangeKind.RESERVED),
    ("192.0.0.192/32", RangeKind.METADATA),
    ("192.0.2.0/24", RangeKind.RESERVED),
    ("192.31.196.0/24", RangeKind.RESERVED),
    ("192.52.193.0/24", RangeKind.RESERVED),
    ("192.88.99.0/24", RangeKind.RESERVED),
    ("192.168.0.0/16", RangeKind.PRIVATE),
    ("192.175.48.0/24", RangeKind.RESERVED),
    ("198.18.0.0/15", RangeKind.RESERVED),
    ("198.51.100.0/24", RangeKind.RESERVED),
    ("203.0.113.0/24", RangeKind.RESERVED),
    ("224.0.0.0/4", RangeKind.MULTICAST),
    ("240.0.0.0/4", RangeKind.RESERVED),
    # Of IPv6, 2000::/3 is all that is in use as global unicast (RFC 4291 section 2.4, IANA IPv6 address space).
    ("::/3", RangeKind.RESERVED),
    ("4000::/2", RangeKind.RESERVED),
    ("8000::/1", RangeKind.RESERVED),
    ("::/128", RangeKind.UNSPECIFIED),
    ("::1/128", RangeKind.LOOPBACK),
    ("64:ff9b:1::/48", RangeKind.PRIVATE),
    ("100::/64", RangeKind.RESERVED),
    ("2001::/23", RangeKind.RESERVED),
    ("2001:db8::/32", RangeKind.RESERVED),
    ("3fff::/20", RangeKind.RESERVED),
    ("5f00::/16", RangeKind.RESERVED),
    ("fc00::/7", RangeKind.PRIVATE),
    ("fd00:ec2::254/128", RangeKind.METADATA),
    ("fd00:ec2::23/128", RangeKind.METADATA),
    ("fd20:ce::254/128", RangeKind.METADATA),
    ("fe80::/10", RangeKind.LINK_LOCAL),
    ("fec0::/10", RangeKind.PRIVATE),
    ("ff00::/8", RangeKind.MULTICAST),
)
"""Networks that are closed unless they are opened by name, and what each of them is."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAT64: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")
_TRANSLATED: Final = ipaddress.IPv6Network("::ffff:0:0:0/96")
_ISATAP: Final = frozenset((0x0000_5EFE, 0x0200_5EFE))
_LOW: Final = 0xFFFF_FFFF


def parse_address(text: str) -> Address | None:
    """Return the address of a strict literal, None for anything else: zone ids, leading zeros, short forms of IPv4."""
    if "%" in text or "/" in text:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def dialled(address: Address) -> Address:
    """Return the address that a socket is connected to: IPv4 for an IPv4-mapped one, which is what the kernel does."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def faces(address: Address) -> tuple[Address, ...]:
    """Return the addresses that packets to `address` may end up at; each of them has to be allowed.

    One that carries an IPv4 address is judged as that one. ISATAP and local-use NAT64 are judged as both, since how
    they are read depends on the network; Teredo as the client that is meant, the server that is asked and itself.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    value = int(address)
    inner = ipaddress.IPv4Address(value & _LOW)
    if address.ipv4_mapped is not None or address in _TRANSLATED or address in _NAT64:
        return (inner,)
    if address in _COMPATIBLE and value > 1:
        return (inner,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return (address, *address.teredo)
    if (value >> 32) & _LOW in _ISATAP or address in _LOCAL_NAT64:
        return (address, inner)
    return (address,)


class ClosedRanges:
    """The closed ranges of one gateway: `CLOSED` and what its settings add."""

    __slots__ = ("_ranges",)

    def __init__(self, extra: tuple[Network, ...] = ()) -> None:
        known: list[tuple[Network, RangeKind]] = [(ipaddress.ip_network(text), kind) for text, kind in CLOSED]
        known += [(network, RangeKind.EXTRA) for network in extra]
        # The narrowest first: the first that holds an address is the one that counts.
        self._ranges = tuple(sorted(known, key=lambda one: -one[0].prefixlen))

    def find(self, address: Address) -> tuple[Network, RangeKind] | None:
        """Return the narrowest closed range that holds an address, None if none does."""
        for network, kind in self._ranges:
            if network.version == address.version and address in network:
                return network, kind
        return None


def is_within(inner: Network, outer: Network) -> bool:
    """Tell whether a network lies within another one, or is it."""
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


@functools.lru_cache(maxsize=4096)
def parse_network(text: str) -> Network:
    """Return a network of a manifest, which validation has checked; host bits are passed over.

    An IPv4-mapped one is that of IPv4 that it carries, since no address is judged as a mapped one.
    """
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return networks that stand in a text with commas between them; see `parse_network`.

    Raises:
        ValueError: One is none; the message is its text.
    """
    found: list[Network] = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        try:
            found.append(parse_network(part))
        except ValueError as error:
            raise ValueError(part) from error
    return tuple(found)
