"""The settings that size the token bucket of writes."""

from __future__ import annotations

import pytest

from datum_router.errors import ConfigError
from datum_router_kubernetes.ratelimit import WRITE_BURST, WRITE_QPS, WriteLimits, write_limits


def test_settings_size_it() -> None:
    assert write_limits({}) == WriteLimits(qps=WRITE_QPS, burst=WRITE_BURST)
    assert write_limits({"writeQps": "0.5", "writeBurst": "7", "role": "x"}) == WriteLimits(qps=0.5, burst=7)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("writeQps", "fast", "a number from 0.01 to 100000"),
        ("writeQps", "0", "a number from 0.01 to 100000"),
        ("writeQps", "nan", "a number from 0.01 to 100000"),
        ("writeQps", "inf", "a number from 0.01 to 100000"),
        ("writeBurst", "1.5", "a whole number from 1 to 100000"),
        ("writeBurst", "0", "a whole number from 1 to 100000"),
        ("writeBurst", "1" * 5000, "a whole number from 1 to 100000"),
    ],
)
def test_a_setting_that_is_no_such_number_is_named(name: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^setting {name}: found '{text[:80]}', expected {expected}$"):
        write_limits({name: text})
