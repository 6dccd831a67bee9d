"""Identifiers: numbers worked out by hand or with a calculator, and the laws that they obey."""

import json
import os
from pathlib import Path

import pytest

from datum_router_galactic.identifiers import (
    ATTACHMENT_BITS,
    VPC_BITS,
    Role,
    TenantId,
    from_base62,
    from_hex,
    interface_name,
    object_name,
    parse_object_name,
    parse_srv6_endpoint,
    parse_tenant,
    srv6_endpoint,
    tenant_text,
    to_base62,
    to_hex,
)

BESIDE = Path(__file__).resolve().parents[4] / "shared"
VECTORS = Path(os.environ.get("DATUM_ROUTER_SHARED", BESIDE)) / "reference" / "crds" / "vectors.json"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (9, "9"),
        (10, "a"),
        (35, "z"),
        (36, "A"),
        (61, "Z"),
        (62, "10"),
        (62 * 62 - 1, "ZZ"),
        (1234, "jU"),  # 19 * 62 + 56
        (42, "G"),
        (0xFFFF, "h31"),  # 17 * 3844 + 3 * 62 + 1
        (2**48 - 1, "1hVwxnaA7"),
    ],
)
def test_base62_counts_digits_then_lower_case_then_upper_case(number: int, text: str) -> None:
    assert to_base62(number) == text


@pytest.mark.parametrize("number", [1, 42, 61, 62, 1234, 2**16 - 2, 2**32, 2**48 - 2])
def test_what_is_written_is_read_again(number: int) -> None:
    assert from_base62(to_base62(number), VPC_BITS) == number
    assert from_hex(to_hex(number, VPC_BITS), VPC_BITS) == number


@pytest.mark.parametrize("text", ["", "0", "h31", "h32", "0G", "G-", " G", "é", "1hVwxnaA71", "G\n"])
def test_texts_that_are_no_attachment_in_base62(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        from_base62(text, ATTACHMENT_BITS)


@pytest.mark.parametrize("text", ["", "2a", "002A", "0x2a", "0000", "ffff", "002a\n", "002g", "0002a"])
def test_texts_that_are_no_attachment_in_hex(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        from_hex(text, ATTACHMENT_BITS)


def test_negative_numbers_have_no_base62() -> None:
    with pytest.raises(ValueError, match="not negative"):
        to_base62(-1)


def test_a_tenant_id_is_split_at_its_first_dash_and_is_case_sensitive() -> None:
    assert parse_tenant("jU-G") == TenantId(vpc=1234, attachment=42)
    assert parse_tenant("ju-g") != parse_tenant("jU-G")
    assert tenant_text(TenantId(vpc=1234, attachment=42)) == "jU-G"
    for text in ("jU", "jU-", "-G", "jU-G-", "jU_G"):
        with pytest.raises(ValueError, match="expected"):
            parse_tenant(text)


@pytest.mark.parametrize(
    ("text", "tenant"),
    [
        ("4d2-2a", TenantId(vpc=1234, attachment=42)),
        ("1-1", TenantId(vpc=1, attachment=1)),
        ("04d2-2a", None),
        ("4D2-2a", None),
        ("0-2a", None),
        ("4d2-ffff", None),
        ("4d2-10000", None),
        ("backend", None),
        ("4d2-2a-0", None),
    ],
)
def test_the_name_of_an_attachments_object(text: str, tenant: TenantId | None) -> None:
    assert parse_object_name(text) == tenant
    assert tenant is None or object_name(tenant) == text


def test_interface_names_are_padded_and_fit_the_kernels_limit() -> None:
    assert interface_name(1234, 42, Role.HOST) == "G0000000jU00GH"
    assert interface_name(1234, None, Role.VRF) == "G0000000jUV"
    longest = interface_name(2**48 - 2, 2**16 - 2, Role.GUEST)
    assert longest == "G1hVwxnaA6h30G"
    assert len(longest) == 14


def test_a_segment_holds_node_vpc_and_attachment() -> None:
    assert srv6_endpoint("fc00::/56", 1234, 42) == "fc00::4d2:2a"
    assert parse_srv6_endpoint("2607:ed40:ff01:0:7197:93c7:5efd:66de") == TenantId(
        vpc=0x719793C75EFD, attachment=0x66DE
    )
    with pytest.raises(ValueError, match="at most 64 bits"):
        srv6_endpoint("fc00::/65", 1, 1)


@pytest.mark.skipif(not VECTORS.exists(), reason="vectors are not here")
def test_vectors() -> None:
    vectors = json.loads(VECTORS.read_text())
    for one in vectors["identifiers"]:
        bits = VPC_BITS if one["kind"] == "vpc" else ATTACHMENT_BITS
        assert from_hex(one["hex"], bits) == one["decimal"] == from_base62(one["base62"], bits)
        assert (to_hex(one["decimal"], bits), to_base62(one["decimal"])) == (one["hex"], one["base62"])
    for one in vectors["endpoints_2025"]:
        tenant = TenantId(vpc=int(one["vpc_hex"], 16), attachment=int(one["attachment_hex"], 16))
        assert srv6_endpoint(one["srv6_net"], tenant.vpc, tenant.attachment) == one["endpoint"]
        assert (tenant_text(tenant), object_name(tenant)) == (one["tenant_id"], one["bgp_advertisement_name"])
        for role, field in ((Role.VRF, "ifname_vrf_legacy"), (Role.HOST, "ifname_host"), (Role.GUEST, "ifname_guest")):
            assert interface_name(tenant.vpc, tenant.attachment, role) == one[field]
        assert interface_name(tenant.vpc, None, Role.VRF) == one["ifname_vrf_current"]
    assert min(len(vectors["identifiers"]), len(vectors["endpoints_2025"])) > 3
