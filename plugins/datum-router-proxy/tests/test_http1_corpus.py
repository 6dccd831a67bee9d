"""The public corpus of HTTP/1.1 requests, run against the engine in one piece and byte by byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from datum_router.errors import RemoteProtocolError
from datum_router_proxy.wire.http1 import ConnectionClosed, Http1Connection, MessageComplete, Role, Signal

ROOT = Path(__file__).resolve().parents[3]
CORPUS = Path(os.environ.get("DATUM_ROUTER_SHARED", ROOT.parent / "shared")) / "corpora" / "http1_public.json"
HOST = "router.example:8080"

# What a gateway does on purpose where the corpus wants a refusal; each is one sentence long.
ACCEPTED_ON_PURPOSE = {
    "COMP-UNKNOWN-METHOD": "a gateway passes unknown methods on, the origin answers 501",
    "llhttp-invalid-3": "ANNOUNCE is an unknown but well-formed method",
    "llhttp-invalid-13": "MKCOLA is an unknown but well-formed method",
    "llhttp-connection-9": "an upgrade nobody serves is answered as plain HTTP; early bytes close",
    "llhttp-connection-13": "an upgrade nobody serves is answered as plain HTTP",
    "llhttp-connection-14": "an upgrade nobody serves is answered as plain HTTP; early bytes close",
    "llhttp-connection-15": "an upgrade nobody serves is answered as plain HTTP; early bytes close",
    "llhttp-connection-16": "an upgrade nobody serves is answered as plain HTTP; early bytes close",
}


def verdict(raw: bytes, step: int) -> list[int | str]:
    """Return what a server that answers 200 to everything would send: statuses, then `wait` or `close`."""
    connection = Http1Connection(Role.SERVER)
    answers: list[int | str] = []
    for start in range(0, len(raw), step):
        connection.receive_data(raw[start : start + step])
        while True:
            try:
                event = connection.next_event()
            except RemoteProtocolError as error:
                return [*answers, error.status_hint]
            if isinstance(event, MessageComplete):
                connection.send_response(200, ())
                connection.send_end()
                answers.append(200)
                if not connection.can_reuse:
                    return [*answers, "close"]
                connection.start_next_cycle()
            elif isinstance(event, Signal | ConnectionClosed):
                break
    return [*answers, "wait"]


def cases() -> list[dict[str, object]]:
    return json.loads(CORPUS.read_text()) if CORPUS.exists() else []


@pytest.mark.skipif(not CORPUS.exists(), reason="public corpus http1_public.json is not here")
def test_corpus_is_complete() -> None:
    ids = {case["id"] for case in cases()}
    assert len(ids) >= 100
    assert set(ACCEPTED_ON_PURPOSE) <= ids


@pytest.mark.parametrize("case", cases(), ids=lambda case: str(case["id"]))
def test_corpus_case(case: dict[str, object]) -> None:
    raw = str(case["raw"]).replace("@H@", HOST).encode("latin-1")
    whole = verdict(raw, len(raw))
    piecemeal = verdict(raw, 1)
    assert piecemeal[0] == whole[0]
    if case["id"] in ACCEPTED_ON_PURPOSE:
        assert whole[0] == 200, "no longer accepted: remove it from ACCEPTED_ON_PURPOSE"
        return
    assert piecemeal == whole
    ranges = case["ok"]
    assert isinstance(ranges, list)
    allowed = any(low <= answer <= high for low, high in ranges for answer in whole if isinstance(answer, int))
    # a head or body that never ends is the driver's to time out: 408, or close, which the corpus must allow
    waits = whole == ["wait"] and bool(case["wait"] or case["close"])
    assert allowed or waits, f"{whole}: {case['why']}"
