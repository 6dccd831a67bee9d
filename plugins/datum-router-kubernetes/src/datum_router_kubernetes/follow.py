"""What to do next to know a collection of the API and to go on knowing it: decisions only, no I/O, no clock.

Theory of operation. A follower lists a collection page by page, then watches it from the version of the list on, and
lists it again only when the API cannot go on from the last version it was told (410 Gone), or said something that
cannot be understood. A watch that ends, breaks or falls silent goes on from the last version: no list, nothing missed.

Whoever drives it asks for the next `step`, does it, and tells the outcome: `take_page`, `take_event`, `ended`,
`failed`. Objects are compared by their resourceVersion for equality alone, so events may come twice or late. What a
list no longer holds is gone: deletes that nobody told of are found that way.

A watch from a version that the API has not come to yet is not refused, but says nothing, not even that nothing happens:
so it is when the API's data was restored from a copy. So whoever hears nothing for `SILENT_S` lists again; and a list
that is older than what is known is taken as news from its first object to its last, since versions come twice then.

Failures back off with full jitter; each good word of the API starts that over, except that lists which follow each
other without one good watch in between back off as well.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence

import msgspec

from datum_router.compiler.diagnostics import Severity
from datum_router.errors import ClusterError, ClusterForbidden, ClusterNotFound, ClusterRejected
from datum_router.manifests.credentials import CREDENTIAL_KINDS
from datum_router.policy.backoff import full_jitter
from datum_router.reasons import Reason
from datum_router.reconcile.reports import version_number
from datum_router_kubernetes.answers import ResponseTooLarge, VersionUnusable
from datum_router_kubernetes.budget import OverBudget
from datum_router_kubernetes.collection import Collection

FIRST_BACKOFF_S = 0.8
MAX_BACKOFF_S = 30.0
SCOUT_BACKOFF_S = 1.0
"""The longest wait of the one collection that finds out when an API that cannot be reached is back (seconds)."""
RELIST_SPREAD_S = 1.0
"""Lists that became necessary at the same moment, after a compaction for example, begin within so many seconds."""
ABSENT_RETRY_S = 30.0
"""How often a kind is looked for that clusters may do without (seconds), give or take a fifth."""
MIN_WATCH_S = 300
MAX_WATCH_S = 600
"""The API is asked to end a watch after so long (seconds), so that many do not end at the same moment."""
SHORT_WATCH_S = 1.0
"""A watch that ended sooner without a word is a failure: opening it again at once could go on for ever."""
SILENT_S = 120.0
"""After watches that said nothing for so long together (seconds), everything is listed: twice the time in which the API
says that nothing happened."""
PAGE_SHRINK = 4
"""By how much a page gets smaller when one was larger than what is read of an answer."""

Name = tuple[str, str]
"""Namespace and name."""


class Damaged(ClusterError):
    """Report an answer that is not what the API promises: broken JSON, an unknown event, an object without a name."""


class ReadPage(msgspec.Struct, frozen=True, gc=False):
    """Read a page of the list; `token` is empty for the first, a `limit` of 0 asks for all in one."""

    token: str
    limit: int


class Watch(msgspec.Struct, frozen=True, gc=False):
    """Watch from this version on."""

    version: str
    timeout_s: int


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Wait, then ask again; `is_for_api`: no longer than until the API is known to answer again."""

    seconds: float
    is_for_api: bool = False


Step = ReadPage | Watch | Wait


class Head(msgspec.Struct, frozen=True, gc=False):
    """Which version of which object."""

    namespace: str
    name: str
    version: str


class Page(msgspec.Struct, frozen=True, gc=False):
    """What a page brought.

    Attributes:
        news: Numbers of the items that are new or changed.
        gone: Objects that the list turned out not to hold any more; only with its last page.
        is_last: The list is whole; `Follower.version` is its version.
    """

    news: tuple[int, ...]
    gone: tuple[Name, ...] = ()
    is_last: bool = False


class Verdict(enum.Enum):
    """What an event of a watch comes to."""

    UPSERT = "upsert"
    DELETE = "delete"
    NOTHING = "nothing"


class Trouble(msgspec.Struct, frozen=True, gc=False):
    """Why a collection is not known, for people."""

    reason: Reason
    message: str
    hint: str = ""
    severity: Severity = Severity.ERROR


class Follower:
    """Know one collection. Not thread-safe.

    Attributes:
        known: The resourceVersion of each object that was emitted; outlives the follower, so that another one finds
            what is gone by then.
        version: Everything up to this version of the API is known; empty before the first whole list.
        is_listed: All there was at the start is known, or it is known that there is nothing to be had.
        trouble: What a person has to mend, if anything.
        lists: Whole lists there were.
    """

    __slots__ = (
        "_collection",
        "_failures",
        "_fresh",
        "_is_in_list",
        "_is_missed",
        "_is_unreachable",
        "_is_whole",
        "_limit",
        "_pause",
        "_relists",
        "_rng",
        "_seen",
        "_silent_s",
        "_token",
        "_unreachable_max_s",
        "is_listed",
        "known",
        "lists",
        "trouble",
        "version",
    )

    def __init__(
        self,
        collection: Collection,
        *,
        known: dict[Name, str],
        rng: random.Random,
        page_size: int,
        is_scout: bool = False,
    ) -> None:
        """Begin with a list.

        Args:
            is_scout: Try an API that cannot be reached more often than others do.
        """
        self._collection = collection
        self._rng = rng
        self._limit = page_size
        self._unreachable_max_s = SCOUT_BACKOFF_S if is_scout else MAX_BACKOFF_S
        self._is_in_list = True
        self._is_whole = False  # the next list is asked for in one page
        self._is_missed = False  # the kind was not there when it was last asked for
        self._token = ""
        self._seen: set[Name] = set()
        self._fresh: set[Name] = set()  # of those the ones that were not known before this list
        self._failures = 0
        self._is_unreachable = False
        self._relists = 0
        self._silent_s = 0.0  # how long watches have said nothing, since one did
        self._pause: Wait | None = None
        self.known = known
        self.version = ""
        self.is_listed = False
        self.trouble: Trouble | None = None
        self.lists = 0

    @property
    def is_listing(self) -> bool:
        """Tell whether the next thing to read is a page of a list."""
        return self._is_in_list

    def step(self) -> Step:
        """Return what to do next."""
        if self._pause is not None:
            pause, self._pause = self._pause, None
            return pause
        if self._is_in_list:
            return ReadPage(self._token, 0 if self._is_whole else self._limit)
        return Watch(self.version, self._rng.randint(MIN_WATCH_S, MAX_WATCH_S))

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def take_page(self, heads: Sequence[Head], version: str, token: str) -> Page:
        """Take a page.

        Args:
            version: Of the list.
            token: Where the next page begins; empty if this is the last.

        Raises:
            Damaged: It has no version, or an object has no name.
        """
        if not version or any(not head.name for head in heads):
            raise Damaged("the page has no resourceVersion, or an object in it no name")
        self._is_missed = False
        if not self._token and version_number(version) < version_number(self.version):
            self.known.update(dict.fromkeys(self.known, ""))
        news = []
        for index, head in enumerate(heads):
            name = (head.namespace, head.name)
            self._seen.add(name)
            if not head.version or self.known.get(name) != head.version:
                if name not in self.known:
                    self._fresh.add(name)
                self.known[name] = head.version
                news.append(index)
        if token:
            self._token = token
            return Page(tuple(news))
        gone = sorted(self.known.keys() - self._seen)
        for name in gone:
            del self.known[name]
        self._start_over()
        self._is_in_list = False
        self._failures = 0
        self._silent_s = 0.0
        self.version = version
        self.is_listed = True
        self.lists += 1
        self.trouble = None
        return Page(tuple(news), tuple(gone), is_last=True)

    def take_event(self, kind: str, head: Head) -> Verdict:
        """Take an event of the watch, but for `ERROR`.

        Raises:
            Damaged: It is of an unknown kind, or its object has no name or no version.
        """
        if not head.version:
            raise Damaged(f"an event {kind[:32]!r} has no resourceVersion")
        name = (head.namespace, head.name)
        verdict = Verdict.NOTHING
        if kind in ("ADDED", "MODIFIED", "DELETED"):
            if not head.name:
                raise Damaged(f"the object of an event {kind} has no name")
            if kind == "DELETED":
                if self.known.pop(name, None) is not None:
                    verdict = Verdict.DELETE
            elif self.known.get(name) != head.version:
                self.known[name] = head.version
                verdict = Verdict.UPSERT
        elif kind != "BOOKMARK":
            raise Damaged(f"found an event of type {kind[:32]!r}, expected ADDED, MODIFIED, DELETED, BOOKMARK or ERROR")
        self.version = head.version
        self._failures = self._relists = 0
        self._silent_s = 0.0
        self.trouble = None
        return verdict

    def ended(self, *, lasted_s: float, has_spoken: bool) -> None:
        """Take the end of a watch in order: after the time it was asked for, or because the API server stops."""
        if has_spoken or lasted_s >= SHORT_WATCH_S:
            self._failures = 0
            if not has_spoken:
                self._was_silent(lasted_s)
        else:
            self._back_off()

    def failed(self, error: ClusterError, *, lasted_s: float = 0.0, silent_s: float = 0.0) -> tuple[Name, ...]:
        """Take the failure of the last step, whatever it was; return the objects that are known to be gone by it.

        Args:
            lasted_s: How long a watch was open before.
            silent_s: For how much of that it had said nothing at the end.
        """
        if lasted_s >= SHORT_WATCH_S:
            self._failures = 0
        if isinstance(error, VersionUnusable):
            self._lost_track(is_expired=True)
        elif isinstance(error, OverBudget):
            what = f"{self._collection.resource}: {error}; what was known before stays in force"
            self.trouble = Trouble(Reason.SOURCE_FAILED, what)
            gone = tuple(sorted(self._fresh))  # what an unfinished list brought: it leads to no whole one
            for name in gone:
                del self.known[name]
            self._restart()
            self._back_off()
            return gone
        elif isinstance(error, Damaged):
            if self._relists >= 1:
                self.trouble = Trouble(Reason.SOURCE_FAILED, f"{self._collection.resource}: {error}")
            self._lost_track()
        elif isinstance(error, ResponseTooLarge):
            self._too_large(error)
        elif isinstance(error, ClusterNotFound):
            return self._missing(error)
        elif isinstance(error, ClusterForbidden):
            self._forbidden(error)
        elif isinstance(error, ClusterRejected):
            self.trouble = Trouble(
                Reason.SOURCE_FAILED,
                str(error),
                "check the setting labelSelector" if self._collection.label_selector else "",
            )
            self._restart()
            self._back_off()
        else:
            if type(error) is ClusterError and error.status:
                self.trouble = Trouble(Reason.SOURCE_FAILED, str(error))
            self._back_off(retry_after_s=error.retry_after_s, is_for_api=error.status == 0)
            self._was_silent(silent_s)
        return ()

    # --- what outcomes lead to ---------------------------------------------------------------------------------------

    def _start_over(self) -> None:
        """Have the next list begin at its beginning, in pages."""
        self._token = ""
        self._seen = set()
        self._fresh = set()
        self._is_whole = False

    def _restart(self) -> None:
        self._start_over()
        self._is_in_list = True

    def _lost_track(self, *, is_expired: bool = False) -> None:
        """List everything, since nothing else tells what was missed; in one page if a list took too long for pages."""
        was_between_pages = is_expired and self._is_in_list and bool(self._token)
        self._restart()
        self._is_whole = was_between_pages
        self._relists += 1
        wait_s = full_jitter(self._relists - 1, initial_s=FIRST_BACKOFF_S, max_s=MAX_BACKOFF_S, rng=self._rng)
        spread_s = self._rng.random() * RELIST_SPREAD_S
        self._pause = Wait(max(wait_s, spread_s))

    def _was_silent(self, seconds: float) -> None:
        self._silent_s += seconds
        if self._silent_s >= SILENT_S:
            self._silent_s = 0.0
            self._lost_track()

    def _too_large(self, error: ResponseTooLarge) -> None:
        if not self._is_in_list:
            self._lost_track()
            return
        limit = self._limit if self._is_whole else max(1, self._limit // PAGE_SHRINK)
        if limit == self._limit and not self._is_whole:
            self.trouble = Trouble(
                Reason.SOURCE_FAILED, str(error), f"make the objects of {self._collection.resource} smaller"
            )
            self._back_off()
        self._start_over()
        self._limit = limit

    def _missing(self, error: ClusterNotFound) -> tuple[Name, ...]:
        one = self._collection
        was_in_list = self._is_in_list
        self._restart()
        if not was_in_list:
            self._back_off()
            return ()
        if one.is_optional and (self._is_missed or not self.known):
            gone = tuple(sorted(self.known))
            self.known.clear()
            self.is_listed = True
            self.trouble = None
            self._pause = Wait(ABSENT_RETRY_S * self._rng.uniform(0.8, 1.2))
            return gone
        # Said once, it may be an API server that is just starting: what works is not taken away for that.
        self._is_missed = True
        if not one.is_optional:
            self.trouble = (
                Trouble(
                    Reason.UNKNOWN_KIND,
                    f"CRD not installed: the API does not know {one.resource} in {one.api_version}",
                    "kubectl apply -f manifests/crds/",
                )
                if one.is_ours
                else Trouble(Reason.UNKNOWN_KIND, f"the API does not serve {one.resource}: {error}")
            )
        self._back_off()
        return ()

    def _forbidden(self, error: ClusterForbidden) -> None:
        one = self._collection
        if error.status == 401:
            self.trouble = Trouble(Reason.SOURCE_FAILED, str(error), "renew the credentials of this process")
        else:
            verb = "list" if self._is_in_list else "watch"
            what = f"{one.resource} {one.name}" if one.name else one.resource
            rule = f"resources [{one.resource.partition('.')[0]}], verbs [get, list, watch]"
            if one.name:
                rule += f", resourceNames [{one.name}]"
            is_credential = one.kind in CREDENTIAL_KINDS
            is_expected = one.is_optional and not is_credential
            said = str(error).rpartition(": the API answered 403 Forbidden: ")[2]
            self.trouble = Trouble(
                Reason.SOURCE_FAILED,
                f"the right to {verb} {what} in {one.where} is missing: {said}",
                f"grant it by a {'Role there' if one.namespace else 'ClusterRole'}: {rule}; {_example(one)} does",
                Severity.WARNING if is_expected else Severity.ERROR,
            )
            if one.is_optional and self._is_in_list:
                self.is_listed = True  # there is nothing to be had, and what is known stays in force
        self._back_off()

    def _back_off(self, *, retry_after_s: float = 0.0, is_for_api: bool = False) -> None:
        if self._is_unreachable and not is_for_api:
            # It answers again, if only that it is not ready yet: how long it was away says nothing about that.
            self._failures = 0
        self._is_unreachable = is_for_api
        self._failures += 1
        max_s = self._unreachable_max_s if is_for_api else MAX_BACKOFF_S
        wait_s = full_jitter(self._failures, initial_s=FIRST_BACKOFF_S, max_s=max_s, rng=self._rng)
        if retry_after_s:
            wait_s = max(wait_s, retry_after_s + self._rng.random() * FIRST_BACKOFF_S)
        self._pause = Wait(wait_s, is_for_api=is_for_api)


def _example(collection: Collection) -> str:
    """Return which of our manifests grants what this collection needs."""
    if collection.kind in CREDENTIAL_KINDS:
        return "manifests/examples/gateway-secret-access.yaml"
    is_scoped = collection.namespace and collection.kind != "Lease"
    return "manifests/overlays/namespaced" if is_scoped else "manifests/rbac/rbac.yaml"
