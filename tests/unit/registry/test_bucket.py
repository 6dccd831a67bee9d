"""Indexes of a kind: what is found under a value, at what cost, and that views do not change."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router.compiler.diagnostics import Origin
from datum_router.registry.bucket import Bucket, Entry, Name, index_values

ORIGIN = Origin(source="test")


class Thing(msgspec.Struct, frozen=True):
    name: Name
    colours: tuple[str, ...] = ()
    size: int = 0


def colours(thing: Thing) -> Iterable[str]:
    return thing.colours


def sizes(thing: Thing) -> Iterable[str]:
    return (str(thing.size),) if thing.size else ()


INDEXES = {"colour": colours, "size": sizes}


def entry(thing: Thing) -> Entry:
    return Entry(manifest=thing, origin=ORIGIN, values=index_values(thing, INDEXES))


names = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"))
things = st.builds(
    Thing, name=names, colours=st.lists(st.sampled_from(("red", "blue")), max_size=3).map(tuple), size=st.integers(0, 2)
)
edits = st.lists(st.tuples(names, st.booleans(), things) | st.none(), max_size=30)


@given(edits)
def test_an_index_finds_what_a_search_would_in_every_view(drawn: list[tuple[Name, bool, Thing] | None]) -> None:
    bucket = Bucket(INDEXES)
    expected: dict[Name, Thing] = {}
    views: list[tuple[Bucket, dict[Name, Thing]]] = []
    for edit in drawn:
        if edit is None:  # a view is taken
            bucket.is_shared = True
            views.append((bucket, dict(expected)))
            continue
        name, is_gone, thing = edit
        if bucket.is_shared:
            bucket = bucket.fork()
        if is_gone:
            bucket.put(name, None)
            expected.pop(name, None)
        else:
            expected[name] = msgspec.structs.replace(thing, name=name)
            bucket.put(name, entry(expected[name]))
    for view, known in [*views, (bucket, expected)]:
        for index, values in (("colour", ("red", "blue", "none")), ("size", ("0", "1", "2"))):
            for value in values:
                found = [known[name] for name in sorted(known) if value in INDEXES[index](known[name])]
                assert list(view.select(index, value)) == found
        assert view.manifests() == tuple(known[name] for name in sorted(known))


def test_an_index_that_a_kind_has_not_is_an_error_that_names_those_it_has() -> None:
    with pytest.raises(LookupError, match=r"found index 'weight', expected one of the kind's own \(colour, size\)"):
        Bucket(INDEXES).select("weight", "1")


def test_an_edit_copies_only_the_names_under_its_own_values() -> None:
    bucket = Bucket(INDEXES)
    for number in range(100):
        name = ("a", f"t{number}")
        bucket.put(name, entry(Thing(name, ("red",) if number < 90 else ("blue",))))
    bucket.is_shared = True
    fork = bucket.fork()
    fork.put(("a", "t95"), entry(Thing(("a", "t95"), ("green",))))
    assert fork._indexes["colour"]["red"] is bucket._indexes["colour"]["red"]
    assert len(fork.select("colour", "blue")) == 9
    assert len(bucket.select("colour", "blue")) == 10
    assert [item.name for item in fork.select("colour", "green") if isinstance(item, Thing)] == [("a", "t95")]


def test_a_value_without_objects_takes_no_room() -> None:
    bucket = Bucket(INDEXES)
    bucket.put(("a", "x"), entry(Thing(("a", "x"), ("red",), 1)))
    bucket.put(("a", "x"), None)
    assert bucket._indexes == {"colour": {}, "size": {}}
    assert bucket.select("colour", "red") == ()


def test_what_was_selected_in_a_view_is_kept() -> None:
    bucket = Bucket(INDEXES)
    bucket.put(("a", "x"), entry(Thing(("a", "x"), ("red",))))
    bucket.is_shared = True
    assert bucket.select("colour", "red") is bucket.select("colour", "red")
