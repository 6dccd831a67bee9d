"""The one state table of HTTP/1.1, used by both roles.

Theory of operation: a connection has two halves, what we read and what we write, and each runs through the same
states. A server reads requests and writes responses, a client the other way round; the table does not know which.
Nothing else in this package assigns a state: `advance` is the only way from one to the next.

    IDLE --HEAD--> BODY --END--> DONE --NEXT--> IDLE
    IDLE --INTERIM--> IDLE                (a 1xx response)
    IDLE, DONE --SWITCH--> SWITCHED       (101: the bytes that follow belong to another protocol)
    IDLE --EOF--> CLOSED                  (closed between messages)
    any --FAIL--> ERROR                   (framing is lost for good)
"""

from __future__ import annotations

import enum
from typing import Final

from datum_router.errors import LocalProtocolError


class State(enum.IntEnum):
    """Where one half of a connection stands."""

    IDLE = 0
    BODY = 1
    DONE = 2
    SWITCHED = 3
    CLOSED = 4
    ERROR = 5


class Trigger(enum.IntEnum):
    """What moves a half from one state to the next."""

    INTERIM = 0
    HEAD = 1
    END = 2
    NEXT = 3
    SWITCH = 4
    EOF = 5
    FAIL = 6


_I, _B, _D, _S, _C, _E = State
TABLE: Final[tuple[tuple[State | None, ...], ...]] = (
    # INTERIM, HEAD, END, NEXT, SWITCH, EOF, FAIL
    (_I, _B, None, None, _S, _C, _E),  # IDLE
    (None, None, _D, None, None, None, _E),  # BODY
    (None, None, None, _I, _S, _C, _E),  # DONE
    (None, None, None, None, None, _C, _E),  # SWITCHED
    (None, None, None, None, None, _C, _E),  # CLOSED
    (None, None, None, None, None, None, _E),  # ERROR
)


def advance(state: State, trigger: Trigger) -> State:
    """Return the state after `trigger`.

    Raises:
        LocalProtocolError: The table has no such step: the driver misused the engine.
    """
    following = TABLE[state][trigger]
    if following is None:
        raise LocalProtocolError(
            f"http/1: {trigger.name.lower()} is not possible in state {state.name.lower()}", status_hint=500
        )
    return following
