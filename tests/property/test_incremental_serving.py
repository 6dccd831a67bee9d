"""From edits to requests: what a worker serves after any edits is what one serves that begins with the last of them."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.compiler import CompileOptions, Compiler
from datum_router.compiler.diff import apply_delta, make_delta
from datum_router.compiler.link import Snapshot
from datum_router.compiler.linker import Linker
from datum_router.health.view import HealthBook, OutcomeBatch
from datum_router.model.endpoint import make_locality
from datum_router.model.listener import Listener
from datum_router.model.outcome import OutcomeClass
from datum_router.model.request import Headers, RequestHead
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import SourceEvent
from datum_router.registry.store import Store
from tests.property.edits import all_plugins, edits

HERE = make_locality({"zone": "one"})


@pytest.fixture(scope="module")
def plugins() -> PluginSet:
    return all_plugins()


@st.composite
def heads(draw: st.DrawFn) -> RequestHead:
    host = draw(st.sampled_from(("a.test", "b.test", "c.test", "other")))
    return RequestHead(
        method=draw(st.sampled_from(("GET", "POST"))),
        authority=host,
        host=host,
        path=draw(st.sampled_from(("/", "/a", "/a/b", "/a/b/c", "/x"))),
        headers=Headers(draw(st.lists(st.sampled_from(((b"x-request-id", b"1"), (b"x", b"y"))), max_size=2))),
        client_ip="10.9.9.9",
        listener=draw(st.sampled_from(("http-8080", "http-8081", "https-8080", "https-8081", "plain"))),
    )


def served(snapshot: Snapshot, requests: list[RequestHead]) -> object:
    """Return all that decides where requests go."""
    found = [snapshot.match(head) for head in requests]
    return (
        [(linked and linked.rule.id) for linked in found],
        [snapshot.serves_host(head.listener, head.host) for head in requests],
        snapshot.matches_request_id,
        {
            rule_id: (
                linked.rule,
                {
                    state.service.key: (balancer.candidates, state.service, state.limits._limits)
                    for state, balancer in linked.balancers()
                },
            )
            for rule_id, linked in snapshot.rules.items()
        },
        {key: state.service for key, state in snapshot.services.items()},
    )


def over_the_channel(message: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.lists(edits(), max_size=14), min_size=2, max_size=6),
    requests=st.lists(heads(), min_size=1, max_size=8),
    failures=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=6, max_size=6),
    restarts_before=st.integers(0, 8),
    listen=st.sampled_from((None, Listener(name="plain", port=8080))),
)
def test_a_worker_fed_with_deltas_serves_as_one_that_has_just_begun(
    plugins: PluginSet,
    batches: list[list[SourceEvent]],
    requests: list[RequestHead],
    failures: list[list[int]],
    restarts_before: int,
    listen: Listener | None,
) -> None:
    store, compiler = Store(plugins.kinds), Compiler(plugins, CompileOptions(listen=listen))
    book = HealthBook(rng=random.Random(1))
    supervisor = there = SnapshotData()
    worker = Linker(plugins, gateway_locality=HERE)
    for number, batch in enumerate(batches):
        for event in batch:
            store.apply(event)
        data = compiler.compile(store.view()).data
        changes = book.set_services(data.services, now=float(number))
        if number == restarts_before:
            worker = Linker(plugins, gateway_locality=HERE)
            worker.reset_health(book.all_changes())
            there = over_the_channel(data)
        else:
            there = apply_delta(there, over_the_channel(make_delta(supervisor, data)))
        supervisor = data
        assert there == data
        snapshot = worker.link(there)
        worker.apply_health(changes)
        for position in failures[number]:
            endpoints = [(key, one.key) for key, service in data.services.items() for one in service.endpoints]
            if endpoints:
                service, endpoint = endpoints[position % len(endpoints)]
                outcome = OutcomeBatch(service=service, endpoint=endpoint, runs=((OutcomeClass.GATEWAY_ERROR, 20),))
                worker.apply_health(book.record_outcomes([outcome], now=float(number)))
        fresh = Linker(plugins, gateway_locality=HERE)
        fresh.reset_health(book.all_changes())
        assert served(snapshot, requests) == served(fresh.link(over_the_channel(data)), requests)
