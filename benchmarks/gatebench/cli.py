"""The command line: options, the course of a run, progress on the terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gatebench import core, install, report, results
from gatebench.bars import State, judge
from gatebench.facts import gather
from gatebench.measures import MEASURES, Stage, prepare
from gatebench.processes import LOAD_CORE, BenchError
from gatebench.proxies import REPOSITORY, Site, Upstreams, make_certificate
from gatebench.runner import Plan, half_of_envoy, run_measure
from gatebench.samples import Sample, Summary, summarise

PROXIES = ("datum", "envoy", "nginx", "haproxy", "aiohttp", "mitmproxy")
CORE = "core"
LOG_WIDTH = 150
TITLES = {**{measure.key: measure.title for measure in MEASURES}, **core.TITLES}
UNITS = {**{measure.key: measure.unit for measure in MEASURES}, **core.UNITS}
STYLES = {State.AIM: "bold green", State.MUST: "green", State.MISSED: "red", State.FAILED: "red", State.ABSENT: "dim"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for; `only` and `proxies` hold known names, `out` None = write nothing."""

    only: tuple[str, ...]
    proxies: tuple[str, ...]
    rounds: int
    seconds: float
    out: Path | None
    datum: Path


def parse_options(arguments: Sequence[str]) -> Options:
    """Read the options of a run; ends the program with a sentence about what is wrong, if anything is."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description="Measure Datum Router beside its peers.",
        epilog="Other uses: `run.py compare BASE.json NEW.json [--out DIR]`, `run.py install`.",
    )
    keys = [*(measure.key for measure in MEASURES), CORE]
    parser.add_argument("--only", metavar="KEYS", default=",".join(keys), help=f"default: {','.join(keys)}")
    parser.add_argument("--proxies", metavar="NAMES", default=",".join(PROXIES), help=f"default: {','.join(PROXIES)}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measure; default 5")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run; default 4, at least 1")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where README.md, results.json and plots go")
    parser.add_argument(
        "--datum", type=Path, default=REPOSITORY / ".venv/bin/datum-router", help="the command under test"
    )
    found = parser.parse_args(arguments)
    only, proxies = (tuple(name for name in text.split(",") if name) for text in (found.only, found.proxies))
    for name, known in (*((key, keys) for key in only), *((name, list(PROXIES)) for name in proxies)):
        if name not in known:
            parser.error(f"{name}: not one of {', '.join(known)}")
    if found.rounds < 1 or found.seconds < 1:
        parser.error("--rounds and --seconds must be at least 1")
    return Options(
        only=only,
        proxies=proxies,
        rounds=found.rounds,
        seconds=found.seconds,
        out=found.out,
        datum=found.datum.absolute(),
    )


@contextlib.contextmanager
def stage_for(options: Options) -> Iterator[Stage]:
    """Start the upstreams and make the files that all measures share; ends and removes everything."""
    with tempfile.TemporaryDirectory(prefix="gatebench-") as name:
        scratch = Path(name)
        certificate, key, pem = make_certificate(scratch)
        bench_bin = Path(sys.executable).parent
        upstreams = Upstreams(scratch)
        try:
            site = Site(
                scratch=scratch,
                http_port=upstreams.http_port,
                grpc_port=upstreams.grpc_port,
                certificate=certificate,
                key=key,
                pem=pem,
                bodies=upstreams.bodies,
                bench_bin=bench_bin,
                datum=options.datum,
            )
            uris, message = prepare(scratch)
            vegeta = str(bench_bin / "vegeta")
            yield Stage(site=site, vegeta=vegeta, uris=uris, message=message, seconds=options.seconds)
        finally:
            upstreams.stop()


def raise_file_limit() -> None:
    """Let this process and its children open as many files as the system allows, 65,536 at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft == resource.RLIM_INFINITY or soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _ended(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(arguments: Sequence[str]) -> int:
    """Run; return the exit status: 0 all measured, 1 something failed, 2 the machine or a file lacks something."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    try:
        if arguments[:1] == ["install"]:
            return install.main()
        if arguments[:1] == ["compare"]:
            return compare(arguments[1:], console)
        options = parse_options(arguments)
        signal.signal(signal.SIGTERM, _ended)
        if len(os.sched_getaffinity(0)) < 2:
            raise BenchError("two cores are needed: one for the proxy, one for load and upstream")
        if not options.datum.exists():
            raise BenchError(f"{options.datum}: not found; `make .venv/.ready` makes it, --datum names another")
        facts = gather(options.datum)
        os.sched_setaffinity(0, {LOAD_CORE})
        raise_file_limit()
        samples = run_all(options, console)
        done = results.Results(
            facts=facts,
            settings={"rounds": options.rounds, "seconds a run": options.seconds},
            titles=TITLES,
            units=UNITS,
            samples=samples,
        )
        print_tables(console, done)
        if options.out is not None:
            write(done, options.out)
            console.print(f"written: {options.out}/README.md, results.json and plots")
    except BenchError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return 2
    except KeyboardInterrupt:
        console.print("[red]interrupted; everything that was started has ended[/]")
        return 130
    return 0 if all(sample.is_good for sample in samples) else 1


def compare(arguments: Sequence[str], console: Console) -> int:
    """Compare two files of results; print the page, and write it with a plot if asked."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py compare")
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--out", metavar="DIR", type=Path)
    found = parser.parse_args(arguments)
    base, new = results.load(found.base), results.load(found.new)
    text = report.comparison(base, new)
    console.print(text, markup=False, soft_wrap=True)
    if found.out is not None:
        from gatebench import plots

        found.out.mkdir(parents=True, exist_ok=True)
        names = plots.draw_comparison(base, new, found.out)
        pictures = "".join(f"\n![{name}]({name})\n" for name in names)
        (found.out / "README.md").write_text(text + pictures)
        console.print(f"written: {found.out}/README.md {' '.join(names)}")
    return 0


def write(done: results.Results, directory: Path) -> None:
    """Write the page, the raw results and the plots of a run."""
    from gatebench import plots

    directory.mkdir(parents=True, exist_ok=True)
    results.save(directory / "results.json", done)
    (directory / "README.md").write_text(report.page(done, plots.draw(done, directory)))


def run_all(options: Options, console: Console) -> list[Sample]:
    """Run what was asked for and return all samples."""
    measures = [measure for measure in MEASURES if measure.key in options.only]
    plan = Plan(measures=measures, proxies=options.proxies, rounds=options.rounds)
    has_core = CORE in options.only and "datum" in options.proxies
    estimate = plan.estimate_s(options.seconds) + has_core * options.rounds * core.ESTIMATE_S
    console.print(f"{len(measures) + has_core} measures, {options.rounds} rounds: about {estimate / 60:.0f} min")
    samples: list[Sample] = []
    began = time.monotonic()

    def told(sample: Sample) -> None:
        value = report.number(sample.value, UNITS[sample.measure])
        cpu = "" if sample.cpu_us is None else f" {sample.cpu_us:8.1f} us CPU"
        why = sample.error or f"{sample.errors} errors"
        state = "" if sample.is_good else f" [red]failed: {escape(why)}[/]"
        place = f"{sample.measure:<17} {sample.round}/{options.rounds} {sample.proxy:<10}"
        console.print(f"{time.monotonic() - began:5.0f} s  {place} {value:>14}{cpu}{state}")

    if has_core:
        samples += core.run_core(options.datum, options.rounds, told)
    if not measures:
        return samples
    with stage_for(options) as stage:
        for measure in measures:
            rate = half_of_envoy(samples)
            if measure.key in ("latency", "edit-loaded") and not rate:
                rate = probe_envoy(stage)
                console.print(f"       half of what Envoy answers: {rate:,} requests/s")
            samples += run_measure(measure, plan, replace(stage, rate=rate), told)
    return samples


def probe_envoy(stage: Stage) -> int:
    """Return half of Envoy's rate from one short run, for when measure `h1` was left out; 0 if that fails."""
    h1 = next(measure for measure in MEASURES if measure.key == "h1")
    plan = Plan(measures=[h1], proxies=["envoy"], rounds=1)
    return half_of_envoy(run_measure(h1, plan, replace(stage, seconds=2.0), lambda _sample: None))


def print_tables(console: Console, done: results.Results) -> None:
    """Print medians and verdicts."""
    summaries = summarise(done.samples)
    console.print(_medians(summaries))
    table = Table("measure", "demand", "must", "aim", "measured", "verdict")
    for verdict in judge(summaries):
        bar = verdict.bar
        if verdict.state is not State.ABSENT:
            demand = (report.sign(bar.is_at_least, value, bar.unit) for value in (bar.must, bar.aim))
            figure = "-" if verdict.figure is None else f"{verdict.figure:.2f}"
            table.add_row(bar.measure, bar.what, *demand, figure, verdict.state.value, style=STYLES[verdict.state])
    if table.row_count:
        console.print(table)


def _medians(summaries: Sequence[Summary]) -> Table:
    table = Table("measure", "proxy", "median", "spread", "ours / it", "p50", "p99", "p99.9", "CPU us", "RSS")
    ours = {row.measure: row for row in summaries if row.proxy == "datum"}
    for row in summaries:
        table.add_row(
            row.measure,
            row.proxy,
            report.number(row.value, UNITS[row.measure]),
            "-" if row.spread is None else f"{row.spread:.0%}",
            report.ratio_text(ours.get(row.measure), row),
            *(report.number(value, "us") for value in (row.p50_us, row.p99_us, row.p999_us)),
            "-" if row.cpu_us is None else f"{row.cpu_us:.1f}",
            "-" if row.rss_bytes is None else report.number(row.rss_bytes, "bytes"),
            style="red" if row.failure else "",
        )
    return table
