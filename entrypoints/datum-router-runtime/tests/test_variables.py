"""Environment variables that nobody reads are told."""

import pytest

from datum_router_runtime.settings import ENVIRONMENT
from datum_router_runtime.variables import (
    DISCOVERY_VARIABLES,
    VARIABLES,
    warn_of_unknown_discovery_variables,
    warn_of_unknown_variables,
)


def warnings(caplog: pytest.LogCaptureFixture, *names: str) -> list[tuple[str, str]]:
    warn_of_unknown_variables(dict.fromkeys(names, "1"))
    return [(record.__dict__["found"], record.__dict__["expected"]) for record in caplog.records]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("DATUM_ROUTER_LGO", "DATUM_ROUTER_LOG"),
        ("DATUM_ROUTER_GRACE_SEC", "DATUM_ROUTER_GRACE_SECS"),
        ("DATUM_ROUTER_DISABLED_PLUGINS", "DATUM_ROUTER_DISABLE_PLUGINS"),
        ("DATUM_ROUTER_XYZ", "a variable of docs/reference/settings.md"),
    ],
)
def test_misspelt_variable_is_told(caplog: pytest.LogCaptureFixture, found: str, expected: str) -> None:
    assert warnings(caplog, found, "PATH") == [(found, expected)]


def test_known_variables_and_service_links_are_not(caplog: pytest.LogCaptureFixture) -> None:
    links = [
        "DATUM_ROUTER_SERVICE_HOST",
        "DATUM_ROUTER_SERVICE_PORT",
        "DATUM_ROUTER_SERVICE_PORT_HTTP",
        "DATUM_ROUTER_PORT",
        "DATUM_ROUTER_PORT_8080_TCP",
        "DATUM_ROUTER_PORT_8080_TCP_ADDR",
        "DATUM_ROUTER_EU_PORT_8080_TCP_PROTO",
    ]
    assert warnings(caplog, *VARIABLES, *links) == []
    assert set(ENVIRONMENT) <= VARIABLES


def discovery_warnings(caplog: pytest.LogCaptureFixture, *names: str) -> list[tuple[str, str]]:
    warn_of_unknown_discovery_variables(dict.fromkeys(names, "1"))
    return [(record.__dict__["found"], record.__dict__["expected"]) for record in caplog.records]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("DISCOVERY_INTERVAL_SEC", "DISCOVERY_INTERVAL_SECS"),
        ("DISCOVERY_STALE_SECONDS", "DISCOVERY_STALE_SECS"),
        ("DISCOVERY_REMOVE_SECS", "DISCOVERY_REMOVED_SECS"),
        (
            "DISCOVERY_XYZ",
            "one of DISCOVERY_INTERVAL_SECS, DISCOVERY_REMOTE_CONFIG, DISCOVERY_REMOVED_SECS, DISCOVERY_STALE_SECS",
        ),
    ],
)
def test_misspelt_variable_of_discovery_is_told(caplog: pytest.LogCaptureFixture, found: str, expected: str) -> None:
    assert discovery_warnings(caplog, found, "PATH", "DATUM_ROUTER_LGO") == [(found, expected)]


def test_known_variables_of_discovery_and_links_of_a_service_of_that_name_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    links = ["DISCOVERY_SERVICE_HOST", "DISCOVERY_PORT_443_TCP_ADDR", "DISCOVERY_EU_SERVICE_PORT_HTTPS"]
    assert discovery_warnings(caplog, *DISCOVERY_VARIABLES, *links) == []


def test_a_gateway_does_not_own_the_variables_of_discovery(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog, "DISCOVERY_XYZ") == []
