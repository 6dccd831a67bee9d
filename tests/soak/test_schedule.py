"""The plan of faults, the labels of the slow herd's ends, and the splitting of HTTP/2 bytes at GOAWAY."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from datum_soak.backend_h2 import frame_message, messages_of
from datum_soak.client_h2 import split_goaway
from datum_soak.faults import EXHAUSTED, IDLE_RESTART, KILL, ROLLING
from datum_soak.plot import Panel, svg
from datum_soak.schedule import IDLE_RESTARTS, STEADY_SHARE, plan
from datum_soak.slow import SLOW, Manner, end_of
from datum_soak.verdict import Window

PING = bytes.fromhex("000008060000000000") + b"12345678"
GOAWAY = bytes.fromhex("000008070000000000") + (7).to_bytes(4, "big") + (11).to_bytes(4, "big")


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_has_every_fault_and_leaves_the_second_half_steady(seed: int) -> None:
    planned = plan(600.0, seed)
    names = [fault.name for fault in planned]
    assert sorted(names) == sorted([KILL, ROLLING, SLOW, EXHAUSTED, *[IDLE_RESTART] * IDLE_RESTARTS])
    assert [fault.at_s for fault in planned] == sorted(fault.at_s for fault in planned)
    assert all(fault.at_s < STEADY_SHARE * 600.0 for fault in planned if fault.name != IDLE_RESTART)


def test_equal_seeds_give_equal_plans_and_others_do_not() -> None:
    assert plan(600.0, 1) == plan(600.0, 1)
    assert plan(600.0, 1) != plan(600.0, 2)


@pytest.mark.parametrize(
    ("manner", "received", "error", "is_right"),
    [
        (Manner.SILENT, b"", 0, True),
        (Manner.SILENT, b"HTTP/1.1 408 ", 0, False),
        (Manner.SILENT, b"", 104, False),
        (Manner.TRICKLE, b"HTTP/1.1 408 Request Timeout\r\n", 0, True),
        (Manner.TRICKLE, b"HTTP/1.1 408 Request Timeout\r\n", 104, True),
        (Manner.TRICKLE, b"", 104, False),
        (Manner.TRICKLE, b"HTTP/1.1 500 ", 0, False),
        (Manner.READER, b"HTTP/1.1 200 ", 0, False),
        (Manner.IDLER, b"HTTP/1.1 200 OK\r\n", 0, True),
        (Manner.IDLER, b"HTTP/1.1 503 ", 0, False),
        (Manner.IDLER, b"HTTP/1.1 200 OK\r\n", 104, False),
    ],
)
def test_only_the_ends_that_the_threat_list_asks_for_are_right(
    manner: Manner, received: bytes, error: int, is_right: bool
) -> None:
    assert end_of(manner, received, error).endswith("as it must") is is_right


@pytest.mark.parametrize("size", [1, 5, 17, 1000])
def test_goaway_is_taken_out_and_everything_else_stays_in_order(size: int) -> None:
    stream = PING + GOAWAY + PING + PING
    buffer = bytearray()
    data = b""
    found = []
    for start in range(0, len(stream), size):
        buffer += stream[start : start + size]
        for part, goaway in split_goaway(buffer):
            data += part
            if goaway is not None:
                assert data == PING
                found.append(goaway)
    assert data == PING * 3
    assert found == [(7, 11)]
    assert not buffer


def test_the_plot_is_xml_with_every_line_and_every_band() -> None:
    panels = [
        Panel(title="a < b", lines={"x": [(0.0, 1.0), (5.0, 3.0)], "y": [(0.0, 2.0)]}),
        Panel(title="c", lines={}),
    ]
    windows = [Window(name="w & x", start_s=1.0, end_s=2.0), Window(name="w & x", start_s=3.0, end_s=4.0)]
    root = ElementTree.fromstring(svg(panels, windows, duration_s=10.0))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == 2
    assert sum(item.get("opacity") == "0.18" for item in root.findall(f"{space}rect")) == len(windows) * len(panels)
    assert [item.text for item in root.findall(f"{space}text")].count("w & x") == 1


def test_grpc_messages_are_split_and_a_cut_one_is_refused() -> None:
    data = frame_message(b"abc") + frame_message(b"")
    assert messages_of(data) == [b"abc", b""]
    for size in range(1, len(data)):
        if size != len(frame_message(b"abc")):
            with pytest.raises(ValueError, match="incomplete"):
                messages_of(data[:size])
