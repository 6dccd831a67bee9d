"""A chart in text: who answered, second by second. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lab.traffic import Answer

ROWS = 8
WIDTH = 100
"""Columns at most: of longer times a column has several seconds."""
MARKS = "#.o+"
"""What clouds are drawn with, from the bottom up."""


def draw(
    answers: Sequence[Answer], clouds: Sequence[str], events: Mapping[str, float], *, start: float, end: float
) -> list[str]:
    """Return the lines of a chart of the clouds' shares over time.

    Args:
        clouds: From the bottom up; what fails is on top.
        events: Single letters and when it was, in the clock of the answers.
    """
    step_s = max(1.0, -(-(end - start) // WIDTH))
    asked: list[list[Answer]] = [[] for _ in range(int((end - start) / step_s))]
    for one in answers:
        number = int((one.began - start) // step_s)
        if 0 <= number < len(asked):
            asked[number].append(one)
    columns = [_column(some, clouds) for some in asked]
    lines = []
    for row in range(ROWS, 0, -1):
        lines.append(f"{row / ROWS:>5.0%} |" + "".join(column[row - 1] for column in columns))
    axis = ["-"] * len(columns)
    for letter, at in events.items():
        place = min(len(columns) - 1, max(0, int((at - start) / step_s)))
        while axis[place] != "-" and place < len(columns) - 1:
            place += 1
        axis[place] = letter
    lines.append("      +" + "".join(axis))
    drawn = ", ".join(f"{mark} {cloud}" for mark, cloud in zip(MARKS, clouds, strict=False))
    lines.append(f"       a column: {step_s:g} s; {drawn}, x failed")
    return lines


def _column(answers: Sequence[Answer], clouds: Sequence[str]) -> str:
    """Return one column, from the bottom up: blank if nothing was asked; what failed has a row at least."""
    if not answers:
        return " " * ROWS
    counts = Counter(one.cloud if one.status == 200 else "" for one in answers)
    failed = max(1, round(ROWS * counts[""] / len(answers))) if counts[""] else 0
    good = max(1, len(answers) - counts[""])
    drawn = ""
    reached = 0
    for mark, cloud in zip(MARKS, clouds, strict=False):
        reached += counts[cloud]
        drawn = drawn.ljust(round((ROWS - failed) * reached / good), mark)
    return drawn[: ROWS - failed].ljust(ROWS, "x" if failed else " ")
