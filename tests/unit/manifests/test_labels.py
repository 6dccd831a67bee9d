"""Label selectors select as the API server's do."""

from __future__ import annotations

import pytest

from datum_router.manifests.labels import selects
from datum_router.manifests.parts import LabelSelector, LabelSelectorRequirement, SelectorOperator


def when(operator: SelectorOperator, *values: str, key: str = "tier") -> LabelSelector:
    return LabelSelector(match_expressions=(LabelSelectorRequirement(key=key, operator=operator, values=values),))


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        (LabelSelector(), {}, True),
        (LabelSelector(), None, True),
        (LabelSelector(match_labels={"tier": "web"}), {"tier": "web", "x": "y"}, True),
        (LabelSelector(match_labels={"tier": "web"}), {"tier": "db"}, False),
        (LabelSelector(match_labels={"tier": "web"}), None, False),
        (LabelSelector(match_labels={"tier": ""}), {}, False),
        (LabelSelector(match_labels={"tier": "web", "x": "y"}), {"tier": "web"}, False),
        (when(SelectorOperator.IN, "web", "db"), {"tier": "db"}, True),
        (when(SelectorOperator.IN, "web", "db"), {"tier": "cache"}, False),
        (when(SelectorOperator.IN, "web"), {}, False),
        (when(SelectorOperator.NOT_IN, "web"), {"tier": "web"}, False),
        (when(SelectorOperator.NOT_IN, "web"), {"tier": "db"}, True),
        (when(SelectorOperator.NOT_IN, "web"), {}, True),
        (when(SelectorOperator.EXISTS), {"tier": ""}, True),
        (when(SelectorOperator.EXISTS), {}, False),
        (when(SelectorOperator.DOES_NOT_EXIST), {}, True),
        (when(SelectorOperator.DOES_NOT_EXIST), {"tier": "web"}, False),
    ],
)
def test_all_conditions_must_hold(selector: LabelSelector, labels: dict[str, str] | None, expected: bool) -> None:
    assert selects(selector, labels) is expected


def test_labels_and_expressions_are_joined_by_and() -> None:
    both = LabelSelector(match_labels={"a": "1"}, match_expressions=when(SelectorOperator.EXISTS).match_expressions)
    assert selects(both, {"a": "1", "tier": "web"})
    assert not selects(both, {"a": "1"})
    assert not selects(both, {"tier": "web"})
