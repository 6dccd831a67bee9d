"""What is done next, whatever the API says: plain values in and out."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from datum_router.compiler.diagnostics import Severity
from datum_router.errors import (
    ClusterError,
    ClusterForbidden,
    ClusterNotFound,
    ClusterRejected,
    ClusterUnavailable,
)
from datum_router.reasons import Reason
from datum_router_kubernetes.answers import ResponseTooLarge, VersionUnusable
from datum_router_kubernetes.collection import Collection
from datum_router_kubernetes.follow import (
    ABSENT_RETRY_S,
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    MAX_WATCH_S,
    MIN_WATCH_S,
    RELIST_SPREAD_S,
    SCOUT_BACKOFF_S,
    Damaged,
    Follower,
    Head,
    Name,
    Page,
    ReadPage,
    Verdict,
    Wait,
    Watch,
)

ROUTES = Collection(
    kind="VPCRoute",
    api_version="router.datum.net/v1alpha1",
    path="/apis/router.datum.net/v1alpha1/vpcroutes",
    resource="vpcroutes.router.datum.net",
    is_ours=True,
)
VPCS = Collection(
    kind="VPC",
    api_version="galactic.datumapis.com/v1alpha",
    path="/apis/galactic.datumapis.com/v1alpha/vpcs",
    resource="vpcs.galactic.datumapis.com",
    is_optional=True,
)
SECRET = Collection(
    kind="Secret",
    api_version="v1",
    path="/api/v1/namespaces/shop/secrets",
    resource="secrets",
    namespace="shop",
    name="tls",
    is_optional=True,
)
GONE = VersionUnusable("too old", status=410)
DOWN = ClusterUnavailable("connection refused")
BUSY = ClusterUnavailable("busy", status=503)
MISSING = ClusterNotFound("not found", status=404)
FORBIDDEN = ClusterForbidden("may not", status=403)


class HighestRandom(random.Random):
    """Draw the largest numbers there are, so that waits are at their bounds."""

    def random(self) -> float:
        return 0.999999

    def randint(self, a: int, b: int) -> int:
        return b

    def uniform(self, a: float, b: float) -> float:
        return b


def make(
    collection: Collection = ROUTES,
    *,
    known: dict[Name, str] | None = None,
    is_scout: bool = False,
    page_size: int = 500,
) -> Follower:
    return Follower(
        collection,
        known={} if known is None else known,
        rng=HighestRandom(),
        page_size=page_size,
        is_scout=is_scout,
    )


def heads(*names: str, version: str = "1") -> list[Head]:
    return [Head("default", name, version) for name in names]


def listed(*names: str, collection: Collection = ROUTES, version: str = "10") -> Follower:
    """Return a follower that knows these and is about to watch."""
    follower = make(collection)
    assert isinstance(follower.step(), ReadPage)
    follower.take_page(heads(*names), version, "")
    return follower


def pause(follower: Follower) -> float:
    step = follower.step()
    assert isinstance(step, Wait), step
    return step.seconds


def known(follower: Follower) -> list[str]:
    return sorted(name for _, name in follower.known)


# --- lists ---------------------------------------------------------------------------------------------------------


def test_a_list_is_read_page_by_page_and_then_watched_from_its_version() -> None:
    follower = make()
    assert follower.step() == ReadPage("", 500)
    assert follower.take_page(heads("a", "b"), "10", "more") == Page((0, 1))
    assert not follower.is_listed
    assert follower.version == ""
    assert follower.step() == ReadPage("more", 500)
    assert follower.take_page(heads("c"), "10", "") == Page((0,), (), is_last=True)
    assert follower.is_listed
    assert follower.step() == Watch("10", MAX_WATCH_S)
    assert MIN_WATCH_S < MAX_WATCH_S


def test_an_empty_list_is_a_list() -> None:
    follower = make()
    assert follower.take_page([], "3", "").is_last
    assert follower.step() == Watch("3", MAX_WATCH_S)


def test_a_page_that_failed_is_asked_for_again_where_it_began() -> None:
    follower = make()
    follower.take_page(heads("a"), "10", "more")
    follower.failed(DOWN)
    pause(follower)
    assert follower.step() == ReadPage("more", 500)
    assert follower.take_page(heads("b"), "10", "").gone == ()


def test_a_list_that_outlives_its_version_begins_again_in_one_page() -> None:
    follower = make()
    follower.take_page(heads("a", "b"), "10", "more")
    assert follower.failed(GONE) == ()
    assert pause(follower) <= RELIST_SPREAD_S
    assert follower.step() == ReadPage("", 0)
    page = follower.take_page(heads("a") + heads("c", version="11"), "11", "")
    assert page == Page((1,), (("default", "b"),), is_last=True)  # b was emitted with the first page, and is gone


def test_a_later_list_is_in_pages_again() -> None:
    follower = make()
    follower.take_page(heads("a"), "10", "more")
    follower.failed(GONE)
    pause(follower)
    follower.take_page(heads("a"), "11", "")
    follower.failed(GONE)
    pause(follower)
    assert follower.step() == ReadPage("", 500)


def test_pages_get_smaller_until_they_are_read() -> None:
    follower = make(page_size=16)
    for limit in (16, 4, 1):
        assert follower.step() == ReadPage("", limit)
        follower.failed(ResponseTooLarge("too large"))
    assert follower.trouble is not None
    assert "smaller" in follower.trouble.hint
    assert pause(follower) <= FIRST_BACKOFF_S
    follower.take_page(heads("a"), "10", "")
    assert follower.trouble is None
    follower.failed(GONE)
    pause(follower)
    assert follower.step() == ReadPage("", 1)  # it would be too large again


def test_a_list_in_one_page_that_is_too_large_is_read_in_pages() -> None:
    follower = make()
    follower.take_page(heads("a"), "10", "more")
    follower.failed(GONE)
    pause(follower)
    assert follower.step() == ReadPage("", 0)
    follower.failed(ResponseTooLarge("too large"))
    assert follower.step() == ReadPage("", 500)


@pytest.mark.parametrize(("page", "version"), [(heads("a"), ""), ([Head("default", "", "1")], "10")])
def test_a_page_that_is_none_is_damage(page: Sequence[Head], version: str) -> None:
    with pytest.raises(Damaged):
        make().take_page(page, version, "")


def test_what_an_earlier_follower_emitted_is_emitted_again_or_found_to_be_gone() -> None:
    follower = make(known={("default", "a"): "", ("default", "b"): ""})
    assert follower.take_page(heads("a"), "10", "") == Page((0,), (("default", "b"),), is_last=True)


# --- watches -------------------------------------------------------------------------------------------------------


def test_events_change_what_is_known_and_where_the_watch_goes_on() -> None:
    follower = listed("a")
    assert follower.take_event("ADDED", Head("default", "b", "11")) is Verdict.UPSERT
    assert follower.take_event("MODIFIED", Head("default", "a", "12")) is Verdict.UPSERT
    assert follower.take_event("DELETED", Head("default", "b", "13")) is Verdict.DELETE
    assert known(follower) == ["a"]
    assert follower.take_event("BOOKMARK", Head("", "", "20")) is Verdict.NOTHING
    follower.ended(lasted_s=400, has_spoken=True)
    assert follower.step() == Watch("20", MAX_WATCH_S)


def test_events_that_come_twice_or_late_change_nothing() -> None:
    follower = listed("a")
    assert follower.take_event("MODIFIED", Head("default", "a", "1")) is Verdict.NOTHING
    assert follower.take_event("ADDED", Head("default", "b", "11")) is Verdict.UPSERT
    assert follower.take_event("ADDED", Head("default", "b", "11")) is Verdict.NOTHING
    assert follower.take_event("DELETED", Head("default", "b", "12")) is Verdict.DELETE
    assert follower.take_event("DELETED", Head("default", "b", "12")) is Verdict.NOTHING


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("RENAMED", Head("default", "a", "11")),
        ("", Head("default", "a", "11")),
        ("ADDED", Head("default", "", "11")),
        ("ADDED", Head("default", "a", "")),
        ("BOOKMARK", Head("", "", "")),
    ],
)
def test_an_event_that_is_none_is_damage_and_leads_to_a_list(kind: str, head: Head) -> None:
    follower = listed("a")
    with pytest.raises(Damaged) as caught:
        follower.take_event(kind, head)
    assert follower.version == "10"
    assert follower.failed(caught.value) == ()
    assert pause(follower) <= RELIST_SPREAD_S
    assert follower.step() == ReadPage("", 500)
    assert known(follower) == ["a"]


def test_damage_over_and_over_backs_off_and_is_told() -> None:
    follower = listed("a")
    waits = []
    for _ in range(8):
        follower.failed(Damaged("nonsense"))
        waits.append(pause(follower))
        follower.take_page(heads("a"), "10", "")  # lists are good, but each watch is broken
    assert waits == sorted(waits)
    assert waits[-1] > MAX_BACKOFF_S * 0.9
    follower.failed(Damaged("nonsense"))
    assert follower.trouble is not None
    assert "nonsense" in follower.trouble.message
    pause(follower)
    follower.take_page(heads("a"), "10", "")
    follower.take_event("BOOKMARK", Head("", "", "20"))
    assert follower.trouble is None
    follower.failed(Damaged("nonsense"))
    assert pause(follower) <= RELIST_SPREAD_S  # it starts over


def test_gone_while_watching_leads_to_a_list_that_finds_what_was_deleted() -> None:
    follower = listed("a", "b")
    assert follower.failed(GONE) == ()
    assert pause(follower) <= RELIST_SPREAD_S
    assert follower.step() == ReadPage("", 500)
    page = follower.take_page(heads("a") + heads("c", version="30"), "30", "")
    assert page == Page((1,), (("default", "b"),), is_last=True)
    assert follower.lists == 2


def test_a_watch_that_ends_in_order_goes_on_at_once() -> None:
    follower = listed("a")
    follower.ended(lasted_s=400, has_spoken=True)
    assert follower.step() == Watch("10", MAX_WATCH_S)
    follower.ended(lasted_s=2, has_spoken=False)
    assert follower.step() == Watch("10", MAX_WATCH_S)


def test_watches_that_end_at_once_without_a_word_back_off() -> None:
    follower = listed("a")
    waits = []
    for _ in range(8):
        follower.ended(lasted_s=0.01, has_spoken=False)
        waits.append(pause(follower))
    assert waits == sorted(waits)
    assert waits[-1] > MAX_BACKOFF_S * 0.9


def test_a_watch_that_breaks_goes_on_from_its_last_version_without_a_list() -> None:
    follower = listed("a")
    follower.take_event("ADDED", Head("default", "b", "11"))
    for _ in range(20):
        follower.failed(DOWN)
        pause(follower)
        assert follower.step() == Watch("11", MAX_WATCH_S)


def test_silent_watches_one_after_the_other_do_not_back_off() -> None:
    follower = listed("a")
    for _ in range(10):
        follower.failed(DOWN, lasted_s=70)
        assert pause(follower) <= FIRST_BACKOFF_S


def test_watches_that_say_nothing_at_all_lead_to_a_list() -> None:
    follower = listed("a", "b", version="1000")
    follower.failed(DOWN, lasted_s=70, silent_s=70)
    pause(follower)
    assert follower.step() == Watch("1000", MAX_WATCH_S)
    follower.failed(DOWN, lasted_s=70, silent_s=70)
    assert pause(follower) <= RELIST_SPREAD_S
    assert follower.step() == ReadPage("", 500)
    # The data was restored from a copy: versions are lower, and the one of `a` is there again for another content.
    assert follower.take_page(heads("a"), "900", "") == Page((0,), (("default", "b"),), is_last=True)
    assert follower.step() == Watch("900", MAX_WATCH_S)


def test_one_word_in_between_is_enough_to_go_on_watching() -> None:
    follower = listed("a")
    for version in range(11, 31):
        follower.take_event("BOOKMARK", Head("", "", str(version)))
        follower.failed(DOWN, lasted_s=110, silent_s=70)
        pause(follower)
        assert follower.step() == Watch(str(version), MAX_WATCH_S)


def test_a_watch_that_was_silent_to_its_end_leads_to_a_list() -> None:
    follower = listed("a")
    follower.ended(lasted_s=400, has_spoken=False)
    assert pause(follower) <= RELIST_SPREAD_S
    assert follower.step() == ReadPage("", 500)


# --- failures ------------------------------------------------------------------------------------------------------


def test_failures_back_off_up_to_a_bound_and_a_good_word_starts_that_over() -> None:
    follower = listed("a")
    waits = []
    for _ in range(10):
        follower.failed(BUSY)
        waits.append(pause(follower))
    assert waits[0] == pytest.approx(FIRST_BACKOFF_S, rel=0.01)
    assert waits[1] == pytest.approx(2 * FIRST_BACKOFF_S, rel=0.01)
    assert waits[-1] == pytest.approx(MAX_BACKOFF_S, rel=0.01)
    follower.take_event("BOOKMARK", Head("", "", "20"))
    follower.failed(BUSY)
    assert pause(follower) <= FIRST_BACKOFF_S


def test_the_wait_that_the_api_asks_for_is_kept_and_not_cut_short() -> None:
    follower = listed("a")
    follower.failed(ClusterUnavailable("slow down", status=429, retry_after_s=7))
    step = follower.step()
    assert isinstance(step, Wait)
    assert 7 <= step.seconds <= 7 + FIRST_BACKOFF_S
    assert not step.is_for_api


def test_who_cannot_reach_the_api_waits_for_it_and_one_of_them_looks_more_often() -> None:
    for follower, expected in ((make(), MAX_BACKOFF_S), (make(is_scout=True), SCOUT_BACKOFF_S)):
        for _ in range(10):
            follower.failed(DOWN)
            step = follower.step()
        assert isinstance(step, Wait)
        assert step.is_for_api
        assert step.seconds == pytest.approx(expected, rel=0.01)


def test_one_of_our_kinds_that_is_not_there_is_told_with_the_command_that_installs_it() -> None:
    follower = make()
    follower.failed(MISSING)
    assert not follower.is_listed
    assert follower.trouble is not None
    assert follower.trouble.reason is Reason.UNKNOWN_KIND
    assert follower.trouble.message.startswith("CRD not installed")
    assert follower.trouble.hint == "kubectl apply -f manifests/crds/"
    assert pause(follower) <= FIRST_BACKOFF_S
    follower.take_page([], "10", "")
    assert follower.trouble is None
    assert follower.is_listed


def test_our_objects_stay_when_their_kind_is_gone() -> None:
    follower = listed("a")
    for _ in range(5):
        assert follower.failed(MISSING) == ()
        pause(follower)
    assert known(follower) == ["a"]


def test_an_optional_kind_that_is_not_there_is_empty_and_looked_for_now_and_then() -> None:
    follower = make(VPCS)
    assert follower.failed(MISSING) == ()
    assert follower.is_listed
    assert follower.trouble is None
    step = follower.step()
    assert isinstance(step, Wait)
    assert ABSENT_RETRY_S * 0.8 <= step.seconds <= ABSENT_RETRY_S * 1.2
    assert not step.is_for_api
    assert follower.step() == ReadPage("", 500)
    assert follower.take_page(heads("v"), "10", "").news == (0,)


def test_an_optional_kind_that_vanishes_takes_its_objects_along_only_when_said_twice() -> None:
    follower = listed("v", "w", collection=VPCS)
    assert follower.failed(MISSING) == ()  # of the watch
    pause(follower)
    assert follower.failed(MISSING) == ()  # of the list
    pause(follower)
    assert follower.failed(MISSING) == (("default", "v"), ("default", "w"))
    assert known(follower) == []


def test_a_missing_right_is_told_by_name() -> None:
    follower = make()
    follower.failed(FORBIDDEN)
    assert follower.trouble is not None
    assert follower.trouble.severity is Severity.ERROR
    assert "the right to list vpcroutes.router.datum.net in all namespaces is missing" in follower.trouble.message
    rule = "resources [vpcroutes], verbs [get, list, watch]"
    assert follower.trouble.hint == f"grant it by a ClusterRole: {rule}; manifests/rbac/rbac.yaml does"
    assert not follower.is_listed
    assert pause(follower) <= FIRST_BACKOFF_S


def test_a_right_to_watch_alone_is_told_as_well_and_nothing_is_listed_for_it() -> None:
    follower = listed("a")
    follower.failed(FORBIDDEN)
    assert follower.trouble is not None
    assert "the right to watch" in follower.trouble.message
    pause(follower)
    assert isinstance(follower.step(), Watch)


def test_a_secret_that_may_not_be_read_is_an_error_and_keeps_nobody_waiting() -> None:
    follower = make(SECRET)
    follower.failed(FORBIDDEN)
    assert follower.is_listed
    assert follower.trouble is not None
    assert follower.trouble.severity is Severity.ERROR
    assert "secrets tls in namespace shop" in follower.trouble.message
    assert follower.trouble.hint.endswith("resourceNames [tls]; manifests/examples/gateway-secret-access.yaml does")


def test_an_optional_kind_that_may_not_be_read_is_a_warning() -> None:
    follower = make(VPCS)
    follower.failed(FORBIDDEN)
    assert follower.is_listed
    assert follower.trouble is not None
    assert follower.trouble.severity is Severity.WARNING


def test_credentials_that_are_refused_are_told_and_keep_everybody_waiting() -> None:
    follower = make(VPCS)
    follower.failed(ClusterForbidden("who are you", status=401))
    assert not follower.is_listed
    assert follower.trouble is not None
    assert follower.trouble.message == "who are you"


def test_a_selector_that_is_refused_is_told() -> None:
    follower = make(Collection(kind="VPCRoute", api_version="x/v1", path="/x", resource="r", label_selector="!!"))
    follower.failed(ClusterRejected("unable to parse requirement", status=400))
    assert follower.trouble is not None
    assert "labelSelector" in follower.trouble.hint
    pause(follower)
    assert follower.step() == ReadPage("", 500)


def test_other_refusals_are_told() -> None:
    follower = make()
    follower.failed(ClusterError("method not allowed", status=405))
    assert follower.trouble is not None
    assert follower.trouble.message == "method not allowed"
