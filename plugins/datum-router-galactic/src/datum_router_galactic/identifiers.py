"""Identifiers of VPCs and attachments: hex as statuses have them, base62 as names of interfaces and tenant ids do.

A VPC has 48 bits, an attachment 16; zero and all ones are reserved. Base62 counts 0-9, a-z, A-Z without padding, so it
is case-sensitive. An interface's name is `G`, the VPC padded to nine digits, the attachment padded to three, and a
letter for its role: 14 characters, below the kernel's limit of 15 (IFNAMSIZ with its zero byte is 16).
"""

from __future__ import annotations

import enum
import ipaddress
import re
from typing import Final

import msgspec

ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
VPC_BITS: Final = 48
ATTACHMENT_BITS: Final = 16
VPC_DIGITS: Final = 9
"""Digits in base62 of the largest VPC identifier."""
ATTACHMENT_DIGITS: Final = 3

_VALUES: Final = {digit: value for value, digit in enumerate(ALPHABET)}
_HEX: Final = re.compile(r"[0-9a-f]+\Z")


class Role(enum.StrEnum):
    """What an interface is: the VRF, the host's end of the veth pair, the guest's end before it is moved."""

    VRF = "V"
    HOST = "H"
    GUEST = "G"


class TenantId(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who a pod's EndpointSlice is about, as numbers."""

    vpc: int
    attachment: int


def to_base62(number: int) -> str:
    """Return a number that is not negative in base62, `0` for zero.

    Raises:
        ValueError: It is negative.
    """
    if number < 0:
        raise ValueError(f"found {number}, expected a number that is not negative")
    digits = ""
    while True:
        number, rest = divmod(number, len(ALPHABET))
        digits = ALPHABET[rest] + digits
        if not number:
            return digits


def from_base62(text: str, bits: int) -> int:
    """Return the identifier of `bits` bits that a base62 text without padding says.

    Raises:
        ValueError: It says none, or a reserved one.
    """
    if not text or len(text) > VPC_DIGITS or any(digit not in _VALUES for digit in text):
        raise ValueError(f"found {text[:32]!r}, expected 1 to {VPC_DIGITS} digits of base62 (0-9, a-z, A-Z)")
    number = 0
    for digit in text:
        number = number * len(ALPHABET) + _VALUES[digit]
    if text[0] == "0" and len(text) > 1:
        raise ValueError(f"found {text!r}, expected no leading zeros: {to_base62(number)}")
    return _checked(number, bits, text)


def from_hex(text: str, bits: int) -> int:
    """Return the identifier that a status says: lower-case hex digits, all of them (12 for 48 bits, 4 for 16).

    Raises:
        ValueError: It is none, or a reserved one.
    """
    if len(text) != bits // 4 or not _HEX.match(text):
        raise ValueError(f"found {text[:32]!r}, expected {bits // 4} lower-case hex digits")
    return _checked(int(text, 16), bits, text)


def to_hex(number: int, bits: int) -> str:
    """Return an identifier as a status says it."""
    return f"{number:0{bits // 4}x}"


def _checked(number: int, bits: int, text: str) -> int:
    if not 0 < number < 2**bits - 1:
        raise ValueError(f"found {text!r}, expected an identifier of {bits} bits that is neither 0 nor all ones")
    return number


def parse_tenant(text: str) -> TenantId:
    """Return what a tenant id (`jU-G`) says; it is split at the first `-`.

    Raises:
        ValueError: It is none.
    """
    vpc, dash, attachment = text.partition("-")
    if not dash:
        raise ValueError(f"found {text[:32]!r}, expected VPC and attachment in base62, such as jU-G")
    return TenantId(vpc=from_base62(vpc, VPC_BITS), attachment=from_base62(attachment, ATTACHMENT_BITS))


def tenant_text(tenant: TenantId) -> str:
    """Return a tenant id as labels have it."""
    return f"{to_base62(tenant.vpc)}-{to_base62(tenant.attachment)}"


def parse_object_name(text: str) -> TenantId | None:
    """Return whom the name of an object (`4d2-2a`, hex without leading zeros) is about, None if it is no such name.

    Names of objects are lower case, which base62 is not.
    """
    vpc, _, attachment = text.partition("-")
    if not (_HEX.match(vpc) and _HEX.match(attachment)) or len(vpc) > 12 or len(attachment) > 4:
        return None
    tenant = TenantId(vpc=int(vpc, 16), attachment=int(attachment, 16))
    is_whole = 0 < tenant.vpc < 2**VPC_BITS - 1 and 0 < tenant.attachment < 2**ATTACHMENT_BITS - 1
    return tenant if is_whole and object_name(tenant) == text else None


def object_name(tenant: TenantId) -> str:
    """Return the name of the object that stands for an attachment of the second generation."""
    return f"{tenant.vpc:x}-{tenant.attachment:x}"


def interface_name(vpc: int, attachment: int | None, role: Role) -> str:
    """Return the name of an interface; without an attachment that of a VRF of the second generation."""
    name = f"G{to_base62(vpc).rjust(VPC_DIGITS, '0')}"
    if attachment is not None:
        name += to_base62(attachment).rjust(ATTACHMENT_DIGITS, "0")
    return name + role.value


def srv6_endpoint(network: str, vpc: int, attachment: int) -> str:
    """Return the segment of an attachment (first generation): 64 bits of the node, 48 of the VPC, 16 of the attachment.

    Raises:
        ValueError: `network` is no IPv6 network of at most /64.
    """
    found = ipaddress.IPv6Network(network)
    if found.prefixlen > 64:
        raise ValueError(f"found {network}, expected a network of at most 64 bits")
    return str(ipaddress.IPv6Address(int(found.network_address) | vpc << ATTACHMENT_BITS | attachment))


def parse_srv6_endpoint(text: str) -> TenantId:
    """Return whose segment an address is.

    Raises:
        ValueError: It is no IPv6 address.
    """
    low = int(ipaddress.IPv6Address(text)) & (2**64 - 1)
    return TenantId(vpc=low >> ATTACHMENT_BITS, attachment=low & (2**ATTACHMENT_BITS - 1))
