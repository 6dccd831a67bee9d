"""Replay what the fuzzer found once, and what it starts from; and show that the targets notice broken engines."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, egress, manifest

from datum_router.egress.address import ClosedRanges
from datum_router.egress.decide import EgressTable
from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire import hpack_fast
from datum_router_proxy.wire.http1 import Http1Connection, writer
from datum_router_proxy.wire.http2 import Http2Connection

VECTORS = Path(__file__).parent / "vectors"


def vectors() -> list[Path]:
    return sorted(path for path in VECTORS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", vectors(), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_find_stays_fixed(path: Path) -> None:
    TARGETS[path.parent.name].check(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_passes(name: str) -> None:
    found = list(TARGETS[name].seeds())
    assert len(found) >= 5
    for seed in found:
        TARGETS[name].check(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_hardly_any_input_passes_too(name: str) -> None:
    for data in (b"", b"\x00", b"\xff" * 3, bytes(range(256))):
        TARGETS[name].check(data)


def test_the_runner_knows_every_target() -> None:
    spec = importlib.util.spec_from_file_location("fuzz_run", Path(__file__).parent / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    assert tuple(TARGETS) == run.NAMES
    assert run.quoted(b'a\r\n"\\\xff ') == "a\\x0d\\x0a\\x22\\x5c\\xff "


# --- a broken engine is noticed ------------------------------------------------------------------------------------


def expect_find(name: str) -> None:
    with pytest.raises(AssertionError):
        check_seeds(name)


def check_seeds(name: str) -> None:
    for seed in TARGETS[name].seeds():
        TARGETS[name].check(seed)


def test_a_head_that_depends_on_the_pieces_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Http1Connection.receive_data

    def lossy(self: Http1Connection, data: bytes) -> None:
        original(self, data[:-1] if len(data) > 100 else data)

    monkeypatch.setattr(Http1Connection, "receive_data", lossy)
    expect_find("http1_server")


def test_a_status_that_is_not_the_roles_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def teapot(*_: object) -> None:
        raise RemoteProtocolError("no", reason=Reason.BAD_HEADER, status_hint=418)

    monkeypatch.setattr("datum_router_proxy.wire.http1.reader.parse_request_head", teapot)
    expect_find("http1_server")


def test_a_writer_that_changes_the_message_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = writer.encode_fields
    monkeypatch.setattr(writer, "encode_fields", lambda fields, refused: original(fields[1:], refused))
    expect_find("http1_server")
    expect_find("http1_client")


def test_an_engine_that_forgets_to_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., list[object]] = Http2Connection.receive_data
    monkeypatch.setattr(
        Http2Connection, "receive_data", lambda self, data, now: original(self, data, now) if data else []
    )
    expect_find("http2_server")
    expect_find("http2_client")


def test_a_codec_that_takes_wrong_padding_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = hpack_fast.HuffmanDecoder

    def lenient() -> hpack_fast.HuffmanDecoder:
        made = original()
        for state in made._states:
            state.is_accepting = True
        return made

    monkeypatch.setattr(hpack_fast, "huffman_decoder", lenient)
    with pytest.raises(AssertionError):
        TARGETS["hpack"].check(b"\x05\x40\x01a\x81\x18")


def test_a_decoder_that_changes_its_input_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = manifest.decode

    def greedy(raw: dict[str, object], *rest: object) -> object:
        found = original(raw, *rest)
        raw.pop("spec", None)
        return found

    monkeypatch.setattr(manifest, "decode", greedy)
    expect_find("manifest")


def test_a_name_that_libc_takes_for_an_address_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datum_router.egress.destination._NUMERIC", re.compile(r"\Z(?!)"))
    expect_find("egress")


def test_a_range_that_is_open_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_closed = ClosedRanges()
    nothing_closed._ranges = ()
    monkeypatch.setattr(egress, "ANYWHERE", EgressTable(egress.ANYWHERE.policy, nothing_closed))
    expect_find("egress")
