"""Medians, spreads, verdicts, tables, files and comparisons."""

from __future__ import annotations

import json

import pytest

from gatebench import report, results
from gatebench.bars import BARS, Bar, State, judge
from gatebench.processes import BenchError
from gatebench.samples import Sample, median, percentile, spread, summarise


def sample(measure: str, proxy: str, value: float | None, number: int = 1, **more) -> Sample:
    return Sample(measure=measure, proxy=proxy, round=number, value=value, **more)


def run(*samples: Sample) -> results.Results:
    return results.Results(
        facts={"commit": "abc"},
        settings={"rounds": 1},
        titles={"h1": "HTTP/1.1"},
        units={"h1": "requests/s", "latency": "us"},
        samples=samples,
    )


def test_median_and_spread():
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 3, 2]) == 2.5
    assert spread([90, 100, 110]) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="no values"):
        median([])


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (99, 10), (99.9, 10), (10, 1), (0, 1)])
def test_percentile_is_the_nearest_rank(percent, expected):
    assert percentile(range(1, 11), percent) == expected


def test_one_bad_round_makes_a_failed_row_that_keeps_its_median():
    rows = summarise([sample("h1", "datum", 10), sample("h1", "datum", 30, 2), sample("h1", "datum", 90, 3, errors=1)])
    assert [(row.value, row.rounds) for row in rows] == [(20, 3)]
    assert rows[0].failure == "1 of 3 rounds: 1 requests without a 2xx answer"


def test_a_proxy_that_never_ran_is_still_a_row():
    (row,) = summarise([sample("h1", "envoy", None, error="envoy ended with status 1")])
    assert row.value is None
    assert "envoy ended with status 1" in row.failure


RATIO = Bar(measure="h1", what="against envoy", must=1.2, aim=1.8, against=("envoy",))
COST = Bar(measure="latency", what="against envoy", must=1.5, aim=1.0, against=("envoy",), is_at_least=False)


@pytest.mark.parametrize(
    ("bar", "ours", "state"),
    [
        (RATIO, 180, State.AIM),
        (RATIO, 120, State.MUST),
        (RATIO, 119, State.MISSED),
        (COST, 100, State.AIM),
        (COST, 150, State.MUST),
        (COST, 151, State.MISSED),
    ],
)
def test_verdict_of_a_ratio(bar, ours, state):
    rows = summarise([sample(bar.measure, "datum", ours), sample(bar.measure, "envoy", 100)])
    (verdict,) = judge(rows, [bar])
    assert (verdict.state, verdict.figure) == (state, ours / 100)


@pytest.mark.parametrize("failing", ["datum", "envoy"])
def test_a_failure_on_either_side_is_never_a_reached_bar(failing):
    rows = summarise(
        [sample("h1", name, 500 if name == "datum" else 1, errors=name == failing) for name in ("datum", "envoy")]
    )
    (verdict,) = judge(rows, [RATIO])
    assert (verdict.state, verdict.figure) == (State.FAILED, None)
    assert verdict.why.startswith(failing)


def test_a_bar_without_its_peer_is_not_measured():
    (verdict,) = judge(summarise([sample("h1", "datum", 500)]), [RATIO])
    assert verdict.state is State.ABSENT


def test_best_python_proxy_is_the_one_that_counts():
    bar = Bar(measure="h1", what="", must=3, aim=5, against=("aiohttp", "mitmproxy"))
    rows = summarise([sample("h1", "datum", 400), sample("h1", "aiohttp", 100), sample("h1", "mitmproxy", 10)])
    assert judge(rows, [bar])[0].figure == 4


def test_absolute_bars_and_bars_against_another_measure_of_ours():
    rows = summarise([sample("match-10k", "datum", 1.0), sample("match-100k", "datum", 1.2)])
    found = {verdict.bar.measure: verdict for verdict in judge(rows)}
    assert found["match-10k"].state is State.AIM
    assert (found["match-100k"].state, found["match-100k"].figure) == (State.MUST, 1.2)
    assert len(judge(rows)) == len(BARS)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "us", "-"),
        (1234.5, "requests/s", "1,234"),
        (2**30, "bytes/s", "1,024 MiB/s"),
        (45 * 2**20, "bytes", "45.0 MiB"),
        (512, "bytes", "0.5 KiB"),
        (0.91, "us", "0.91 us"),
        (950, "us", "950 us"),
        (12_340, "us", "12.34 ms"),
        (0.4, "s", "0.40 s"),
    ],
)
def test_figures_are_shown_with_their_unit(value, unit, text):
    assert report.number(value, unit) == text


def test_page_has_verdicts_all_rows_failures_and_facts():
    text = report.page(
        run(
            sample("h1", "datum", 200, cpu_us=30.25, p99_us=900.0, rss_bytes=2**25),
            sample("h1", "envoy", 100),
            sample("h1", "nginx", None, error="no | answer"),
        ),
        ["ratios.svg"],
    )
    assert "| HTTP/1.1, against envoy | >= 1.2 x | >= 1.8 x | 2.00 x | aim reached |" in text
    assert (
        "| HTTP/1.1, against nginx | >= 0.5 x | >= 0.9 x | - | **failed**: nginx: 1 of 1 rounds: no \\| answer |"
        in text
    )
    assert "| datum | 200 | 0% | - | - | 900 us | - | 30.2 | 32.0 MiB | 1 |" in text
    assert "| envoy | 100 | 0% | 2.00 |" in text
    assert "**failed**, 1 of 1 rounds: no \\| answer" in text
    assert "| commit | abc |" in text
    assert "![ratios](ratios.svg)" in text


def test_comparison_shows_change_and_both_ratios():
    base = run(sample("h1", "datum", 100, cpu_us=50.0), sample("h1", "envoy", 100), sample("latency", "datum", 10))
    new = run(sample("h1", "datum", 150, cpu_us=49.0), sample("h1", "envoy", 120), sample("tls", "datum", 10))
    text = report.comparison(base, new)
    assert "| h1 | 100 | 150 | **+50.0%** | 1.00 -> 1.25 | - | -2.0% |  |" in text
    assert "| latency" not in text.split("Changes below")[0]


def test_results_are_read_as_they_were_written(tmp_path):
    done = run(sample("h1", "datum", 1.5, p99_us=3.0, rss_bytes=5), sample("h1", "envoy", None, error="no"))
    path = tmp_path / "results.json"
    results.save(path, done)
    again = results.load(path)
    assert list(again.samples) == list(done.samples)
    assert (again.facts, again.units, again.titles, again.settings) == (
        done.facts,
        done.units,
        done.titles,
        done.settings,
    )


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data: data.update(schema=2), "schema 1"),
        (lambda data: data.update(facts=[]), "facts"),
        (lambda data: data.update(samples={}), "samples"),
        (lambda data: data["samples"][0].pop("round"), r"samples\[0\]"),
        (lambda data: data["samples"][0].update(value="fast"), r"samples\[0\].value"),
        (lambda data: data["samples"][0].update(errors=None), r"samples\[0\].errors"),
        (lambda data: data["samples"][0].update(proxy=1), r"samples\[0\].proxy"),
    ],
)
def test_a_file_that_is_no_result_is_refused_with_the_place(tmp_path, spoil, why):
    path = tmp_path / "results.json"
    results.save(path, run(sample("h1", "datum", 1.5)))
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BenchError, match=why):
        results.load(path)
