"""`datum-router sim`: simulations of the policies of the data plane, on virtual time."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from datum_router_cli.failure import RouterCommand, RouterGroup
from datum_router_cli.output import make_console, output_option, print_json, say

QUIET_S = 2.0
"""A simulation that takes no longer says nothing on its way, seconds."""


@click.group(cls=RouterGroup, short_help="Simulate what retries come to over minutes.")
def sim() -> None:
    """Simulate retries over minutes, in seconds, with the code that gateways run.

    \b
    Example:
      datum-router sim retry-storm
    """


@sim.command("retry-storm", cls=RouterCommand)
@click.option("--hops", type=click.IntRange(1, 10), default=5, show_default=True, help="Gateways in a row.")
@click.option("--retries", type=click.IntRange(0, 5), default=2, show_default=True, help="maxRetries of each of them.")
@click.option(
    "--rate", type=click.FloatRange(1, 1000), default=100.0, show_default=True, help="Requests per second that arrive."
)
@click.option(
    "--fault", type=click.FloatRange(1, 600), default=20.0, show_default=True, help="Seconds that the service fails."
)
@click.option(
    "--after", type=click.FloatRange(2, 600), default=40.0, show_default=True, help="Seconds that are watched then."
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same result.")
@output_option
def retry_storm(hops: int, retries: int, rate: float, fault: float, after: float, seed: int, output: str) -> None:
    """Show what retries do to a service that fails for a while behind a chain of gateways.

    Compares gateways that retry each on its own (`per_hop`) with a chain that shares one budget, as Datum Router does
    (`budgeted`): requests that the service gets for one that arrives, and how long it takes to recover.

    \b
    Examples:
      datum-router sim retry-storm
      datum-router sim retry-storm --hops 3 --output json
    """
    from datum_router.sim.retry_storm import (  # the command line must start quickly
        StormResult,
        StormSettings,
        chart,
        simulate_way,
    )

    settings = StormSettings(hops=hops, retries=retries, rate=rate, fault_s=fault, after_s=after, seed=seed)
    per_hop, per_hop_line = simulate_way(settings, is_budgeted=False, progress=_progress("per hop", settings.end_s))
    budgeted, budgeted_line = simulate_way(settings, is_budgeted=True, progress=_progress("budgeted", settings.end_s))
    if output == "json":
        print_json(StormResult(per_hop=per_hop, budgeted=budgeted))
        return
    console = make_console()
    say(console, f"{hops} gateways, up to {retries} retries each; the service fails for {fault:g} s", "bold")
    for line in chart(settings, per_hop_line, budgeted_line):
        say(console, line)
    for name, result in (("per hop", per_hop), ("budgeted", budgeted)):
        ends = f"well again after {result.recovery_s:g} s" if result.recovered else f"not well in {after:g} s"
        say(console, f"{name}: {result.attempts_per_arrival:g} requests at the service for each that arrives, {ends}")


def _progress(name: str, end_s: float) -> Callable[[float], None]:
    """Return what tells on standard error how far a simulation is, each second once it takes long."""
    told_at = time.monotonic() + QUIET_S - 1.0

    def tell(second: float) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= 1.0 and second <= end_s:
            told_at = now
            click.echo(f"{name}: {second:g} of {end_s:g} s simulated", err=True)

    return tell
