"""SIGTERM with requests under way: none is lost, exit code 0 (threat P3)."""

from __future__ import annotations

import signal

import trio

from datum_soak.stage import Stage

DRAIN = "SIGTERM drain"
BEFORE_DEADLINE_S = 0.5
EXIT_SLACK_S = 5.0


async def end_under_load(stage: Stage, stop: trio.Event) -> None:
    """Send SIGTERM under full load and go on as a load balancer would: new requests until shortly before lameduck ends.

    Args:
        stop: Ends the load.
    """
    options = stage.options
    with stage.window(DRAIN):
        in_flight = stage.load.in_flight
        answered_before = sum(stage.ledger.answered.values())
        stage.gateway.process.send_signal(signal.SIGTERM)
        await trio.sleep(max(0.0, options.lameduck_s - BEFORE_DEADLINE_S))
        stop.set()
        code = await stage.gateway.wait_exit(options.lameduck_s + options.grace_s + EXIT_SLACK_S)
        answered = sum(stage.ledger.answered.values()) - answered_before
    stage.require("exit code after SIGTERM", code == 0, "still running" if code is None else code, 0)
    stage.require("requests under way at SIGTERM", in_flight > 0, in_flight, "more than 0")
    stage.note(f"answered after SIGTERM: {answered}")
