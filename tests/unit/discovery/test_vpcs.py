"""VPCs of other clusters are known by their identifiers, whatever they are called."""

from __future__ import annotations

import pytest

from datum_router.discovery.export import Export
from datum_router.discovery.vpcs import OWN, Vpcs, localized
from datum_router.model.endpoint import make_endpoint


def vpcs(own: dict[str, str], there: dict[str, str]) -> Vpcs:
    made = Vpcs()
    made.put(OWN, own)
    made.put("b", there)
    return made


@pytest.mark.parametrize(
    ("own", "there", "vpc", "expected"),
    [
        ({}, {}, "", ""),
        ({"p/shop": "jU"}, {"p/shop": "jU"}, "p/shop", "p/shop"),
        ({"p/shop": "jU"}, {"q/store": "jU"}, "q/store", "p/shop"),
        ({"p/shop": "jU"}, {}, "/jU", "p/shop"),
        ({"p/shop": "jU"}, {}, "/kX", "/kX"),
        ({}, {"p/shop": "jU"}, "p/shop", "/jU"),
        ({"p/other": "kX"}, {"p/shop": "jU"}, "p/shop", "/jU"),
        ({}, {"p/shop": ""}, "p/shop", "p/shop"),
        ({}, {}, "p/shop", "p/shop"),
        ({"q/two": "jU", "p/one": "jU"}, {"p/shop": "jU"}, "p/shop", "p/one"),
        ({"p/shop": "", "p/real": "jU"}, {"p/shop": "jU"}, "p/shop", "p/real"),
    ],
)
def test_a_vpc_is_called_as_here(own: dict[str, str], there: dict[str, str], vpc: str, expected: str) -> None:
    assert vpcs(own, there).resolve("b", vpc) == (expected, "")


@pytest.mark.parametrize(
    ("own", "there", "why"),
    [
        (
            {"p/shop": "jU"},
            {"p/shop": "kX"},
            "vpc p/shop has identifier kX there and jU here: another network of the same name",
        ),
        (
            {"p/shop": "jU"},
            {"p/shop": ""},
            "vpc p/shop has no identifier there, so that it cannot be told whether it is the one here",
        ),
        (
            {"p/shop": ""},
            {},
            "vpc p/shop has no identifier there, so that it cannot be told whether it is the one here",
        ),
        (
            {"p/shop": ""},
            {"p/shop": "jU"},
            "vpc p/shop has no identifier here, so that it cannot be told whether it is the one there",
        ),
    ],
)
def test_what_cannot_be_shown_to_be_the_vpc_of_its_name_is_none(
    own: dict[str, str], there: dict[str, str], why: str
) -> None:
    assert vpcs(own, there).resolve("b", "p/shop") == ("", why)


def test_identifiers_differ_in_case() -> None:
    assert vpcs({"p/shop": "ju"}, {"p/shop": "jU"}).resolve("b", "p/shop")[0] == ""


def test_only_what_is_different_is_news() -> None:
    made = Vpcs()
    assert not made.put("b", {})
    assert made.put("b", {"p/shop": "jU"})
    assert not made.put("b", {"p/shop": "jU"})
    assert made.put("b", {})


def test_an_export_is_localized_with_its_keys() -> None:
    export = Export(
        protocol="HTTP",
        port=80,
        endpoints=(
            make_endpoint("10.0.0.1", 80, vpc="q/store"),
            make_endpoint("10.0.0.1", 80, vpc="/jU"),
            make_endpoint("10.0.0.2", 80, vpc="p/wrong"),
            make_endpoint("10.0.0.3", 80),
        ),
    )
    known = vpcs({"p/shop": "jU", "p/wrong": "aa"}, {"q/store": "jU", "p/wrong": "bb"})
    found = localized(export, "b", known)
    assert [str(one.key) for one in found.endpoints] == ["10.0.0.1:80@p/shop", "10.0.0.3:80"]
    assert found.left_out == (
        ("vpc p/wrong has identifier bb there and aa here: another network of the same name", "10.0.0.2"),
    )


def test_an_export_that_says_what_is_said_here_is_left_as_it_is() -> None:
    export = Export(protocol="HTTP", port=80, endpoints=(make_endpoint("10.0.0.1", 80, vpc="p/shop"),))
    assert localized(export, "b", vpcs({"p/shop": "jU"}, {"p/shop": "jU"})) is export


def test_what_cannot_be_read_here_is_not_taken_as_not_there() -> None:
    made = vpcs({"p/shop": "jU"}, {"q/store": "jU"})
    assert made.forget_own()
    assert not made.forget_own()
    for vpc in ("q/store", "/jU", "p/other"):
        name, why = made.resolve("b", vpc)
        assert (name, why) == (
            "",
            f"VPCs of this cluster cannot be read, so that it cannot be told which of them {vpc} is",
        )
    assert made.resolve("b", "") == ("", "")
    assert made.put(OWN, {"p/shop": "jU"})
    assert made.resolve("b", "q/store") == ("p/shop", "")
