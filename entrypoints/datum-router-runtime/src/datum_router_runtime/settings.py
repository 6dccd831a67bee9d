"""Settings of a gateway and of a controller: typed, validated, documented once.

Every field has a name, a default and a unit; `docs/reference/settings.md` is generated from here.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from datum_router.errors import ConfigError
from datum_router.model.endpoint import Locality, make_locality
from datum_router.reasons import Reason

_HOST_PORT = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")
LOCAL_NAMES = {"": "0.0.0.0", "localhost": "127.0.0.1", "*": "0.0.0.0"}
MAX_WORKERS = 256
MAX_DURATION_S = 3600.0
SETTLE_S = 0.2
"""How long a change waits for what follows, such as gateways' word on it, before its status is looked at (seconds)."""
CONCURRENT_WRITES = 8
"""Statuses that are written at once."""
MAX_CONCURRENT_WRITES = 64


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An IP literal and a port to bind; port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, name: str) -> Address:
    """Read `HOST:PORT`: `127.0.0.1:8080`, `[::1]:8080`, `:8080` (every IPv4 address), `localhost:8080`.

    Raises:
        ConfigError: Anything else; the message names the setting and shows what would be right.
    """
    found = _HOST_PORT.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{name}: found {text!r}, expected HOST:PORT such as 127.0.0.1:8080, [::1]:8080 or :8080",
            reason=Reason.INVALID_VALUE,
        )
    port = int(found["port"])
    if port > 65535:
        raise ConfigError(f"{name}: found port {port}, expected 0 to 65535", reason=Reason.INVALID_VALUE)
    host = found["v6"] or LOCAL_NAMES.get(found["host"] or "", found["host"] or "")
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError as error:
        raise ConfigError(
            f"{name}: found host {host!r}, expected an IP address or localhost (names are not looked up for binding)",
            reason=Reason.INVALID_VALUE,
        ) from error
    return Address(host=host, port=port)


def parse_host(text: str, *, name: str) -> str:
    """Read an IP address to bind: `0.0.0.0`, `::`, `localhost`.

    Raises:
        ConfigError: Anything else; names the setting.
    """
    try:
        return str(ipaddress.ip_address(LOCAL_NAMES.get(text, text)))
    except ValueError as error:
        raise ConfigError(
            f"{name}: found {text!r}, expected an IP address such as 0.0.0.0 (all of IPv4) or :: (all of IPv6)",
            reason=Reason.INVALID_VALUE,
        ) from error


def parse_admin_address(text: str, *, name: str) -> Address:
    """Read `HOST:PORT` of the admin listener as `parse_address` does.

    Raises:
        ConfigError: Anything else, or an address that others can reach.
    """
    address = parse_address(text, name=name)
    require_loopback(address, name)
    return address


def require_loopback(address: Address, name: str) -> None:
    """Raise ConfigError for an address that others can reach."""
    if not ipaddress.ip_address(address.host).is_loopback:
        raise ConfigError(
            f"{name}: found {address}, expected a loopback address such as 127.0.0.1:9901 "
            "(it shows configuration and has no authentication)",
            reason=Reason.INVALID_VALUE,
        )


_SOURCE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?")


def _require_workers(workers: int, name: str) -> None:
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"{name}: found {workers}, expected 1 to {MAX_WORKERS}", reason=Reason.INVALID_VALUE)


def _require_source(text: str, name: str) -> None:
    if text and not _SOURCE.fullmatch(text):
        raise ConfigError(
            f"{name}: found {text!r}, expected NAMESPACE/NAME of a VPCAttachment, or NAMESPACE/ for all of a namespace",
            reason=Reason.INVALID_VALUE,
        )


def _without_its_other(given: str, lacking: str) -> ConfigError:
    return ConfigError(f"{given}: found it without {lacking}, expected both or none", reason=Reason.MISSING_FIELD)


def require_duration(seconds: float, name: str) -> None:
    """Raise ConfigError for seconds below 0 or above MAX_DURATION_S."""
    if not 0 <= seconds <= MAX_DURATION_S:
        raise ConfigError(
            f"{name}: found {seconds:g}, expected 0 to {MAX_DURATION_S:g} seconds", reason=Reason.INVALID_VALUE
        )


LOCATION_KEYS = ("name", "latitude", "longitude")
COORDINATE_LIMITS = {"latitude": 90.0, "longitude": 180.0}
"""Degrees to both sides of zero (WGS 84)."""


def read_place(topology: Mapping[str, str], location: Mapping[str, str], *, name: str = "location") -> Locality:
    """Return the place that settings name, unknown if both are empty.

    Raises:
        ConfigError: An unknown key of `location`, degrees that are none, or one coordinate without the other.
    """
    for key in location:
        if key not in LOCATION_KEYS:
            raise ConfigError(
                f"{name}: found {key!r}, expected name, latitude and longitude", reason=Reason.INVALID_VALUE
            )
    degrees = {key: _read_degrees(location[key], key, name) for key in COORDINATE_LIMITS if key in location}
    if len(degrees) == 1:
        raise ConfigError(
            f"{name}: found {next(iter(degrees))} alone, expected latitude and longitude", reason=Reason.MISSING_FIELD
        )
    return make_locality(
        topology,
        location=location.get("name", ""),
        latitude=degrees.get("latitude"),
        longitude=degrees.get("longitude"),
    )


def _read_degrees(text: str, key: str, name: str) -> float:
    limit = COORDINATE_LIMITS[key]
    try:
        degrees = float(text)
    except ValueError:
        degrees = math.nan
    if not -limit <= degrees <= limit:
        raise ConfigError(
            f"{name}: found {key} {text!r}, expected degrees from {-limit:g} to {limit:g} such as 38.9445",
            reason=Reason.INVALID_VALUE,
        )
    return degrees


S = TypeVar("S", bound=msgspec.Struct)


def convert_settings(values: Mapping[str, object], struct: type[S]) -> S:
    """Return keyword values as settings; raises ConfigError for an unknown name or a value that does not fit."""
    try:
        return msgspec.convert(dict(values), struct)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from error
        raise ConfigError(f"settings: {error}", reason=Reason.INVALID_VALUE) from error


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a gateway process is told from outside.

    Attributes:
        source: Name of the source plugin.
        source_config: Its text settings (files: `path`).
        listen: Plain HTTP/1.1 and h2c listener that serves all routes; None = 127.0.0.1:8080 if no VPCIngress is there.
        bind: IP address that listeners of VPCIngresses bind, and port 8080 while there is no VPCIngress; empty =
            0.0.0.0 for those and 127.0.0.1 for this one.
        workers: Worker processes, 1 to 256.
        admin: Loopback address of /healthz, /readyz, /snapshot, /diagnostics, /plugins, /health, /stats and /metrics;
            None = off.
        probes: Address of /healthz and /readyz, which say a status and nothing else; None = off.
        metrics: Address of /metrics; None = off.
        data_plane: Name of the data plane plugin.
        data_plane_config: Its text settings.
        egress_listen: Listener for outbound traffic of clients that know of it: CONNECT and absolute-form requests.
            What passes is what VPCEgresses allow, which is nothing without any; None = off.
        egress_tls_listen: The same for connections that were redirected here, by the server name of their handshake.
        egress_source: Whose traffic it is if neither interface nor address says so: `namespace/name` of a
            VPCAttachment, or `namespace/` of a whole namespace; empty = nobody's.
        topology: Where this gateway is, for locality: `topology.datum.net/city-code=IAD`.
        location: The same by `name` of its Location, `latitude` and `longitude` in degrees. If neither this nor
            `topology` is given, the ServingLocation among the manifests says where it is.
        debounce_s: Changes that follow another within this time are gathered into one compilation; what is taken away
            waits so long in any case.
        debounce_max_s: Never gathered for longer than this while they keep coming.
        report_interval_s: How often a worker hands counters and outcomes back; failures go at once.
        lameduck_s: After SIGTERM: still accepting, answers carry `Connection: close`, h2 gets GOAWAY.
        grace_s: After that: requests in flight may end, then they are cut.
        orphan_grace_s: How long workers serve on without a supervisor before they drain.
        worker_start_timeout_s: A worker that has not said Hello by then is replaced.
        probe_concurrency: Probes under way at once.
        max_restarts, restart_window_s: More worker deaths than this in the window make the gateway not ready.
        access_log: Write one line per request.
        cluster: Name of the plugin's cluster that this gateway reports to what it has in force; empty = none.
        identity: What this gateway is called in its reports; empty = POD_NAME, else the host's name.
        snapshot_file: Where the last good snapshot is kept, to be served after a restart while the source cannot be
            reached; empty = nowhere. It may hold private keys.
        rate_limit_store: Name of a plugin's store that rate limits count in together with other gateways; empty = each
            gateway counts for itself, over all of its workers.
        rate_limit_store_config: Its text settings.
        labels: Labels of this gateway, by which `gatewaySelector` of VPCIngresses selects it.
        session_key_file: File with the key that seals sessions (`sessionAffinity`), the same for all gateways that
            clients may come to; empty = a new key at each start, which ends all sessions.
        ticket_lifetime_s: How long TLS session tickets are made by one secret, 0 = always; those of the one before
            are taken, too.
        tls_cert, tls_key: Files with a certificate and its key for clients: HTTPS on port 8443 for all routes, and for
            server names that no VPCIngress has one for. Files are read again within 10 s when they change.
        client_cert, client_key: Files with the gateway's own identity, for VPCServices in `mode: Mutual` that name
            none.
        client_ca: File with CAs, for upstreams of VPCServices that name none; empty = the system's.
        client_verify_server: False accepts any certificate of upstreams whose VPCServices name neither CAs nor names.
        disabled_plugins: Entry-point names that are not loaded.
    """

    source: str = "files"
    source_config: Mapping[str, str] = {}
    listen: Address | None = None
    bind: str = ""
    workers: int = 1
    admin: Address | None = None
    probes: Address | None = None
    metrics: Address | None = None
    data_plane: str = "proxy"
    data_plane_config: Mapping[str, str] = {}
    egress_listen: Address | None = None
    egress_tls_listen: Address | None = None
    egress_source: str = ""
    topology: Mapping[str, str] = {}
    location: Mapping[str, str] = {}
    debounce_s: float = 0.05
    debounce_max_s: float = 1.0
    report_interval_s: float = 0.25
    lameduck_s: float = 5.0
    grace_s: float = 30.0
    orphan_grace_s: float = 30.0
    worker_start_timeout_s: float = 30.0
    probe_concurrency: int = 64
    max_restarts: int = 5
    restart_window_s: float = 60.0
    access_log: bool = True
    cluster: str = ""
    identity: str = ""
    snapshot_file: str = ""
    rate_limit_store: str = ""
    rate_limit_store_config: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}
    ticket_lifetime_s: float = 3_600.0
    session_key_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    client_cert: str = ""
    client_key: str = ""
    client_ca: str = ""
    client_verify_server: bool = True
    disabled_plugins: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> GatewaySettings:
        """Return settings from keyword values of the right types.

        Raises:
            ConfigError: An unknown name, a value of the wrong type or out of range.
        """
        return convert_settings(values, cls)

    def __post_init__(self) -> None:
        _require_workers(self.workers, "workers")
        read_place(self.topology, self.location)
        _require_source(self.egress_source, "egress_source")
        for cert, key in (("tls_cert", "tls_key"), ("client_cert", "client_key")):
            if bool(getattr(self, cert)) != bool(getattr(self, key)):
                given, lacking = (cert, key) if getattr(self, cert) else (key, cert)
                raise _without_its_other(given, lacking)
        if self.admin is not None:
            require_loopback(self.admin, "admin")
        for name in (
            "debounce_s",
            "debounce_max_s",
            "report_interval_s",
            "lameduck_s",
            "grace_s",
            "orphan_grace_s",
            "worker_start_timeout_s",
            "ticket_lifetime_s",
        ):
            require_duration(getattr(self, name), name)


class ControllerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a controller process is told from outside.

    Attributes:
        source: Name of the source plugin.
        source_config: Its text settings.
        cluster: Name of the plugin's cluster that is written to; it takes the source's settings.
        identity: What this process is called where it leads; empty = POD_NAME, else the host's name.
        lease: Name of the lease, in the namespace of this process, by which one of several controllers leads.
        admin: Loopback address of /healthz, /readyz, /diagnostics, /plugins, /stats and /metrics; None = off.
        probes: Address of /healthz and /readyz, which say a status and nothing else; None = off.
        metrics: Address of /metrics; None = off.
        debounce_s: Changes that follow another within this time are gathered into one compilation.
        debounce_max_s: Never gathered for longer than this while they keep coming.
        settle_s: How long a status waits for what follows, such as gateways' word, before it is written.
        concurrent_writes: Statuses that are written at once.
        disabled_plugins: Entry-point names that are not loaded.
    """

    source: str = "kubernetes"
    source_config: Mapping[str, str] = {}
    cluster: str = "kubernetes"
    identity: str = ""
    lease: str = "router-controller"
    admin: Address | None = None
    probes: Address | None = None
    metrics: Address | None = None
    debounce_s: float = 0.05
    debounce_max_s: float = 1.0
    settle_s: float = SETTLE_S
    concurrent_writes: int = CONCURRENT_WRITES
    disabled_plugins: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> ControllerSettings:
        """Return settings from keyword values of the right types; those that only gateways have are passed over.

        Raises:
            ConfigError: A value of the wrong type or out of range.
        """
        return convert_settings({name: value for name, value in values.items() if name in cls.__struct_fields__}, cls)

    def __post_init__(self) -> None:
        if self.admin is not None:
            require_loopback(self.admin, "admin")
        for name in ("debounce_s", "debounce_max_s", "settle_s"):
            require_duration(getattr(self, name), name)
        if not 1 <= self.concurrent_writes <= MAX_CONCURRENT_WRITES:
            raise ConfigError(
                f"concurrent_writes: found {self.concurrent_writes}, expected 1 to {MAX_CONCURRENT_WRITES}",
                reason=Reason.INVALID_VALUE,
            )


ENVIRONMENT = {
    "DATUM_ROUTER_LAMEDUCK_SECS": "lameduck_s",
    "DATUM_ROUTER_GRACE_SECS": "grace_s",
    "DATUM_ROUTER_DEBOUNCE_SECS": "debounce_s",
    "DATUM_ROUTER_ORPHAN_GRACE_SECS": "orphan_grace_s",
    "DATUM_ROUTER_REPORT_INTERVAL_SECS": "report_interval_s",
    "DATUM_ROUTER_TICKET_LIFETIME_SECS": "ticket_lifetime_s",
}
"""Environment variable -> field, for plain seconds."""

TEXTS = {
    "DATUM_ROUTER_IDENTITY": "identity",
    "DATUM_ROUTER_SNAPSHOT_FILE": "snapshot_file",
    "DATUM_ROUTER_RATE_LIMIT_STORE": "rate_limit_store",
    "DATUM_ROUTER_EGRESS_SOURCE": "egress_source",
    "DATUM_ROUTER_SESSION_KEY_FILE": "session_key_file",
}
"""Environment variable -> field, for plain text."""

OWN_FILES = {
    "ROUTER_TLS_CERT": "tls_cert",
    "ROUTER_TLS_KEY": "tls_key",
    "ROUTER_CLIENT_CERT": "client_cert",
    "ROUTER_CLIENT_KEY": "client_key",
    "ROUTER_CLIENT_CA": "client_ca",
}
"""Environment variable -> field, for files with the gateway's own certificates."""
VERIFY_SERVER = "ROUTER_CLIENT_VERIFY_SERVER"

ADDRESSES = {
    "DATUM_ROUTER_PROBES": "probes",
    "DATUM_ROUTER_METRICS": "metrics",
    "DATUM_ROUTER_EGRESS_LISTEN": "egress_listen",
    "DATUM_ROUTER_EGRESS_TLS_LISTEN": "egress_tls_listen",
}
"""Environment variable -> field, for addresses that others may reach."""


DATA_PLANE = {
    "DATUM_ROUTER_VPC_INTERFACES": "vpc_interfaces",
    "DATUM_ROUTER_VPC_ATTACHMENTS": "vpc_attachments",
    "DATUM_ROUTER_VPC_REQUIRED": "vpc_required",
    "DATUM_ROUTER_EGRESS_NAMESERVERS": "egress_nameservers",
    "DATUM_ROUTER_EGRESS_CLOSED": "egress_closed",
}
"""Environment variable -> setting of the data plane whose values hold commas, or that stand beside one of those."""


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def parse_pairs(text: str, variable: str, example: str) -> dict[str, str]:
    """Read `name=value,name=value`.

    Raises:
        ConfigError: Anything else; names the variable.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key.strip() and separator and value.strip() for key, separator, value in pairs):
        raise ConfigError(
            f"{variable}: found {text!r}, expected name=value,name=value such as {example}", reason=Reason.INVALID_VALUE
        )
    return {key.strip(): value.strip() for key, _, value in pairs}


def settings_from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the settings that the environment gives, by name of the field, those of gateways included.

    Besides `ENVIRONMENT`, `TEXTS`, `OWN_FILES` and `ADDRESSES`: `ROUTER_CLIENT_VERIFY_SERVER=false`,
    `DATUM_ROUTER_WORKERS=4`, `DATUM_ROUTER_DISABLE_PLUGINS=a,b`, and as `name=value,name=value`
    `DATUM_ROUTER_TOPOLOGY`, `DATUM_ROUTER_LOCATION`, `DATUM_ROUTER_LABELS`, `DATUM_ROUTER_DATA_PLANE_CONFIG` and
    `DATUM_ROUTER_RATE_LIMIT_STORE_CONFIG`.

    Raises:
        ConfigError: A value that cannot be read; names the variable.
    """
    found: dict[str, object] = {}
    for variable, field in ENVIRONMENT.items():
        text = environ.get(variable)
        if text:
            try:
                found_s = float(text)
            except ValueError as error:
                raise ConfigError(
                    f"{variable}: found {text!r}, expected seconds such as 5 or 0.5", reason=Reason.INVALID_VALUE
                ) from error
            require_duration(found_s, variable)
            found[field] = found_s
    for variable, field in (*TEXTS.items(), *OWN_FILES.items()):
        if text := environ.get(variable, ""):
            found[field] = text
    _require_source(environ.get("DATUM_ROUTER_EGRESS_SOURCE", ""), "DATUM_ROUTER_EGRESS_SOURCE")
    for cert, key in (("ROUTER_TLS_CERT", "ROUTER_TLS_KEY"), ("ROUTER_CLIENT_CERT", "ROUTER_CLIENT_KEY")):
        if bool(environ.get(cert)) != bool(environ.get(key)):
            raise _without_its_other(*((cert, key) if environ.get(cert) else (key, cert)))
    for variable, field in ADDRESSES.items():
        if text := environ.get(variable, ""):
            found[field] = parse_address(text, name=variable)
    if text := environ.get(VERIFY_SERVER, ""):
        if text.lower() not in _BOOLEANS:
            raise ConfigError(f"{VERIFY_SERVER}: found {text!r}, expected true or false", reason=Reason.INVALID_VALUE)
        found["client_verify_server"] = _BOOLEANS[text.lower()]
    workers = environ.get("DATUM_ROUTER_WORKERS", "")
    if workers:
        if not workers.isascii() or not workers.isdecimal():
            raise ConfigError(
                f"DATUM_ROUTER_WORKERS: found {workers!r}, expected a number from 1 to {MAX_WORKERS}",
                reason=Reason.INVALID_VALUE,
            )
        _require_workers(int(workers), "DATUM_ROUTER_WORKERS")
        found["workers"] = int(workers)
    disabled = environ.get("DATUM_ROUTER_DISABLE_PLUGINS", "")
    if disabled:
        found["disabled_plugins"] = tuple(name.strip() for name in disabled.split(",") if name.strip())
    for variable, field, example in (
        ("DATUM_ROUTER_TOPOLOGY", "topology", "topology.datum.net/city-code=IAD"),
        ("DATUM_ROUTER_LABELS", "labels", "edge=public,region=eu"),
        ("DATUM_ROUTER_LOCATION", "location", "name=iad-1,latitude=38.9445,longitude=-77.4558"),
        ("DATUM_ROUTER_DATA_PLANE_CONFIG", "data_plane_config", "keep_alive_timeout_s=30"),
        ("DATUM_ROUTER_RATE_LIMIT_STORE_CONFIG", "rate_limit_store_config", "url=redis://localhost:6379"),
    ):
        if text := environ.get(variable, ""):
            pairs = found[field] = parse_pairs(text, variable, example)
            if field == "location":
                read_place({}, pairs, name=variable)
    given = {name: environ[variable] for variable, name in DATA_PLANE.items() if environ.get(variable)}
    if given:
        config = found.get("data_plane_config", {})
        assert isinstance(config, dict)
        found["data_plane_config"] = config | given
    return found
