"""Readers of load generators, on what the real ones printed."""

from __future__ import annotations

import json
import socket
import sys
import threading

import pytest

from gatebench.processes import BenchError
from gatebench.tools import parse_h2load, parse_sink, parse_vegeta, parse_wrk, sink


def test_wrk_report_gives_requests_time_and_percentiles(output):
    load = parse_wrk(output("wrk.txt"))
    assert (load.requests, load.errors, load.duration_s) == (65515, 0, 1.000415)
    assert (load.p50_us, load.p99_us, load.p999_us) == (95.0, 600.0, 2867.0)
    assert load.requests_per_s == pytest.approx(65487.8, abs=0.1)


def test_wrk_answers_without_2xx_are_errors_and_no_requests(output):
    load = parse_wrk(output("wrk-404.txt"))
    assert (load.requests, load.errors) == (0, 49339)


def test_wrk_without_report_is_refused():
    with pytest.raises(BenchError, match="no report"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_h2load_result_and_log_give_exact_percentiles(output):
    lines = output("h2load.log").splitlines()
    load = parse_h2load(output("h2load.txt"), lines)
    times = sorted(int(line.split("\t")[2]) for line in lines)
    assert (load.requests, load.errors, load.duration_s, load.body_bytes) == (62136, 0, 1.0, 63631360)
    assert load.p50_us == times[len(times) // 2 - 1]
    assert load.p99_us == load.p999_us == times[-1]


def test_h2load_answers_without_2xx_are_errors(output):
    load = parse_h2load(output("h2load-404.txt"))
    assert (load.requests, load.errors, load.p50_us) == (0, 8378, None)


def test_h2load_without_any_answer_is_refused(output):
    with pytest.raises(BenchError, match="no answer at all"):
        parse_h2load(output("h2load-refused.txt"))


def test_h2load_that_printed_nothing_is_refused():
    with pytest.raises(BenchError, match="no result"):
        parse_h2load("starting benchmark...\n")


@pytest.mark.parametrize(("text", "seconds"), [("1.50s", 1.5), ("250.00ms", 0.25), ("1.00m", 60.0)])
def test_h2load_times_have_units(output, text, seconds):
    assert parse_h2load(output("h2load.txt").replace("finished in 1.00s", f"finished in {text}")).duration_s == seconds


def test_vegeta_latencies_are_counted_from_the_schedule(output):
    lines = output("vegeta.csv").splitlines()
    load = parse_vegeta(lines, rate=len(lines), seconds=1)
    times = sorted(int(line.split(",")[2]) / 1e3 for line in lines)
    assert (load.requests, load.errors) == (len(lines), 0)
    assert load.p50_us == times[len(lines) // 2 - 1]


def test_vegeta_failures_are_errors(output):
    lines = output("vegeta.csv").replace(",200,", ",503,", 1).replace(",200,", ",0,", 1).splitlines()
    load = parse_vegeta(lines, rate=len(lines), seconds=1)
    assert (load.requests, load.errors) == (len(lines) - 2, 2)


def test_vegeta_that_could_not_keep_the_rate_is_refused(output):
    lines = output("vegeta.csv").splitlines()
    with pytest.raises(BenchError, match="cannot keep up"):
        parse_vegeta(lines, rate=2 * len(lines), seconds=1)


def _serve(answers: list[bytes]) -> int:
    """Answer each connection's requests with `answers` in turn, the last of them for ever; return the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listener:
            sock, _ = listener.accept()
        with sock:
            turn = 0
            try:
                while sock.recv(4096):
                    sock.sendall(answers[min(turn, len(answers) - 1)])
                    turn += 1
            except OSError:
                return

    threading.Thread(target=run, daemon=True).start()
    return int(listener.getsockname()[1])


def test_sink_counts_whole_bodies():
    body = b"x" * 300_000
    port = _serve([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)])
    load = sink(sys.executable, port=port, host="h.example", path="/b", connections=1, seconds=0.3)
    assert load.errors == 0
    assert load.requests > 0
    assert load.requests * len(body) <= load.body_bytes < (load.requests + 1) * len(body)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"],
)
def test_sink_counts_other_answers_as_errors(answer):
    load = sink(sys.executable, port=_serve([answer]), host="h.example", path="/b", connections=1, seconds=0.3)
    # A head that never ends is neither; it leaves nothing to count.
    assert (load.requests, load.errors) == (0, 0 if answer.endswith(b"Le") else 1)


def test_sink_line_is_the_last_one():
    text = "noise\n" + json.dumps({"requests": 2, "errors": 1, "duration_s": 0.5, "body_bytes": 10}) + "\n"
    load = parse_sink(text)
    assert (load.requests, load.errors, load.bytes_per_s) == (2, 1, 20.0)
