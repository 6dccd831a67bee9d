"""The source against an API that says whatever it is told to say: faults that a real one cannot be made to have."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from datum_router.compiler.diagnostics import Severity
from datum_router.errors import ConfigError, SourceError
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.secret import ConfigMap, Secret
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.plugins.protocols import CountingSource, SourceEvent
from datum_router.reasons import Reason
from datum_router_kubernetes import budget, follow, listwatch
from datum_router_kubernetes import source as source_module
from datum_router_kubernetes.listwatch import ListWatch
from datum_router_kubernetes.plugin import datum_router_sources
from datum_router_kubernetes.source import KubernetesSource, create_source
from datum_router_kubernetes.testing import (
    TOKEN,
    Asked,
    Lines,
    Reply,
    RunningSource,
    ScriptedApi,
    bookmark,
    event,
    eventually,
    failure,
    item,
    page,
    refusal,
    watch,
)


class Thing(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    metadata: ObjectMeta
    size: int = 0


def kind(name: str, plural: str, **fields: object) -> ResourceKind:
    made = ResourceKind(group="x.test", version="v1", kind=name, plural=plural, struct=Thing)
    return msgspec.structs.replace(made, **fields)


THING = kind("Thing", "things")
OTHER = kind("Other", "others", is_optional=True)
SECRET = ResourceKind(group="", version="v1", kind="Secret", plural="secrets", struct=Secret)
CONFIG_MAP = ResourceKind(group="", version="v1", kind="ConfigMap", plural="configmaps", struct=ConfigMap)
INGRESS = next(one for one in OWN_KINDS if one.kind == "VPCIngress")
SERVICE = next(one for one in OWN_KINDS if one.kind == "VPCService")

THINGS = "/apis/x.test/v1/things"
OTHERS = "/apis/x.test/v1/others"
INGRESSES = "/apis/router.datum.net/v1alpha1/vpcingresses"
SECRETS = "/api/v1/namespaces/default/secrets"


FROM_THE_FUTURE = failure(504, "Timeout").replace(
    b'"so it is"', b'"so it is", "details": {"causes": [{"reason": "ResourceVersionTooLarge"}]}'
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(follow, "MAX_BACKOFF_S", 0.1)
    monkeypatch.setattr(follow, "RELIST_SPREAD_S", 0.01)
    monkeypatch.setattr(follow, "ABSENT_RETRY_S", 0.1)
    monkeypatch.setattr(listwatch, "RETURN_SPREAD_S", 0.01)


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with ScriptedApi() as one:
        yield one


class Stage:
    """Make sources that read the scripted API."""

    def __init__(self, api: ScriptedApi, directory: Path) -> None:
        self.kubeconfig = str(api.kubeconfig(directory))

    def source(self, *kinds: ResourceKind, max_named_watches: int = 256, **settings: str) -> KubernetesSource:
        return KubernetesSource(
            {"kubeconfig": self.kubeconfig, **settings},
            KindTable(kinds),
            max_named_watches=max_named_watches,
            seed=1,
        )

    def run(self, *kinds: ResourceKind, max_named_watches: int = 256, **settings: str) -> RunningSource:
        source = self.source(*kinds, max_named_watches=max_named_watches, **settings)
        return RunningSource(source, KindTable(kinds))


@pytest.fixture
def stage(api: ScriptedApi, tmp_path: Path) -> Stage:
    return Stage(api, tmp_path)


def ingress(name: str, secret: str, version: str = "1") -> dict[str, object]:
    return item(name, version, spec={"host": "a.example", "tls": {"secretName": secret}})


def named(api: ScriptedApi, name: str, *, is_watch: bool = False) -> list[Asked]:
    selector = f"metadata.name={name}"
    return [one for one in api.asked if one.query.get("fieldSelector") == selector and one.is_watch == is_watch]


# --- an API of somebody else ---------------------------------------------------------------------------------------


def endless(asked: Asked) -> Reply:
    """Return a page of objects that were never seen before, and that there are more."""
    start = int(asked.query.get("continue", "0"))
    return page([item(f"o{asked.at}-{start + number}") for number in range(100)], token=str(start + 100))


def test_a_list_without_an_end_is_not_read_for_ever_and_not_kept(api: ScriptedApi, stage: Stage) -> None:
    api.lists(THINGS, endless)
    with stage.run(THING, OTHER, maxObjects="1000") as running:
        running.wait(lambda: any("more than 1000 objects" in one.message for one in running.diagnostics()), "told")
        asked = len(api.asked_for(THINGS, is_watch=False))
        running.wait(lambda: len(api.asked_for(THINGS, is_watch=False)) > asked + 40, "tried again, later each time")
        assert len(running.names("Thing")) <= 1000
        # A list that is under way turns out to be too old to be gone on with.
        api.lists(THINGS, lambda asked: refusal(410, "Expired") if asked.query.get("continue") else page([item("a")]))
        running.wait_synced()
        assert running.names("Thing") == ["a"]
        running.wait(lambda: running.diagnostics() == (), "nothing is wrong any more")


def test_events_beyond_the_budget_are_not_taken_and_what_was_known_stays(api: ScriptedApi, stage: Stage) -> None:
    api.lists(THINGS, page([item("a"), item("b")]))
    api.watches(THINGS, watch(*(event("ADDED", item(f"c{number}", "11")) for number in range(5))))
    with stage.run(THING, maxObjects="4") as running:
        running.wait(lambda: any("more than 4 objects" in one.message for one in running.diagnostics()), "told")
        assert running.names("Thing") == ["a", "b", "c0", "c1"]


def test_objects_that_take_up_too_much_are_not_taken(api: ScriptedApi, stage: Stage) -> None:
    api.lists(THINGS, page([item("a", note="x" * 5000)]))
    with stage.run(THING, maxBytes="4000") as running:
        running.wait(lambda: any("more than 4000 bytes" in one.message for one in running.diagnostics()), "told")
        assert running.names("Thing") == []


def test_a_flood_of_events_is_read_at_a_rate(api: ScriptedApi, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    paced: list[int] = []

    def pace(_budget: budget.Budget, events: int, *, now: float) -> float:
        paced.append(events)
        return 3600.0 if sum(paced) >= 100 else 0.0

    monkeypatch.setattr(budget.Budget, "pace", pace)
    lines = Lines()
    for number in range(100):
        lines.put(event("ADDED", item(f"c{number:03}", str(11 + number))))
    api.watches(THINGS, Reply(chunks=lines, then="hang"))
    source = stage.source(THING, maxObjects="1000")
    with RunningSource(source, KindTable([THING])) as running:
        running.wait(lambda: len(running.names("Thing")) == 100, "what came first")
        lines.put(event("ADDED", item("late", "500")))
        lines.put(None)
        eventually(lambda: sum(paced) == 100, "it waits")
        assert "late" not in running.names("Thing")
        assert source.stats()["paced_seconds/Thing"] == 3600.0
    # that it ends at once although it waits is what the end of the block is about


# --- what is told --------------------------------------------------------------------------------------------------


def test_pages_then_synced_then_changes(api: ScriptedApi, stage: Stage) -> None:
    lines = Lines()
    api.lists(THINGS, page([item("a"), item("b")], token="t"), page([item("c")]))
    api.watches(THINGS, Reply(chunks=lines))
    with stage.run(THING, pageSize="2") as running:
        running.wait_synced()
        assert running.told() == ["+a", "+b", "+c", "Thing@10", "synced"]
        lists = api.asked_for(THINGS, is_watch=False)
        assert [one.query for one in lists] == [{"limit": "2"}, {"limit": "2", "continue": "t"}]
        lines.put(event("MODIFIED", item("a", "11", size=5)) + event("ADDED", item("d", "12")))
        running.wait(lambda: "d" in running.names("Thing"), "d is there")
        lines.put(event("DELETED", item("b", "13")))
        lines.put(bookmark("20"))
        running.wait(lambda: "Thing@20" in running.told(), "the mark")
        assert running.told()[5:] == ["+a", "+d", "Thing@12", "-b", "Thing@13", "Thing@20"]
        assert running.names("Thing") == ["a", "c", "d"]
        found = running.view.get("Thing", "default", "a")
        assert isinstance(found, Thing)
        assert (found.api_version, found.kind, found.size) == ("x.test/v1", "Thing", 5)
        (begun,) = api.asked_for(THINGS, is_watch=True)
        assert begun.query["resourceVersion"] == "10"
        assert begun.query["allowWatchBookmarks"] == "1" or begun.query["allowWatchBookmarks"] == "true"
        assert 300 <= int(begun.query["timeoutSeconds"]) <= 600
        lines.put(None)


def test_synced_waits_for_every_kind(api: ScriptedApi, stage: Stage) -> None:
    held = Lines()
    api.lists(OTHERS, Reply(chunks=held))
    with stage.run(THING, OTHER) as running:
        running.wait(lambda: "Thing@10" in running.told(), "things are listed")
        assert not running.is_synced
        held.put(page([]).body)
        held.put(None)
        running.wait_synced()


def test_metadata_alone_is_asked_for_where_it_is_enough(api: ScriptedApi, stage: Stage) -> None:
    partial = {**item("a"), "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    api.lists(THINGS, page([partial]))
    with stage.run(kind("Thing", "things", is_metadata_only=True)) as running:
        running.wait_synced()
        assert running.names("Thing") == ["a"]
        running.wait(lambda: api.asked_for(THINGS, is_watch=True), "watched")
    assert api.asked[0].headers["accept"].startswith("application/json;as=PartialObjectMetadataList")
    assert api.asked[1].headers["accept"].startswith("application/json;as=PartialObjectMetadata;")


def test_of_several_namespaces_each_has_a_mark_of_its_own(api: ScriptedApi, stage: Stage) -> None:
    lines = Lines()
    api.lists("/apis/x.test/v1/namespaces/one/things", page([item("a", namespace="one")], "9"))
    api.lists("/apis/x.test/v1/namespaces/two/things", page([item("b", namespace="two")], "12"))
    api.watches("/apis/x.test/v1/namespaces/one/things", Reply(chunks=lines))
    with stage.run(THING, namespaces="one,two") as running:
        running.wait_synced()
        assert sorted(word for word in running.told() if "@" in word) == ["Thing/one@9", "Thing/two@12"]
        lines.put(bookmark("100"))
        running.wait(lambda: "Thing/one@100" in running.told(), "the other one is where it was")
        lines.put(None)


def test_only_so_many_kinds_are_listed_at_a_time(api: ScriptedApi, stage: Stage) -> None:
    held = [Lines() for _ in range(listwatch.LISTS_AT_ONCE + 2)]
    kinds = [kind(f"Kind{number}", f"kinds{number}") for number in range(len(held))]
    for number, lines in enumerate(held):
        api.lists(f"/apis/x.test/v1/kinds{number}", Reply(chunks=lines))
    with stage.run(*kinds) as running:
        for first in range(len(held)):
            expected = min(len(held), first + listwatch.LISTS_AT_ONCE)
            running.wait(lambda expected=expected: len(lists_asked(api)) == expected, f"{expected} lists")
            asked = lists_asked(api)[first]
            lines = held[int(asked.path.rpartition("kinds")[2])]
            assert len(lists_asked(api)) == expected
            lines.put(page([]).body)
            lines.put(None)
        running.wait_synced()


def lists_asked(api: ScriptedApi) -> list[Asked]:
    return [one for one in list(api.asked) if not one.is_watch]


def test_counts_are_kept(api: ScriptedApi, stage: Stage) -> None:
    api.lists(THINGS, page([item("a")]), page([item("a")], version="12"))
    api.watches(THINGS, watch(event("ADDED", item("b", "11")), then="end"), watch(failure(410)), watch())
    source = stage.source(THING)
    assert isinstance(source, CountingSource)
    assert source.stats() == {}
    with RunningSource(source, KindTable([THING])) as running:
        running.wait(lambda: source.stats().get("watches/Thing") == 3, "three watches")
        stats = source.stats()
    assert stats["lists/Thing"] == 2
    assert stats["relists/Thing"] == 1
    assert stats["watch_restarts/Thing"] == 2
    assert stats["events/Thing"] == 3  # a, b, and that b is gone
    assert stats["errors/Thing"] == 1
    assert 0 <= stats["stale_seconds"] <= stats["silent_seconds/Thing"] < 20


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        watch(b'{"type":"ADDED","obj', then="end"),
        watch(b"nonsense\n"),
        watch(b"\xff\xfe\n"),
        watch(b"[]\n"),
        watch(event("RENAMED", item("a", "11"))),
        watch(event("ADDED", {"spec": {}})),
        watch(event("ADDED", {"metadata": {"name": 5}})),
        watch(b'{"type":"ERROR","object":{}}\n'),
        watch(failure(410, "Expired")),
        watch(event("ADDED", item("x", "11")), failure(410, "Gone")),
        watch(FROM_THE_FUTURE),
        refusal(410, "Expired"),
        refusal(400, "BadRequest"),
        refusal(404, "NotFound"),
    ],
    ids=["truncated", "no-json", "no-utf8", "no-object", "unknown-type", "no-metadata", "bad-name", "no-status",
         "gone-event", "gone-mid-stream", "version-too-large", "gone", "bad-request", "not-found"],
)  # fmt: skip
def test_what_cannot_be_gone_on_from_leads_to_a_list_that_finds_what_is_gone(
    api: ScriptedApi, stage: Stage, fault: Reply
) -> None:
    api.lists(THINGS, page([item("a"), item("b")]), page([item("a"), item("c")], "20"))
    api.watches(THINGS, fault, watch(event("MODIFIED", item("a", "21"))))
    with stage.run(THING) as running:
        running.wait(lambda: "Thing@21" in running.told(), "it goes on")
        assert running.names("Thing") == ["a", "c"]
        assert running.diagnostics() == ()
        assert "-a" not in running.told()
        assert len(api.asked_for(THINGS, is_watch=False)) == 2
        assert api.asked_for(THINGS, is_watch=True)[1].query["resourceVersion"] == "20"


@pytest.mark.parametrize(
    "fault",
    [
        watch(then="end"),
        watch(then="cut"),
        watch(b'{"type":"ADDED","obj', then="cut"),
        watch(failure(500, "InternalError")),
        watch(failure(429, "TooManyRequests")),
        refusal(500),
        refusal(503),
        refusal(403, "Forbidden"),
        Reply(then="cut"),
    ],
    ids=["end", "cut", "cut-in-a-line", "error-500", "error-429", "500", "503", "403", "no-answer"],
)
def test_what_can_be_gone_on_from_leads_to_no_list(api: ScriptedApi, stage: Stage, fault: Reply) -> None:
    api.lists(THINGS, page([item("a")]))
    api.watches(
        THINGS, watch(event("ADDED", item("b", "11")), bookmark("15"), then="end"), fault, fault, watch(bookmark("30"))
    )
    with stage.run(THING) as running:
        running.wait(lambda: "Thing@30" in running.told(), "it goes on")
        assert len(api.asked_for(THINGS, is_watch=False)) == 1
        watches = api.asked_for(THINGS, is_watch=True)
        assert {one.query["resourceVersion"] for one in watches[1:]} == {"15"}
        assert running.names("Thing") == ["a", "b"]


def test_a_silent_watch_is_opened_anew(api: ScriptedApi, stage: Stage) -> None:
    api.lists(THINGS, page([item("a")]))
    api.watches(THINGS, watch(bookmark("15")), watch(), watch(bookmark("30")))
    with stage.run(THING, watchIdleSeconds="0.2") as running:
        running.wait(lambda: "Thing@30" in running.told(), "the third watch speaks")
        assert len(api.asked_for(THINGS, is_watch=False)) == 1
        first, second, third = api.asked_for(THINGS, is_watch=True)[:3]
        assert second.at - first.at >= 0.2
        assert third.at - second.at >= 0.2
        assert third.query["resourceVersion"] == "15"


def test_objects_before_a_broken_line_are_taken(api: ScriptedApi, stage: Stage) -> None:
    held = Lines()
    api.lists(THINGS, page([]), Reply(chunks=held))
    api.watches(THINGS, watch(event("ADDED", item("b", "11")) + b"{\n"))
    with stage.run(THING) as running:
        running.wait(lambda: running.names("Thing") == ["b"], "b is there although the next line is broken")
        held.put(None)


def test_a_list_that_takes_longer_than_the_api_remembers_begins_again_in_one_page(
    api: ScriptedApi, stage: Stage
) -> None:
    api.lists(
        THINGS,
        page([item("a"), item("b")], token="t"),
        refusal(410, "Expired"),
        page([item("a"), item("c")], "30"),
    )
    with stage.run(THING) as running:
        running.wait_synced()
        assert running.told() == ["+a", "+b", "+c", "-b", "Thing@30", "synced"]
        assert [one.query for one in api.asked_for(THINGS, is_watch=False)] == [
            {"limit": "500"},
            {"limit": "500", "continue": "t"},
            {},
        ]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"items":[]}', b'{"metadata":{"resourceVersion":"1"},"items":[5]}']
)
def test_a_list_that_is_none_is_asked_for_again(api: ScriptedApi, stage: Stage, body: bytes) -> None:
    api.lists(THINGS, Reply(body=body), Reply(body=body), page([item("a")]))
    with stage.run(THING) as running:
        running.wait_synced()
        assert running.names("Thing") == ["a"]
        assert running.diagnostics() == ()


@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_the_api_asks_for_is_kept(api: ScriptedApi, stage: Stage, status: int) -> None:
    api.lists(THINGS, refusal(status, headers={"retry-after": "1"}), page([]))
    with stage.run(THING, OTHER) as running:
        running.wait_synced()
        first, second = api.asked_for(THINGS, is_watch=False)
        assert second.at - first.at >= 1.0


def test_a_kind_of_ours_that_is_not_installed_is_told_until_it_is(api: ScriptedApi, stage: Stage) -> None:
    api.lists(INGRESSES, refusal(404), refusal(404))
    with stage.run(INGRESS) as running:
        running.wait(running.diagnostics, "a diagnostic")
        (found,) = running.diagnostics()
        assert found.reason is Reason.UNKNOWN_KIND
        assert "CRD not installed" in found.message
        assert found.hint == "kubectl apply -f manifests/crds/"
        assert not running.is_synced
        api.lists(INGRESSES, page([]))
        running.wait_synced()
        running.wait(lambda: not running.diagnostics(), "the diagnostic is gone")


def test_an_optional_kind_is_looked_for_again_and_comes_and_goes(api: ScriptedApi, stage: Stage) -> None:
    api.lists(OTHERS, refusal(404), refusal(404), page([item("v")]))
    lines = Lines()
    api.watches(OTHERS, Reply(chunks=lines))
    with stage.run(THING, OTHER) as running:
        running.wait_synced()
        assert running.diagnostics() == ()
        running.wait(lambda: running.names("Other") == ["v"], "it appeared")
        api.lists(OTHERS, refusal(404))
        api.watches(OTHERS, refusal(404))
        lines.put(None)
        running.wait(lambda: running.names("Other") == [], "it vanished")
        assert running.told().count("synced") == 1


def test_a_missing_right_is_told_until_it_is_there(api: ScriptedApi, stage: Stage) -> None:
    message = 'things.x.test is forbidden: User "u" cannot list resource "things"'
    api.lists(THINGS, refusal(403, "Forbidden", message=message))
    with stage.run(THING) as running:
        running.wait(running.diagnostics, "a diagnostic")
        (found,) = running.diagnostics()
        assert found.severity is Severity.ERROR
        assert "the right to list things.x.test in all namespaces is missing" in found.message
        assert message in found.message
        assert TOKEN not in found.message
        assert not running.is_synced
        api.lists(THINGS, page([item("a")]))
        running.wait_synced()
        running.wait(lambda: not running.diagnostics(), "the diagnostic is gone")


def test_an_api_that_does_not_answer_is_told_and_waited_for(
    api: ScriptedApi, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "UNREACHABLE_S", 0.1)
    monkeypatch.setattr(source_module, "_LOOK_S", 0.02)
    api.lists(THINGS, Reply(then="cut"))
    api.lists(OTHERS, Reply(then="cut"))
    with stage.run(THING, OTHER) as running:
        running.wait(running.diagnostics, "a diagnostic")
        (found,) = running.diagnostics()
        assert "the API does not answer" in found.message
        assert not running.is_synced
        api.lists(THINGS, page([]))
        api.lists(OTHERS, page([]))
        running.wait_synced()
        running.wait(lambda: not running.diagnostics(), "the diagnostic is gone")


def test_who_waits_for_the_api_is_woken_by_the_first_answer(
    api: ScriptedApi, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "FIRST_BACKOFF_S", 30.0)
    monkeypatch.setattr(follow, "MAX_BACKOFF_S", 3600.0)
    monkeypatch.setattr(follow, "SCOUT_BACKOFF_S", 0.5)
    for path in (THINGS, OTHERS):
        api.lists(path, Reply(then="cut"), Reply(then="cut"), page([]))  # a request is sent twice each time
    with stage.run(THING, OTHER) as running:
        running.wait_synced()


def test_an_object_that_is_bad_keeps_others_in_force(api: ScriptedApi, stage: Stage) -> None:
    lines = Lines()
    api.lists(THINGS, page([item("a", size=1), item("b", size=1)]))
    api.watches(THINGS, Reply(chunks=lines))
    with stage.run(THING) as running:
        running.wait_synced()
        lines.put(event("MODIFIED", item("a", "11", size="huge")) + event("MODIFIED", item("b", "12", size=2)))
        running.wait(lambda: "Thing@12" in running.told(), "both came")
        sizes = {one.metadata.name: one.size for one in running.view.list("Thing") if isinstance(one, Thing)}
        assert sizes == {"a": 1, "b": 2}
        assert [one.object for one in running.diagnostics() if one.severity is Severity.ERROR] == ["thing default/a"]
        lines.put(None)


# --- Secrets and ConfigMaps ------------------------------------------------------------------------------------------


def test_a_secret_is_read_by_name_and_comes_before_the_ingress_that_names_it(api: ScriptedApi, stage: Stage) -> None:
    api.lists(INGRESSES, page([ingress("in", "tls")]))
    api.lists(SECRETS, page([item("tls")]))
    with stage.run(INGRESS, SECRET) as running:
        running.wait_synced()
        told = [word for word in running.told() if "@" not in word]
        assert told == ["+tls", "+in", "synced"]
        (asked,) = named(api, "tls")
        assert asked.path == SECRETS
        running.wait(lambda: named(api, "tls", is_watch=True), "it is watched by name")
        assert not [one for one in api.asked if one.path == SECRETS and "fieldSelector" not in one.query]


def test_a_page_is_decoded_in_parts_and_is_still_emitted_whole(
    api: ScriptedApi, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []
    note_named = source_module._Run._note_named

    def note(run: source_module._Run, thread: ListWatch, events: Sequence[SourceEvent]) -> None:
        parts.append(len(events))
        note_named(run, thread, events)

    monkeypatch.setattr(source_module._Run, "_note_named", note)
    monkeypatch.setattr(source_module, "DECODED_AT_ONCE", 2)
    names = [f"in-{at}" for at in range(5)]
    api.lists(INGRESSES, page([ingress(name, f"tls-{name}") for name in names]))
    api.lists(SECRETS, lambda asked: page([item(asked.query["fieldSelector"].partition("=")[2])]))
    with stage.run(INGRESS, SECRET) as running:
        running.wait_synced()
        told = [word for word in running.told() if "@" not in word]
    assert parts == [2, 2, 1]
    assert sorted(told[:5]) == [f"+tls-{name}" for name in names], "what each part names comes before all of them"
    assert told[5:] == [*(f"+{name}" for name in names), "synced"]


def test_a_secret_that_is_not_there_is_no_problem_and_is_found_when_it_comes(api: ScriptedApi, stage: Stage) -> None:
    lines = Lines()
    api.lists(INGRESSES, page([ingress("in", "tls")]))
    api.watches(SECRETS, Reply(chunks=lines))
    with stage.run(INGRESS, SECRET) as running:
        running.wait_synced()
        assert running.diagnostics() == ()
        assert running.names("VPCIngress") == ["in"]
        lines.put(event("ADDED", item("tls", "11")))
        running.wait(lambda: running.names("Secret") == ["tls"], "the secret came")
        lines.put(None)


def test_another_secret_comes_before_the_change_and_the_old_one_goes_after_it(api: ScriptedApi, stage: Stage) -> None:
    lines = Lines()
    api.lists(INGRESSES, page([ingress("in", "old")]))
    api.watches(INGRESSES, Reply(chunks=lines))
    api.lists(SECRETS, lambda asked: page([item(asked.query["fieldSelector"].partition("=")[2])]))
    with stage.run(INGRESS, SECRET) as running:
        running.wait_synced()
        lines.put(event("MODIFIED", ingress("in", "new", "11")))
        running.wait(lambda: running.names("Secret") == ["new"], "the old secret is let go of")
        told = [word for word in running.told() if "@" not in word]
        assert told == ["+old", "+in", "synced", "+new", "+in", "-old"]
        lines.put(event("DELETED", ingress("in", "new", "12")))
        running.wait(lambda: running.names("Secret") == [], "no secret is named any more")
        eventually(
            lambda: not [one for one in threading.enumerate() if one.name.startswith("kubernetes-Secret")],
            "no secret is watched any more",
        )
        lines.put(None)


def test_a_bad_version_keeps_the_secret_of_the_last_good_one(api: ScriptedApi, stage: Stage) -> None:
    lines = Lines()
    api.lists(INGRESSES, page([ingress("in", "tls")]))
    api.watches(INGRESSES, Reply(chunks=lines))
    api.lists(SECRETS, page([item("tls")]))
    with stage.run(INGRESS, SECRET) as running:
        running.wait_synced()
        lines.put(event("MODIFIED", item("in", "11", spec={"host": 5})))
        running.wait(running.diagnostics, "it is bad")
        assert running.names("Secret") == ["tls"]
        assert running.names("VPCIngress") == ["in"]
        lines.put(None)


def test_a_secret_that_may_not_be_read_is_told_and_holds_nothing_up(api: ScriptedApi, stage: Stage) -> None:
    api.lists(INGRESSES, page([ingress("in", "tls")]))
    api.lists(SECRETS, refusal(403, "Forbidden", message="no"))
    with stage.run(INGRESS, SECRET) as running:
        running.wait_synced()
        assert running.names("VPCIngress") == ["in"]
        (found,) = running.diagnostics()
        assert "the right to list secrets tls in namespace default is missing" in found.message
        assert "resourceNames [tls]" in found.hint


def test_a_secret_that_does_not_answer_holds_its_ingress_up_for_a_while_only(
    api: ScriptedApi, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "HOLD_BACK_S", 0.3)
    held = Lines()
    api.lists(INGRESSES, page([ingress("in", "tls")]))
    api.lists(SECRETS, Reply(chunks=held))
    with stage.run(INGRESS, SECRET) as running:
        running.wait(lambda: named(api, "tls"), "the secret is asked for")
        begun = time.monotonic()
        running.wait(lambda: running.names("VPCIngress") == ["in"], "the ingress came nevertheless")
        assert time.monotonic() - begun < 10
        assert not running.is_synced  # but what was named at the start has to be known
        held.put(page([item("tls")]).body)
        held.put(None)
        running.wait_synced()


def test_configmaps_of_services_are_read_by_name(api: ScriptedApi, stage: Stage) -> None:
    tls = {"caCertificateRefs": [{"name": "bundle"}]}
    spec = {"port": 443, "protocol": "HTTPS", "endpoints": [{"address": "10.0.0.1"}], "tls": tls}
    api.lists("/apis/router.datum.net/v1alpha1/vpcservices", page([item("s", spec=spec)]))
    api.lists("/api/v1/namespaces/default/configmaps", page([item("bundle")]))
    with stage.run(SERVICE, CONFIG_MAP) as running:
        running.wait_synced()
        assert [word for word in running.told() if "@" not in word] == ["+bundle", "+s", "synced"]


@pytest.mark.parametrize("role", ["controller", "cli"])
def test_only_gateways_read_secrets(api: ScriptedApi, stage: Stage, role: str) -> None:
    api.lists(INGRESSES, page([ingress("in", "tls")]))
    with stage.run(INGRESS, SECRET, role=role) as running:
        running.wait_synced()
        assert running.names("VPCIngress") == ["in"]
    assert not [one for one in api.asked if "secrets" in one.path]


def test_more_secrets_than_are_watched_are_told(api: ScriptedApi, stage: Stage) -> None:
    lines = Lines()
    api.lists(INGRESSES, page([ingress("in", "one"), ingress("on", "two")]))
    api.watches(INGRESSES, Reply(chunks=lines))
    api.lists(SECRETS, lambda asked: page([item(asked.query["fieldSelector"].partition("=")[2])]))
    with stage.run(INGRESS, SECRET, max_named_watches=1) as running:
        running.wait_synced()
        assert running.names("Secret") == ["one"]
        (found,) = running.diagnostics()
        assert "2 secrets and configmaps are named by manifests, 1 at most are read" in found.message
        assert "secret default/two" in found.message
        lines.put(event("DELETED", ingress("in", "one", "11")))
        running.wait(lambda: running.names("Secret") == ["two"], "there is room now")
        running.wait(lambda: not running.diagnostics(), "the diagnostic is gone")
        lines.put(None)


def test_secrets_of_a_namespace_with_many_give_way_to_those_of_another(api: ScriptedApi, stage: Stage) -> None:
    lines = Lines()
    api.lists(INGRESSES, page([ingress("in", "one"), ingress("on", "two")]))
    api.watches(INGRESSES, Reply(chunks=lines))
    api.lists(SECRETS, lambda asked: page([item(asked.query["fieldSelector"].partition("=")[2])]))
    theirs = item("theirs")
    theirs["metadata"]["namespace"] = "shop"  # type: ignore[index]
    api.lists("/api/v1/namespaces/shop/secrets", page([theirs]))
    other = ingress("other", "theirs", "11")
    other["metadata"]["namespace"] = "shop"  # type: ignore[index]
    with stage.run(INGRESS, SECRET, max_named_watches=2) as running:
        running.wait_synced()
        assert running.names("Secret") == ["one", "two"]
        lines.put(event("ADDED", other))
        running.wait(lambda: running.names("Secret") == ["one", "theirs"], "its share")
        running.wait(lambda: len(running.diagnostics()) == 1, "what is left out is told")
        assert "secret default/two" in running.diagnostics()[0].message
        lines.put(event("DELETED", {**other, "metadata": {**other["metadata"], "resourceVersion": "12"}}))  # type: ignore[dict-item]
        running.wait(lambda: running.names("Secret") == ["one", "two"], "there is room again")
        running.wait(lambda: not running.diagnostics(), "the diagnostic is gone")
        lines.put(None)


# --- life ----------------------------------------------------------------------------------------------------------


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("kubernetes-")]


def test_the_end_leaves_no_thread_behind_whatever_it_waits_for(api: ScriptedApi, stage: Stage) -> None:
    api.lists(OTHERS, Reply(chunks=(), then="hang"))  # in a list
    api.lists("/apis/x.test/v1/downs", refusal(503, headers={"retry-after": "100"}))  # in a wait
    api.lists(INGRESSES, page([ingress("in", "tls")]))  # held back
    api.lists(SECRETS, Reply(chunks=(), then="hang"))
    with stage.run(THING, OTHER, kind("Down", "downs"), INGRESS, SECRET) as running:
        running.wait(lambda: api.asked_for(THINGS, is_watch=True), "in a watch")
        running.wait(lambda: named(api, "tls"), "a secret is asked for")
        running.wait(lambda: api.asked_for("/apis/x.test/v1/downs", is_watch=False), "a wait")
        assert len(threads()) == 5
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    assert threads() == []


def test_the_end_is_not_held_up_by_an_api_that_cannot_be_connected_to(
    api: ScriptedApi, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "STOP_S", 0.1)
    held = Lines()
    api.lists(THINGS, Reply(chunks=held))
    monkeypatch.setattr("datum_router_kubernetes.client.Hold.close", lambda _hold: None)  # as if nothing could end it
    with stage.run(THING) as running:
        running.wait(lambda: api.asked, "asked")
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    held.put(page([]).body)
    held.put(None)
    eventually(lambda: not threads(), "the thread ends by itself")


def test_nothing_is_read_that_is_not_taken(api: ScriptedApi, stage: Stage) -> None:
    asked_before = 3
    api.lists(THINGS, *(page([item(f"a{number}")], token="t") for number in range(50)), page([]))
    with stage.run(THING) as running:
        running.gate.clear()
        running.wait(lambda: api.asked, "asked")
        time.sleep(0.3)  # there is nothing to wait for: nothing is to happen
        assert len(api.asked) <= asked_before
        running.gate.set()
        running.wait_synced()
        assert len(running.names("Thing")) == 50


def test_another_run_tells_everything_again_and_what_is_gone(api: ScriptedApi, stage: Stage) -> None:
    source = stage.source(THING, INGRESS, SECRET)
    kinds = KindTable([THING, INGRESS, SECRET])
    api.lists(THINGS, page([item("a"), item("b")]))
    api.lists(INGRESSES, page([ingress("in", "tls")]))
    api.lists(SECRETS, page([item("tls")]))
    with RunningSource(source, kinds) as running:
        running.wait_synced()
    api.lists(THINGS, page([item("b"), item("c")]))
    api.lists(INGRESSES, page([]))
    with RunningSource(source, kinds) as running:
        running.wait_synced()
        assert sorted(word for word in running.told() if "@" not in word) == ["+b", "+c", "-a", "-in", "-tls", "synced"]


def test_what_went_when_nobody_listened_any_more_is_told_by_the_next_run(
    api: ScriptedApi, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stage.source(THING)
    kinds = KindTable([THING])
    lines = Lines()
    api.lists(THINGS, page([item("a"), item("b")]), page([item("a")], "20"))
    api.watches(THINGS, Reply(chunks=lines))
    stop = source_module._Run.stop

    async def stop_late(run: source_module._Run) -> None:
        run._is_over = True
        lines.put(event("DELETED", item("b", "11")))
        with trio.fail_after(10):
            while source.stats()["events/Thing"] < 3:  # noqa: ASYNC110 - counted by another thread
                await trio.sleep(0.005)
        await stop(run)

    with monkeypatch.context() as patch:
        patch.setattr(source_module._Run, "stop", stop_late)
        with RunningSource(source, kinds) as running:
            running.wait_synced()
    lines.put(None)
    assert "-b" not in running.told()
    with RunningSource(source, kinds) as running:
        running.wait_synced()
        assert [word for word in running.told() if "@" not in word] == ["+a", "-b", "synced"]


def test_what_breaks_in_a_thread_is_begun_anew(
    api: ScriptedApi, stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    take_page = follow.Follower.take_page
    faults = iter([ValueError("a fault of ours")])

    def broken(self: follow.Follower, *args: object) -> follow.Page:
        for fault in faults:
            raise fault
        return take_page(self, *args)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(follow.Follower, "take_page", broken)
    api.lists(THINGS, page([item("a")]))
    with stage.run(THING) as running:
        running.wait_synced()
        assert running.names("Thing") == ["a"]
    assert "a collection cannot be followed" in caplog.text


def test_a_configuration_that_is_missing_ends_the_run_with_what_is_wrong(tmp_path: Path) -> None:
    source = KubernetesSource({"kubeconfig": str(tmp_path / "none")}, KindTable([THING]))

    def emit(events: object) -> None:
        raise AssertionError(events)

    with pytest.raises(SourceError, match="where there is no file"):
        trio.run(source.run, emit)
    with pytest.raises(ConfigError, match="where there is no file"):
        create_source({"kubeconfig": str(tmp_path / "none")}, KindTable([THING]))


def test_the_source_is_offered_by_its_hook(api: ScriptedApi, stage: Stage) -> None:
    (spec,) = datum_router_sources()
    assert spec.name == "kubernetes"
    source = spec.make({"kubeconfig": stage.kubeconfig}, KindTable([THING]))
    assert isinstance(source, KubernetesSource)
    with pytest.raises(ConfigError, match="unknown setting"):
        spec.make({"path": "x"}, KindTable([THING]))


def test_no_secret_shows_in_logs(api: ScriptedApi, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    api.lists(INGRESSES, page([ingress("in", "tls")]))
    data = {"tls.key": "U0VDUkVULVdPUkQ="}
    broken = json.dumps({"type": "MODIFIED", "object": {**item("tls", "11"), "data": data}})[:-1] + "x\n"
    api.lists(SECRETS, page([item("tls", data=data)]))
    api.watches(SECRETS, watch(broken.encode()), watch(event("MODIFIED", item("tls", "12", data={"tls.key": 5}))))
    with stage.run(INGRESS, SECRET) as running:
        running.wait(running.diagnostics, "a broken secret is told")
        told: list[SourceEvent] = [one for one in running.events if hasattr(one, "diagnostics")]
    assert "U0VDUkVU" not in caplog.text + repr(told)
    assert TOKEN not in caplog.text + repr(told)
