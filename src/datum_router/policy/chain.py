"""How a chain of gateways shares one retry budget: only the one nearest to the failure retries.

If each of five gateways tried three times, a service that is down would get 243 requests for one: the retry storm that
keeps it down (Google's SRE book, chapter "Addressing Cascading Failures", on retries at several levels). So, of the
gateways that a request passes:

- whoever answers with a failure after its own retries, or without since its budget said no, marks the answer `settled`;
  who gets a settled answer passes it on, and does not try again;
- whoever tries again says so in the request; who gets such a request does not try it again, unless nobody was reached;
- a failure of a gateway itself (overload, shutdown, no descriptors) is not settled: another gateway may do better, and
  then the one before it is the nearest.

With that the service gets at most as many requests as the nearest gateway's budget allows, however long the chain is.
"""

from __future__ import annotations

from typing import Final

from datum_router.reasons import Reason

OWN_FAULTS: Final = frozenset((Reason.OVERLOADED, Reason.DRAINING, Reason.LOCAL_RESOURCES, Reason.INTERNAL))
"""Failures of this gateway alone."""


def is_settled_reply(status: int, reason: Reason) -> bool:
    """Tell whether a reply of our own says that nobody need try again."""
    return status >= 500 and reason not in OWN_FAULTS


def attempt_number(stated: int, made: int) -> int:
    """Return which try of the request an attempt is, all gateways before us included.

    Args:
        stated: What the peer said, 1 if nothing.
        made: Our own attempts, this one included.
    """
    return stated + made - 1
