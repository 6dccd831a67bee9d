"""Leader election over one Lease: who may act, decided from what was read and written, and when.

Theory of operation. The holder of the lease renews it every `retry_s`. It leads from the moment at which it *sent* its
last successful write until `renew_deadline_s` after that, and not one moment longer, whatever it hears meanwhile.
Others take the lease over once they have watched its record stay the same for the whole `duration_s`, which began when
they *read* it, so later than the holder's own count. As `duration_s` is longer than `renew_deadline_s`, whoever leads
has stopped before anybody else can begin, as long as no clock runs half as fast again as another.

Times that stand in the record are for people: nothing depends on what two hosts' wall clocks show. A record is ours if
we wrote it, not because it bears our name: two processes of one name do not lead at once either.

Every write names the version that was read, so that the API lets only one of several win. A write whose answer is lost,
or that lost against another, may have been made all the same: it is found out by reading.

Same times and rules as client-go's leaderelection, but that it trusts the name. Pure: `step` says what to do next, and
is told by `observed`, `written` and `failed` what came of it.
"""

from __future__ import annotations

import random

import msgspec

from datum_router.plugins.cluster import LeaseRecord

MAX_UNKNOWN = 16
"""Writes that are remembered of which it is not known what came of them; if an older one was made, its record is taken
for another's."""

JITTER = 0.2
"""Who does not lead looks again after up to so much more than `retry_s` (as a share), so that not all look at once."""


class LeaseTimes(msgspec.Struct, frozen=True, kw_only=True):
    """How long things last, in seconds.

    Attributes:
        duration_s: How long others leave a lease alone that is not renewed; whole seconds.
        renew_deadline_s: How long the holder leads after a renewal.
        retry_s: Between two renewals, and two looks.
    """

    duration_s: int = 15
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.duration_s > self.renew_deadline_s > self.retry_s * (1 + JITTER) > 0:
            raise ValueError(
                f"found duration {self.duration_s} s, renew deadline {self.renew_deadline_s:g} s, retry "
                f"{self.retry_s:g} s; expected duration > renew deadline > {1 + JITTER:g} * retry > 0"
            )


class Wait(msgspec.Struct, frozen=True, gc=False):
    """There is nothing to do before this moment (monotonic seconds)."""

    until: float


class Read(msgspec.Struct, frozen=True, gc=False):
    """Read the lease and tell `observed`, or `failed`."""


class Write(msgspec.Struct, frozen=True, gc=False):
    """Write this record, at once, and tell `written` or `failed`."""

    record: LeaseRecord


Action = Wait | Read | Write

_Content = tuple[str, int, int, int]


class Elector:
    """One candidate. Not thread-safe; `now` is monotonic seconds that go on while the process is stopped."""

    __slots__ = (
        "_changed_at",
        "_identity",
        "_is_fresh",
        "_is_resigned",
        "_mine",
        "_name",
        "_namespace",
        "_next_at",
        "_rng",
        "_seen",
        "_sent",
        "_sent_at",
        "_times",
        "_was_there",
    )

    def __init__(
        self, *, identity: str, namespace: str, name: str, rng: random.Random, times: LeaseTimes | None = None
    ) -> None:
        """Make a candidate.

        Args:
            identity: For people; no other process should have it.
            rng: Spreads looks at the lease.
        """
        self._identity = identity
        self._namespace = namespace
        self._name = name
        self._rng = rng
        self._times = times or LeaseTimes()
        self._seen: LeaseRecord | None = None
        self._was_there = False
        self._changed_at = 0.0
        self._is_fresh = False  # `_seen` was read since the last action
        self._mine: _Content | None = None  # content of the record that we hold
        self._sent_at = 0.0
        self._sent: dict[_Content, float] = {}  # writes of which it is not known what came of them
        self._next_at = float("-inf")
        self._is_resigned = False

    def is_leading(self, now: float) -> bool:
        """Tell whether this candidate may act at this moment; to be asked right before each act."""
        return now < self.leads_until

    @property
    def leads_until(self) -> float:
        """Return the moment from which on it may not act unless it renews before; minus infinity if it holds none."""
        if self._mine is None or self._is_resigned:
            return float("-inf")
        return self._sent_at + self._times.renew_deadline_s

    @property
    def holder(self) -> str:
        """Return who held the lease when it was last looked at; empty if nobody did."""
        return "" if self._seen is None else self._seen.holder

    def step(self, now: float, *, wall: float) -> Action:
        """Return what is to be done now.

        Args:
            wall: Unix seconds that the record will show.
        """
        if self._is_resigned:
            return Wait(float("inf"))
        if not self._is_fresh and now < self._next_at:
            return Wait(self._next_at)
        if not self._is_fresh and (self._sent or not self.is_leading(now)):
            return Read()
        self._is_fresh = False
        if self._mine is None and self._is_held(now):
            self._next_at = now + self._times.retry_s * (1 + JITTER * self._rng.random())
            return Wait(self._next_at)
        record = self._claim(now, round(wall, 3))
        self._sent[_content(record)] = now
        if len(self._sent) > MAX_UNKNOWN:
            del self._sent[next(iter(self._sent))]
        return Write(record)

    def observed(self, record: LeaseRecord | None, *, now: float) -> None:
        """Take the lease as it was read; None if it is not there.

        Args:
            now: When the answer had come.
        """
        self._is_fresh = True
        if record is None:
            if self._seen is not None:
                self._seen, self._changed_at = None, now
            self._mine = None
            return
        content = _content(record)
        is_changed = self._seen is None or self._seen.version != record.version
        if content in self._sent:
            self._take(record)
        elif content != self._mine:
            self._mine = None
            if is_changed:
                self._sent.clear()  # the version that they would have replaced is gone
        if is_changed:
            self._changed_at = now
        self._seen = record
        self._was_there = True

    def written(self, record: LeaseRecord, *, now: float) -> None:
        """Take the record that the last write left, as the API has it."""
        if _content(record) in self._sent:
            self._take(record)
            self._changed_at = now
        self._next_at = now + self._times.retry_s

    def failed(self, *, now: float) -> None:
        """Learn that the last read or write failed, or that it is not known whether it did."""
        self._next_at = now + self._times.retry_s

    def resign(self, *, wall: float) -> LeaseRecord | None:
        """Lead no more, from this moment on, and return the record to write that lets another one lead at once.

        None if there is nothing to let go of. If the write is refused, a renewal had been on its way: read, tell
        `observed`, and call this again.
        """
        is_ours = self._mine is not None and self._seen is not None
        self._is_resigned = True
        if not is_ours or self._seen is None:
            return None
        at = round(wall, 3)
        return msgspec.structs.replace(self._seen, holder="", duration_s=1, acquired_at=at, renewed_at=at)

    def _is_held(self, now: float) -> bool:
        """Tell whether another one holds the lease, or may think so."""
        duration_s = float(self._times.duration_s)
        if self._seen is None:
            # Whoever held a lease that was deleted does not know yet.
            return self._was_there and now < self._changed_at + duration_s
        if not self._seen.holder:
            return False
        if self._seen.duration_s > 0:
            duration_s = float(self._seen.duration_s)
        return now < self._changed_at + duration_s

    def _claim(self, now: float, wall: float) -> LeaseRecord:
        """Return the record that makes us the holder, or keeps us so."""
        seen = self._seen or LeaseRecord(namespace=self._namespace, name=self._name)
        is_renewal = self._mine is not None and self.is_leading(now)
        is_other = self._mine is None and bool(seen.version)
        return msgspec.structs.replace(
            seen,
            holder=self._identity,
            duration_s=self._times.duration_s,
            acquired_at=seen.acquired_at if is_renewal else wall,
            renewed_at=wall,
            transitions=seen.transitions + is_other,
        )

    def _take(self, record: LeaseRecord) -> None:
        self._mine = _content(record)
        self._sent_at = self._sent[self._mine]
        self._sent.clear()
        self._seen = record
        self._was_there = True


def _content(record: LeaseRecord) -> _Content:
    """Return what tells a record of ours from all others; times in milliseconds, which the API keeps."""
    return (record.holder, round(record.acquired_at * 1000), round(record.renewed_at * 1000), record.transitions)
