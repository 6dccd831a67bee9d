"""The command line: options, the course of a run, progress on the terminal."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gatebench import install
from gatebench.measures import MEASURES, Stage, prepare
from gatebench.processes import LOAD_CORE, BenchError
from gatebench.proxies import REPOSITORY, Site, Upstreams, make_certificate
from gatebench.runner import Plan, half_of_envoy, in_order, run_measure
from gatebench.samples import Sample, Summary, summarise

PROXIES = ("datum", "envoy", "nginx", "haproxy", "aiohttp", "mitmproxy")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options of a run."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description="Measure Datum Router beside its peers.")
    keys = [measure.key for measure in MEASURES]
    parser.add_argument("--only", metavar="KEYS", default="", help=f"of {','.join(keys)}; default: all")
    parser.add_argument("--proxies", metavar="NAMES", default=",".join(PROXIES), help=f"default: {','.join(PROXIES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run; default 4")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where results, tables and plots go; default: nowhere")
    parser.add_argument(
        "--datum", type=Path, default=REPOSITORY / ".venv/bin/datum-router", help="the command under test"
    )
    options = parser.parse_args(arguments)
    options.only = [key for key in options.only.split(",") if key]
    options.proxies = [name for name in options.proxies.split(",") if name]
    for name, known in (*((key, keys) for key in options.only), *((name, PROXIES) for name in options.proxies)):
        if name not in known:
            parser.error(f"{name}: not one of {', '.join(known)}")
    return options


@contextlib.contextmanager
def site_for(options: argparse.Namespace) -> Iterator[tuple[Site, Stage]]:
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
            yield (
                site,
                Stage(
                    site=site,
                    vegeta=str(bench_bin / "vegeta"),
                    uris=uris,
                    message=message,
                    seconds=options.seconds,
                ),
            )
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
    """Run and return the exit status: 0 all measured, 1 something failed, 2 the machine lacks something."""
    console = Console()
    if arguments[:1] == ["install"]:
        return install.main()
    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, _ended)
    try:
        if (os.cpu_count() or 1) < 2:
            raise BenchError("two cores are needed: one for the proxy, one for load and upstream")
        os.sched_setaffinity(0, {LOAD_CORE})
        raise_file_limit()
        samples = run_all(options, console)
    except BenchError as error:
        console.print(f"[red]{escape(str(error))}[/]", highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("[red]interrupted; everything that was started has ended[/]")
        return 130
    return 0 if all(sample.is_good for sample in samples) else 1


def run_all(options: argparse.Namespace, console: Console) -> list[Sample]:
    """Run what was asked for, print a table, and return all samples."""
    plan = Plan(measures=list(in_order(MEASURES, options.only)), proxies=options.proxies, rounds=options.rounds)
    console.print(f"about {plan.estimate_s(options.seconds) / 60:.0f} min for {len(plan.measures)} measures")
    samples: list[Sample] = []
    began = time.monotonic()

    def told(sample: Sample) -> None:
        value = "-" if sample.value is None else f"{sample.value:,.0f}"
        state = "" if sample.is_good else f" [red]failed: {escape(sample.error or f'{sample.errors} errors')}[/]"
        cpu = "" if sample.cpu_us is None else f" {sample.cpu_us:6.1f} us CPU"
        console.print(
            f"{time.monotonic() - began:5.0f} s  {sample.measure:<10} {sample.round} "
            f"{sample.proxy:<10} {value:>14}{cpu}{state}",
            highlight=False,
        )

    with site_for(options) as (site, stage):
        for measure in plan.measures:
            rate = half_of_envoy(samples)
            samples += run_measure(measure, plan, site, dataclasses.replace(stage, rate=rate), told)
    print_table(console, summarise(samples))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps([dataclasses.asdict(item) for item in samples], indent=1))
    return samples


def print_table(console: Console, summaries: Sequence[Summary]) -> None:
    """Print the medians."""
    table = Table("measure", "proxy", *("median", "spread", "p50 us", "p99 us", "p99.9 us", "CPU us", "RSS MiB"))
    for row in summaries:
        numbers = [
            "-" if row.value is None else f"{row.value:,.0f}",
            "-" if row.spread is None else f"{row.spread:.0%}",
            *("-" if n is None else f"{n:,.0f}" for n in (row.p50_us, row.p99_us, row.p999_us)),
            "-" if row.cpu_us is None else f"{row.cpu_us:.1f}",
            "-" if row.rss_bytes is None else f"{row.rss_bytes / 2**20:.1f}",
        ]
        table.add_row(row.measure, row.proxy, *numbers, style="red" if row.failure else "")
    console.print(table)
