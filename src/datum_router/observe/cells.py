"""Cells: one number under one metric and its label values, as they travel from workers to whoever adds them up."""

from __future__ import annotations

import msgspec

CellKey = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its labels, in the order of `names.METRICS`."""


class Cell(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a counter has grown by, or what a gauge is now.

    Attributes:
        metric: A name of `names.METRICS`.
        labels: Label values in that metric's order; never a client's text.
    """

    metric: str
    labels: tuple[str, ...]
    value: float

    @property
    def key(self) -> CellKey:
        """Return what this cell is about."""
        return (self.metric, self.labels)
