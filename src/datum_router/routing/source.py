"""Source predicates: the client's address within one of some networks, and the attachment that it came in by."""

from __future__ import annotations

import ipaddress

from datum_router.model.request import RequestHead
from datum_router.model.route import Match
from datum_router.reasons import Reason
from datum_router.routing.predicate import HeadCheck, RuleProblem

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ATTACHMENT_RANK = 1000
"""More than any `prefix_rank`."""


def parse_client(text: str) -> Address | None:
    """Return a client's address, None if it is unknown; an IPv4-mapped IPv6 address counts as the IPv4 one."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def parse_network(text: str) -> Network | None:
    """Return the network of a CIDR, None if it is malformed. Host bits are ignored, a bare address is one host."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def prefix_rank(cidrs: tuple[str, ...]) -> int:
    """Return minus the longest prefix length, plus a step for having networks at all; 0 if there are none."""
    longest = -1
    for text in cidrs:
        network = parse_network(text)
        if network is not None and network.prefixlen > longest:
            longest = network.prefixlen
    return -1 - longest


def source_rank(match: Match) -> int:
    """Return what a match's source counts in the order of rules, less first: an attachment, then `prefix_rank`."""
    rank = prefix_rank(match.source_cidrs) if match.source_cidrs else 0
    return rank - ATTACHMENT_RANK if match.source_attachment else rank


def attachment_check(attachment: str) -> HeadCheck:
    """Return the check that the request came in by this attachment."""
    return lambda head: head.attachment == attachment


def source_check(cidrs: tuple[str, ...]) -> HeadCheck | RuleProblem:
    """Return the check that the client's address is within any of the networks; an unknown address never is."""
    masks: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
    for position, text in enumerate(cidrs):
        network = parse_network(text)
        if network is None:
            return RuleProblem(
                f"sourceCidrs[{position}]", Reason.INVALID_VALUE, f"{text!r}, expected a network such as 10.0.0.0/8"
            )
        shift = network.max_prefixlen - network.prefixlen
        masks[network.version].append((shift, int(network.network_address) >> shift))

    def check(head: RequestHead) -> bool:
        address = parse_client(head.client_ip)
        if address is None:
            return False
        number = int(address)
        return any(number >> shift == prefix for shift, prefix in masks[address.version])

    return check
