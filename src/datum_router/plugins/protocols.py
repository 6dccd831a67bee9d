"""Protocols that plugins implement and the runtime drives; the core defines them so that imports go one way."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from datum_router.compiler.diagnostics import Diagnostic, Origin
from datum_router.manifests.meta import ObjectKey
from datum_router.model.egress import EgressAttachment
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, EndpointKey, Locality
from datum_router.model.limits import RateLimitPolicy
from datum_router.model.listener import Listener
from datum_router.model.outcome import Outcome
from datum_router.model.policy import ActiveHealthPolicy
from datum_router.model.service import ServiceKey, UpstreamTls
from datum_router.observe.cells import Cell
from datum_router.observe.events import RequestEnded
from datum_router.observe.meter import RequestMeter
from datum_router.policy.buckets import Draw
from datum_router.reasons import Reason

if TYPE_CHECKING:
    from datum_router.manifests.vpcservice import VPCService

# --- sources ---------------------------------------------------------------------------------------------------


class Upsert(msgspec.Struct, frozen=True, kw_only=True):
    """An object exists with this raw content.

    Attributes:
        raw: Plain data, or JSON text of an API server, of which `api_version` and `kind` (which lists leave out of
            their items) are what the source knows it to be.
    """

    source: str
    raw: Mapping[str, object] | msgspec.Raw
    origin: Origin
    api_version: str = ""
    kind: str = ""


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """An object is gone from `file` (empty for an API); ignored if another file owns the object by now."""

    source: str
    key: ObjectKey
    file: str = ""


class Problems(msgspec.Struct, frozen=True, kw_only=True):
    """What cannot be read in one scope (a file); replaces earlier problems of that scope, empty clears them."""

    source: str
    scope: str
    diagnostics: tuple[Diagnostic, ...] = ()


class Synced(msgspec.Struct, frozen=True, kw_only=True):
    """The source has said all it knew at its start."""

    source: str


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Every change to objects of a kind up to this version of the API has been emitted before, or is in this batch.

    Sources without versions never send it. A gateway reports it once what came before is in force.

    Attributes:
        namespace: The one that it is about, if namespaces are followed one by one; empty for all that are followed.
    """

    source: str
    kind: str
    version: str
    namespace: str = ""


SourceEvent = Upsert | Delete | Problems | Synced | Mark
Emit = Callable[[Sequence[SourceEvent]], None]
"""Takes one batch; all events of a batch come into force together."""


class Source(Protocol):
    """Where manifests come from."""

    async def run(self, emit: Emit) -> None:
        """Emit everything once, then `Synced`, then changes, until cancelled.

        Raises:
            SourceError: Retried by the runtime with backoff; what was emitted stays in force.
        """
        ...


@runtime_checkable
class CountingSource(Protocol):
    """A source that counts, which sources need not."""

    def stats(self) -> Mapping[str, float]:
        """Return counters and gauges as they are now, from any thread: `name`, or `name/kind` of one kind each.

        A gauge `stale_seconds` tells how long ago whatever the source reads from said anything at all.
        """
        ...


# --- endpoint resolvers --------------------------------------------------------------------------------------------


class ManifestView(Protocol):
    """A read-only view of typed manifests, as `registry.store.StoreView` gives it."""

    def get(self, kind: str, namespace: str, name: str) -> msgspec.Struct | None:
        """Return the manifest in force, or None."""
        ...

    def list(self, kind: str) -> Sequence[msgspec.Struct]:
        """Return all manifests of a kind, sorted by namespace and name.

        A result that looked at all of them is made again at any change of the kind: prefer `get` and `select`.
        """
        ...

    def select(self, kind: str, index: str, value: str) -> Sequence[msgspec.Struct]:
        """Return the manifests that an index (`ResourceKind.indexes`) has under a value, sorted by namespace and name.

        Raises:
            LookupError: The kind has no such index; an unknown kind, or one without objects, gives an empty sequence.
        """
        ...


class ResolveProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why (a part of) a service has no endpoints.

    Attributes:
        object: The object that is to be mended; None = the VPCService that is being resolved.
        path: JSON path within that object, for example `spec.vpcAttachmentRef.name`.
        is_reference: True if the named object is not there (yet).
        is_remark: True if nothing is missing by it: a warning about an object that is referred to.
        missing: The object that is not there; if there is no hint, the compiler finds the nearest name.
    """

    object: ObjectKey | None = None
    path: str
    reason: Reason
    message: str
    hint: str = ""
    is_reference: bool = True
    is_remark: bool = False
    missing: ObjectKey | None = None


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """That endpoints are to be taken once, and kept whatever becomes of what they were found from.

    Attributes:
        token: They are kept as long as this is equal; another value has them taken anew.
        is_settled: What was found is good to be kept. Until it is, endpoints follow what is found.
        recorded: Endpoints that were written down when they were taken, perhaps by another process; they win over
            what this process remembers, so that all processes come to agree.
    """

    token: object
    is_settled: bool
    recorded: tuple[Endpoint, ...] = ()


class Contribution(msgspec.Struct, frozen=True, kw_only=True):
    """What one object, such as a ServiceBinding, gives to a service. What its status can be made from.

    Attributes:
        object: Who gives.
        endpoints: As they are given, without duplicates, in a stable order; each has this object in its `origin`.
            Those that do not serve (not ready, terminating) are among them.
        shortfalls: Why there are none, or fewer than there could be. Not told while endpoints are held.
        hold: Not None: endpoints are taken once.
        is_held: Set by the registry: `endpoints` are those that were taken.
    """

    object: ObjectKey
    endpoints: tuple[Endpoint, ...] = ()
    shortfalls: tuple[ResolveProblem, ...] = ()
    hold: Hold | None = None
    is_held: bool = False


class VpcNetwork(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A network (CIDR form) that the service reaches through a VPC (`namespace/name`, as `Endpoint.vpc` has it)."""

    network: str
    vpc: str


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """What a resolver found. It is asked again when its service changes or anything that it looked at in the view.

    Attributes:
        endpoints: Those that no object gives but the service itself.
        contributions: What other objects give; their endpoints come after `endpoints`.
        networks: Where addresses that the service itself writes down belong to, the first that holds one counts.
    """

    endpoints: tuple[Endpoint, ...] = ()
    problems: tuple[ResolveProblem, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    networks: tuple[VpcNetwork, ...] = ()


class EndpointResolver(Protocol):
    """Find the endpoints of a service from manifests: pure, no I/O."""

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        """Return what was found, or None if this service is none of this resolver's business."""
        ...


class PlaceResult(msgspec.Struct, frozen=True, kw_only=True):
    """Where a gateway that serves these manifests is, and what is wrong with those that say so.

    Attributes:
        problems: Each names its `object`.
    """

    place: Locality = UNKNOWN_LOCALITY
    problems: tuple[ResolveProblem, ...] = ()


class PlaceFinder(Protocol):
    """Find out from manifests where the cluster is that they come from: pure, no I/O."""

    def find(self, view: ManifestView) -> PlaceResult:
        """Return what was found; asked again when anything changes that it looked at in the view."""
        ...


# --- attachments -------------------------------------------------------------------------------------------------


class AttachmentFinder(Protocol):
    """Find out from manifests which attachments to VPCs there are, that traffic comes from: pure, no I/O."""

    def find(self, view: ManifestView) -> Sequence[EgressAttachment]:
        """Return all of them, in order of name; asked again when anything changes that it looked at in the view."""
        ...


# --- data planes -------------------------------------------------------------------------------------------------


class DataPlaneObserver(Protocol):
    """Where a data plane reports. Calls are synchronous, cheap and never raise.

    Every request ends in exactly one `RequestMeter.ended`; one that did not end as `routed` in one `request_reason` as
    well; and, only if `wants_events`, in one `request_ended`.
    """

    @property
    def wants_events(self) -> bool:
        """Tell whether `request_ended` is wanted; it does not change, so a data plane may read it once."""
        ...

    def meter(self, *, protocol: str, route: str, service: str) -> RequestMeter:
        """Return what counts the requests of these, `route` and `service` empty where none was chosen.

        Meant to be kept beside the rule that is served: the same arguments give the same meter.

        Args:
            protocol: `h1`, `h2` or `ws`.
        """
        ...

    def attempt_ended(self, outcome: Outcome) -> None:
        """Take the end of one attempt at an endpoint."""
        ...

    def attempt_answered(self, service: ServiceKey, endpoint: EndpointKey, status: int) -> None:
        """Take an attempt that was answered whole: what an `Outcome` with this status says, at less cost."""
        ...

    def request_reason(self, protocol: str, reason: Reason) -> None:
        """Count a request that the router answered itself, or that ended otherwise than `routed`."""
        ...

    def request_ended(self, event: RequestEnded) -> None:
        """Take the end of one request, for the access log."""
        ...

    def rejected(self, protocol: str, reason: Reason) -> None:
        """Count one refused connection, message or field; `protocol` is `h1`, `h2`, `ws`, `tls` or `tcp`."""
        ...


class HealthChange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One endpoint's usability, as the single writer decided.

    Attributes:
        since: CLOCK_MONOTONIC seconds.
        trial: Number of the half-open period that it is in, 0 if in none: it is not usable, but may be tried.
    """

    service: ServiceKey
    endpoint: EndpointKey
    is_usable: bool
    since: float
    trial: int = 0
    reason: str = ""


class DataPlane(Protocol):
    """What carries requests. All methods but `run` are synchronous and are called from the same thread."""

    async def run(self) -> None:
        """Serve until drained or cancelled; returns after a drain."""
        ...

    def add_listener(self, listener: Listener, sock: socket.socket) -> None:
        """Start accepting on a bound, listening, non-blocking socket; the data plane owns it from now on."""
        ...

    def update_listener(self, listener: Listener) -> None:
        """Change certificates or limits of a listener of that name for new connections."""
        ...

    def remove_listener(self, name: str) -> None:
        """Stop accepting on it; open connections finish their requests.

        Called before the snapshot without it is in force: what the holder has then still knows the listener.
        """
        ...

    def begin_drain(self, *, lameduck_s: float, grace_s: float) -> None:
        """Finish gracefully: `Connection: close` and GOAWAY, accept for `lameduck_s` more, cut after `grace_s`."""
        ...

    def stats(self) -> Mapping[str, int]:
        """Return gauges: `connections`, `requests_in_flight`, `upstream_connections`, `tasks`."""
        ...

    def take_cells(self) -> Sequence[Cell]:
        """Return what counters of `observe.names` have grown by since the last call, and gauges as they are now.

        Called about once a second and on a scrape, by one caller. A gauge that is not returned any more is gone.
        """
        ...


# --- rate limits ---------------------------------------------------------------------------------------------------


class RateLimitStore(Protocol):
    """Buckets of rate limits that several gateways share. One for each worker of a gateway."""

    async def take(self, key: str, policy: RateLimitPolicy) -> Draw:
        """Take a token out of the bucket of a key, which is full at first; the result is that of `BucketTable.draw`.

        Calls overlap, and may be cancelled when they take too long: a token may be gone then.

        Args:
            key: Up to 600 printable ASCII characters, made of names of manifests and a hash; nothing of a client's.
            policy: How large the bucket is and how fast it fills again. One key never comes with two policies.

        Raises:
            OSError: The store cannot be reached, or does not work. Anything else counts as broken promise; both let the
                request through, or not, as the gateway's setting says.
        """
        ...

    async def close(self) -> None:
        """Let go of connections; called once, at the end."""
        ...


@runtime_checkable
class TicketingDataPlane(Protocol):
    """A data plane whose workers can resume each other's TLS sessions, which they need not."""

    def set_ticket_secrets(self, secrets: Sequence[bytes]) -> None:
        """Make session tickets by the first of these secrets (32 bytes each), and take those made by any.

        The same on all workers of a gateway. To be kept in memory only, and never said.
        """
        ...


# --- health probes -------------------------------------------------------------------------------------------------


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How one probe ended; `detail` says in a few words what was seen."""

    is_ok: bool
    detail: str = ""


class Prober(Protocol):
    """Ask one endpoint once."""

    async def probe(self, endpoint: Endpoint, policy: ActiveHealthPolicy, tls: UpstreamTls | None) -> ProbeResult:
        """Return the result within `policy.timeout_s`; never raises but for cancellation."""
        ...
