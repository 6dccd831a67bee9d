"""Gateways' reports: what each one has in force, and from that whether a change is in force everywhere. Pure.

Theory of operation. A gateway keeps one small record of its own (a Lease, `plugins.cluster.LeaseRecord`), whose
annotation holds a `GatewayReport`: the digest that all its workers serve, and the input it was made from, as the API's
version (`resourceVersion`) up to which objects of each kind had been taken in. Versions of one kind rise with each
write, and comparing them as numbers is what the API promises (Kubernetes enhancement 5504). So an edit needs no report
of its own: one record a second at most tells about any number of objects, and about those that come to nothing, too.

Whoever reads the reports knows for each object the version at which its newest generation was first seen. It is in
force on a gateway once the report's version of that kind is as high, unless the report lists the object as refused.

A gateway that is gone must not hold anything up: it deletes its record when it ends well; otherwise its record counts
until it has not been renewed for its whole duration, by the reader's clock, and for `MAX_RECORD_S` at most.

Whoever may write a Lease can write anything there, such as a gateway that was taken over. It may say what is not true
of itself, but not speak for another one, keep statuses from being written, or hold changes up after it is gone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from datum_router.manifests.meta import MAX_COUNT, MAX_NAME_CHARS, ObjectKey
from datum_router.plugins.cluster import LeaseRecord
from datum_router.reasons import Reason

COMPONENT_LABEL = "router.datum.net/component"
COMPONENT_GATEWAY = "gateway"
GATEWAY_LABELS = {COMPONENT_LABEL: COMPONENT_GATEWAY}
REPORT_ANNOTATION = "router.datum.net/report"

MAX_REFUSED = 200
"""Objects that a report lists as refused; what is beyond is said by `is_cut`."""
MAX_REFUSED_BYTES = 64 * 1024
"""What they take up in the report: the API takes no annotations beyond 256 KiB; a longer report would never arrive."""
MAX_MESSAGE_CHARS = 200
MAX_PROBLEM_CHARS = 1000
"""How much is told of what keeps a gateway from putting things into force."""
MAX_COUNTED = 200
"""VPCEgresses whose open connections a report tells; those of others are not known."""
MAX_CONNECTIONS = MAX_COUNT
"""Open connections of one VPCEgress that are believed of one gateway."""
MAX_RECORD_S = 900
"""The longest time for which a record counts without being renewed (seconds), whatever it says."""
NAMED_GATEWAYS = 3
"""Gateways that a message names; it says how many others there are."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An object whose newest version is not, or not wholly, in force on a gateway, and why."""

    kind: str
    namespace: str = ""
    name: str
    reason: str
    message: str = ""

    @property
    def key(self) -> ObjectKey:
        """Return which object it is."""
        return ObjectKey(kind=self.kind, namespace=self.namespace, name=self.name)


class GatewayReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What a gateway says of itself.

    Attributes:
        digest: `SnapshotData.digest` that every worker serves.
        versions: Kind (or `report_key`, where namespaces are followed one by one) -> API version up to which everything
            is in force.
        refused: Objects that this gateway refuses, first by kind, namespace and name; at most `MAX_REFUSED`.
        is_cut: There are more refused ones.
        notes: What is to be known of objects that are in force, such as a certificate that expires; bounded likewise.
        problem: Why it cannot put what it has taken in into force, such as a port that another process has; empty if
            nothing is wrong.
        connections: Open outbound connections, by `namespace/name` of the VPCEgress that let them through.
        namespaces: Those whose objects it serves; empty = all.
        label_selector: Which of our objects it serves; empty = all.
    """

    digest: str = ""
    versions: Mapping[str, str] = {}
    refused: tuple[Refusal, ...] = ()
    is_cut: bool = False
    notes: tuple[Refusal, ...] = ()
    problem: str = ""
    connections: Mapping[str, int] = {}
    namespaces: tuple[str, ...] = ()
    label_selector: str = ""

    def version_of(self, key: ObjectKey) -> int:
        """Return up to which version objects of this kind and namespace are in force, as a number; 0 if none is."""
        versions = self.versions
        found = versions.get(key.kind)
        return version_number(versions.get(report_key(key.kind, key.namespace), "") if found is None else found)


def report_key(kind: str, namespace: str) -> str:
    """Return what stands in a report for a kind, or for its objects of one namespace if that is not empty."""
    return f"{kind}/{namespace}" if namespace else kind


def make_refusals(refusals: Iterable[Refusal]) -> tuple[tuple[Refusal, ...], bool]:
    """Return at most one refusal an object, in order, messages cut to size, and whether some were left out."""
    found: dict[ObjectKey, Refusal] = {}
    for one in refusals:
        found.setdefault(one.key, msgspec.structs.replace(one, message=_cut(one.message, MAX_MESSAGE_CHARS)))
    kept: list[Refusal] = []
    size = 0
    for key in sorted(found)[:MAX_REFUSED]:
        size += len(_ENCODER.encode(found[key])) + 1
        if size > MAX_REFUSED_BYTES:
            break
        kept.append(found[key])
    return tuple(kept), len(kept) < len(found)


def make_problem(problems: Iterable[str]) -> str:
    """Return problems as one text, cut to size."""
    return _cut("; ".join(problems), MAX_PROBLEM_CHARS)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder(GatewayReport)
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_VERSION_DIGITS = 20
"""Digits of the largest version there is: etcd counts in 64 bits."""


def encode_report(report: GatewayReport) -> str:
    """Return a report as the text of its annotation; equal reports give equal texts."""
    return _ENCODER.encode(report).decode()


def decode_report(text: str) -> GatewayReport | None:
    """Return the report of an annotation, or None for what no gateway of this version has written."""
    try:
        return _DECODER.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def version_number(text: str) -> int:
    """Return an API version as a number that can be compared with others of its kind; 0 for what is none."""
    return int(text) if len(text) <= _VERSION_DIGITS and text.isascii() and text.isdecimal() else 0


class Verdict(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Whether an object's newest generation is in force on every gateway: a Programmed condition without its times."""

    status: str
    reason: str
    message: str


IN_FORCE = Verdict(status="True", reason="Programmed", message="in force on every gateway")
NO_GATEWAY = Verdict(status="Unknown", reason="NoGateway", message="no gateway reports what it has in force")


class _Known(msgspec.Struct):
    """A gateway as its record was last seen.

    Attributes:
        fresh_at: Monotonic seconds at which the record was last seen to differ from before.
    """

    record: LeaseRecord
    report: GatewayReport
    fresh_at: float


class ReportBook:
    """What all gateways have said. Not thread-safe; pure: clocks are arguments."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Known] = {}

    def update(self, records: Sequence[LeaseRecord], *, now: float, wall: float) -> bool:
        """Take all records that there are; return whether any verdict may differ from before.

        Args:
            now: Monotonic seconds.
            wall: Unix seconds, for records that are seen for the first time: what had run out twice over by the
                writer's clock is not waited for.
        """
        is_changed = False
        seen: set[tuple[str, str]] = set()
        for record in records:
            key = (record.namespace, record.name)
            known = self._known.get(key)
            if known is not None and known.record == record:
                seen.add(key)
                continue
            report = decode_report(record.annotations.get(REPORT_ANNOTATION, ""))
            if report is None:
                continue
            seen.add(key)
            fresh_at = now
            if known is None and wall - record.renewed_at > 2 * _duration_s(record):
                fresh_at = now - _duration_s(record) - 1.0
            was_live = known is not None and self._is_live(known, now)
            is_changed |= known is None or not was_live or known.report != report
            self._known[key] = _Known(record, report, fresh_at)
        for key in self._known.keys() - seen:
            del self._known[key]
            is_changed = True
        return is_changed

    def live(self, now: float) -> dict[str, GatewayReport]:
        """Return the reports that count, by name of the gateway, in order; two of one name are both there."""
        found: dict[str, GatewayReport] = {}
        for (_, name), known in sorted(self._known.items()):
            if self._is_live(known, now):
                holder = (known.record.holder or name)[:MAX_NAME_CHARS]
                found[f"{holder} (lease {name})" if holder in found else holder] = known.report
        return found

    def next_expiry(self, now: float) -> float:
        """Return after how many seconds the next record runs out that counts now; infinity if none does."""
        due = [
            known.fresh_at + _duration_s(known.record) - now
            for known in self._known.values()
            if self._is_live(known, now)
        ]
        return min(due, default=float("inf"))

    def verdicts(self, now: float) -> Verdicts:
        """Return what can be said of any object now."""
        return Verdicts(self.live(now))

    @staticmethod
    def _is_live(known: _Known, now: float) -> bool:
        return now - known.fresh_at <= _duration_s(known.record)


def _duration_s(record: LeaseRecord) -> float:
    return min(record.duration_s, MAX_RECORD_S)


class Verdicts:
    """The reports of one moment, ready to be asked about many objects."""

    __slots__ = ("_notes", "_refusals", "_reports")

    def __init__(self, reports: Mapping[str, GatewayReport]) -> None:
        self._reports = dict(reports)
        self._refusals: dict[ObjectKey, list[tuple[str, Refusal]]] = {}
        self._notes: dict[ObjectKey, list[tuple[str, Refusal]]] = {}
        for gateway, report in self._reports.items():
            for one in report.refused:
                self._refusals.setdefault(one.key, []).append((gateway, one))
            for one in report.notes:
                self._notes.setdefault(one.key, []).append((gateway, one))

    @property
    def gateways(self) -> Mapping[str, GatewayReport]:
        """Return the reports by gateway."""
        return self._reports

    def of(
        self, key: ObjectKey, version: str, *, labels: Mapping[str, str] | None = None, is_refused: bool = False
    ) -> Verdict:
        """Return whether an object is in force everywhere.

        Args:
            version: The API version at which its newest generation was first seen; empty if it is known to have been in
                force everywhere before, so that only refusals count.
            labels: The object's, for gateways that select by labels of equality (`a=b,c!=d`).
            is_refused: This is about an older generation than the latest, which is bad: that gateways refuse the latest
                says nothing of it.
        """
        concerned = [gateway for gateway, report in self._reports.items() if _is_concerned(report, key, labels or {})]
        if not concerned:
            return NO_GATEWAY
        wanted = version_number(version)
        behind = [gateway for gateway in concerned if self._reports[gateway].version_of(key) < wanted]
        if behind:
            named = ", ".join(self._named(gateway) for gateway in behind[:NAMED_GATEWAYS])
            others = f" and {len(behind) - NAMED_GATEWAYS} others" if len(behind) > NAMED_GATEWAYS else ""
            return Verdict(status="False", reason="Pending", message=f"not in force yet on {named}{others}")
        for gateway, refusal in () if is_refused else self._refusals.get(key, ()):
            # The API takes no condition whose reason is not one word.
            reason = refusal.reason if _REASON.fullmatch(refusal.reason) else Reason.INVALID.value
            message = refusal.message[:MAX_MESSAGE_CHARS]
            return Verdict(status="False", reason=reason, message=f"gateway {gateway}: {message}")
        return IN_FORCE

    def _named(self, gateway: str) -> str:
        problem = self._reports[gateway].problem[:MAX_MESSAGE_CHARS]
        return f"{gateway} ({problem})" if problem else gateway

    def mentioned(self) -> AbstractSet[ObjectKey]:
        """Return all objects that any gateway refuses or has a note on."""
        return self._refusals.keys() | self._notes.keys()

    def notes_on(self, key: ObjectKey) -> list[tuple[str, Refusal]]:
        """Return what gateways note on an object, the first one of the gravest reason first."""
        found = self._notes.get(key, [])
        return sorted(found, key=lambda one: one[1].reason != Reason.CERTIFICATE_EXPIRED)

    def connections(self) -> Mapping[ObjectKey, int]:
        """Return the open connections of each VPCEgress that has any, on all gateways together."""
        found: Counter[ObjectKey] = Counter()
        for report in self._reports.values():
            for name, count in sorted(report.connections.items())[:MAX_COUNTED]:
                namespace, _, bare = name.partition("/")
                key = ObjectKey(kind="VPCEgress", namespace=namespace, name=bare)
                found[key] = min(found[key] + min(max(count, 0), MAX_CONNECTIONS), MAX_CONNECTIONS)
        return {key: count for key, count in found.items() if count}

    def refusals_of(self, key: ObjectKey, reason: Reason) -> list[tuple[str, Refusal]]:
        """Return who refuses an object for a reason, with what is said about it."""
        return [(gateway, one) for gateway, one in self._refusals.get(key, ()) if one.reason == reason]


def _is_concerned(report: GatewayReport, key: ObjectKey, labels: Mapping[str, str]) -> bool:
    if report.namespaces and key.namespace not in report.namespaces:
        return False
    return not report.label_selector or _is_selected(report.label_selector, labels)


def _is_selected(selector: str, labels: Mapping[str, str]) -> bool:
    """Tell whether labels match a selector of equalities; parts of other forms are taken as matching."""
    for part in selector.split(","):
        name, operator, value = part.partition("!=")
        if operator:
            if labels.get(name.strip()) == value.strip():
                return False
            continue
        name, operator, value = part.partition("=")
        if operator and labels.get(name.strip()) != value.removeprefix("=").strip():
            return False
    return True
