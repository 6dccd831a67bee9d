import pytest

from datum_router.errors import ConfigError
from datum_router.model.endpoint import UNKNOWN_LOCALITY, make_locality
from datum_router_runtime.settings import (
    Address,
    ControllerSettings,
    GatewaySettings,
    parse_address,
    parse_admin_address,
    read_place,
    settings_from_environment,
)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("[::1]:0", "::1", 0),
        (":8080", "0.0.0.0", 8080),
        ("localhost:65535", "127.0.0.1", 65535),
    ],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    assert parse_address(text, name="--listen") == Address(host=host, port=port)


@pytest.mark.parametrize(
    "text", ["8080", "127.0.0.1", "::1:80", "a.test:80", "127.0.0.1:70000", "127.0.0.1:-1", "[::1]"]
)
def test_bad_addresses_name_the_setting_and_the_right_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--listen: found .* expected "):
        parse_address(text, name="--listen")


def test_addresses_print_as_they_are_written() -> None:
    assert str(Address(host="::1", port=80)) == "[::1]:80"
    assert str(Address(host="127.0.0.1", port=80)) == "127.0.0.1:80"


@pytest.mark.parametrize("workers", [0, -1, 257])
def test_worker_count_is_bounded(workers: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 256"):
        GatewaySettings(workers=workers)


def test_admin_listener_must_be_loopback() -> None:
    with pytest.raises(ConfigError, match="loopback"):
        GatewaySettings(admin=Address(host="0.0.0.0", port=9901))
    with pytest.raises(ConfigError, match=r"--admin: found 0\.0\.0\.0:9901, expected a loopback address"):
        parse_admin_address(":9901", name="--admin")
    assert parse_admin_address("localhost:1", name="--admin") == Address(host="127.0.0.1", port=1)


@pytest.mark.parametrize("field", ["debounce_s", "lameduck_s", "grace_s", "orphan_grace_s", "report_interval_s"])
def test_durations_are_bounded(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}: found 3601"):
        GatewaySettings.from_mapping({field: 3601.0})


def test_environment_is_read() -> None:
    found = settings_from_environment(
        {
            "DATUM_ROUTER_LAMEDUCK_SECS": "0.5",
            "DATUM_ROUTER_WORKERS": "2",
            "DATUM_ROUTER_DISABLE_PLUGINS": "a, b",
            "DATUM_ROUTER_TOPOLOGY": "topology.datum.net/city-code=IAD",
            "DATUM_ROUTER_LOCATION": "name=iad-1, latitude=38.9445, longitude=-77.4558",
            "DATUM_ROUTER_DATA_PLANE_CONFIG": "pool_wait_s=1, max_via_hops=3",
            "UNRELATED": "x",
        }
    )
    settings = GatewaySettings.from_mapping(found)
    assert settings.lameduck_s == 0.5
    assert settings.workers == 2
    assert settings.disabled_plugins == ("a", "b")
    assert settings.topology == {"topology.datum.net/city-code": "IAD"}
    assert read_place(settings.topology, settings.location) == make_locality(
        {"topology.datum.net/city-code": "IAD"}, location="iad-1", latitude=38.9445, longitude=-77.4558
    )
    assert settings.data_plane_config == {"pool_wait_s": "1", "max_via_hops": "3"}


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("DATUM_ROUTER_GRACE_SECS", "soon"),
        ("DATUM_ROUTER_GRACE_SECS", "-1"),
        ("DATUM_ROUTER_GRACE_SECS", "nan"),
        ("DATUM_ROUTER_WORKERS", "²"),
        ("DATUM_ROUTER_WORKERS", "257"),
        ("DATUM_ROUTER_TOPOLOGY", "IAD"),
        ("DATUM_ROUTER_EGRESS_SOURCE", "prod-vpc"),
    ],
)
def test_bad_environment_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}: found '?{text}'?, expected "):
        settings_from_environment({variable: text})


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ({"name": "iad-1", "lat": "1"}, "location: found 'lat', expected name, latitude and longitude"),
        ({"latitude": "1"}, "location: found latitude alone, expected latitude and longitude"),
        ({"longitude": "1"}, "location: found longitude alone, expected latitude and longitude"),
        ({"latitude": "91", "longitude": "0"}, "location: found latitude '91', expected degrees from -90 to 90"),
        ({"latitude": "0", "longitude": "-180.1"}, "location: found longitude '-180.1', expected degrees from -180"),
        ({"latitude": "nan", "longitude": "0"}, "location: found latitude 'nan', expected degrees"),
        ({"latitude": "38N", "longitude": "0"}, "location: found latitude '38N', expected degrees"),
    ],
)
def test_a_location_that_is_none_is_refused_wherever_it_stands(location: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GatewaySettings.from_mapping({"location": location})
    variable = ",".join(f"{key}={value}" for key, value in location.items())
    with pytest.raises(ConfigError, match=f"DATUM_ROUTER_LOCATION{message.removeprefix('location')}"):
        settings_from_environment({"DATUM_ROUTER_LOCATION": variable})


@pytest.mark.parametrize("given", ["ROUTER_TLS_CERT", "ROUTER_TLS_KEY", "ROUTER_CLIENT_CERT", "ROUTER_CLIENT_KEY"])
def test_a_certificate_without_its_key_is_told_by_variables(given: str) -> None:
    lacking = given.replace("CERT", "KEY") if given.endswith("CERT") else given.replace("KEY", "CERT")
    with pytest.raises(ConfigError, match=f"^{given}: found it without {lacking}, expected both or none$"):
        settings_from_environment({given: "/etc/some.pem"})


def test_no_setting_is_no_place() -> None:
    assert read_place({}, {}) == UNKNOWN_LOCALITY


def test_interfaces_of_vpcs_go_to_the_data_plane_beside_its_other_settings() -> None:
    found = settings_from_environment(
        {
            "DATUM_ROUTER_DATA_PLANE_CONFIG": "pool_wait_s=1",
            "DATUM_ROUTER_VPC_INTERFACES": "a/shop=galactic0,a/lab=galactic1",
            "DATUM_ROUTER_VPC_ATTACHMENTS": "a/edge=galactic0",
            "DATUM_ROUTER_VPC_REQUIRED": "true",
        }
    )
    assert found["data_plane_config"] == {
        "pool_wait_s": "1",
        "vpc_interfaces": "a/shop=galactic0,a/lab=galactic1",
        "vpc_attachments": "a/edge=galactic0",
        "vpc_required": "true",
    }


def test_probes_and_metrics_may_be_reached_by_others() -> None:
    found = settings_from_environment({"DATUM_ROUTER_PROBES": ":8081", "DATUM_ROUTER_METRICS": "[::]:9090"})
    settings = GatewaySettings.from_mapping(found)
    assert settings.probes == Address(host="0.0.0.0", port=8081)
    assert settings.metrics == Address(host="::", port=9090)
    with pytest.raises(ConfigError, match="DATUM_ROUTER_PROBES: found '8081', expected HOST:PORT"):
        settings_from_environment({"DATUM_ROUTER_PROBES": "8081"})


def test_a_controller_passes_over_what_only_gateways_have() -> None:
    found = ControllerSettings.from_mapping({"workers": 4, "grace_s": 3.0, "debounce_s": 0.5})
    assert found == ControllerSettings(debounce_s=0.5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"admin": {"host": "0.0.0.0", "port": 1}}, "expected a loopback address"),
        ({"settle_s": -1.0}, "settle_s: found -1, expected 0 to 3600 seconds"),
        ({"concurrent_writes": 0}, "concurrent_writes: found 0, expected 1 to 64"),
        ({"lease": 5}, "settings: Expected `str`, got `int`"),
    ],
)
def test_a_controller_refuses_settings_that_cannot_work(values: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ControllerSettings.from_mapping(values)
