from __future__ import annotations

import random

from datum_router.sim.engine import Simulation


def test_events_happen_in_order_of_time_and_then_of_scheduling() -> None:
    simulation = Simulation()
    seen: list[tuple[float, str]] = []

    def note(name: str) -> None:
        seen.append((simulation.now, name))

    simulation.at(2.0, lambda: note("b"))
    simulation.at(1.0, lambda: note("a"))
    simulation.at(2.0, lambda: note("c"))
    simulation.at(3.0, lambda: note("beyond"))
    simulation.run(2.5)
    assert seen == [(1.0, "a"), (2.0, "b"), (2.0, "c")]
    assert (simulation.now, simulation.events) == (2.5, 3)
    simulation.run(3.0)
    assert seen[-1] == (3.0, "beyond")


def test_an_event_may_schedule_others_even_for_a_moment_that_is_past() -> None:
    simulation = Simulation()
    seen: list[float] = []

    def again() -> None:
        seen.append(simulation.now)
        if len(seen) < 4:
            simulation.after(0.5, again)
            simulation.at(0.0, lambda: seen.append(-simulation.now))

    simulation.after(1.0, again)
    simulation.run(10.0)
    assert seen == [1.0, -1.0, 1.5, -1.5, 2.0]


def test_time_never_goes_back_whatever_is_scheduled() -> None:
    rng = random.Random(1)
    simulation = Simulation()
    seen: list[float] = []

    def event() -> None:
        seen.append(simulation.now)
        if len(seen) < 1000:
            simulation.at(rng.uniform(0.0, 100.0), event)

    for _ in range(10):
        simulation.at(rng.uniform(0.0, 10.0), event)
    simulation.run(1000.0)
    assert seen == sorted(seen)
    assert len(seen) >= 1000
