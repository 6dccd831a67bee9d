"""Endpoints of a ServiceBinding without `autoSync`: taken once, written down in its status, and read from there.

A controller that holds a binding's endpoints (`Contribution.is_held`) says so by the condition `Synced` with status
True and reason `Paused`, and lists them in `status.endpoints`. Every gateway, and every later controller, takes them
from there, so that all agree and a restart changes nothing. Without a controller (a directory of files) a process
remembers them as long as it runs.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from datum_router.manifests.servicebinding import ServiceBinding
from datum_router.reasons import Reason

HELD_CONDITION: Final = "Synced"
"""Type of the condition that says, with status True and reason Paused, that endpoints are held."""


def recorded_endpoints(binding: ServiceBinding) -> tuple[tuple[str, int, str], ...]:
    """Return address, port and VPC of the endpoints that the status holds for the spec as it is, if it holds any.

    A status that is about an earlier generation, that lists fewer endpoints than it counts because they were too many
    for it, or that cannot be read, records nothing.
    """
    status, generation = binding.status, binding.metadata.generation
    if binding.spec.auto_sync or status is None or generation <= 0:
        return ()
    is_held = any(
        (one.type, one.status, one.reason) == (HELD_CONDITION, "True", Reason.PAUSED.value)
        and one.observed_generation == generation
        for one in status.conditions
    )
    if not is_held or status.synced_endpoints != len(status.endpoints):
        return ()
    found = tuple(parse_endpoint(text) for text in status.endpoints)
    return () if None in found else tuple(one for one in found if one is not None)


def parse_endpoint(text: str) -> tuple[str, int, str] | None:
    """Return canonical address, port and VPC of `10.0.0.1:80`, `[fd00::1]:80` or `10.0.0.1:80@prod/shop`.

    The VPC is empty if none is named. None: it is nothing of that kind.
    """
    where, at, vpc = text.partition("@")
    host, _, port = where.rpartition(":")
    if at and "/" not in vpc:
        return None
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError:
        return None
    return (str(address), number, vpc) if 1 <= number <= 65535 else None
