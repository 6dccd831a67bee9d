from __future__ import annotations

import pytest

from datum_router.compiler.diagnostics import fold
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import parse_duration
from datum_router.manifests.schema import field_rows
from datum_router.manifests.terms import BALANCER_TERMS, FIELD_TERMS, suggest_duration, suggest_method
from datum_router.plugins.builtin import datum_router_balancers


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        (5, "5s"),
        (0, "0s"),
        (1.5, "1500ms"),
        (5.0, "5s"),
        (99_999, "99999s"),
        ("5", "5s"),
        (" 5 s ", "5s"),
        ("10S", "10s"),
        ("2 minutes", "2m"),
        ("1.5h", "1h30m"),
        ("0.25s", "250ms"),
        ("2.5ms", ""),
        ("5 parsecs", ""),
        ("soon", ""),
        (-1, ""),
        pytest.param(10**5000, "", id="huge"),
        (float("nan"), ""),
        (True, ""),
        (None, ""),
    ],
)
def test_a_duration_is_suggested_for_what_is_nearly_one(found: object, meant: str) -> None:
    assert suggest_duration(found) == meant
    if meant:
        assert parse_duration(meant) >= 0


@pytest.mark.parametrize(("found", "meant"), [("get", "GET"), ("Post", "POST"), ("g t", ""), ("", ""), (7, "")])
def test_a_method_is_suggested_in_upper_case(found: object, meant: str) -> None:
    assert suggest_method(found) == meant


def test_what_is_suggested_is_there() -> None:
    fields = {row.path.rpartition(".")[2].removesuffix("[]") for kind in OWN_KINDS for row in field_rows(kind)}
    for meant in FIELD_TERMS.values():
        assert {part for field in meant for part in field.split(".")} <= fields
    assert set(BALANCER_TERMS.values()) <= {spec.name for spec in datum_router_balancers()}


def test_no_term_is_a_name_of_ours_spelt_otherwise() -> None:
    names = {fold(spec.name) for spec in datum_router_balancers()}
    assert names.isdisjoint(map(fold, BALANCER_TERMS))
