"""Files read chunk by chunk, with what is known of them, give what they give when they are read as a whole."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router_files import yamlscan
from datum_router_files.documents import Chunk, FileContent, split
from datum_router_files.yamlscan import YamlLimits, read_documents

PIECES = [
    "---", "--- ", "--- # c", "---\t", "---x", "--- a: 1", " ---", "...", "%YAML 1.2", "# comment", "", "\ufeff",
    "kind: A", "a: 1", "b: [1, 2]", "c: {d: e}", "  f: g", "text: |", "  line", "quoted: 'x", "y'", 'double: "z', '"',
    "items:", "- a: 1", "- &x {n: 1}", "- *x", "kind: List", "apiVersion: v1", "\t", "a: 2", "- b", "s: >-",
    "nel: \x85",
]  # fmt: skip
breaks = st.sampled_from(["\n"] * 8 + ["\r\n", "\r", "\u2028"])
texts = st.lists(st.tuples(st.sampled_from(PIECES), breaks), max_size=14).map(
    lambda drawn: "".join(map("".join, drawn))
)


def seen(content: FileContent) -> object:
    return (
        [
            (one.raw, one.origin.line, one.origin.file, {path: one.origin.locate(path) for path in one.origin.lines})
            for one in content.documents
        ],
        content.diagnostics,
    )


@settings(max_examples=400, deadline=None)
@given(st.lists(texts, min_size=1, max_size=3))
def test_chunks_give_what_the_whole_file_gives(versions: list[str]) -> None:
    known: dict[bytes, Chunk] = {}
    for text in versions:
        data = text.encode()
        content = read_documents(data, file="f.yaml", known=known)
        assert seen(content) == seen(yamlscan._read_whole(data, "f.yaml", "files", YamlLimits()))
        known = dict(content.chunks)


def routes(*ports: int, head: str = "") -> bytes:
    return (
        head + "---\n".join(f"kind: A\nmetadata: {{name: x{port}}}\nspec:\n  port: {port}\n" for port in ports)
    ).encode()


def test_unchanged_documents_stay_the_same_objects_and_are_not_parsed() -> None:
    before = read_documents(routes(1, 2, 3), file="f.yaml")
    after = read_documents(routes(1, 5, 3), file="f.yaml", known=before.chunks)
    assert after.documents[0] is before.documents[0]
    assert after.documents[2] is before.documents[2]
    assert after.documents[1].raw["spec"] == {"port": 5}


def test_documents_below_an_edit_move_by_its_lines() -> None:
    before = read_documents(routes(1, 2, head="# one\n---\n"), file="f.yaml")
    after = read_documents(routes(1, 2, head="# one\n# two\n# three\n---\n"), file="f.yaml", known=before.chunks)
    for old, new in zip(before.documents, after.documents, strict=True):
        assert new.encoded is old.encoded
        assert new.origin.line == old.origin.line + 2
        assert new.origin.locate("spec.port") == old.origin.locate("spec.port") + 2


def test_documents_of_one_shape_share_the_lines_of_their_paths() -> None:
    content = read_documents(routes(*range(10)), file="f.yaml")
    assert len({id(document.origin.lines) for document in content.documents[1:]}) == 1


def test_limits_hold_for_all_chunks_together() -> None:
    data = routes(*range(10))
    assert read_documents(data, file="f.yaml", limits=YamlLimits(max_nodes=110)).diagnostics == ()
    (found,) = read_documents(data, file="f.yaml", limits=YamlLimits(max_nodes=109)).diagnostics
    assert found.message == "more than 109 values in one file"


def test_files_whose_documents_depend_on_each_other_are_not_split() -> None:
    assert split(b"%TAG ! tag:x,2000:\n---\na: 1\n") is None
    assert split(b"a: 1\n...\n---\nb: 1\n") is None
    assert split(b"a: 1\r---\rb: 1\r") is None
    assert [bytes(part) for part in split(b"a: 1\n---\nb: 1\n---x\n--- ") or ()] == [
        b"a: 1\n",
        b"---\nb: 1\n---x\n",
        b"--- ",
    ]
