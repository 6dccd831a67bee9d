"""Which rules take preflights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CORS = {"allowedOrigins": ["https://shop.example.com"]}


def preflights(result: Any) -> dict[str, tuple[tuple[str, ...], list[tuple[str, str, str]]]]:
    return {
        rule.id: (rule.match.methods, [(one.name, str(one.kind), one.value) for one in rule.match.headers])
        for rule in result.data.rules
        if rule.is_preflight
    }


def test_conditions_that_no_preflight_meets_get_rules_of_their_own(bench: Callable[..., Any], kit: Any) -> None:
    result = bench().compile(
        kit.service(),
        kit.route("plain", cors=CORS),
        kit.route("methods", match={"pathPrefix": "/m", "methods": ["GET", "PUT"]}, cors=CORS),
        kit.route("fields", match={"pathPrefix": "/f", "headers": {"x-a": "1"}}, cors=CORS),
        kit.route("options", match={"pathPrefix": "/o", "methods": ["OPTIONS", "PUT"]}, cors=CORS),
    )
    present = ("origin", "present", "")
    assert preflights(result) == {
        "default/methods#0-preflight-GET": (
            ("OPTIONS",),
            [("access-control-request-method", "exact", "GET"), present],
        ),
        "default/methods#0-preflight-PUT": (
            ("OPTIONS",),
            [("access-control-request-method", "exact", "PUT"), present],
        ),
        "default/fields#0-preflight": (("OPTIONS",), [("access-control-request-method", "present", ""), present]),
    }


def test_two_routes_that_share_a_preflight_do_not_conflict(bench: Callable[..., Any], kit: Any) -> None:
    result = bench().compile(
        kit.service(),
        kit.route("one", match={"headers": {"x-a": "1"}}, cors=CORS),
        kit.route("two", match={"headers": {"x-a": "2"}}, cors=CORS),
    )
    assert [str(item.reason) for item in result.diagnostics] == []
    assert len(preflights(result)) == 2
