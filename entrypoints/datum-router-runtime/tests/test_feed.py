import itertools
from collections.abc import Callable, Generator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from datum_router.compiler.compiler import STEP_OBJECTS, Compiler, CompileResult
from datum_router.compiler.diagnostics import Origin
from datum_router.errors import SourceError, TerminalSourceError
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.table import KindTable
from datum_router.manifests.vpcservice import VPCService
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.plugins.protocols import Delete, Emit, Mark, SourceEvent, Synced, Upsert
from datum_router.reasons import Reason
from datum_router.registry.store import Store, StoreChange, StoreView
from datum_router_runtime import feed as feed_module
from datum_router_runtime.feed import FEW_EVENTS, Feed


@pytest.fixture(scope="module")
def plugins() -> PluginSet:
    return load_plugins([Candidate(entry_point="builtin", distribution="", load=lambda: builtin)])


def upsert(name: str, port: int = 80) -> Upsert:
    raw = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCService",
        "metadata": {"name": name},
        "spec": {"port": port, "endpoints": [{"address": "10.0.0.1"}]},
    }
    return Upsert(source="test", raw=raw, origin=Origin(source="test", file=f"{name}.yaml"))


class Scripted:
    """A source that waits for what the test gives it."""

    def __init__(self, *first: SourceEvent) -> None:
        self.first = first
        self.emit: Emit | None = None
        self.runs = 0

    async def run(self, emit: Emit) -> None:
        self.runs += 1
        self.emit = emit
        emit(self.first)
        await trio.sleep_forever()


def drive(plugins: PluginSet, sources: dict[str, Any], script: Callable[..., Any]) -> list[tuple[float, CompileResult]]:
    published: list[tuple[float, CompileResult]] = []
    store = Store(plugins.kinds)
    feed = Feed(
        sources=sources,
        store=store,
        compiler=Compiler(plugins),
        publish=lambda result: published.append((trio.current_time(), result)),
        debounce_s=0.05,
        debounce_max_s=1.0,
    )

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run)
            await script(feed)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return published


def test_nothing_is_published_before_every_source_is_synced(plugins: PluginSet) -> None:
    first, second = Scripted(upsert("a"), Synced(source="one")), Scripted(upsert("b"))

    async def script(feed: Feed) -> None:
        await trio.sleep(5)
        assert not feed.synced
        assert second.emit is not None
        second.emit([Synced(source="two")])
        await trio.sleep(1)

    published = drive(plugins, {"one": first, "two": second}, script)
    assert len(published) == 1
    assert set(published[0][1].data.services) == {"default/a", "default/b"}


def test_the_first_change_goes_at_once_and_those_that_follow_are_gathered(plugins: PluginSet) -> None:
    source = Scripted(Synced(source="one"))

    async def script(feed: Feed) -> None:
        await trio.sleep(10)
        begun.append(trio.current_time())
        for index in range(5):
            feed.emit([upsert("a", 100 + index)])
            await trio.sleep(0.01)
        await trio.sleep(2)

    begun: list[float] = []
    published = drive(plugins, {"one": source}, script)
    moments = [moment - begun[0] for moment, _ in published[1:]]
    assert len(moments) == 2
    assert moments[0] == pytest.approx(0.0, abs=0.011)
    assert moments[1] <= 0.2


@pytest.mark.parametrize("gap_s", [0.0, 0.03], ids=["in one batch", "one after the other"])
def test_what_is_replaced_is_never_missing(plugins: PluginSet, gap_s: float) -> None:
    source = Scripted(upsert("a", 80), Synced(source="one"))

    async def script(feed: Feed) -> None:
        await trio.sleep(10)
        gone = Delete(source="test", key=ObjectKey(kind="VPCService", namespace="default", name="a"))
        if gap_s:
            feed.emit([gone])
            await trio.sleep(gap_s)
            feed.emit([upsert("a", 81)])
        else:
            feed.emit([gone, upsert("a", 81)])
        await trio.sleep(2)

    published = drive(plugins, {"one": source}, script)
    assert [len(result.data.services) for _, result in published] == [1, 1]


def test_what_is_gone_for_good_goes_after_a_moment_whatever_else_comes(plugins: PluginSet) -> None:
    source = Scripted(upsert("a"), upsert("b"), Synced(source="one"))

    async def script(feed: Feed) -> None:
        await trio.sleep(10)
        begun.append(trio.current_time())
        feed.emit([Delete(source="test", key=ObjectKey(kind="VPCService", namespace="default", name="a"))])
        for index in range(20):
            await trio.sleep(0.02)
            feed.emit([upsert("b", 100 + index)])

    begun: list[float] = []
    published = drive(plugins, {"one": source}, script)
    moment, result = published[1]
    assert moment - begun[0] == pytest.approx(0.05, abs=0.011)
    assert set(result.data.services) == {"default/b"}


def test_kinds_that_spread_what_belongs_together_wait_for_the_rest_of_it(plugins: PluginSet) -> None:
    kinds = KindTable([msgspec.structs.replace(row, is_spread=row.kind == "VPCService") for row in plugins.kinds])
    source = Scripted(upsert("a"), Synced(source="one"))

    async def script(feed: Feed) -> None:
        await trio.sleep(10)
        feed.emit([msgspec.structs.replace(upsert("a", 81), kind="VPCService")])
        await trio.sleep(0.03)
        feed.emit([upsert("b")])
        await trio.sleep(2)

    published = drive(msgspec.structs.replace(plugins, kinds=kinds), {"one": source}, script)
    assert [len(result.data.services) for _, result in published] == [1, 2]


def test_changes_that_never_pause_are_in_force_within_the_longest_gathering(plugins: PluginSet) -> None:
    source = Scripted(Synced(source="one"))

    async def script(feed: Feed) -> None:
        await trio.sleep(10)
        for index in range(400):
            feed.emit([upsert("a", 100 + index)])
            await trio.sleep(0.01)

    published = drive(plugins, {"one": source}, script)
    moments = [moment for moment, _ in published[1:]]
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert len(moments) >= 4
    assert max(gaps) <= 1.06


def test_a_failing_source_is_started_again_and_what_it_emitted_stays(plugins: PluginSet) -> None:
    class Flaky(Scripted):
        async def run(self, emit: Emit) -> None:
            self.runs += 1
            if self.runs == 1:
                emit([upsert("a"), Synced(source="one")])
                raise SourceError("the other end went away")
            await trio.sleep_forever()

    source = Flaky()

    async def script(_feed: Feed) -> None:
        await trio.sleep(5)

    published = drive(plugins, {"one": source}, script)
    assert source.runs == 2
    last = published[-1][1]
    assert set(last.data.services) == {"default/a"}
    assert [item.reason for item in last.diagnostics] == [Reason.SOURCE_FAILED]


def test_a_terminal_failure_is_not_tried_again(plugins: PluginSet) -> None:
    class Broken(Scripted):
        async def run(self, emit: Emit) -> None:
            self.runs += 1
            raise TerminalSourceError("the directory is a file")

    source = Broken()

    async def script(_feed: Feed) -> None:
        await trio.sleep(100)

    drive(plugins, {"one": source}, script)
    assert source.runs == 1


def test_an_echo_is_not_compiled_again(plugins: PluginSet) -> None:
    events: Sequence[SourceEvent] = [upsert("a"), Synced(source="one")]
    source = Scripted(*events)

    async def script(feed: Feed) -> None:
        await trio.sleep(1)
        feed.emit([upsert("a")])
        await trio.sleep(1)

    assert len(drive(plugins, {"one": source}, script)) == 1


def test_a_source_or_a_compiler_that_breaks_takes_nothing_down(
    plugins: PluginSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Scripted):
        async def run(self, emit: Emit) -> None:
            self.runs += 1
            if self.runs == 1:
                emit([upsert("a"), Synced(source="one")])
                raise RuntimeError("a bug of the plugin")
            await trio.sleep_forever()

    whole = Compiler.compile_in_steps
    failing = [False]

    def compile_or_fail(self: Compiler, view: Any) -> Any:
        if failing[0]:
            raise AssertionError("a bug of ours")
        return whole(self, view)

    monkeypatch.setattr(Compiler, "compile_in_steps", compile_or_fail)
    failures: list[int] = []

    async def script(feed: Feed) -> None:
        await trio.sleep(5)
        failing[0] = True
        feed.emit([upsert("a", 81)])
        await trio.sleep(5)
        failures.append(feed.failures)
        failing[0] = False
        feed.emit([upsert("a", 82)])
        await trio.sleep(5)

    source = Broken()
    published = drive(plugins, {"one": source}, script)
    assert source.runs == 2
    assert failures == [1]
    assert published[-1][1].data.services["default/a"].endpoints[0].port == 82


def test_other_tasks_run_while_much_is_compiled_and_what_changes_meanwhile_is_compiled_next(
    plugins: PluginSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Scripted(*(upsert(f"a{n}") for n in range(5 * STEP_OBJECTS)), Synced(source="one"))
    whole = Compiler.compile_in_steps
    begun = [0]
    turns = [0]

    def count(self: Compiler, view: Any) -> Generator[None, None, CompileResult]:
        begun[0] += 1
        return (yield from whole(self, view))

    monkeypatch.setattr(Compiler, "compile_in_steps", count)

    async def script(feed: Feed) -> None:
        while not begun[0]:
            await trio.lowlevel.checkpoint()
        feed.emit([upsert("a0", 81)])
        while not feed.compilations:
            turns[0] += 1
            await trio.lowlevel.checkpoint()
        await trio.sleep(5)

    published = drive(plugins, {"one": source}, script)
    assert turns[0] >= 5
    ports = [result.data.services["default/a0"].endpoints[0].port for _, result in published]
    assert ports == [80, 81]


def test_other_tasks_run_while_much_is_decoded_and_what_is_emitted_meanwhile_comes_after_it(
    plugins: PluginSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Scripted(Synced(source="one"))
    whole = Store.apply
    turns = [0]
    monkeypatch.setattr(feed_module, "DECODE_TURN_S", 0.0)  # each object has a turn of its own
    applied: list[object] = []

    def note(self: Store, event: SourceEvent) -> StoreChange:
        assert isinstance(event, Upsert)
        applied.append((event.raw["metadata"]["name"], event.raw["spec"]["port"]))  # type: ignore[index]
        return whole(self, event)

    async def script(feed: Feed) -> None:
        await trio.sleep(1)
        monkeypatch.setattr(Store, "apply", note)
        feed.emit([upsert(f"a{n}") for n in range(FEW_EVENTS + 1)])
        assert not applied
        while not applied:
            await trio.lowlevel.checkpoint()
        feed.emit([upsert("a0", 81)])
        feed.emit([upsert("a0", 82)])
        while feed.compilations < 2:
            turns[0] += 1
            await trio.lowlevel.checkpoint()
        await trio.sleep(5)

    published = drive(plugins, {"one": source}, script)
    assert turns[0] >= FEW_EVENTS
    assert applied == [*((f"a{n}", 80) for n in range(FEW_EVENTS + 1)), ("a0", 81), ("a0", 82)]
    services = [result.data.services for _, result in published]
    assert len(services) == 2, "the first one, and one for all that came"
    assert services[1]["default/a0"].endpoints[0].port == 82


def test_a_large_first_batch_is_published_once_and_only_when_all_sources_have_synced(plugins: PluginSet) -> None:
    first = Scripted(*(upsert(f"a{n}") for n in range(FEW_EVENTS + 1)), Synced(source="one"))
    second = Scripted()

    async def script(feed: Feed) -> None:
        await trio.sleep(1)
        assert not feed.compilations
        assert second.emit is not None
        second.emit([Synced(source="two")])
        await trio.sleep(5)

    published = drive(plugins, {"one": first, "two": second}, script)
    assert [len(result.data.services) for _, result in published] == [FEW_EVENTS + 1]


def mark(version: str) -> Mark:
    return Mark(source="one", kind="VPCService", version=version)


def test_versions_count_as_published_once_what_came_before_them_is(plugins: PluginSet) -> None:
    source = Scripted(upsert("a"), mark("5"), Synced(source="one"))

    async def script(feed: Feed) -> None:
        assert feed.published_marks() == {}
        await trio.sleep(5)
        assert feed.published_marks() == {"VPCService": "5"}
        assert source.emit is not None
        source.emit([upsert("a", 81), mark("6")])
        assert feed.published_marks() == {"VPCService": "5"}
        await trio.sleep(1)
        assert feed.published_marks() == {"VPCService": "6"}
        source.emit([upsert("a", 81), mark("7")])
        assert feed.published_marks() == {"VPCService": "7"}, "what changes nothing is in force at once"

    drive(plugins, {"one": source}, script)


def test_versions_of_a_large_batch_wait_for_it(plugins: PluginSet) -> None:
    source = Scripted(upsert("a"), mark("5"), Synced(source="one"))

    async def script(feed: Feed) -> None:
        await trio.sleep(5)
        assert source.emit is not None
        source.emit([*(upsert(f"s{index}") for index in range(FEW_EVENTS + 1)), mark("60")])
        source.emit([mark("61")])
        assert feed.published_marks() == {"VPCService": "5"}
        await trio.sleep(5)
        assert feed.published_marks() == {"VPCService": "61"}

    drive(plugins, {"one": source}, script)


def test_versions_of_what_could_not_be_compiled_are_not_in_force(
    plugins: PluginSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Scripted(upsert("a"), mark("5"), Synced(source="one"))

    async def script(feed: Feed) -> None:
        await trio.sleep(5)
        assert source.emit is not None

        def broken(_self: Compiler, _view: object) -> Generator[None, None, CompileResult]:
            yield
            raise RuntimeError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(Compiler, "compile_in_steps", broken)
            source.emit([upsert("a", 81), mark("6")])
            await trio.sleep(5)
        assert feed.published_marks() == {"VPCService": "5"}
        source.emit([upsert("a", 82), mark("7")])
        await trio.sleep(5)
        assert feed.published_marks() == {"VPCService": "7"}

    drive(plugins, {"one": source}, script)


def test_news_are_what_comes_and_goes_with_or_without_effect(plugins: PluginSet) -> None:
    source = Scripted(upsert("a"), Synced(source="one"))

    async def script(feed: Feed) -> None:
        await trio.sleep(5)
        assert source.emit is not None
        before = feed.news.next
        source.emit([mark("6")])
        assert not before.is_set()
        source.emit([upsert("a")])
        assert before.is_set()

    drive(plugins, {"one": source}, script)


class Observer:
    """Whoever is told of what was read, and what the view says of one object at that time."""

    def __init__(self, plugins: PluginSet) -> None:
        self.seen: set[ObjectKey] = set()
        self.store = Store(plugins.kinds, seen=self.seen)
        self.told: list[tuple[bool, set[str], str, int]] = []

    def observe(self, result: CompileResult | None, view: StoreView, seen: AbstractSet[ObjectKey]) -> None:
        found = view.get("VPCService", "default", "a")
        assert isinstance(found, VPCService)
        self.told.append(
            (result is not None, {key.name for key in seen}, found.metadata.resource_version, found.spec.port)
        )


def drive_observer(plugins: PluginSet, source: Scripted, script: Callable[..., Any]) -> Observer:
    observer = Observer(plugins)
    feed = Feed(
        sources={"one": source},
        store=observer.store,
        compiler=Compiler(plugins),
        publish=lambda _result: None,
        debounce_s=0.05,
        debounce_max_s=1.0,
        seen=observer.seen,
        observe=observer.observe,
    )

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run)
            await script(feed)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return observer


def versioned(name: str, version: int, port: int = 80) -> Upsert:
    event = upsert(name, port)
    assert isinstance(event.raw, dict)
    metadata = {"name": name, "resourceVersion": str(version)}
    return Upsert(source="test", raw={**event.raw, "metadata": metadata}, origin=Origin(source="test"))


def test_what_was_read_is_told_with_the_result_or_by_itself_if_it_changes_nothing(plugins: PluginSet) -> None:
    source = Scripted(versioned("a", 1), versioned("b", 2), Synced(source="one"))

    async def script(feed: Feed) -> None:
        await trio.sleep(1)
        feed.emit([versioned("a", 3)])  # a status was written
        await trio.sleep(1)
        feed.emit([versioned("a", 4, 81)])
        await trio.sleep(1)

    observer = drive_observer(plugins, source, script)
    assert observer.told == [(True, {"a", "b"}, "1", 80), (False, {"a"}, "3", 80), (True, {"a"}, "4", 81)]
    assert not observer.seen


def test_nothing_is_told_of_a_view_in_which_something_waits_to_be_compiled(plugins: PluginSet) -> None:
    source = Scripted(versioned("a", 1), Synced(source="one"))

    async def script(feed: Feed) -> None:
        await trio.sleep(1)
        feed.emit([versioned("a", 2, 81)])
        feed.emit([versioned("b", 3)])
        feed.emit([versioned("b", 4)])  # changes nothing, but comes while a change waits
        await trio.sleep(1)

    observer = drive_observer(plugins, source, script)
    assert observer.told == [(True, {"a"}, "1", 80), (True, {"a", "b"}, "2", 81)]


def test_what_is_read_while_compiling_is_told_after_it(plugins: PluginSet, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Scripted(versioned("a", 1), *(versioned(f"x{n}", 1) for n in range(20)), Synced(source="one"))
    whole = Compiler.compile_in_steps
    feeds: list[Feed] = []

    def interrupted(self: Compiler, view: Any) -> Generator[None, None, CompileResult]:
        steps = whole(self, view)
        if feeds:
            feeds[0].emit([versioned("a", 3, 81)])  # the echo of what is being compiled
        return (yield from steps)

    monkeypatch.setattr(Compiler, "compile_in_steps", interrupted)

    async def script(feed: Feed) -> None:
        await trio.sleep(1)
        feeds.append(feed)
        feed.emit([versioned("a", 2, 81)])
        await trio.sleep(1)

    observer = drive_observer(plugins, source, script)
    assert observer.told[1:] == [(True, {"a"}, "2", 81), (False, {"a"}, "3", 81)]


def test_what_could_not_be_compiled_is_told_with_the_next_result(
    plugins: PluginSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Scripted(versioned("a", 1), Synced(source="one"))
    whole = Compiler.compile_in_steps
    failing = [False]

    def compile_or_fail(self: Compiler, view: Any) -> Any:
        if failing[0]:
            raise AssertionError("a bug of ours")
        return whole(self, view)

    monkeypatch.setattr(Compiler, "compile_in_steps", compile_or_fail)

    async def script(feed: Feed) -> None:
        await trio.sleep(1)
        failing[0] = True
        feed.emit([versioned("a", 2, 81)])
        await trio.sleep(1)
        feed.emit([versioned("a", 3, 81)])
        await trio.sleep(1)
        failing[0] = False
        feed.emit([versioned("b", 4)])
        await trio.sleep(1)

    observer = drive_observer(plugins, source, script)
    assert observer.told == [(True, {"a"}, "1", 80), (True, {"a", "b"}, "3", 81)]
