"""The plot: requests per second, failures per second and memory over time, faults as shaded bands. Plain SVG."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

import msgspec

from datum_soak.verdict import Window

WIDTH = 1000
PANEL_HEIGHT = 150
GAP = 45
LEFT, RIGHT, TOP = 60, 20, 55
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22")
BAND_COLOURS = ("#d62728", "#ff7f0e", "#9467bd", "#2ca02c", "#8c564b")

Points = Sequence[tuple[float, float]]


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One diagram: lines by name, points as (seconds, value)."""

    title: str
    lines: dict[str, Points]


def svg(panels: Sequence[Panel], windows: Sequence[Window], *, duration_s: float) -> str:
    """Return the plot; windows of equal name have one colour and are named once, above."""
    height = TOP + len(panels) * (PANEL_HEIGHT + GAP)
    names = list(dict.fromkeys(window.name for window in windows))
    colour = {name: BAND_COLOURS[index % len(BAND_COLOURS)] for index, name in enumerate(names)}
    scale = (WIDTH - LEFT - RIGHT) / max(duration_s, 1e-9)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for index, name in enumerate(names):
        x = LEFT + index * 180
        parts.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{colour[name]}" opacity="0.3"/>')
        parts.append(f'<text x="{x + 16}" y="18">{escape(name)}</text>')
    for number, panel in enumerate(panels):
        top = TOP + number * (PANEL_HEIGHT + GAP)
        for window in windows:
            width = max(1.5, (window.end_s - window.start_s) * scale)
            parts.append(
                f'<rect x="{LEFT + window.start_s * scale:.1f}" y="{top}" width="{width:.1f}" '
                f'height="{PANEL_HEIGHT}" fill="{colour[window.name]}" opacity="0.18"/>'
            )
        parts.extend(_panel(panel, top, scale, duration_s))
    parts.append("</svg>\n")
    return "\n".join(parts)


def _panel(panel: Panel, top: int, scale: float, duration_s: float) -> list[str]:
    highest = max((value for points in panel.lines.values() for _, value in points), default=0.0) or 1.0
    bottom = top + PANEL_HEIGHT
    parts = [
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{PANEL_HEIGHT}" fill="none" '
        'stroke="#888"/>',
        f'<text x="{LEFT}" y="{top - 5}" font-weight="bold">{escape(panel.title)}</text>',
        f'<text x="{LEFT - 5}" y="{top + 10}" text-anchor="end">{highest:.4g}</text>',
        f'<text x="{LEFT - 5}" y="{bottom}" text-anchor="end">0</text>',
    ]
    for tick in range(6):
        second = duration_s * tick / 5
        parts.append(
            f'<text x="{LEFT + second * scale:.1f}" y="{bottom + 14}" text-anchor="middle">{second:.0f} s</text>'
        )
    for index, (name, points) in enumerate(panel.lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{LEFT + x * scale:.1f},{bottom - y / highest * PANEL_HEIGHT:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
        if len(panel.lines) > 1:
            x = LEFT + 170 + index * 110
            parts.append(f'<text x="{x}" y="{top - 5}" fill="{colour}">{escape(name)}</text>')
    return parts
