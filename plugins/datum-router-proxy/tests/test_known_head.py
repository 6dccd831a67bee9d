"""What is known by the head before is what the engine would have read; everything else is left to the engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datum_router.compiler.link import LinkedRule
from datum_router.compiler.linker import Linker
from datum_router.model.listener import Listener
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins.manager import load_plugins
from datum_router.testing.factories import make_rule, make_service
from datum_router_proxy.request import RequestLines, Template, from_h1
from datum_router_proxy.server.known_head import KnownHead
from datum_router_proxy.wire import hygiene
from datum_router_proxy.wire.http1 import Http1Connection, Http1Limits, RequestReceived, Role, TargetForm

LIMITS = Http1Limits(max_field_bytes=200, max_target_bytes=100)
LISTENER = Listener(name="plain")
TRACE = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-%016x-01"


def linked_rule() -> LinkedRule:
    service = make_service("default/up")
    rule = make_rule("/", to=("default/up",))
    data = SnapshotData(version=1, services={service.key: service}, rules=(rule,), listeners=(LISTENER,))
    return Linker(load_plugins(disabled=frozenset())).link(data).rules[rule.id]


RULE = linked_rule()


def make(block: bytes, hops: int) -> Template | None:
    """Return what the engine's reading of a block leads to if that can be remembered."""
    engine = Http1Connection(Role.SERVER, LIMITS)
    engine.receive_data(block)
    try:
        event = engine.next_event()
    except Exception:  # whatever the engine says: it is no plain head
        return None
    if not isinstance(event, RequestReceived) or engine.buffered_bytes or event.head.form is not TargetForm.ORIGIN:
        return None
    hop = hygiene.Hop(peer_ip="192.0.2.1", trusted_hops=hops, via_protocol=b"1.1")
    template = from_h1(event.head, hop, "plain")
    is_remembered = template.is_plain and not template.has_body and not event.head.dropped_fields
    return template if is_remembered and block[:1] != b"\r" else None


def seen(template: Template) -> dict[str, object]:
    """Return all that the lane and the pipeline look at."""
    assert template.prepare(RULE)
    hidden = ("planned_for", "rule")
    found = {name: getattr(template, name) for name in Template.__slots__ if name[0] != "_" and name not in hidden}
    return found | {
        "h2": template.render_h2(RULE, template.sent, b"http", RequestLines()),
        "fields": (template._before, template._after),
    }


def head(*fields: bytes, line: bytes = b"GET /a?b HTTP/1.1") -> bytes:
    return b"\r\n".join((line, b"Host: shop.example", *fields, b"", b""))


def check(first: bytes, then: list[bytes], hops: int = 0) -> list[bool]:
    """Show heads one after the other; return which of them were known."""
    known = KnownHead(LIMITS)
    template = make(first, hops)
    if template is None:
        return []
    seen(template)
    known.remember(first, template)
    result = []
    for block in then:
        found = known.recognise(block)
        result.append(found is not None)
        if found is not None:
            other = make(block, hops)
            assert other is not None, block
            assert seen(found) == seen(other), block
    return result


def test_another_value_is_known_also_with_another_target_and_again_and_again() -> None:
    first = head(b"User-Agent: x", TRACE % 1, b"Accept: */*")
    then = [head(b"User-Agent: x", TRACE % number, b"Accept: */*") for number in range(2, 5)]
    then += [head(b"User-Agent: x", TRACE % 7, b"Accept: */*", line=b"GET /other HTTP/1.1")]
    then += [head(b"User-Agent: y", TRACE % 7, b"Accept: */*", line=b"GET /other HTTP/1.1")]
    then += [head(b"User-Agent: y", TRACE % 7, b"Accept:", line=b"GET /other HTTP/1.1")]
    then += [head(b"User-Agent: y", TRACE % 8, b"Accept:", line=b"GET /a?b HTTP/1.1")]
    assert check(first, then) == [True] * len(then)


@pytest.mark.parametrize(
    "field",
    [
        b"Connection: %b", b"Content-Length: %b", b"Transfer-Encoding: %b", b"Upgrade: %b", b"Expect: %b", b"TE: %b",
        b"X-Forwarded-For: %b", b"X-Forwarded-Port: %b", b"Forwarded: %b", b"Via: %b", b"X-Request-Id: %b",
        b"X-Real-IP: %b", b"Content-Type: %b", b"Grpc-Timeout: %b", b"Proxy-Authorization: %b", b"X-Datum-A: %b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("hops", [0, 1])
def test_fields_that_say_something_to_us_are_the_engines_to_read(field: bytes, hops: int) -> None:
    assert not any(check(head(field % b"1"), [head(field % b"2")], hops))


@pytest.mark.parametrize(
    "second",
    [
        head(b"X-A: 1\r", b"X-B: 1"), head(b"X-A: \x00", b"X-B: 1"), head(b"X-A : 2", b"X-B: 1"),
        head(b" X-A: 2", b"X-B: 1"), head(b"X_A: 2", b"X-B: 1"), head(b"X-C: 2", b"X-B: 1"),
        head(b"X-A: 2", b"X-B: 2"), head(b"X-A: 2\nX-C: 1", b"X-B: 1"), head(b"X-A: 2", b"X-B: 1") + b"G",
        head(b"X-A: 2", b"X-B: 1")[:-2], head(b"X-A: 2"), head(b"X-A: " + b"2" * 200, b"X-B: 1"),
        head(b"X-A: 2", b"X-B: 1", line=b"GET /a b HTTP/1.1"), head(b"X-A: 2", b"X-B: 1", line=b"GET /a HTTP/1.0"),
        head(b"X-A: 2", b"X-B: 1", line=b"HEAD /a?b HTTP/1.1"), head(b"X-A: 2", b"X-B: 1", line=b"GET * HTTP/1.1"),
        head(b"X-A: 2", b"X-B: 1", line=b"GET /" + b"a" * 100 + b" HTTP/1.1"), b"\r\n" + head(b"X-A: 2", b"X-B: 1"),
        head(b"X-A: 2 ", b"X-B: 1"),
    ],
)  # fmt: skip
def test_a7_what_is_no_plain_other_value_is_the_engines_to_read(second: bytes) -> None:
    assert check(head(b"X-A: 1", b"X-B: 1"), [second]) == [False]


def test_a_field_that_is_there_twice_is_the_engines_to_read() -> None:
    assert check(head(b"X-A: 1", b"X-A: 1"), [head(b"X-A: 2", b"X-A: 1"), head(b"X-A: 1", b"X-A: 2")]) == [False] * 2


NAMES = st.sampled_from(
    [b"X-A", b"x-a", b"X-B", b"Traceparent", b"Cookie", b"Accept", b"Connection", b"Via", b"Content-Type", b"TE",
     b"X-Forwarded-For", b"X-Request-Id", b"X-Forwarded-Host", b"Forwarded", b"Authorization", b"X-Real-IP"]
)  # fmt: skip
VALUES = st.sampled_from(
    [b"", b"1", b"2", b"a: b", b"x-a", b"trailers", b"keep-alive", b"192.0.2.1", b"shop.example", b"\xe9", b"a\tb"]
)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
LINES = st.sampled_from([b"GET /a?b HTTP/1.1", b"GET /c HTTP/1.1", b"POST /c HTTP/1.1", b"GET /a/../b HTTP/1.1"])


def change(fields: list[tuple[bytes, bytes]], at: int, to: tuple[bytes, bytes], how: int) -> list[tuple[bytes, bytes]]:
    """Return fields with one edit: another value (mostly), another field in its place, one more, one less."""
    if not fields:
        return [to]
    at %= len(fields)
    if how < 7:
        return [*fields[:at], (fields[at][0], to[1]), *fields[at + 1 :]]
    edits: list[Callable[[], list[tuple[bytes, bytes]]]] = [
        lambda: [*fields[:at], to, *fields[at + 1 :]],
        lambda: [*fields[:at], to, *fields[at:]],
        lambda: [*fields[:at], *fields[at + 1 :]],
    ]
    return edits[how - 7]()


EDIT = st.tuples(st.integers(0, 5), st.tuples(NAMES, VALUES), st.integers(0, 9), LINES)


@settings(max_examples=300, deadline=None)
@given(FIELDS, st.lists(EDIT, min_size=1, max_size=5), st.sampled_from([0, 1]))
@example([(b"X-Forwarded-Host", b"shop.example")], [(0, (b"x-a", b"1"), 0, b"GET /c HTTP/1.1")], 0)
def test_what_is_known_is_what_the_engine_reads(
    fields: list[tuple[bytes, bytes]], edits: list[tuple[int, tuple[bytes, bytes], int, bytes]], hops: int
) -> None:
    def block(line: bytes) -> bytes:
        return head(*(b": ".join(field) for field in fields), line=line)

    first, then = block(b"GET /a?b HTTP/1.1"), []
    for at, to, how, line in edits:
        fields = change(fields, at, to, how)
        then.append(block(line))
    check(first, then, hops)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 90), st.binary(max_size=3), st.integers(0, 3))
def test_any_edit_of_bytes_is_judged_as_the_engine_judges_it(at: int, insert: bytes, cut: int) -> None:
    first = head(b"X-A: 1", TRACE % 1)
    check(first, [first[:at] + insert + first[at + cut :], head(b"X-A: 1", TRACE % 2)])
