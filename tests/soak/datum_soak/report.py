"""The report: progress while it runs, a table at the end, JSON and Markdown files."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import msgspec
import trio
from rich.console import Console
from rich.table import Table

from datum_soak.drain import DRAIN
from datum_soak.faults import EXHAUSTED, ROLLING
from datum_soak.outcomes import Record
from datum_soak.plot import Panel, svg
from datum_soak.processes import ProcessSample
from datum_soak.stage import Stage
from datum_soak.verdict import Check, Facts, Window, by_window, judge_failures, request_checks

PROGRESS_EVERY_S = 5.0
SHOWN_FAILURES = 20


class KindRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of request: counts, and how its failures are spread over causes."""

    kind: str
    sent: int
    answered: int
    resent: int
    failed: dict[str, int]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a soak has found; written as JSON."""

    is_passed: bool
    seconds: float
    rate: float
    seed: int
    kinds: list[KindRow]
    excused: dict[str, int]
    unexcused: list[Record]
    by_window: dict[str, dict[str, int]]
    windows: list[Window]
    checks: list[Check]
    latency_ms: dict[str, float]
    edit_delay_ms: dict[str, float]
    samples: dict[str, list[ProcessSample]]
    answered_per_s: list[int]
    failed_per_s: list[int]
    notes: list[str]


def quantiles_ms(values_s: list[float]) -> dict[str, float]:
    """Return p50, p99 and the maximum in milliseconds."""
    if len(values_s) < 2:
        return {}
    cuts = statistics.quantiles(values_s, n=100, method="inclusive")
    return {
        name: round(value * 1000, 2) for name, value in (("p50", cuts[49]), ("p99", cuts[98]), ("max", max(values_s)))
    }


def facts_of(stage: Stage) -> Facts:
    """Return what the faults did."""
    return Facts(
        killed=stage.killed,
        exhausted=tuple(window for window in stage.windows if window.name == EXHAUSTED),
        going_away=tuple(w for w in stage.windows if w.name in (ROLLING, DRAIN)),
    )


def make_result(stage: Stage) -> Result:
    """Judge a soak that has ended."""
    ledger = stage.ledger
    facts = facts_of(stage)
    excused, unexcused = judge_failures(ledger.failures, facts)
    checks = [
        *request_checks(
            sent=ledger.sent,
            answered=ledger.answered,
            failures=ledger.failures,
            facts=facts,
            pending=ledger.pending,
            not_sent=stage.load.not_sent,
        ),
        *stage.checks,
    ]
    failed: dict[str, dict[str, int]] = {}
    for kind, label, count in ledger.failures_by_label():
        failed.setdefault(kind, {})[label] = count
    last = max(ledger.seconds, default=0)
    seconds = [ledger.seconds.get(second) for second in range(last + 1)]
    return Result(
        is_passed=all(check.is_met for check in checks),
        seconds=stage.options.seconds,
        rate=stage.options.rate,
        seed=stage.options.seed,
        kinds=[
            KindRow(
                kind=kind,
                sent=ledger.sent[kind],
                answered=ledger.answered[kind],
                resent=ledger.resent[kind],
                failed=failed.get(kind, {}),
            )
            for kind in sorted(ledger.sent)
        ],
        excused=excused,
        unexcused=unexcused[:200],
        by_window=by_window(ledger.failures, stage.windows),
        windows=sorted(stage.windows, key=lambda window: window.start_s),
        checks=checks,
        latency_ms=quantiles_ms(ledger.latencies_s),
        edit_delay_ms=quantiles_ms(stage.editor.delays_s),
        samples=stage.samples,
        answered_per_s=[item.answered if item else 0 for item in seconds],
        failed_per_s=[item.failed if item else 0 for item in seconds],
        notes=stage.notes,
    )


async def progress_forever(stage: Stage) -> None:
    """Say every few seconds how it goes."""
    while True:
        await trio.sleep(PROGRESS_EVERY_S)
        ledger = stage.ledger
        _, unexcused = judge_failures(ledger.failures, facts_of(stage))
        memory = ", ".join(
            f"{name.split(' (')[0]} {samples[-1].rss_mib:.0f}"
            for name, samples in stage.samples.items()
            if samples[-1].at_s > stage.clock() - 3 * PROGRESS_EVERY_S
        )
        print(
            f"{stage.clock():7.1f} s  sent {sum(ledger.sent.values())}, answered {sum(ledger.answered.values())}, "
            f"failed {len(ledger.failures)} (not excused so far {len(unexcused)}), in flight {stage.load.in_flight}, "
            f"edits {len(stage.editor.delays_s)}, MiB: {memory}",
            file=sys.stderr,
            flush=True,
        )


def tables(result: Result) -> list[Table]:
    """Return the tables of the terminal."""
    kinds = Table("request", "sent", "answered", "sent again", "failed by cause", title="Requests")
    for row in result.kinds:
        causes = ", ".join(f"{label}: {count}" for label, count in row.failed.items())
        kinds.add_row(row.kind, str(row.sent), str(row.answered), str(row.resent), causes)
    windows = Table("fault", "from", "to", "failed", title="Failures by fault window")
    spans: dict[str, list[Window]] = {}
    for window in result.windows:
        spans.setdefault(window.name, []).append(window)
    for name in [*spans, "quiet"]:
        counts = ", ".join(f"{label}: {count}" for label, count in result.by_window.get(name, {}).items())
        times = spans.get(name, [])
        windows.add_row(
            name if len(times) < 2 else f"{name} ({len(times)} times)",
            f"{times[0].start_s:.1f} s" if times else "",
            f"{times[-1].end_s:.1f} s" if times else "",
            counts or "none",
        )
    excuses = Table("excused because", "requests", title="Failures that a fault made unavoidable")
    for why, count in result.excused.items():
        excuses.add_row(why, str(count))
    checks = Table("check", "found", "required", "", title="Verdict")
    for check in result.checks:
        checks.add_row(check.name, check.found, check.required, "ok" if check.is_met else "FAILED")
    return [kinds, windows, excuses, checks]


def closing_lines(result: Result) -> list[str]:
    """Return what stands below the tables."""
    return [
        f"latency ms: {result.latency_ms}; edits until in force on all workers, ms: {result.edit_delay_ms}",
        *(
            f"not excused: {record.kind}: {record.label} {record.detail} at {record.started_s:.2f}-"
            f"{record.ended_s:.2f} s, from {record.local}, {'reused' if record.is_reused else 'new'} connection"
            for record in result.unexcused[:SHOWN_FAILURES]
        ),
        "PASSED" if result.is_passed else "FAILED",
    ]


def print_result(result: Result) -> None:
    """Print the tables."""
    console = Console(width=140)
    for table in tables(result):
        console.print(table)
    for line in closing_lines(result):
        console.print(line, markup=False, highlight=False)


def markdown(result: Result) -> str:
    """Return the report as Markdown."""
    parts = [f"# Soak of {result.seconds:g} s at {result.rate:g} requests/s, seed {result.seed}\n"]
    for table in tables(result):
        rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
        header = [str(column.header) for column in table.columns]
        parts.append(f"## {table.title}\n")
        parts.append(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
        parts.extend(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)
        parts.append("")
    parts.extend(f"{line}\n" for line in closing_lines(result))
    parts.append("![requests, failures, memory and descriptors over time](soak.svg)\n")
    parts.append("## What happened\n\n```text")
    parts.extend(result.notes)
    parts.append("```\n")
    return "\n".join(parts)


def draw(result: Result) -> str:
    """Return the plot as SVG."""
    panels = [
        Panel(title="answered per second", lines={"answered": list(enumerate(result.answered_per_s))}),
        Panel(
            title="failed per second (marked cuts not counted)", lines={"failed": list(enumerate(result.failed_per_s))}
        ),
        Panel(
            title="resident memory, MiB",
            lines={name: [(item.at_s, item.rss_mib) for item in samples] for name, samples in result.samples.items()},
        ),
        Panel(
            title="open descriptors",
            lines={
                name: [(item.at_s, item.descriptors) for item in samples] for name, samples in result.samples.items()
            },
        ),
    ]
    return svg(panels, result.windows, duration_s=float(len(result.answered_per_s)))


def write_files(result: Result, out: Path) -> None:
    """Write `soak.json`, `soak.md` and the plot `soak.svg`."""
    (out / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    (out / "soak.svg").write_text(draw(result))
    (out / "soak.md").write_text(markdown(result))
