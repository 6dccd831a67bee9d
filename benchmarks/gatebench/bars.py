"""The bars: what must be reached, what is aimed for, and the verdicts. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gatebench.samples import Summary

KIB, MIB = 1024.0, 1024.0**2
OURS = "datum"
BEST_PYTHON = ("aiohttp", "mitmproxy")


class State(enum.Enum):
    AIM = "aim reached"
    MUST = "reached"
    MISSED = "not reached"
    FAILED = "failed"
    ABSENT = "not measured"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One demand on one figure.

    With `against`, the figure is ours divided by that of the best of those (other proxies in the same measure, or ours
    in measure `base`); without, it is ours divided by `scale`.

    Attributes:
        proxy: Whose figure it is; `datum-2w` is ours with two workers.
        is_at_least: Whether it must be at least `must`, or at most.
        unit: Shown behind the figure.
    """

    measure: str
    what: str
    must: float
    aim: float
    proxy: str = OURS
    against: tuple[str, ...] = ()
    base: str = ""
    is_at_least: bool = True
    scale: float = 1.0
    unit: str = "x"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a bar stands. `figure` is None unless both sides were measured without a failure."""

    bar: Bar
    state: State
    figure: float | None
    why: str = ""


def _versus(measure: str, peer: str, must: float, aim: float) -> Bar:
    return Bar(measure=measure, what=f"against {peer}", must=must, aim=aim, against=(peer,))


BARS = (
    _versus("h1", "envoy", 1.2, 1.8),
    _versus("h1", "nginx", 0.5, 0.9),
    _versus("h2", "envoy", 1.4, 2.2),
    _versus("h2", "nginx", 0.6, 0.9),
    _versus("grpc", "envoy", 1.0, 1.5),
    Bar(measure="h1", what="against the best Python reverse proxy", must=3.0, aim=5.0, against=BEST_PYTHON),
    Bar(measure="latency", what="against envoy", must=1.5, aim=1.0, against=("envoy",), is_at_least=False),
    _versus("body-256k", "nginx", 0.5, 0.9),
    _versus("body-64m", "nginx", 0.5, 0.9),
    _versus("tls", "envoy", 0.7, 1.2),
    Bar(measure="workers", what="two workers against one", must=0.9, aim=0.97, proxy="datum-2w", against=(OURS,)),
    Bar(measure="memory-idle", what="at most", must=45, aim=30, is_at_least=False, scale=MIB, unit="MiB"),
    Bar(measure="memory-connection", what="at most", must=12, aim=4, is_at_least=False, scale=KIB, unit="KiB"),
    Bar(measure="match-10k", what="at most", must=3.0, aim=1.5, is_at_least=False, unit="us"),
    Bar(
        measure="match-100k",
        what="against 10,000",
        must=1.3,
        aim=1.1,
        is_at_least=False,
        against=(OURS,),
        base="match-10k",
    ),
    Bar(measure="compile-10k", what="at most", must=1.0, aim=0.4, is_at_least=False, unit="s"),
    Bar(measure="edit-loaded", what="at most", must=30, aim=10, is_at_least=False, scale=1e3, unit="ms"),
    Bar(measure="memory-routes", what="at most", must=40, aim=20, is_at_least=False, scale=1e6, unit="MB"),
)


def judge(summaries: Sequence[Summary], bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """Return a verdict for every bar; a failed round on either side means `failed`, never `reached`."""
    table = {(row.measure, row.proxy): row for row in summaries}
    return [_judge(bar, table) for bar in bars]


def _judge(bar: Bar, table: Mapping[tuple[str, str], Summary]) -> Verdict:
    ours = table.get((bar.measure, bar.proxy))
    if ours is None:
        return Verdict(bar=bar, state=State.ABSENT, figure=None)
    others = [row for name in bar.against if (row := table.get((bar.base or bar.measure, name))) is not None]
    if bar.against and not others:
        return Verdict(bar=bar, state=State.ABSENT, figure=None, why=f"{' and '.join(bar.against)} did not take part")
    if ours.failure or ours.value is None:
        return Verdict(bar=bar, state=State.FAILED, figure=None, why=f"{ours.proxy}: {ours.failure}")
    good = [row.value for row in others if not row.failure and row.value]
    if len(good) != len(others):
        bad = next(row for row in others if row.failure or not row.value)
        return Verdict(bar=bar, state=State.FAILED, figure=None, why=f"{bad.proxy}: {bad.failure or 'no figure'}")
    figure = ours.value / (max(good) if good else bar.scale)
    if bar.is_at_least:
        state = State.AIM if figure >= bar.aim else State.MUST if figure >= bar.must else State.MISSED
    else:
        state = State.AIM if figure <= bar.aim else State.MUST if figure <= bar.must else State.MISSED
    return Verdict(bar=bar, state=state, figure=figure)
