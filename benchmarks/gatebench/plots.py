"""Plots by matplotlib, as SVG: ratios against Envoy and nginx, latency percentiles, and two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

from gatebench.bars import OURS
from gatebench.results import Results
from gatebench.samples import Summary, summarise

PEERS = ("envoy", "nginx")
COLOURS = {"envoy": "#b05cc4", "nginx": "#3f9b5b", "base": "#9aa3ad", "new": "#2f6fb2"}
PERCENTILES = (("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us"))
# Ratios of throughput, where more is better; other measures have other figures.
RATES = ("requests/s", "bytes/s")
mpl.rcParams.update({"svg.hashsalt": "gatebench", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def draw(results: Results, directory: Path) -> list[str]:
    """Draw a run; return the names of the files, none for what it has no figures for."""
    summaries = summarise(results.samples)
    names = []
    if _ratios(results, summaries, directory / "ratios.svg"):
        names.append("ratios.svg")
    if _latency(summaries, directory / "latency.svg"):
        names.append("latency.svg")
    return names


def draw_comparison(base: Results, new: Results, directory: Path) -> list[str]:
    """Draw CPU time a request and rates of two runs as bars, new divided by base."""
    before = {row.measure: row for row in summarise(base.samples) if row.proxy == OURS}
    rows = [
        (row.measure, row.value / old.value)
        for row in summarise(new.samples)
        if row.proxy == OURS and row.value and (old := before.get(row.measure)) is not None and old.value
    ]
    if not rows:
        return []
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(rows) + 1.2))
    axes.barh([name for name, _ in rows], [ratio for _, ratio in rows], color=COLOURS["new"])
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("new / base (rates: more is better; times and memory: less)")
    _save(figure, directory / "comparison.svg")
    return ["comparison.svg"]


def _ratios(results: Results, summaries: Sequence[Summary], path: Path) -> bool:
    table = {(row.measure, row.proxy): row for row in summaries}
    keys = [
        key
        for key in dict.fromkeys(row.measure for row in summaries)
        if results.units.get(key) in RATES and any((key, peer) in table for peer in PEERS)
    ]
    if not keys:
        return False
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(keys) + 1.4))
    height = 0.38
    for offset, peer in enumerate(PEERS):
        values = []
        for key in keys:
            ours, other = table.get((key, OURS)), table.get((key, peer))
            is_good = ours and other and ours.value and other.value and not ours.failure and not other.failure
            values.append(
                ours.value / other.value if is_good and ours and other and ours.value and other.value else 0.0
            )
        places = [index + (offset - 0.5) * height for index in range(len(keys))]
        bars = axes.barh(places, values, height, label=f"Datum Router / {peer}", color=COLOURS[peer])
        axes.bar_label(bars, [f"{value:.2f}" if value else "failed or absent" for value in values], padding=3)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(keys)), keys)
    axes.invert_yaxis()
    axes.set_xlabel("ours / theirs in the same run; more is better")
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)
    return True


def _latency(summaries: Sequence[Summary], path: Path) -> bool:
    rows = [row for row in summaries if row.measure == "latency" and row.p50_us is not None]
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(8, 3.2))
    for row in rows:
        values = [getattr(row, name) for _, name in PERCENTILES]
        label = f"{row.proxy} (failed)" if row.failure else row.proxy
        axes.plot([name for name, _ in PERCENTILES], values, marker="o", label=label)
    axes.set_yscale("log")
    axes.set_ylabel("us")
    axes.set_title("latency at half of Envoy's saturated rate, open loop", fontsize=9)
    axes.legend(frameon=False)
    _save(figure, path)
    return True


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
