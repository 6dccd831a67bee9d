"""The gateway's manifests, and what they promise about answers at each moment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from datum_soak.outcomes import Address, Cause, Failure
from datum_soak.processes import Gateway

API = "apiVersion: router.datum.net/v1alpha1"
POLL_S = 0.01
IN_FORCE_WITHIN_S = 5.0
"""An edit that is not in force on every worker by then fails the soak; the report says how long they really took."""
REMOVED_GRACE_S = 1.0
"""No request to an endpoint that was removed longer ago (threat U11)."""


def service(name: str, endpoints: Sequence[Address], *, protocol: str = "HTTP", health: bool = False) -> str:
    """Return a VPCService."""
    lines = [f"    - {{address: {host}, port: {port}}}" for host, port in endpoints]
    probe = "\n  healthCheck: {httpPath: /x/body/0, intervalSeconds: 1, timeoutSeconds: 2}" if health else ""
    return (
        f"{API}\nkind: VPCService\nmetadata: {{name: {name}}}\nspec:\n  protocol: {protocol}\n  port: 80{probe}\n"
        + ("  endpoints:\n" + "\n".join(lines) + "\n")
    )


def route(name: str, match: str, destinations: Mapping[str, int], *, headers: Mapping[str, str] | None = None) -> str:
    """Return a VPCRoute; `headers` are set on answers."""
    shares = "\n".join(
        f"    - {{vpcServiceRef: {{name: {item}}}, weight: {weight}}}" for item, weight in destinations.items()
    )
    pairs = ", ".join(f'{{name: {key}, value: "{value}"}}' for key, value in (headers or {}).items())
    filters = (
        f"\n  filters:\n    - {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{pairs}]}}}}"
        if pairs
        else ""
    )
    return (
        f"---\n{API}\nkind: VPCRoute\nmetadata: {{name: {name}}}\nspec:\n"
        f"  match: {{{match}}}\n  destinations:\n{shares}{filters}\n"
    )


class Promises:
    """What answers must show, given when their request began. Times are the soak's seconds.

    Attributes:
        generation: The edit that is in force on every worker.
        removed: Endpoint -> when its removal was in force.
        served: How often each endpoint of the churned service has answered.
    """

    __slots__ = ("generation", "removed", "served")

    def __init__(self) -> None:
        self.generation = 0
        self.removed: dict[str, float] = {}
        self.served: dict[str, int] = {}

    def check_backend(self, name: str, started_s: float) -> None:
        """Take which endpoint answered.

        Raises:
            Failure: It had been removed before the request began.
        """
        removed_s = self.removed.get(name)
        if removed_s is not None and started_s > removed_s + REMOVED_GRACE_S:
            raise Failure(Cause.REMOVED_ENDPOINT, f"{name}, {started_s - removed_s:.2f} s after its removal")
        self.served[name] = self.served.get(name, 0) + 1

    @staticmethod
    def check_generation(found: str, required: int) -> None:
        """Compare an answer's generation with the one in force when its request began.

        Raises:
            Failure: It is older, or missing.
        """
        if not found.isdecimal() or int(found) < required:
            raise Failure(Cause.STALE_CONFIG, f"edit {found or 'none'}, in force was {required}")


class Editor:
    """Writes manifests, atomically, and waits until every worker has them in force.

    Attributes:
        delays_s: From write to in force, of each edit.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.delays_s: list[float] = []
        self.late: list[str] = []
        self._lock = trio.Lock()

    def write(self, name: str, text: str) -> None:
        """Replace one file by rename."""
        temporary = self.directory / f".{name}.new"
        temporary.write_text(text)
        os.replace(temporary, self.directory / f"{name}.yaml")

    async def apply(self, gateway: Gateway, name: str, text: str, what: str) -> bool:
        """Write a file that changes something and wait until it is in force everywhere; tell whether it was in time.

        One edit of one file at a time, so that the version that follows is known to hold it (two files may come into
        force one after the other).
        """
        async with self._lock:
            before = (await gateway.stats()).version
            started = trio.current_time()
            self.write(name, text)
            with trio.move_on_after(IN_FORCE_WITHIN_S):
                while True:
                    stats = await gateway.stats()
                    # A worker that is missing serves nobody; it gets the newest snapshot before it does.
                    up = [worker.version for worker in stats.workers if worker.is_up]
                    if stats.version > before and up and min(up) == stats.version:
                        self.delays_s.append(trio.current_time() - started)
                        return True
                    await trio.sleep(POLL_S)
            self.late.append(what)
            return False
