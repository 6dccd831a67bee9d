"""Tables in Markdown: the verdicts, all figures, the machine; and two runs side by side. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gatebench.bars import OURS, State, Verdict, judge
from gatebench.results import Results
from gatebench.samples import Summary, summarise

ENOUGH_CHANGE = 0.05

RERUN = """\
## Run it again

```bash
make bench                                  # everything; needs Debian, root for missing packages, Go, two cores
make bench BENCH="--only h1,h2 --rounds 3"  # some rows
make bench-compare BASE=base-results.json   # this checkout's results.json against those of another
```

The method, and how each peer is configured: [benchmarks](../../benchmarks/README.md).
"""


def number(value: float | None, unit: str) -> str:
    """Return a figure as people read it; `-` for None."""
    if value is None:
        return "-"
    if unit == "bytes/s":
        return f"{value / 2**20:,.0f} MiB/s"
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB" if abs(value) >= 2**20 else f"{value / 1024:,.1f} KiB"
    if unit == "us":
        return (
            f"{value / 1000:,.2f} ms" if value >= 10_000 else f"{value:,.2f} us" if value < 100 else f"{value:,.0f} us"
        )
    if unit == "s":
        return f"{value:.2f} s"
    return f"{value:,.0f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; `|` in cells is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def sign(bar_is_at_least: bool, value: float, unit: str) -> str:
    return f"{'>=' if bar_is_at_least else '<='} {value:g} {unit}"


def verdict_table(verdicts: Sequence[Verdict], titles: Mapping[str, str]) -> str:
    """Return the table of bars, each with what was measured and how it stands."""
    rows = []
    for verdict in verdicts:
        bar = verdict.bar
        figure = "-" if verdict.figure is None else f"{verdict.figure:.2f} {bar.unit}"
        state = f"**{verdict.state.value}**" if verdict.state in (State.MISSED, State.FAILED) else verdict.state.value
        rows.append(
            (
                f"{titles.get(bar.measure, bar.measure)}, {bar.what}",
                sign(bar.is_at_least, bar.must, bar.unit),
                sign(bar.is_at_least, bar.aim, bar.unit),
                figure,
                state + (f": {verdict.why}" if verdict.why else ""),
            )
        )
    return table(("measure", "must reach", "aim for", "measured", "verdict"), rows)


def ratio_text(ours: Summary | None, other: Summary) -> str:
    """Return ours divided by the other's figure; `-` where either failed or it is the same row."""
    if ours is None or ours is other or ours.failure or other.failure or not ours.value or not other.value:
        return "-"
    return f"{ours.value / other.value:.2f}"


def figure_tables(results: Results) -> str:
    """Return one table for each measure: medians of all proxies, and ours divided by theirs."""
    summaries = summarise(results.samples)
    parts = []
    for key in dict.fromkeys(row.measure for row in summaries):
        unit = results.units.get(key, "")
        rows = [row for row in summaries if row.measure == key]
        ours = next((row for row in rows if row.proxy == OURS), None)
        lines = []
        for row in rows:
            cells = [row.proxy, number(row.value, unit), "-" if row.spread is None else f"{row.spread:.0%}"]
            cells.append(ratio_text(ours, row))
            cells += [number(value, "us") for value in (row.p50_us, row.p99_us, row.p999_us)]
            cells.append("-" if row.cpu_us is None else f"{row.cpu_us:,.1f}")
            cells.append("-" if row.rss_bytes is None else number(row.rss_bytes, "bytes"))
            cells.append(f"**failed**, {row.failure}" if row.failure else str(row.rounds))
            lines.append(cells)
        shown = f" ({unit})" if unit == "requests/s" else ""
        head = (f"median{shown}", "spread", "ours / it", "p50", "p99", "p99.9", "CPU us/request", "RSS", "rounds")
        parts.append(f"### {results.titles.get(key, key)} (`{key}`)\n\n{table(('proxy', *head), lines)}")
    return "\n".join(parts)


def page(results: Results, plots: Sequence[str]) -> str:
    """Return the whole page of one run."""
    pictures = "\n".join(f"![{name.removesuffix('.svg')}]({name})" for name in plots)
    settings = ", ".join(f"{key} {value:g}" for key, value in results.settings.items())
    return f"""\
# Benchmarks

<!-- Written by `make bench`; do not edit. -->

Datum Router beside other proxies, each on one core, load and upstream on the other. {settings}. Medians of all rounds,
proxies in turn; the spread is (highest - lowest) / median. A row with one failed request is a failed row.

{pictures}

## What must be reached

{verdict_table(judge(summarise(results.samples)), results.titles)}
## All figures

{figure_tables(results)}
## The machine

{table(("", ""), list(results.facts.items()))}
{RERUN}"""


def comparison(base: Results, new: Results) -> str:
    """Return the page of a pull request: our figures of both runs, and how they stand to the best other proxy.

    Two runs may be of two machines, or of one at two times; so the change of the ratio against Envoy and nginx, which
    ran beside ours each time, is shown next to the change of the figure itself.
    """
    before = {(row.measure, row.proxy): row for row in summarise(base.samples)}
    after = {(row.measure, row.proxy): row for row in summarise(new.samples)}
    rows = []
    for (measure, proxy), now in after.items():
        then = before.get((measure, proxy))
        if not proxy.startswith(OURS) or then is None:
            continue
        unit = new.units.get(measure, "")
        cells = [measure if proxy == OURS else f"{measure} {proxy}", number(then.value, unit), number(now.value, unit)]
        cells.append(change(then.value, now.value))
        for peer in ("envoy", "nginx"):
            old_peer, new_peer = before.get((measure, peer)), after.get((measure, peer))
            old_ratio = ratio_text(then, old_peer) if old_peer else "-"
            new_ratio = ratio_text(now, new_peer) if new_peer else "-"
            cells.append(f"{old_ratio} -> {new_ratio}" if (old_ratio, new_ratio) != ("-", "-") else "-")
        cells.append(change(then.cpu_us, now.cpu_us))
        cells.append("; ".join(text for text in (then.failure and "base failed", now.failure) if text))
        rows.append(cells)
    verdicts = judge(summarise(new.samples))
    head = ("measure", "base", "new", "change", "ours / envoy", "ours / nginx", "CPU per request", "failures")
    return f"""\
# {base.facts.get("commit", "base")} -> {new.facts.get("commit", "new")}

{table(head, rows)}
Changes below {ENOUGH_CHANGE:.0%} are within what rounds differ by.

{verdict_table(verdicts, new.titles)}"""


def change(old: float | None, new: float | None) -> str:
    """Return the change in per cent, in bold if it is more than noise."""
    if not old or new is None:
        return "-"
    share = new / old - 1
    text = f"{share:+.1%}"
    return f"**{text}**" if abs(share) >= ENOUGH_CHANGE else text
