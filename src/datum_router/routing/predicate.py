"""What all predicates share: the shape of a check and of a reason why a condition cannot be checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from datum_router.model.request import RequestHead
from datum_router.reasons import Reason

HeadCheck: TypeAlias = Callable[[RequestHead], bool]
"""Tells whether one condition holds for a request head. Pure; never raises."""

PathCheck: TypeAlias = Callable[[str], bool]
"""The same over a normalised path."""

ValueCheck: TypeAlias = Callable[[bytes | None], bool]
"""The same over one value; None means that there is none."""


class RuleProblem(msgspec.Struct, frozen=True, gc=False):
    """A condition that cannot be checked; its rule then matches nothing (it fails closed).

    Attributes:
        part: Which condition: `path`, `headers[0]`, `query[1]`, `sourceCidrs[0]`.
        message: Lower case, no full stop: what was found and what was expected.
    """

    part: str
    reason: Reason
    message: str
