"""Every metric of a gateway and of a controller: name, type, unit, help and closed label sets, declared once.

`docs/reference/metrics.md` is generated from here, and exposition knows nothing else. A label's values are an enum, or
names of objects in the configuration; never a client's text (threat K15). Object names are bounded: see `ledger`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from datum_router.compiler.diagnostics import Severity
from datum_router.health.outlier import BreakerState
from datum_router.health.view import HealthReason
from datum_router.model.egress import EgressReason
from datum_router.model.limits import RateScope
from datum_router.policy.hedge import ENDS
from datum_router.policy.plugin_guard import PluginHook
from datum_router.policy.retry import REFUSALS
from datum_router.reasons import Reason


class Kind(enum.StrEnum):
    """What a metric does: only grows, goes up and down, or counts by size."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """A label and what it can hold.

    Attributes:
        values: The closed set; empty for names of objects in the configuration.
        objects: What objects, if `values` is empty.
    """

    name: str
    values: tuple[str, ...] = ()
    objects: str = ""


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric.

    Attributes:
        unit: A base unit (`seconds`, `bytes`) or what is counted.
        labels: In the order in which a `Cell` carries their values.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[Label, ...] = ()


NONE = "none"
"""The label value for a route or service that was not chosen, and for a response that had no head."""

OTHER = "other"
"""The label value of objects that have no series of their own, and of what no closed set knows."""

CODE_CLASSES = (NONE, "1xx", "2xx", "3xx", "4xx", "5xx", OTHER, OTHER, OTHER, OTHER)
"""Label value by first digit of the status."""

OUTCOMES = ("success", "server_error", "gateway_error", NONE)
"""Label value by `OutcomeClass`; the last one for attempts that say nothing about their endpoint."""

REQUEST_REASONS = tuple(str(reason) for reason in Reason if reason.value[0].islower())
ENDPOINT_STATES = ("healthy", "unhealthy", "ejected", "unknown")

PROTOCOL = Label(name="protocol", values=("h1", "h2", "ws"))
PROTO = Label(name="proto", values=("h1", "h2", "ws", "tls", "tcp"))
REASON = Label(name="reason", values=REQUEST_REASONS)
REFUSAL = Label(name="reason", values=(*REQUEST_REASONS, str(Reason.INVALID_CERTIFICATE_REF)))
ROUTE = Label(name="route", objects="`namespace/name` of a VPCRoute, `ingress:namespace/name`, `none` or `other`")
SERVICE = Label(name="service", objects="`namespace/name` of a VPCService, `none` or `other`")
LISTENER = Label(name="listener", objects="name of a listener, or `other`")
INGRESS = Label(name="ingress", objects="`namespace/name` of a VPCIngress, or `gateway` for the gateway's own")
DIRECTION = Label(name="direction", values=("in", "out"))
VERDICT = Label(name="verdict", values=("accepted", "none", "refused", "expired"))
CODE_CLASS = Label(name="code_class", values=tuple(dict.fromkeys(CODE_CLASSES)))
OUTCOME = Label(name="outcome", values=OUTCOMES)
PERMIT = Label(name="permit", values=("requests", "retries"))
WHY = Label(name="why", values=REFUSALS)
HEDGE = Label(name="hedge", values=tuple(state.value for state in ENDS))
STATE = Label(name="state", values=ENDPOINT_STATES)
BREAKER = Label(name="state", values=tuple(str(state) for state in BreakerState))
FULL = "full"
CIRCUIT = Label(name="state", values=(str(BreakerState.OPEN), str(BreakerState.HALF_OPEN), FULL))
CHANGE = Label(name="change", values=tuple(str(reason) for reason in HealthReason))
RATE_SCOPE = Label(name="scope", values=tuple(str(scope) for scope in RateScope))
RATE_DECISION = Label(name="decision", values=("allowed", "limited", "failed_open", "failed_closed"))
SEVERITY = Label(name="severity", values=tuple(str(severity) for severity in Severity))
PLUGIN = Label(name="plugin", objects="entry point of a plugin that is installed")
HOOK = Label(name="hook", values=tuple(str(hook) for hook in PluginHook))
FILTER = Label(name="filter", objects="`cors`, `mirror`, `fault`, or the name of a plugin's filter")
FILTER_OUTCOME = Label(
    name="outcome",
    values=(
        "preflight", "allowed", "refused", "delayed", "aborted", "answered", "server_error", "failed", "dropped_body",
        "dropped_busy", "dropped_unavailable",
    ),
)  # fmt: skip
PROCESS = Label(
    name="process",
    objects="`supervisor`, or `worker-0` and so on, one for each of the workers setting; `controller`; `discovery`",
)
VERSION = Label(name="version", objects="version of the core library")

# Spelt out here, since workers know nothing of manifests; tests compare them with where they come from.
KIND = Label(name="kind", values=("VPCService", "VPCRoute", "ServiceBinding", "VPCIngress", "VPCEgress"))
CONDITION = Label(
    name="condition",
    values=(
        "Accepted", "ResolvedRefs", "Conflicted", "EndpointsReady", "Synced", "CertificateValid", "Programmed", "Ready",
    ),
)  # fmt: skip
SOURCE_KIND = Label(name="kind", objects="kinds that a source reads from an API")
STATUS = Label(name="status", values=("True", "False", "Unknown"))
PHASE = Label(name="phase", values=("Connecting", "Ready", "Unreachable", "Invalid", "Refused", "Removed"))
SLICE_ACT = Label(name="act", values=("put", "remove"))
WRITE_ERROR = Label(
    name="error",
    values=("unavailable", "conflict", "not_found", "rejected", "forbidden", "contested", "internal", OTHER),
)


def _counter(name: str, unit: str, text: str, *labels: Label) -> Metric:
    return Metric(name=name, kind=Kind.COUNTER, unit=unit, help=text, labels=labels)


def _gauge(name: str, unit: str, text: str, *labels: Label) -> Metric:
    return Metric(name=name, kind=Kind.GAUGE, unit=unit, help=text, labels=labels)


EGRESS = Label(name="egress", objects="`namespace/name` of a VPCEgress, `none` or `other`")
EGRESS_VERDICT = Label(name="verdict", values=("allow", "deny"))
EGRESS_REASON = Label(name="reason", values=tuple(str(reason) for reason in EgressReason))
LOOKUP_RESULT = Label(name="result", values=("answered", "cut", "cached", "not_found", "failed", "timeout", "too_many"))

# --- requests ----------------------------------------------------------------------------------------------------
REQUESTS = _counter(
    "datum_router_requests_total", "requests", "Requests that have ended.", ROUTE, SERVICE, CODE_CLASS
)  # fmt: skip
SHED = _counter(
    "datum_router_requests_shed_total",
    "requests",
    "Requests that were not let in since the event loop could not keep up (answered with overloaded).",
)
SHEDDING = _gauge("datum_router_shedding", "workers", "Workers that do not let all requests in.")
REQUEST_DURATION = Metric(
    name="datum_router_request_duration_seconds",
    kind=Kind.HISTOGRAM,
    unit="seconds",
    help="From the complete request head to the last byte of the answer; WebSocket tunnels are not in it.",
    labels=(ROUTE, SERVICE),
)
REQUEST_BYTES = _counter(
    "datum_router_request_body_bytes_total", "bytes", "Body bytes from clients.", ROUTE, SERVICE
)  # fmt: skip
RESPONSE_BYTES = _counter(
    "datum_router_response_body_bytes_total", "bytes", "Body bytes to clients.", ROUTE, SERVICE
)  # fmt: skip
PROTOCOL_REQUESTS = _counter(
    "datum_router_protocol_requests_total", "requests", "The same requests by protocol.", PROTOCOL, CODE_CLASS
)
REASONS = _counter(
    "datum_router_request_reasons_total",
    "requests",
    "Requests that ended otherwise than routed: answered by the router itself, failed, or cut.",
    PROTOCOL,
    REASON,
)
IN_FLIGHT = _gauge("datum_router_requests_in_flight", "requests", "Requests under way.")
TUNNELS = _gauge("datum_router_tunnels", "tunnels", "WebSocket tunnels that are open.")

# --- refusals and client connections -------------------------------------------------------------------------------
REJECTED = _counter(
    "datum_gateway_rejected_total", "refusals", "Connections, messages and fields that were refused.", PROTO, REFUSAL
)
CONNECTIONS = _gauge("datum_router_connections", "connections", "Client connections that are open.", LISTENER)
ACCEPTED = _counter(
    "datum_router_connections_accepted_total", "connections", "Client connections that were let in.", LISTENER
)
TURNED_AWAY = _counter(
    "datum_router_connections_rejected_total",
    "connections",
    "Client connections reset at once because a limit on connections was reached.",
    LISTENER,
)
CLIENT_CERTIFICATES = _counter(
    "datum_router_client_certificates_total", "handshakes",
    "TLS handshakes in which the client was asked for a certificate, by what came of it; `expired`: its certificate "
    "ended while the connection was open.", LISTENER, VERDICT,
)  # fmt: skip
CERTIFICATE_END = _gauge(
    "datum_router_certificate_expiry_timestamp_seconds", "seconds",
    "When the certificate that clients are shown for a VPCIngress expires, as Unix time; the first of very many.",
    INGRESS,
)  # fmt: skip
IDENTITY_END = _gauge(
    "datum_router_identity_expiry_timestamp_seconds", "seconds",
    "When the first of the certificates ends that are shown to upstreams of VPCServices, and to destinations of "
    "VPCEgresses, as Unix time; 0 if there is none.",
    KIND,
)  # fmt: skip

# --- outbound traffic ------------------------------------------------------------------------------------------------
EGRESS_DECISIONS = _counter(
    "datum_gateway_egress_decisions_total",
    "decisions",
    "Decisions on outbound connections and requests, by verdict and why.",
    EGRESS_VERDICT,
    EGRESS_REASON,
)
EGRESS_BY_POLICY = _counter(
    "datum_gateway_egress_policy_decisions_total",
    "decisions",
    "The same decisions by the VPCEgress that decided; `none` if none did.",
    EGRESS,
    EGRESS_VERDICT,
)
EGRESS_CONNECTIONS = _gauge(
    "datum_gateway_egress_connections",
    "connections",
    "Outbound tunnels and requests that are open, by the VPCEgress that let them through.",
    EGRESS,
)
EGRESS_LOOKUPS = _counter(
    "datum_gateway_egress_lookups_total", "lookups", "Names of destinations that were looked up.", LOOKUP_RESULT
)

STREAMS = _gauge(
    "datum_router_streams_open",
    "connections",
    "Connections whose bytes are carried on, TLS or TCP, that are open.",
    LISTENER,
)
STREAMS_ENDED = _counter(
    "datum_router_streams_total", "connections", "The same that have ended, by how.", SERVICE, REASON
)
STREAM_BYTES = _counter(
    "datum_router_stream_bytes_total", "bytes", "Bytes carried on, from (in) and to (out) clients.", SERVICE, DIRECTION
)

# --- upstream ------------------------------------------------------------------------------------------------------
ATTEMPTS = _counter(
    "datum_router_attempts_total",
    "attempts",
    "Tries at an endpoint, as passive health sees them.",
    SERVICE,
    OUTCOME,
)
ATTEMPT_FAILURES = _counter(
    "datum_router_attempt_failures_total",
    "attempts",
    "Tries that did not lead to a complete response, by why.",
    SERVICE,
    REASON,
)
RETRIES = _counter("datum_router_retries_total", "attempts", "Tries beyond a request's first.", SERVICE)
NOT_RETRIED = _counter(
    "datum_router_retries_not_made_total", "attempts", "Failed tries that were not repeated, by why.", WHY
)
HEDGES = _counter(
    "datum_router_hedges_total",
    "attempts",
    "Hedges: tries beside one that was slow, by how their race ended for them.",
    HEDGE,
)
PERMITS_REFUSED = _counter(
    "datum_router_permits_refused_total",
    "refusals",
    "Requests and retries that found the service's limits reached (answered with circuit_open).",
    SERVICE,
    PERMIT,
)
RATE_LIMIT_DECISIONS = _counter(
    "datum_router_rate_limit_decisions_total",
    "requests",
    "Requests that a rate limit was asked for: let through, limited (answered with 429, counted under the limit that "
    "refused), or decided without the shared store, which did not answer.",
    RATE_SCOPE,
    RATE_DECISION,
)
RATE_LIMIT_FORGOTTEN = _counter(
    "datum_router_rate_limit_keys_forgotten_total",
    "keys",
    "Clients whose use was forgotten too early, since more of them came at once than can be kept (65,536).",
)
CIRCUIT_OPEN = _gauge(
    "datum_router_circuit_open",
    "workers",
    "Workers in which the service has as many requests under way as it may.",
    SERVICE,
)
SERVICE_CIRCUIT = _gauge(
    "datum_router_service_circuit",
    "workers",
    "Workers in which the service has failed too often in a row and is not asked (open), or is tried (half_open).",
    SERVICE,
    CIRCUIT,
)
ROUTE_CIRCUIT = _gauge(
    "datum_router_route_circuit",
    "workers",
    "Workers in which the route fails (open), is tried (half_open), or has as many requests under way as it may "
    "(full).",
    ROUTE,
    CIRCUIT,
)
SERVICE_IN_FLIGHT = _gauge(
    "datum_router_service_requests_in_flight", "attempts", "Tries under way at the service.", SERVICE
)
UPSTREAM_CONNECTIONS = _gauge(
    "datum_router_upstream_connections", "connections", "Connections to the service, dials included.", SERVICE
)
UPSTREAM_OPENED = _counter(
    "datum_router_upstream_connections_opened_total", "connections", "Connections made to the service.", SERVICE
)
UPSTREAM_CLOSED = _counter(
    "datum_router_upstream_connections_closed_total", "connections", "Connections to the service that ended.", SERVICE
)
UPSTREAM_PENDING = _gauge(
    "datum_router_upstream_pending_requests", "requests", "Requests that wait for a connection.", SERVICE
)
POOL_OVERFLOW = _counter(
    "datum_router_upstream_pool_overflow_total",
    "requests",
    "Requests that got no connection: too many were waiting, or the wait was too long.",
    SERVICE,
)

# --- health --------------------------------------------------------------------------------------------------------
ENDPOINTS = _gauge("datum_router_endpoints", "endpoints", "Endpoints by state.", SERVICE, STATE)
BREAKERS = _gauge(
    "datum_router_breakers", "endpoints", "Endpoints by state of their circuit breaker (ejection).", SERVICE, BREAKER
)
PANIC = _gauge("datum_router_panic", "workers", "Workers that ignore the service's health in a panic.", SERVICE)
SPILLING = _gauge(
    "datum_router_spilling",
    "workers",
    "Workers that send requests of the service on to a further place or priority, since the first lacks capacity.",
    SERVICE,
)
PROBES = _counter("datum_router_probes_total", "probes", "Active probes sent.")
HEALTH_CHANGES = _counter("datum_router_health_changes_total", "changes", "Endpoints whose usability changed.", CHANGE)

# --- filters -------------------------------------------------------------------------------------------------------
FILTERED = _counter(
    "datum_router_filter_outcomes_total",
    "requests",
    "What filters beyond edits of heads have done with requests.",
    FILTER,
    FILTER_OUTCOME,
)

# --- plugins -------------------------------------------------------------------------------------------------------
PLUGIN_FAILURES = _counter(
    "datum_router_plugin_failures_total",
    "calls",
    "Calls of a plugin that raised, returned what was not promised, or took longer than 100 ms.",
    PLUGIN,
    HOOK,
)
PLUGIN_DISABLED = _counter(
    "datum_router_plugin_disabled_total",
    "times",
    "Times that a route's part of a plugin was disabled for a minute: five failures in a row, or one after the minute.",
    PLUGIN,
    HOOK,
)

# --- configuration -------------------------------------------------------------------------------------------------
CONFIG_VERSION = _gauge("datum_router_config_version", "versions", "Version of the newest snapshot, 0 before it.")
CONFIG_RELOADED_AT = _gauge(
    "datum_router_config_last_reload_success_timestamp_seconds",
    "seconds",
    "Unix time of the last compilation without an error; 0 before the first.",
)
CONFIG_FAILURES = _counter(
    "datum_router_config_reload_failures_total",
    "reloads",
    "Compilations that found an error in a manifest or failed, and snapshots that a worker could not put in force.",
)
DIAGNOSTICS = _gauge("datum_router_diagnostics", "diagnostics", "What is wrong with the configuration now.", SEVERITY)
COMPILATIONS = _counter("datum_router_compilations_total", "compilations", "Compilations of the manifests.")
COMPILE_SECONDS = _counter("datum_router_compile_seconds_total", "seconds", "Time spent in compilations.")
COMPILE_LAST = _gauge("datum_router_compile_last_seconds", "seconds", "How long the last compilation took.")
ROUTES = _gauge("datum_router_routes", "routes", "Routes in force.")
SERVICES = _gauge("datum_router_services", "services", "Services in force.")

DECODE_SECONDS = _counter("datum_router_decode_seconds_total", "seconds", "Time spent in reading what sources said.")

# --- sources -------------------------------------------------------------------------------------------------------
SOURCE_LISTS = _counter("datum_router_source_lists_total", "lists", "Whole lists that were read.", SOURCE_KIND)
SOURCE_LIST_SECONDS = _counter(
    "datum_router_source_list_seconds_total", "seconds", "Time that the API took to answer lists.", SOURCE_KIND
)
SOURCE_RELISTS = _counter(
    "datum_router_source_relists_total", "lists", "Lists that another one went before.", SOURCE_KIND
)
SOURCE_WATCHES = _counter("datum_router_source_watches_total", "watches", "Watches that were opened.", SOURCE_KIND)
SOURCE_WATCH_RESTARTS = _counter(
    "datum_router_source_watch_restarts_total", "watches", "Watches that went on where another one ended.", SOURCE_KIND
)
SOURCE_EVENTS = _counter(
    "datum_router_source_events_total", "objects", "Objects that came, changed or went.", SOURCE_KIND
)
SOURCE_ERRORS = _counter(
    "datum_router_source_errors_total", "requests", "Requests that failed, and answers that made no sense.", SOURCE_KIND
)
SOURCE_SILENT = _gauge(
    "datum_router_source_silent_seconds", "seconds",
    "Since the API said something of a kind, if only that all is as it was.", SOURCE_KIND,
)  # fmt: skip
SOURCE_STALE = _gauge("datum_router_source_stale_seconds", "seconds", "Since the API said anything at all.")

# --- reports and the last good snapshot ----------------------------------------------------------------------------
REPORTS = _counter("datum_router_reports_total", "reports", "Reports of what is in force that were written.")
REPORT_FAILURES = _counter(
    "datum_router_report_failures_total", "reports", "Reports that could not be written, each of which is tried again."
)
SNAPSHOT_FILE_FAILURES = _counter(
    "datum_router_snapshot_file_failures_total", "files", "Times that the last good snapshot could not be kept on disk."
)

# --- processes -----------------------------------------------------------------------------------------------------
BUILD_INFO = _gauge("datum_router_build_info", "builds", "Always 1.", VERSION)
UPTIME = _gauge("datum_router_uptime_seconds", "seconds", "Since the supervisor started.")
WORKERS = _gauge("datum_router_workers", "workers", "Workers that there should be.")
WORKERS_UP = _gauge("datum_router_workers_up", "workers", "Workers that are up.")
WORKERS_LAGGING = _gauge(
    "datum_router_workers_lagging", "workers", "Workers that do not serve the newest snapshot yet."
)
WORKER_RESTARTS = _counter(
    "datum_router_worker_restarts_total", "workers", "Workers that ended unasked and were started again."
)
WORKER_REPLACEMENTS = _counter(
    "datum_router_worker_replacements_total", "workers", "Workers that were replaced by a rolling restart."
)
CPU = _counter("datum_router_process_cpu_seconds_total", "seconds", "User and system CPU time.", PROCESS)
RSS = _gauge("datum_router_process_resident_memory_bytes", "bytes", "Resident memory.", PROCESS)
FDS = _gauge("datum_router_process_open_fds", "descriptors", "Open file descriptors.", PROCESS)
MAX_FDS = _gauge("datum_router_process_max_fds", "descriptors", "Limit on open file descriptors.", PROCESS)
LOOP_LAG = _gauge(
    "datum_router_loop_lag_seconds", "seconds", "How late the event loop ran what was due, at worst.", PROCESS
)
LOOP_TASKS = _gauge("datum_router_loop_tasks", "tasks", "Tasks of the data plane's loop.", PROCESS)
LOG_DROPPED = _counter(
    "datum_router_log_lines_dropped_total",
    "lines",
    "Log lines, the access log's too, given up: their reader is too slow.",
)
OUTCOMES_DROPPED = _counter(
    "datum_router_outcomes_dropped_total", "attempts", "Outcomes that passive health did not see, there were too many."
)

# --- this exposition -------------------------------------------------------------------------------------------------
SCRAPES = _counter("datum_router_scrapes_total", "scrapes", "Scrapes of this page, this one included.")
LATE_REPORTS = _counter(
    "datum_router_scrape_late_workers_total",
    "workers",
    "Workers that did not report in time for a scrape: their numbers in it were up to one report interval old.",
)
FOLDED = _gauge(
    "datum_router_metrics_folded_objects", "objects", "Routes, services and listeners that are counted as other."
)

# --- controllers -----------------------------------------------------------------------------------------------------
LEADING = _gauge("datum_router_controller_leading", "controllers", "Whether this controller leads: 1 or 0.")
TERMS = _counter("datum_router_controller_terms_total", "terms", "Times that this controller has begun to lead.")
LEASE_FAILURES = _counter(
    "datum_router_controller_lease_failures_total",
    "requests",
    "Reads and writes of the lease that failed, or lost against another.",
)
GATEWAYS = _gauge("datum_router_controller_gateways", "gateways", "Gateways whose reports count.")
OBJECTS = _gauge("datum_router_objects", "objects", "Objects that there are.", KIND)
OBJECT_CONDITIONS = _gauge(
    "datum_router_object_conditions", "objects", "Objects by what their status says.", KIND, CONDITION, STATUS
)
STATUS_LOOKS = _counter("datum_router_status_looks_total", "objects", "Objects whose status was worked out.")
STATUS_LOOK_SECONDS = _counter(
    "datum_router_status_look_seconds_total", "seconds", "Time spent on working statuses out."
)
STATUS_WRITES = _counter("datum_router_status_writes_total", "writes", "Statuses written.", KIND)
STATUS_WRITE_ERRORS = _counter(
    "datum_router_status_write_errors_total",
    "writes",
    "Statuses that could not be written, or were put off since somebody else keeps changing them (contested). They are "
    "tried again, but for rejected ones.",
    KIND,
    WRITE_ERROR,
)
STATUS_QUEUE = _gauge("datum_router_status_queue_objects", "objects", "Objects that wait for a look or a write.")
STATUS_FAILING = _gauge("datum_router_status_failing_objects", "objects", "Objects whose last write failed.")
EVENTS = _counter("datum_router_events_total", "events", "Events published.")
EVENT_ERRORS = _counter("datum_router_event_errors_total", "events", "Events that could not be published.")
CLUSTER_WRITES = _counter(
    "datum_router_cluster_writes_total", "requests", "Requests that write to the API, leases and events included."
)
CLUSTER_WRITES_DELAYED = _counter(
    "datum_router_cluster_writes_delayed_total", "requests", "Those of them that waited for the rate limit."
)

# --- discovery -------------------------------------------------------------------------------------------------------
REMOTE_CLUSTERS = _gauge("datum_router_discovery_clusters", "clusters", "Remote clusters by how they stand.", PHASE)
IMPORTS = _gauge("datum_router_discovery_imports", "services", "Services of the own cluster that ask for endpoints.")
EXPORTS = _gauge("datum_router_discovery_exports", "services", "Services that remote clusters export.")
SLICES = _gauge("datum_router_discovery_slices", "slices", "Slices that are published.")
STALE_SLICES = _gauge("datum_router_discovery_stale_slices", "slices", "Those of them whose cluster cannot be heard.")
SLICES_FAILING = _gauge(
    "datum_router_discovery_failing_parts",
    "services",
    "Services of one cluster whose slices could not be written last.",
)
SLICE_WRITES = _counter("datum_router_discovery_slice_writes_total", "slices", "Slices written and removed.", SLICE_ACT)
SLICE_WRITE_ERRORS = _counter(
    "datum_router_discovery_slice_write_errors_total", "slices", "Slices that could not be written; tried again."
)
CLUSTER_CONFLICTS = _gauge(
    "datum_router_discovery_conflicts",
    "services",
    "Services of one cluster of whose export something is left out.",
)
REMOTE_EVENTS = _counter(
    "datum_router_discovery_remote_events_total",
    "events",
    "Objects that came, changed or went in remote clusters, by lists and watches.",
)
REMOTE_ERRORS = _counter(
    "datum_router_discovery_remote_errors_total",
    "requests",
    "Requests to remote clusters that failed, and answers that could not be understood or were too much.",
)
REMOTE_PACED = _counter(
    "datum_router_discovery_remote_paced_seconds_total",
    "seconds",
    "Time for which events of remote clusters were not read since they came too fast.",
)
CLUSTER_REPORT_WRITES = _counter(
    "datum_router_discovery_report_writes_total", "leases", "Leases of clusters written and removed.", SLICE_ACT
)
CLUSTER_REPORT_ERRORS = _counter(
    "datum_router_discovery_report_write_errors_total",
    "leases",
    "Leases of clusters that could not be written; tried again.",
)

_SOURCE = (
    SOURCE_LISTS, SOURCE_LIST_SECONDS, SOURCE_RELISTS, SOURCE_WATCHES, SOURCE_WATCH_RESTARTS, SOURCE_EVENTS,
    SOURCE_ERRORS, SOURCE_SILENT, SOURCE_STALE,
)  # fmt: skip

_ALL = (
    REQUESTS, REQUEST_DURATION, REQUEST_BYTES, RESPONSE_BYTES, PROTOCOL_REQUESTS, REASONS, IN_FLIGHT, TUNNELS,
    SHED, SHEDDING,
    REJECTED, CONNECTIONS, ACCEPTED, TURNED_AWAY, CLIENT_CERTIFICATES, CERTIFICATE_END, IDENTITY_END,
    STREAMS, STREAMS_ENDED, STREAM_BYTES,
    SERVICE_CIRCUIT, ROUTE_CIRCUIT, RATE_LIMIT_DECISIONS, RATE_LIMIT_FORGOTTEN,
    ATTEMPTS, ATTEMPT_FAILURES, RETRIES, NOT_RETRIED, HEDGES, PERMITS_REFUSED, CIRCUIT_OPEN, SERVICE_IN_FLIGHT,
    UPSTREAM_CONNECTIONS, UPSTREAM_OPENED, UPSTREAM_CLOSED, UPSTREAM_PENDING, POOL_OVERFLOW,
    FILTERED,
    EGRESS_DECISIONS, EGRESS_BY_POLICY, EGRESS_CONNECTIONS, EGRESS_LOOKUPS,
    ENDPOINTS, BREAKERS, PANIC, SPILLING, PROBES, HEALTH_CHANGES, PLUGIN_FAILURES, PLUGIN_DISABLED,
    CONFIG_VERSION, CONFIG_RELOADED_AT, CONFIG_FAILURES, DIAGNOSTICS, COMPILATIONS, COMPILE_SECONDS, COMPILE_LAST,
    ROUTES, SERVICES, DECODE_SECONDS, *_SOURCE, REPORTS, REPORT_FAILURES, SNAPSHOT_FILE_FAILURES,
    BUILD_INFO, UPTIME, WORKERS, WORKERS_UP, WORKERS_LAGGING, WORKER_RESTARTS, WORKER_REPLACEMENTS, CPU, RSS, FDS,
    MAX_FDS, LOOP_LAG, LOOP_TASKS, LOG_DROPPED, OUTCOMES_DROPPED, SCRAPES, LATE_REPORTS, FOLDED,
)  # fmt: skip

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""All metrics of a gateway by name, in the order of the reference page."""

_CONTROLLER = (
    LEADING, TERMS, LEASE_FAILURES, GATEWAYS, OBJECTS, OBJECT_CONDITIONS,
    STATUS_LOOKS, STATUS_LOOK_SECONDS, STATUS_WRITES, STATUS_WRITE_ERRORS, STATUS_QUEUE, STATUS_FAILING,
    EVENTS, EVENT_ERRORS, CLUSTER_WRITES, CLUSTER_WRITES_DELAYED,
    CONFIG_VERSION, CONFIG_RELOADED_AT, CONFIG_FAILURES, DIAGNOSTICS, COMPILATIONS, COMPILE_SECONDS, COMPILE_LAST,
    ROUTES, SERVICES, DECODE_SECONDS, *_SOURCE, BUILD_INFO, UPTIME, CPU, RSS, FDS, MAX_FDS, LOG_DROPPED, SCRAPES,
)  # fmt: skip

CONTROLLER_METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _CONTROLLER}
"""All metrics of a controller by name, in the order of the reference page."""

_DISCOVERY = (
    LEADING, TERMS, LEASE_FAILURES, REMOTE_CLUSTERS, IMPORTS, EXPORTS, SLICES, STALE_SLICES, SLICES_FAILING,
    CLUSTER_CONFLICTS, SLICE_WRITES, SLICE_WRITE_ERRORS, CLUSTER_REPORT_WRITES, CLUSTER_REPORT_ERRORS,
    REMOTE_EVENTS, REMOTE_ERRORS, REMOTE_PACED, CLUSTER_WRITES, CLUSTER_WRITES_DELAYED,
    BUILD_INFO, UPTIME, CPU, RSS, FDS, MAX_FDS, LOG_DROPPED, SCRAPES,
)  # fmt: skip

DISCOVERY_METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _DISCOVERY}
"""All metrics of a discovery daemon by name, in the order of the reference page."""
