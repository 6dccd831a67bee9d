"""Label selectors: whether one selects."""

from __future__ import annotations

from collections.abc import Mapping

from datum_router.manifests.parts import LabelSelector, SelectorOperator


def selects(selector: LabelSelector, labels: Mapping[str, str] | None) -> bool:
    """Tell whether all conditions of a selector hold; a selector without conditions selects everything.

    As the API server has it: NotIn and DoesNotExist hold where the label is absent.
    """
    known = labels or {}
    if any(known.get(key) != value for key, value in (selector.match_labels or {}).items()):
        return False
    for condition in selector.match_expressions:
        value = known.get(condition.key)
        if condition.operator is SelectorOperator.EXISTS:
            holds = value is not None
        elif condition.operator is SelectorOperator.DOES_NOT_EXIST:
            holds = value is None
        elif condition.operator is SelectorOperator.IN:
            holds = value in condition.values
        else:
            holds = value not in condition.values
        if not holds:
            return False
    return True
