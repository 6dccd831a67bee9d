"""Write what is generated: CRDs, reference pages of kinds, hooks, settings and metrics. `--check` only compares."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from datum_router.discovery import marks, standing
from datum_router.health.circuit import RETRY_BUDGET_PERCENT
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.schema import crd_file_name, crd_yaml, reference_markdown
from datum_router.model.policy import ConnectionLimits
from datum_router.observe import ledger, names
from datum_router.observe.meter import DURATION_BOUNDS_S
from datum_router.plugins import hookspecs
from datum_router.plugins.manager import HOOK_NAMES
from datum_router.policy import plugin_guard
from datum_router.policy.client_cert_header import MAX_ELEMENT_BYTES
from datum_router.reconcile import conditions, notices, reports, status, workqueue
from datum_router.registry.endpoints import MAX_ENDPOINTS_PER_SERVICE
from datum_router.routing import normalize, query
from datum_router.routing.regex import MAX_PATTERN_BYTES
from datum_router_files import listing, yamlscan
from datum_router_kubernetes import (
    answers,
    client,
    cluster,
    config,
    events,
    follow,
    listwatch,
    ratelimit,
    textconfig,
    wanted,
)
from datum_router_kubernetes import budget as api_budget
from datum_router_proxy import limits
from datum_router_proxy.server.listener import AcceptLimits
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.wire import grammar, hpack_codec
from datum_router_proxy.wire.http1 import Http1Limits
from datum_router_proxy.wire.http2 import Http2Limits
from datum_router_runtime import admin, clusterreports, discoveryterm, logsetup, ownfiles, remote, snapshotfile
from datum_router_runtime import status as statuswriter
from datum_router_runtime.discoverysettings import DISCOVERY_NAMES, DiscoverySettings
from datum_router_runtime.settings import (
    ADDRESSES,
    ENVIRONMENT,
    MAX_WORKERS,
    OWN_FILES,
    TEXTS,
    VERIFY_SERVER,
    ControllerSettings,
    GatewaySettings,
)
from datum_router_runtime.telemetry import MEASURE_TIMEOUT_S

REPOSITORY = Path(__file__).resolve().parent.parent
REFERENCE = REPOSITORY / "docs" / "reference"


def hooks_page() -> str:
    lines = ["# Hooks", "", "All are called at start-up or compile time, none per request.", ""]
    for name in HOOK_NAMES:
        function = getattr(hookspecs, name)
        returns = inspect.signature(function).return_annotation
        lines += [f"## `{name}() -> {returns}`", "", inspect.getdoc(function) or "", ""]
    return "\n".join(lines)


VARIABLES = (
    ("DATUM_ROUTER_LOG", "", "filters of the log: `info`, `router=debug`, `warn,datum_router_proxy=trace`"),
    ("DATUM_ROUTER_LOG_FORMAT", "", "`text` or `json`"),
    ("DATUM_ROUTER_WORKERS", "workers", f"1 to {MAX_WORKERS}"),
    ("DATUM_ROUTER_DISABLE_PLUGINS", "disabled_plugins", "separated by commas"),
    ("DATUM_ROUTER_TOPOLOGY", "topology", "`name=value,name=value`"),
    ("DATUM_ROUTER_LOCATION", "location", "`name=iad-1,latitude=38.9445,longitude=-77.4558`, or some of it"),
    ("DATUM_ROUTER_LABELS", "labels", "`name=value,name=value`"),
    ("DATUM_ROUTER_DATA_PLANE_CONFIG", "data_plane_config", "`name=value,name=value`"),
    ("DATUM_ROUTER_RATE_LIMIT_STORE_CONFIG", "rate_limit_store_config", "`name=value,name=value`"),
    ("DATUM_ROUTER_VPC_INTERFACES", "data_plane_config", "`namespace/name=interface,...`: `vpc_interfaces` below"),
    ("DATUM_ROUTER_VPC_ATTACHMENTS", "data_plane_config", "`namespace/name=interface,...`: `vpc_attachments` below"),
    ("DATUM_ROUTER_VPC_REQUIRED", "data_plane_config", "`true` or `false`: `vpc_required` below"),
    ("DATUM_ROUTER_EGRESS_NAMESERVERS", "data_plane_config", "`ADDRESS:PORT,...`: `egress_nameservers` below"),
    ("DATUM_ROUTER_EGRESS_CLOSED", "data_plane_config", "networks: `egress_closed` below"),
    *((variable, field, "seconds") for variable, field in ENVIRONMENT.items()),
    *((variable, field, "text") for variable, field in TEXTS.items()),
    *((variable, field, "path of a file of PEM text") for variable, field in OWN_FILES.items()),
    (VERIFY_SERVER, "client_verify_server", "`true` or `false`"),
    *((variable, field, "`HOST:PORT`, which others may reach") for variable, field in ADDRESSES.items()),
    ("DATUM_ROUTER_TRACE_PLUGINS", "", "`1`: log every call of a plugin's hook"),
)
"""Environment variable, field that it sets, and its form."""


def _field_rows(struct: type[msgspec.Struct]) -> list[str]:
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    meanings = _meanings(struct)
    for field in msgspec.structs.fields(struct):
        default = field.default if field.default is not msgspec.NODEFAULT else "-"
        kind = str(struct.__annotations__[field.name]).replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{kind}` | `{default}` | {meanings[field.name]} |")
    return rows


def settings_page() -> str:
    lines = ["# Settings", "", "## Gateway process", "", *_field_rows(GatewaySettings)]
    lines += ["", "| environment variable | sets | form |", "|---|---|---|"]
    lines += [f"| `{variable}` | {f'`{name}`' if name else ''} | {form} |" for variable, name, form in VARIABLES]
    lines += ["", "`datum-router-gateway` takes [some more](../../entrypoints/datum-router-gateway/README.md)."]
    lines += ["", "## Controller process", "", *_field_rows(ControllerSettings), ""]
    lines += [
        "`datum-router-controller` has [variables](../../entrypoints/datum-router-controller/README.md) for them."
    ]
    lines += ["", "## Discovery daemon", "", *_field_rows(DiscoverySettings), ""]
    lines += [
        "`datum-router-discovery` has [variables](../../entrypoints/datum-router-discovery/README.md) for them, as "
        + ", ".join(f"`{variable}`" for variable in DISCOVERY_NAMES)
        + "."
    ]
    lines += [SETTINGS_INTRO, *_limit_rows(ProxySettings, limits.SETTINGS)]
    lines += [
        "",
        "## Fixed limits of the built-in data plane",
        "",
        "These protect the gateway from peers and are the same for all; one that a setting above sets says so. Series",
        f"are of clients; upstreams are held to the same, and what they break is in `{names.ATTEMPT_FAILURES.name}`.",
    ]
    for title, struct, table in (
        ("Request heads and bodies, HTTP/1", Http1Limits, limits.HTTP1),
        ("Heads, streams and floods, HTTP/2", Http2Limits, limits.HTTP2),
        ("Accepting connections", AcceptLimits, limits.ACCEPT),
    ):
        lines += ["", f"### {title}", "", *_limit_rows(struct, table)]
    lines += ["", "## Other fixed limits", "", "| limit | default | | shown by |", "|---|---|---|---|"]
    lines += [f"| {what} | {_amount(value, unit)} | {then} | {shown} |" for what, value, unit, then, shown in _others()]
    return "\n".join([*lines, ""])


SETTINGS_INTRO = """
## Built-in data plane (`data_plane_config`)

What peers may make the data plane hold or wait for. Letters and numbers in brackets name the threat.
"""


def _limit_rows(struct: type, table: Mapping[str, tuple[limits.Shown, ...]]) -> list[str]:
    rows = ["| limit | default | | shown by |", "|---|---|---|---|"]
    meanings = _meanings(struct)
    for field in msgspec.structs.fields(struct):
        default = f"`{field.default}`"
        if field.name in table:
            default = _amount(field.default, limits.unit_of(field.name))
        meaning = meanings[field.name]
        if struct is not ProxySettings and field.name in limits.SET_BY:
            meaning += f" Set by `{limits.SET_BY[field.name]}`."
        shown = ", ".join(f"`{one}`" for one in table.get(field.name, ()))
        rows.append(f"| `{field.name}` | {default} | {meaning} | {shown} |")
    return rows


def _amount(value: float, unit: str) -> str:
    if value < 0:  # not an amount; its meaning says what it stands for
        return f"`{value}`"
    return f"{value:,} {unit.removesuffix('s') if value == 1 and len(unit) > 1 else unit}"


def _meanings(struct: type) -> dict[str, str]:
    """Return what the docstring of a struct says of each field; fields that share a line share the sentence."""
    found: dict[str, str] = {}
    names_of_line: list[str] = []
    for line in (inspect.getdoc(struct) or "").partition("Attributes:\n")[2].splitlines():
        start = re.match(r" {4}([a-z0-9_]+(?:, [a-z0-9_]+)*): (.*)", line)
        if start:
            names_of_line = start[1].split(", ")
            found.update(dict.fromkeys(names_of_line, start[2]))
        else:
            found.update({name: f"{found[name]} {line.strip()}" for name in names_of_line})
    return {name: meaning.replace("|", "\\|") for name, meaning in found.items()}


def _others() -> list[tuple[str, float, str, str, str]]:
    """Return what is limited elsewhere: what, how much, its unit, what happens beyond, and where that is seen."""
    service = ConnectionLimits()
    permits = f"`{names.PERMITS_REFUSED.name}`"
    overflow = f"`{names.POOL_OVERFLOW.name}`"
    found = f"`{names.DIAGNOSTICS.name}`"
    refused = names.REJECTED.name
    budget = f"of the service's requests in flight, {service.max_parallel_retries} at least; not retried beyond"
    rows: list[tuple[str, float, str, str, str]] = [
        ("request method, HTTP/1", grammar.MAX_METHOD_BYTES, "bytes", "400", f'`{refused}{{reason="bad_method"}}`'),
        ("host name", normalize.MAX_HOST_CHARS, "characters", "400", f'`{refused}{{reason="bad_host"}}`'),
        ("table size updates in an HTTP/2 header block", hpack_codec.MAX_SIZE_UPDATES, "updates",
         "connection ends", f'`{refused}{{reason="bad_header_block"}}`'),
        ("query parameters", query.MAX_QUERY_PARAMS, "parameters", "no condition on the query holds", ""),
        ("what X-Forwarded-Client-Cert says of a certificate", MAX_ELEMENT_BYTES, "bytes", "the client is refused",
         f"`{names.CLIENT_CERTIFICATES.name}`"),
        ("one file of the gateway's own certificates", ownfiles.MAX_FILE_BYTES, "bytes", "not read", found),
        ("how often those files are looked at", ownfiles.POLL_S, "s", "changes wait so long", ""),
        ("a service's requests in flight", service.max_parallel_requests, "requests per worker", "503", permits),
        ("a service's connections", service.max_connections, "connections per worker", "requests wait", overflow),
        ("requests that wait for a connection", service.max_pending_requests, "requests per worker", "503", overflow),
        ("retries in flight", RETRY_BUDGET_PERCENT, "%", budget, permits),
        ("endpoints of a service", MAX_ENDPOINTS_PER_SERVICE, "endpoints", "the rest is left out", found),
        ("pattern of a regular expression", MAX_PATTERN_BYTES, "bytes", "refused", found),
        ("failures in a row of a plugin's part", plugin_guard.MAX_FAILURES, "failures",
         f"disabled for {plugin_guard.PAUSE_S:g} s", f"`{names.PLUGIN_DISABLED.name}`"),
        ("one call of a plugin", plugin_guard.SLOW_CALL_S, "s", "a failure", f"`{names.PLUGIN_FAILURES.name}`"),
        ("manifest files", listing.MAX_FILES, "files", "the rest, by path, is not read", found),
        ("manifest files, all together", listing.MAX_TOTAL_BYTES, "bytes", "the rest, by path, is not read", found),
        ("directories in directories", listing.MAX_DIRECTORY_DEPTH, "levels", "not read", found),
        ("one manifest file", yamlscan.MAX_FILE_BYTES, "bytes", "refused", found),
        ("values in a manifest file", yamlscan.MAX_NODES, "values", "refused", found),
        ("values that aliases stand for", yamlscan.MAX_ALIASED_NODES, "values", "refused", found),
        ("values in values", yamlscan.MAX_DEPTH, "levels", "refused", found),
        ("an answer of a cluster's API", client.MAX_RESPONSE_BYTES, "bytes", "a list is read in smaller pages", found),
        ("a line of a watch", client.MAX_LINE_BYTES, "bytes", "listed anew", found),
        ("lists of a cluster at a time", listwatch.LISTS_AT_ONCE, "kinds", "others wait; beside "
         f"{listwatch.NAMED_LISTS_AT_ONCE} of single objects", ""),
        ("Secrets and ConfigMaps that are read of a cluster", wanted.MAX_NAMED_WATCHES, "objects",
         "those named later are not read, but for the share of their namespace", found),
        ("remote clusters", discoveryterm.MAX_CLUSTERS, "clusters",
         "those whose Secrets are younger wait for room (`TooManyClusters`)", f"`{names.REMOTE_CLUSTERS.name}`"),
        ("objects of one remote cluster", config.REMOTE_MAX_OBJECTS, "objects", "what was known stays, it cannot be "
         "reached; setting `maxObjects` in `DISCOVERY_REMOTE_CONFIG`", f"`{names.REMOTE_CLUSTERS.name}`"),
        ("objects of one remote cluster", config.REMOTE_MAX_BYTES, "bytes", "the same; setting `maxBytes`",
         f"`{names.REMOTE_CLUSTERS.name}`"),
        ("events of one remote cluster", int(api_budget.EVENTS_PER_S), "per second",
         f"beyond {api_budget.EVENTS_BURST:,.0f} at once they are read later", f"`{names.REMOTE_PACED.name}`"),
        ("nesting of a kubeconfig in a Secret", textconfig.MAX_DEPTH, "levels", "refused, as are anchors and aliases",
         f"`{names.REMOTE_CLUSTERS.name}`"),
        ("kinds of endpoints of one service in a remote cluster", marks.MAX_GROUPS, "kinds",
         "others are left out: `ExportConflict`", f"`{names.CLUSTER_CONFLICTS.name}`"),
        ("topology in one slice of discovery", marks.MAX_TOPOLOGY_CHARS, "characters", "keys beyond are left out", ""),
        ("VPC of an endpoint of a remote cluster", marks.MAX_VPC_CHARS, "characters",
         "its endpoints are left out: `ExportConflict`", f"`{names.CLUSTER_CONFLICTS.name}`"),
        ("Location in one slice of discovery", marks.MAX_LOCATION_CHARS, "characters", "it is left out", ""),
        ("name of a remote cluster", marks.MAX_CLUSTER_NAME_CHARS, "characters", "refused: it is the value of a label",
         f"`{names.REMOTE_CLUSTERS.name}`"),
        ("mark of a remote cluster that comes and goes", standing.MAX_CALM_S, "s", "longest time that it must be heard "
         f"before its slices are not stale; {standing.FIRST_CALM_S:g} s after two outages in "
         f"{standing.FLAP_WINDOW_S:g} s, then twice that", f"`{names.STALE_SLICES.name}`"),
        ("Lease of one remote cluster", clusterreports.MIN_PAUSE_S, "s", "between two writes; for other words alone "
         f" {clusterreports.MINOR_PAUSE_S:g} s", f"`{names.CLUSTER_REPORT_WRITES.name}`"),
        ("kubeconfig in a Secret", textconfig.MAX_BYTES, "characters", "refused", f"`{names.REMOTE_CLUSTERS.name}`"),
        ("first reading of a remote cluster", remote.CONNECT_PATIENCE_S, "s", "it cannot be reached, and is read on",
         f"`{names.REMOTE_CLUSTERS.name}`"),
        ("endpoints in one slice of discovery", marks.MAX_SLICE_ENDPOINTS, "endpoints", "more slices", ""),
        ("writes to a cluster", ratelimit.WRITE_QPS, "per second", f"beyond {ratelimit.WRITE_BURST} at once they wait, "
         "but for leases; settings `writeQps`, `writeBurst`", ""),
        ("requests to a cluster at a time", cluster.MAX_WRITE_THREADS, "requests",
         f"others wait; beside {cluster.MAX_LEASE_THREADS} about leases", ""),
        ("a request to a cluster", client.REQUEST_TIMEOUT_S, "s", "failed", ""),
        ("a request about a lease", cluster.LEASE_TIMEOUT_S, "s", "failed", ""),
        ("tries of a status whose object changes all the time", cluster.MAX_STATUS_TRIES, "tries", "a conflict", ""),
        ("writes for the events of one object at once", events.OBJECT_BURST, "writes",
         f"dropped; one comes back in {events.OBJECT_REFILL_S:g} s", ""),
        ("events that are remembered", events.MAX_REMEMBERED, "events", "the repeat of a forgotten one is new", ""),
        ("the note of an event", events.MAX_NOTE_BYTES, "bytes",
         f"cut, as is what has more than {notices.MAX_NOTE_CHARS:,} characters", ""),
        ("the wait that a cluster's API asks for (`Retry-After`)", answers.MAX_RETRY_AFTER_S, "s", "tried sooner", ""),
        ("wait of a kind that cannot be read", follow.MAX_BACKOFF_S, "s", "tried again",
         f"`{names.SOURCE_ERRORS.name}`"),
        ("series of routes, of services, of listeners", ledger.MAX_OWN, "each", "counted as `other`",
         f"`{names.FOLDED.name}`"),
        ("admin connections", admin.MAX_CONNECTIONS, "connections", "closed at once", ""),
        ("one admin request", admin.REQUEST_TIMEOUT_S, "s", "closed", ""),
        ("endpoints that the status of a VPCService lists", status.LISTED_ENDPOINTS, "endpoints",
         "counted, not listed", ""),
        ("endpoints that the status of a ServiceBinding lists", status.BOUND_ENDPOINTS, "endpoints",
         "counted, not listed", ""),
        ("message of a condition", conditions.MAX_MESSAGE_CHARS, "characters", "cut", ""),
        ("objects that a gateway's report lists as refused", reports.MAX_REFUSED, "objects", "the report says so", ""),
        ("snapshot file", snapshotfile.MAX_BYTES, "bytes", "not served after a restart", ""),
        ("the write of one status, or of one event", statuswriter.WRITE_TIMEOUT_S, "s",
         "a status is tried again, an event is not",
         f"`{names.STATUS_WRITE_ERRORS.name}`, `{names.EVENT_ERRORS.name}`"),
        ("longest wait of a status that somebody else keeps changing", statuswriter.MAX_REWRITE_S, "s", "written again",
         f"`{names.STATUS_WRITE_ERRORS.name}`"),
        ("longest wait of a status whose write fails", workqueue.MAX_BACKOFF_S, "s", "tried again",
         f"`{names.STATUS_FAILING.name}`"),
        ("longest wait of all statuses while the API is away", workqueue.MAX_HOLD_S, "s", "tried again",
         f"`{names.STATUS_QUEUE.name}`"),
        ("log lines that wait to be written", logsetup.QUEUE_LINES, "lines per process", "given up",
         f"`{names.LOG_DROPPED.name}`"),
    ]  # fmt: skip
    return rows


METRICS_INTRO = """# Metrics

`GET /metrics` on the admin listener (`--admin 127.0.0.1:9901`), in the Prometheus text format 0.0.4.
[What to alert on, and queries](../how-to/monitor.md).

- **Exact.** A scrape asks every worker for what it has not told yet and waits for them, {timeout:g} s at most: a
  request whose answer a client has read to its end is in the next scrape, whichever worker served it. A worker that
  does not answer in time is counted in `{late}`; what it has counted comes with its next report.
- **Never backwards.** Counters belong to the gateway, not to a worker: one that is replaced or drained takes nothing
  with it. Of a worker that is killed (SIGKILL, out of memory) what it had counted since its last report is lost: at
  most `report_interval_s` of requests, 1 s of connection, retry and permit counters. Counters begin at 0 when the
  supervisor is started.
- **Bounded.** No label ever holds text of a client. At most {own:,} pairs of route and service, {own:,} services and
  {own:,} listeners have series of their own, fewer if their names are long; first come, first served. All others are
  counted together as `other`, and `{folded}` says how many there are. Series of objects that
  are deleted are dropped {idle:g} s after they were last counted. The page stays below 5 MiB.
- A labelled series is there from the first time that something was counted; counters without labels always are.
"""


CONTROLLER_INTRO = (
    "`GET /metrics` on the listener that `DATUM_ROUTER_METRICS` names. Of several controllers each tells of itself."
)


def _metric_rows(metrics: Iterable[names.Metric]) -> list[str]:
    rows = ["| metric | type | unit | labels | |", "|---|---|---|---|---|"]
    for metric in metrics:
        shown = " ".join(f"`{label.name}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {metric.unit} | {shown} | {metric.help} |")
    return rows


def _label_rows(metrics: Sequence[names.Metric]) -> list[str]:
    """Return what labels can hold; one row for each meaning, with the metrics if the name has several."""
    meanings: dict[str, dict[names.Label, list[str]]] = {}
    for metric in metrics:
        for label in metric.labels:
            meanings.setdefault(label.name, {}).setdefault(label, []).append(metric.name)
    rows = ["| label | values |", "|---|---|"]
    for name, found in meanings.items():
        # A set that lies within another is told with that one: refusals have one reason more than requests.
        within = {
            one: next((other for other in found if set(one.values) < set(other.values)), one) if one.values else one
            for one in found
        }
        told = list(dict.fromkeys(within.values()))
        for label in told:
            owners = [owner for one, owners in found.items() if within[one] is label for owner in owners]
            of = f" of {', '.join(f'`{owner}`' for owner in owners)}" if len(told) > 1 else ""
            values = ", ".join(f"`{value}`" for value in label.values) or label.objects
            rows.append(f"| `{name}`{of} | {values} |")
    return rows


def metrics_page() -> str:
    lines = [
        METRICS_INTRO.format(
            timeout=MEASURE_TIMEOUT_S,
            late=names.LATE_REPORTS.name,
            own=ledger.MAX_OWN,
            folded=names.FOLDED.name,
            idle=ledger.IDLE_S,
        )
    ]
    lines += _metric_rows(names.METRICS.values())
    lines += ["", "## Of a controller", "", CONTROLLER_INTRO, ""]
    lines += _metric_rows(metric for metric in names.CONTROLLER_METRICS.values() if metric.name not in names.METRICS)
    shared = ", ".join(f"`{name}`" for name in names.CONTROLLER_METRICS if name in names.METRICS)
    lines += ["", f"And, as gateways: {shared}."]
    lines += ["", "## Of a discovery daemon", ""]
    others = {**names.METRICS, **names.CONTROLLER_METRICS}
    lines += _metric_rows(metric for metric in names.DISCOVERY_METRICS.values() if metric.name not in others)
    shared = ", ".join(f"`{name}`" for name in names.DISCOVERY_METRICS if name in others)
    lines += ["", f"And, as gateways and controllers: {shared}."]
    bounds = ", ".join(f"{bound:g}" for bound in DURATION_BOUNDS_S)
    lines += ["", f"Buckets of `{names.REQUEST_DURATION.name}`: {bounds} s.", "", "## Labels", ""]
    lines += _label_rows([*{**others, **names.DISCOVERY_METRICS}.values()])
    lines += ["", "## Limits of the built-in data plane", ""]
    lines += ["Which series shows that a limit was reached. What is full first makes the other side wait.", ""]
    lines += ["| setting | series |", "|---|---|"]
    for struct, table in ((ProxySettings, limits.SETTINGS), (AcceptLimits, limits.ACCEPT)):
        for name in (field.name for field in msgspec.structs.fields(struct) if field.name in table):
            series = ", ".join(f"`{one}`" for one in table[name])
            lines.append(f"| `{struct.__name__}.{name}` | {series} |")
    lines += ["", "Those that no setting changes, request heads and HTTP/2 floods among them: [settings](settings.md)."]
    return "\n".join([*lines, ""])


def outputs() -> dict[Path, str]:
    """Return every generated file and its content."""
    files: dict[Path, str] = {}
    index = ["# Reference", "", "Generated from the code by `make docs`, but for the pages on order and limits.", ""]
    for kind in OWN_KINDS:
        files[REPOSITORY / "manifests" / "crds" / crd_file_name(kind)] = crd_yaml(kind)
        files[REFERENCE / f"{kind.kind.lower()}.md"] = reference_markdown(kind)
        index.append(f"- [{kind.kind}]({kind.kind.lower()}.md)")
    index += ["- [Order of rules](precedence.md)", "- [Hooks](hooks.md)", "- [Settings and limits](settings.md)"]
    index += ["- [Metrics](metrics.md)", ""]
    files[REFERENCE / "hooks.md"] = hooks_page()
    files[REFERENCE / "settings.md"] = settings_page()
    files[REFERENCE / "metrics.md"] = metrics_page()
    files[REFERENCE / "README.md"] = "\n".join(index)
    return files


def main() -> int:
    stale = []
    for path, content in outputs().items():
        if path.exists() and path.read_text() == content:
            continue
        stale.append(path)
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    for path in stale:
        print(path.relative_to(REPOSITORY))
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
