"""Both header codecs: RFC 7541 appendix C, public stories, bounds (D4, D5), and agreement with the `hpack` package."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.errors import ConfigError
from datum_router_proxy.settings import ProxySettings, from_text
from datum_router_proxy.wire import hpack_codec, hpack_fast
from datum_router_proxy.wire.hpack_codec import (
    HeaderBlockError,
    HeaderCodec,
    HeaderListTooLarge,
    LineCache,
    NeverIndexedField,
    encode_integer,
    make_codec,
)
from datum_router_proxy.wire.http2.fields import RegularFields

CODECS = pytest.mark.parametrize("name", hpack_codec.CODECS)

# RFC 7541 appendix C.2 to C.6: (table limit, [(block, fields)...]); one decoder per sequence.
GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
SECOND = [*GET, (b"cache-control", b"no-cache")]
THIRD = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":path", b"/index.html"),
    (b":authority", b"www.example.com"),
    (b"custom-key", b"custom-value"),
]
DATE = b"Mon, 21 Oct 2013 20:13:21 GMT"
FIRST_ANSWER = [
    (b":status", b"302"),
    (b"cache-control", b"private"),
    (b"date", DATE),
    (b"location", b"https://www.example.com"),
]
SECOND_ANSWER = [(b":status", b"307"), *FIRST_ANSWER[1:]]
THIRD_ANSWER = [
    (b":status", b"200"),
    (b"cache-control", b"private"),
    (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT"),
    (b"location", b"https://www.example.com"),
    (b"content-encoding", b"gzip"),
    (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
]
APPENDIX_C = {
    "C.2.1 literal with indexing": (
        4_096,
        [("400a637573746f6d2d6b65790d637573746f6d2d686561646572", [(b"custom-key", b"custom-header")])],
    ),
    "C.2.2 literal without indexing": (4_096, [("040c2f73616d706c652f70617468", [(b":path", b"/sample/path")])]),
    "C.2.3 never indexed": (
        4_096,
        [("100870617373776f726406736563726574", [NeverIndexedField((b"password", b"secret"))])],
    ),
    "C.2.4 indexed": (4_096, [("82", [(b":method", b"GET")])]),
    "C.3 requests without Huffman": (
        4_096,
        [
            ("828684410f7777772e6578616d706c652e636f6d", GET),
            ("828684be58086e6f2d6361636865", SECOND),
            ("828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565", THIRD),
        ],
    ),
    "C.4 requests with Huffman": (
        4_096,
        [
            ("828684418cf1e3c2e5f23a6ba0ab90f4ff", GET),
            ("828684be5886a8eb10649cbf", SECOND),
            ("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", THIRD),
        ],
    ),
    "C.5 responses without Huffman": (
        256,
        [
            (
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
                "6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
                FIRST_ANSWER,
            ),
            ("4803333037c1c0bf", SECOND_ANSWER),
            (
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d"
                "4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273"
                "696f6e3d31",
                THIRD_ANSWER,
            ),
        ],
    ),
    "C.6 responses with Huffman": (
        256,
        [
            (
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8"
                "e9ae82ae43d3",
                FIRST_ANSWER,
            ),
            ("4883640effc1c0bf", SECOND_ANSWER),
            (
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b"
                "3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                THIRD_ANSWER,
            ),
        ],
    ),
}


@CODECS
@pytest.mark.parametrize("case", APPENDIX_C)
def test_rfc7541_appendix_c(name: str, case: str) -> None:
    table, blocks = APPENDIX_C[case]
    codec = make_codec(name)
    prefix = b"" if table == 4_096 else encode_integer(table, 5, 0x20)
    for wire, expected in blocks:
        assert codec.decode(prefix + bytes.fromhex(wire)) == expected
        prefix = b""


# RFC 7541 appendix C.1: (number, prefix bits, octets).
INTEGERS = {"C.1.1": (10, 5, "0a"), "C.1.2": (1337, 5, "1f9a0a"), "C.1.3": (42, 8, "2a")}


@pytest.mark.parametrize("case", INTEGERS)
def test_rfc7541_appendix_c1_integers_are_written(case: str) -> None:
    number, bits, wire = INTEGERS[case]
    assert encode_integer(number, bits, 0) == bytes.fromhex(wire)


@CODECS
@pytest.mark.parametrize("case", ["C.1.1", "C.1.2"])  # nothing in a block has a prefix of 8 bits
def test_rfc7541_appendix_c1_integers_are_read(name: str, case: str) -> None:
    number, _, wire = INTEGERS[case]
    update = bytes((0x20 | int(wire[:2], 16),)) + bytes.fromhex(wire[2:])
    codec = make_codec(name)
    codec.set_decoder_table_limit(number)
    assert codec.decode(update + b"\x82") == [(b":method", b"GET")]
    codec = make_codec(name)
    codec.set_decoder_table_limit(number - 1)
    with pytest.raises(HeaderBlockError):
        codec.decode(update + b"\x82")


# What the appendix says the dynamic table holds after the last block, newest first; an index past it is an error.
TABLES = {
    "C.2.1 literal with indexing": [(b"custom-key", b"custom-header")],
    "C.2.2 literal without indexing": [],
    "C.2.3 never indexed": [],
    "C.2.4 indexed": [],
    "C.3 requests without Huffman": [THIRD[-1], SECOND[-1], GET[-1]],
    "C.4 requests with Huffman": [THIRD[-1], SECOND[-1], GET[-1]],
    "C.5 responses without Huffman": [THIRD_ANSWER[5], THIRD_ANSWER[4], THIRD_ANSWER[2]],
    "C.6 responses with Huffman": [THIRD_ANSWER[5], THIRD_ANSWER[4], THIRD_ANSWER[2]],
}


@CODECS
@pytest.mark.parametrize("case", APPENDIX_C)
def test_rfc7541_appendix_c_leaves_the_dynamic_table_it_shows(name: str, case: str) -> None:
    table, blocks = APPENDIX_C[case]
    codec = make_codec(name)
    prefix = b"" if table == 4_096 else encode_integer(table, 5, 0x20)
    for wire, _ in blocks:
        codec.decode(prefix + bytes.fromhex(wire))
        prefix = b""
    entries = TABLES[case]
    assert codec.decode(bytes(0x80 | 62 + at for at in range(len(entries)))) == entries
    with pytest.raises(HeaderBlockError):
        codec.decode(bytes((0x80 | 62 + len(entries),)))


@CODECS
def test_never_indexed_fields_are_marked_and_leave_never_indexed(name: str) -> None:
    codec = make_codec(name)
    (field,) = codec.decode(bytes.fromhex("100870617373776f726406736563726574"))
    assert isinstance(field, NeverIndexedField)
    assert codec.encode([field]) == bytes.fromhex("100870617373776f726406736563726574")
    assert codec.encode([(b"password", b"secret")])[0] == 0x00


def test_what_is_remembered_of_a_plain_field_is_not_used_for_a_never_indexed_one() -> None:
    known = RegularFields()
    known.check([(b"x-token", b"secret")])
    known.check([NeverIndexedField((b"x-token", b"secret"))])
    assert [type(line) for line in known.lines] == [NeverIndexedField]
    known.check([(b"x-token", b"secret")])
    assert [type(line) for line in known.lines] == [tuple]


BROKEN = {
    "index 0": "80",
    "index past both tables": "be",
    "name index past both tables": "7e0161",
    "integer of six octets": "ff808080808001",
    "cut integer": "ff80",
    "cut name": "400a6375",
    "cut value": "4001610562",
    "no value": "400161",
    "string length overrun": "40017fffffffff07",
    "size update above the limit": "3fe21f",
    "size update after a field": "8220",
    "nine size updates": "20" * 9,
    "Huffman padding of zeros": "4001618118",
    "Huffman padding of a byte": "400161821fff",
    "Huffman EOS": "40016184ffffffff",
}


@CODECS
@pytest.mark.parametrize("case", BROKEN)
def test_d5_broken_blocks_are_compression_errors(name: str, case: str) -> None:
    with pytest.raises(HeaderBlockError) as caught:
        make_codec(name).decode(bytes.fromhex(BROKEN[case]))
    assert caught.value.error_code == 9


@CODECS
def test_d4_list_over_the_limit_keeps_the_table_in_step(name: str) -> None:
    codec = make_codec(name, list_bytes=1_024)
    with pytest.raises(HeaderListTooLarge) as caught:
        codec.decode(b"\x40\x01a\x01b" + b"\x82" * 30)
    assert caught.value.status_hint == 431
    assert codec.decode(b"\xbe") == [(b"a", b"b")]


@CODECS
def test_d4_list_far_past_the_limit_is_a_compression_error(name: str) -> None:
    with pytest.raises(HeaderBlockError):
        make_codec(name, list_bytes=1_024).decode(b"\x82" * 101)
    with pytest.raises(HeaderBlockError):
        make_codec(name, max_fields=10).decode(b"\x82" * 41)
    with pytest.raises(HeaderListTooLarge):
        make_codec(name, max_fields=10).decode(b"\x82" * 40)


@CODECS
def test_eight_size_updates_are_accepted(name: str) -> None:
    assert make_codec(name).decode(b"\x20" * 8 + b"\x82") == [(b":method", b"GET")]


@CODECS
def test_encoder_has_to_follow_a_smaller_setting(name: str) -> None:
    codec = make_codec(name)
    codec.set_decoder_table_limit(100)
    with pytest.raises(HeaderBlockError):
        codec.decode(b"\x82")
    codec = make_codec(name)
    codec.set_decoder_table_limit(100)
    assert codec.decode(encode_integer(100, 5, 0x20) + b"\x82") == [(b":method", b"GET")]


def test_peer_that_shrinks_its_table_hears_of_it_once() -> None:
    codec = make_codec()
    codec.set_encoder_table_size(8_192)
    assert codec.encode([(b":method", b"GET")]) == b"\x82"
    codec.set_encoder_table_size(100)
    assert codec.encode([(b":method", b"GET")]) == b"\x20\x82"
    codec.set_encoder_table_size(50)
    assert codec.encode([(b":method", b"GET")]) == b"\x82", "an empty table needs no second word"


@pytest.mark.parametrize("field", [b"authorization", b"cookie", b"set-cookie", b"proxy-authorization"])
def test_secrets_are_never_indexed_and_never_cached(field: bytes) -> None:
    cache = LineCache()
    codec = make_codec(cache=cache)
    assert codec.encode([(field, b"secret")])[0] & 0xF0 == 0x10
    assert cache.lines == {}


def test_line_cache_is_bounded() -> None:
    cache = LineCache(entries=4, line_bytes=10)
    codec = make_codec(cache=cache)
    for index in range(11):
        codec.encode([(b"x-a", b"%d" % index), (b"x-long", b"12345")])
    assert len(cache.lines) <= 4
    assert all(len(n) + len(v) <= 10 for n, v in cache.lines)


def test_a_repeated_block_follows_the_table_and_the_setting() -> None:
    codec = make_codec("table")
    assert codec.decode(b"\x40\x01a\x01b\xbe") == [(b"a", b"b")] * 2
    assert codec.decode(b"\xbe\x82") == codec.decode(b"\xbe\x82") == [(b"a", b"b"), (b":method", b"GET")]
    codec.decode(b"\x40\x01c\x01d")
    assert codec.decode(b"\xbe\x82") == [(b"c", b"d"), (b":method", b"GET")]
    codec.set_decoder_table_limit(100)
    with pytest.raises(HeaderBlockError):
        codec.decode(b"\xbe\x82")


def test_what_the_table_codec_remembers_is_bounded() -> None:
    huffman = hpack_fast.HuffmanDecoder()
    for number in range(2 * hpack_fast._MEMO_ENTRIES):
        huffman.decode(hpack_encoded(b"%d" % number))
    assert len(huffman.memo) <= hpack_fast._MEMO_ENTRIES
    huffman.memo.clear()
    long = hpack_encoded(b"x" * 500)
    assert huffman.decode(long) == b"x" * 500
    assert huffman.memo == {}, "a long string is not kept"
    codec = hpack_fast.TableCodec(list_bytes=65_536, max_fields=100, table_bytes=4_096, cache=LineCache())
    for number in range(3 * hpack_fast._BLOCKS_ENTRIES):
        codec.decode(b"\x00\x01a\x03%03d" % number)
    codec.decode(b"\x82" * (hpack_fast._BLOCK_BYTES // 4) + b"\x00\x01a\x7f\x81\x01" + b"v" * 256)
    assert 0 < len(codec._blocks) <= hpack_fast._BLOCKS_ENTRIES
    assert all(len(block) <= hpack_fast._BLOCK_BYTES for block in codec._blocks)


def hpack_encoded(value: bytes) -> bytes:
    constants = hpack.huffman_constants
    coded: bytes = hpack.huffman.HuffmanEncoder(constants.REQUEST_CODES, constants.REQUEST_CODES_LENGTH).encode(value)
    return coded


def test_never_indexed_values_are_not_remembered() -> None:
    coded = hpack_encoded(b"a secret that is sent once only")
    block = b"\x10\x01a" + bytes((0x80 | len(coded),)) + coded
    codec = hpack_fast.TableCodec(list_bytes=65_536, max_fields=100, table_bytes=4_096, cache=LineCache())
    assert codec.decode(block) == [NeverIndexedField((b"a", b"a secret that is sent once only"))]
    assert coded not in hpack_fast.huffman_decoder().memo
    assert codec._blocks == {}


def test_the_setting_chooses_the_codec_and_refuses_another_name() -> None:
    assert ProxySettings().hpack_codec == "table"
    assert from_text({"hpack_codec": "hpack", "max_interim": "3"}) == ProxySettings(hpack_codec="hpack", max_interim=3)
    with pytest.raises(ConfigError, match="found 'zlib', expected table or hpack"):
        from_text({"hpack_codec": "zlib"})


def test_unknown_codec_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown, expected 'table' or 'hpack'"):
        make_codec("zlib")


# --- stories  ---------------

SHARED = Path(os.environ.get("DATUM_ROUTER_SHARED", Path(__file__).parents[4] / "shared"))
STORIES = sorted((SHARED / "corpora" / "hpack").glob("*/story_*.json"))


@CODECS
def test_public_stories_decode_and_encode_back(name: str) -> None:
    if not STORIES:
        pytest.skip("the public header compression stories are not there (DATUM_ROUTER_SHARED)")
    blocks = 0
    for story in STORIES:
        codec = make_codec(name, max_fields=500)
        reader = hpack.Decoder()
        for case in json.loads(story.read_text())["cases"]:
            size = case.get("header_table_size")
            if size is not None:
                codec.set_decoder_table_limit(max(size, 4_096))
            expected = [(n.encode(), v.encode()) for line in case["headers"] for n, v in line.items()]
            assert codec.decode(bytes.fromhex(case["wire"])) == expected, f"{story} {case['seqno']}"
            assert [tuple(line) for line in reader.decode(codec.encode(expected), raw=True)] == expected
            blocks += 1
    assert blocks > 100


# --- differential  ---------------

FIELD = st.tuples(
    st.sampled_from([b":path", b"accept", b"cookie", b"x-a", b"x-bb"]) | st.binary(max_size=12),
    st.sampled_from([b"", b"/", b"gzip, deflate"]) | st.binary(max_size=60),
)


@CODECS
@settings(max_examples=100, deadline=None)
@given(lists=st.lists(st.lists(FIELD, max_size=8), max_size=6), huffman=st.booleans())
def test_what_the_package_encodes_is_decoded(name: str, lists: list, huffman: bool) -> None:
    encoder, codec = hpack.Encoder(), make_codec(name)
    for fields in lists:
        assert codec.decode(encoder.encode(fields, huffman=huffman)) == fields


@settings(max_examples=100, deadline=None)
@given(lists=st.lists(st.lists(FIELD, max_size=8), max_size=6))
def test_what_we_encode_the_package_decodes(lists: list) -> None:
    decoder, codec = hpack.Decoder(), make_codec()
    for fields in lists:
        assert [tuple(line) for line in decoder.decode(codec.encode(fields), raw=True)] == fields


def verdict(codec: HeaderCodec, block: bytes) -> object:
    try:
        return codec.decode(block)
    except (HeaderBlockError, HeaderListTooLarge) as error:
        return type(error)


def huffman_string(data: bytes) -> bytes:
    coded = hpack_encoded(data)
    return encode_integer(len(coded), 7, 0x80) + coded


STRING = st.one_of(
    st.binary(max_size=12).map(lambda data: encode_integer(len(data), 7, 0) + data),
    st.binary(max_size=200).map(lambda data: encode_integer(len(data), 7, 0) + data),
    st.binary(max_size=40).map(huffman_string),
    # Claimed to be Huffman coded: wrong padding, EOS, and sometimes luck.
    st.binary(max_size=12).map(lambda data: encode_integer(len(data), 7, 0x80) + data),
)
INDEX = st.integers(0, 70) | st.integers(0, 200)
INSTRUCTION = st.one_of(
    INDEX.map(lambda index: encode_integer(index, 7, 0x80)),
    st.sampled_from([0, 31, 64, 100, 4_096, 4_097]).map(lambda size: encode_integer(size, 5, 0x20)),
    st.builds(
        lambda kind, name, value: bytes((kind,)) + name + value, st.sampled_from([0, 0x10, 0x40]), STRING, STRING
    ),
    st.builds(
        lambda kind, index, value: encode_integer(index, *kind) + value,
        st.sampled_from([(4, 0x00), (4, 0x10), (6, 0x40)]),
        st.integers(1, 70),
        STRING,
    ),
    st.binary(max_size=8),
)
BLOCK = st.lists(INSTRUCTION, max_size=12).map(b"".join)
# A block, a block seen before (by its number), or a new setting (bytes).
STEP = st.one_of(
    BLOCK, BLOCK, st.integers(0, 3), st.sampled_from([0, 64, 200, 4_096]).map(lambda size: ("limit", size))
)


@settings(max_examples=400, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=10))
def test_both_codecs_agree_on_any_blocks(steps: list[bytes | int | tuple[str, int]]) -> None:
    bounds = {"max_fields": 8, "list_bytes": 1_024}
    reference, ours = make_codec("hpack", **bounds), make_codec("table", **bounds)
    seen: list[bytes] = []
    for step in steps:
        if isinstance(step, tuple):
            reference.set_decoder_table_limit(step[1])
            ours.set_decoder_table_limit(step[1])
            continue
        if isinstance(step, int):
            if step >= len(seen):
                continue
            step = seen[-1 - step]
        seen.append(step)
        expected = verdict(reference, step)
        found = verdict(ours, step)
        assert found == expected
        if expected is HeaderBlockError:
            return  # the connection ends
        if isinstance(expected, list):
            assert isinstance(found, list)
            assert [type(field) for field in found] == [type(field) for field in expected]
            assert ours.encode(found) == reference.encode(expected)


@settings(max_examples=200, deadline=None)
@given(
    lists=st.lists(st.lists(FIELD, min_size=1, max_size=8), min_size=1, max_size=4),
    at=st.integers(0, 500),
    octet=st.integers(0, 255),
    kind=st.sampled_from(["replace", "insert", "cut"]),
)
def test_both_codecs_agree_on_damaged_blocks(lists: list, at: int, octet: int, kind: str) -> None:
    encoder = hpack.Encoder()
    reference, ours = make_codec("hpack"), make_codec("table")
    for fields in lists[:-1]:
        block = encoder.encode(fields)
        assert ours.decode(block) == reference.decode(block)
    block = encoder.encode(lists[-1])
    at %= len(block)
    tail = {"replace": bytes((octet,)) + block[at + 1 :], "insert": bytes((octet,)) + block[at:], "cut": b""}[kind]
    assert verdict(ours, block[:at] + tail) == verdict(reference, block[:at] + tail)
