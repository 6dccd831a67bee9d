"""Every limit of the data plane has a metric that shows it at work."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from datum_router.observe import names
from datum_router_proxy.limits import ACCEPT, SETTINGS, Shown
from datum_router_proxy.server.listener import AcceptLimits
from datum_router_proxy.settings import ProxySettings

TABLES = [(ProxySettings, SETTINGS), (AcceptLimits, ACCEPT)]


@pytest.mark.parametrize(("struct", "table"), TABLES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_limit_is_in_the_table_and_nothing_else(
    struct: type[msgspec.Struct], table: Mapping[str, tuple[Shown, ...]]
) -> None:
    # A text chooses between ways to do the same; only numbers are limits.
    assert sorted(table) == sorted(field.name for field in msgspec.structs.fields(struct) if field.type is not str)
    assert all(table.values())


@pytest.mark.parametrize(
    "shown", {str(one): one for _, table in TABLES for row in table.values() for one in row}.values(), ids=str
)
def test_what_shows_a_limit_is_a_series_that_can_be(shown: Shown) -> None:
    assert names.METRICS[shown.metric.name] is shown.metric
    labels = {label.name: label for label in shown.metric.labels}
    for name, value in shown.labels.items():
        assert value in labels[name].values
