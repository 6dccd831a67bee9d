from __future__ import annotations

import re

import pytest

from datum_router.discovery.standing import Phase
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.observe import names
from datum_router.observe.names import CONTROLLER_METRICS, DISCOVERY_METRICS, METRICS, Kind, Metric
from datum_router.reasons import Reason
from datum_router.reconcile.conditions import ConditionType

EVERY = {**METRICS, **CONTROLLER_METRICS, **DISCOVERY_METRICS}
UNITS = {"seconds": "_seconds", "bytes": "_bytes"}


@pytest.mark.parametrize("metric", EVERY.values(), ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"datum_(router|gateway)(_[a-z0-9]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    if metric.unit in UNITS:
        assert UNITS[metric.unit] in metric.name
    assert metric.help.endswith(".")
    assert metric.help[0].isupper()
    assert len({label.name for label in metric.labels}) == len(metric.labels)


@pytest.mark.parametrize("metric", EVERY.values(), ids=lambda metric: metric.name)
def test_each_label_is_a_closed_set_or_names_objects_of_the_configuration(metric: Metric) -> None:
    for label in metric.labels:
        assert bool(label.values) != bool(label.objects)
        assert len(set(label.values)) == len(label.values)
        assert label.name not in {"path", "host", "method", "address", "client", "user_agent", "header"}


def test_every_metric_that_is_declared_is_listed() -> None:
    declared = {value.name for value in vars(names).values() if isinstance(value, Metric)}
    assert declared == set(EVERY)


def test_labels_of_controllers_have_the_values_that_objects_and_conditions_have() -> None:
    assert set(names.KIND.values) == {kind.kind for kind in OWN_KINDS}
    assert names.PHASE.values == tuple(str(phase) for phase in Phase)
    assert names.CONDITION.values == tuple(str(kind) for kind in ConditionType)


def test_a_refusal_can_have_every_reason_of_requests_and_connections() -> None:
    told = set(names.REFUSAL.values)
    assert {reason.value for reason in Reason if reason.value.islower()} <= told
    assert Reason.INVALID_CERTIFICATE_REF.value in told, "the listener refuses certificates"
