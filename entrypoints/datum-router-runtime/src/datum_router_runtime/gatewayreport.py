"""The gateway's report: one Lease in the cluster that says what is in force here. See `reconcile.reports`.

A change that is in force is reported at once, and then at most once in `MIN_INTERVAL_S`; what leaves everything as it
was (a status that was written, an annotation) moves the versions on, which is reported when it has been quiet for
`QUIET_S`. Nothing else is written but a renewal every `RENEW_S`.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
import trio

from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.compiler.expiry import ExpiryBook, expiry_diagnostics, owner_of
from datum_router.compiler.ingress import Attached
from datum_router.errors import ClusterConflict, ClusterError
from datum_router.manifests.credentials import CREDENTIAL_KINDS, REFERRING_KINDS, references
from datum_router.manifests.meta import MAX_NAME_CHARS, ObjectKey, ObjectMeta, OwnerReference, key_of
from datum_router.manifests.table import KindTable
from datum_router.observe import names
from datum_router.plugins.cluster import Cluster, LeaseRecord
from datum_router.plugins.protocols import ManifestView
from datum_router.policy.backoff import full_jitter
from datum_router.reasons import Reason
from datum_router.reconcile.reports import (
    GATEWAY_LABELS,
    MAX_COUNTED,
    REPORT_ANNOTATION,
    GatewayReport,
    Refusal,
    encode_report,
    make_problem,
    make_refusals,
)
from datum_router_runtime.feed import Feed
from datum_router_runtime.workers import Supervisor

log = logging.getLogger(__name__)

MIN_INTERVAL_S = 1.0
"""Reports of changes are at least so far apart (seconds)."""
QUIET_S = 5.0
"""Versions that moved without a change of configuration are reported after so long a quiet time (seconds)."""
RENEW_S = 120.0
"""The record is written anew after so long (seconds), if nothing else has been reported."""
COUNT_S = 30.0
"""Open outbound connections are counted so often (seconds): what comes and goes in between is not reported."""
LEASE_S = 300
"""A record that has not been written for so long (seconds) is that of a gateway that is gone."""
FIRST_RETRY_S = 0.5
MAX_RETRY_S = 30.0
END_S = 2.0
"""How long a graceful end waits for the record to be deleted (seconds)."""

REPORTED_REFERENCES = frozenset({Reason.INVALID_CERTIFICATE_REF})
"""Findings that only gateways can make, since nobody else may read Secrets; they are warnings where they are made."""

_CREDENTIALS = tuple(f"{kind.lower()} " for kind in sorted(CREDENTIAL_KINDS))

_NOT_IN_NAMES = re.compile(r"[^a-z0-9.-]+")


def lease_name(identity: str) -> str:
    """Return a name that an object may have for a gateway of this identity."""
    plain = _NOT_IN_NAMES.sub("-", identity.lower()).strip("-.") or "unnamed"
    return f"gateway-{plain}"[:MAX_NAME_CHARS].rstrip("-.")


def owners_from(environ: Mapping[str, str]) -> tuple[OwnerReference, ...]:
    """Return the Pod (POD_NAME, POD_UID) that the record is to be deleted with."""
    name, uid = environ.get("POD_NAME", ""), environ.get("POD_UID", "")
    if not name or not uid:
        return ()
    return (OwnerReference(api_version="v1", kind="Pod", name=name, uid=uid),)


def refusals_from(diagnostics: Iterable[Diagnostic], kinds: KindTable) -> Iterable[Refusal]:
    """Yield what this gateway refuses of objects: errors, and what only it can find out."""
    named = {kind.kind.lower(): kind for kind in kinds}
    for one in diagnostics:
        if one.severity is not Severity.ERROR and one.reason not in REPORTED_REFERENCES:
            continue
        kind_name, _, where = one.object.partition(" ")
        kind = named.get(kind_name)
        if kind is None or not where:
            continue
        namespace, _, name = where.rpartition("/")
        message = f"{one.path}: {one.message}" if one.path else one.message
        yield Refusal(kind=kind.kind, namespace=namespace, name=name, reason=one.reason.value, message=message)


def refusals_from_notes(diagnostics: Iterable[Diagnostic]) -> Iterator[Refusal]:
    """Yield what is noted on VPCIngresses and VPCEgresses that are in force."""
    for one in diagnostics:
        key = owner_of(one)
        yield Refusal(
            kind=key.kind, namespace=key.namespace, name=key.name, reason=one.reason.value, message=one.message
        )


def refusals_of_ports(ingresses: Iterable[Attached], closed: Mapping[str, Diagnostic]) -> Iterable[Refusal]:
    """Yield the VPCIngresses that ask for a listener which cannot be opened here.

    Args:
        closed: Why, by name of the listener.
    """
    for ingress in ingresses:
        for _, _, listener in ingress.sections:
            if listener in closed:
                key, why = ingress.key, closed[listener]
                yield Refusal(
                    kind=key.kind, namespace=key.namespace, name=key.name, reason=why.reason.value, message=why.message
                )


def credential_refusals(diagnostics: Iterable[Diagnostic], view: ManifestView) -> Iterator[Refusal]:
    """Yield a refusal for each object that names a Secret or ConfigMap of which the latest version cannot be used.

    Its last good version serves on, so that compiling finds nothing wrong; and only gateways read those kinds.
    """
    bad = {
        one.object: one
        for one in reversed(list(diagnostics))
        if one.severity is Severity.ERROR and one.object.startswith(_CREDENTIALS)
    }
    for kind in sorted(REFERRING_KINDS) if bad else ():
        for manifest in view.list(kind):
            for named in references(manifest):
                where = f"{named.kind.lower()} {named.namespace}/{named.name}"
                found = bad.get(where)
                if found is None:
                    continue
                key = _key_of(kind, manifest)
                what = f"{where}: {found.path}: {found.message}" if found.path else f"{where}: {found.message}"
                message = f"{what}; the last good version stays in force, if there was one"
                reason = Reason.INVALID_CERTIFICATE_REF.value
                yield Refusal(kind=kind, namespace=key.namespace, name=key.name, reason=reason, message=message)
                break


def _key_of(kind: str, manifest: msgspec.Struct) -> ObjectKey:
    """Return which object a manifest of a kind is."""
    metadata = getattr(manifest, "metadata", None)
    assert isinstance(metadata, ObjectMeta)
    return key_of(kind, metadata)


class GatewayReporter:
    """Write the report of one gateway.

    Attributes:
        writes: Records written.
        failures: Writes that failed and were tried again.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        identity: str,
        supervisor: Supervisor,
        feed: Feed,
        kinds: KindTable,
        scope: Mapping[str, str] | None = None,
        owners: tuple[OwnerReference, ...] = (),
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Take what is reported about and where to.

        Args:
            scope: `namespaces` and `labelSelector` of the source: which objects this gateway serves.
            owners: Objects that the record is deleted with.
        """
        self._cluster = cluster
        self._identity = identity
        self._supervisor = supervisor
        self._feed = feed
        self._kinds = kinds
        self._scope = dict(scope or {})
        self._owners = owners
        self._wall_clock = wall_clock
        self._record = LeaseRecord(namespace=cluster.namespace, name=lease_name(identity))
        self._rng = random.Random()
        self._last = GatewayReport()
        self._expiries = ExpiryBook()
        self._connections: Mapping[str, int] = {}
        self.writes = 0
        self.failures = 0

    def report(self) -> GatewayReport | None:
        """Return what is to be said now; None while what was taken in is on its way to the workers."""
        supervisor = self._supervisor
        data = supervisor.data
        closed = supervisor.listener_problems
        problems = [one.message for one in closed.values()]
        if supervisor.link_problem is not None:
            problems.append(supervisor.link_problem.message)
        is_lagging = supervisor.lagging_workers() > 0
        is_changing_hands = any(one.reason is Reason.PENDING for one in closed.values())
        if data is None or not self._feed.synced or (is_lagging and not problems) or is_changing_hands:
            return None
        refused, is_cut = make_refusals(self._refusals())
        expiries = self._expiries.look(data)
        notes, _ = make_refusals(refusals_from_notes(expiry_diagnostics(expiries, now=self._wall_clock())))
        last = self._last
        # With no port open nothing is in force here, whatever the workers hold.
        is_behind = is_lagging or len(closed) == len(data.listeners) > 0
        namespaces = self._scope.get("namespaces", "")
        return GatewayReport(
            digest=last.digest if is_behind else data.digest,
            versions=last.versions if is_behind else dict(sorted(self._feed.published_marks().items())),
            refused=refused,
            is_cut=is_cut,
            notes=notes,
            problem=make_problem(problems),
            connections=self._connections,
            namespaces=tuple(sorted(part.strip() for part in namespaces.split(",") if part.strip())),
            label_selector=self._scope.get("labelSelector", ""),
        )

    def _refusals(self) -> Iterator[Refusal]:
        supervisor, view = self._supervisor, self._feed.published_view
        yield from refusals_from(supervisor.diagnostics, self._kinds)
        yield from refusals_of_ports(supervisor.ingresses, supervisor.listener_problems)
        if view is not None:
            yield from credential_refusals(supervisor.diagnostics, view)

    async def run(self) -> None:
        """Report until cancelled; then the record is deleted, since this gateway holds nothing up any more."""
        try:
            await self._keep_reporting()
        finally:
            with trio.move_on_after(END_S, shield=True):
                await self._withdraw()

    async def _keep_reporting(self) -> None:
        written_at = -RENEW_S
        counted_at = -COUNT_S
        while True:
            if trio.current_time() - counted_at >= COUNT_S:
                counted_at = trio.current_time()
                self._connections = self._open_connections()
            force, news = self._supervisor.force_changed.next, self._feed.news.next
            found = self.report()
            is_due = trio.current_time() - written_at >= RENEW_S
            if found is not None and (found != self._last or is_due):
                is_urgent = is_due or not _is_moved_on(self._last, found)
                if is_urgent:
                    await trio.sleep(max(written_at + MIN_INTERVAL_S - trio.current_time(), 0.0))
                elif await _first_of(force, news, timeout_s=QUIET_S):
                    continue  # not quiet yet
                found = self.report()
                if found is not None and (found != self._last or is_due):
                    await self._write(found)
                    written_at = trio.current_time()
                continue
            due_at = written_at + RENEW_S
            if self._has_egress():
                due_at = min(due_at, counted_at + COUNT_S)
            await _first_of(force, news, timeout_s=max(due_at - trio.current_time(), 1.0))

    def _has_egress(self) -> bool:
        data = self._supervisor.data
        return data is not None and data.egress is not None and any(one.egress is not None for one in data.listeners)

    def _open_connections(self) -> Mapping[str, int]:
        """Return the open outbound connections by VPCEgress, of all workers."""
        if not self._has_egress():
            return {}
        found: Counter[str] = Counter()
        for link in self._supervisor.links.values():
            for (metric, labels), value in link.cells.items():
                if metric == names.EGRESS_CONNECTIONS.name and value > 0:
                    found[labels[0]] += int(value)
        return dict(sorted(found.items())[:MAX_COUNTED])

    async def _write(self, report: GatewayReport) -> None:
        """Write the report, however often it takes; a newer one takes its place meanwhile."""
        attempt = 0
        while True:
            try:
                if not self._record.version:
                    there = await self._cluster.read_lease(self._record.namespace, self._record.name)
                    if there is not None:
                        self._record = there
                now = self._wall_clock()
                self._record = await self._cluster.write_lease(
                    msgspec.structs.replace(
                        self._record,
                        holder=self._identity,
                        duration_s=LEASE_S,
                        acquired_at=self._record.acquired_at or now,
                        renewed_at=now,
                        labels={**self._record.labels, **GATEWAY_LABELS},
                        annotations={**self._record.annotations, REPORT_ANNOTATION: encode_report(report)},
                        owners=self._owners,
                    )
                )
            except ClusterConflict:
                log.warning(
                    "somebody else writes this gateway's report; another gateway of the same name?",
                    extra={"lease": self._record.name, "setting": "DATUM_ROUTER_IDENTITY"},
                )
                self._record = LeaseRecord(namespace=self._record.namespace, name=self._record.name)
                self.failures += 1
            except ClusterError as error:
                self.failures += 1
                log.warning("report cannot be written, will retry", extra={"error": str(error)})
                self._record = msgspec.structs.replace(self._record, version="")
                attempt += 1
                delay_s = full_jitter(attempt, initial_s=FIRST_RETRY_S, max_s=MAX_RETRY_S, rng=self._rng)
                await trio.sleep(max(delay_s, error.retry_after_s))
                report = self.report() or report
            else:
                self._last = report
                self.writes += 1
                return

    async def _withdraw(self) -> None:
        if not self._record.version:
            return
        try:
            await self._cluster.delete_lease(self._record)
        except ClusterError as error:
            log.warning("report cannot be deleted, it runs out by itself", extra={"error": str(error)})


def _is_moved_on(old: GatewayReport, new: GatewayReport) -> bool:
    """Tell whether nothing differs but versions: no change of configuration."""
    return bool(old.versions) and msgspec.structs.replace(new, versions=old.versions) == old


async def _first_of(*events: trio.Event, timeout_s: float) -> bool:
    """Wait until one of the events is set; return whether one was, before the time was over."""
    with trio.move_on_after(timeout_s) as scope:
        async with trio.open_nursery() as nursery:

            async def wait(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            for event in events:
                nursery.start_soon(wait, event)
    return not scope.cancelled_caught
