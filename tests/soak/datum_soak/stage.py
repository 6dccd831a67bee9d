"""The stage: backends, manifests, gateway, load and samples of one soak; the faults are in `faults`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import trio

from datum_soak import config
from datum_soak.load import Load
from datum_soak.outcomes import Address, Ledger
from datum_soak.processes import Backends, Gateway, ProcessSample, sample_process
from datum_soak.verdict import Check, Window

SAMPLE_EVERY_S = 1.0
FIRST_ENDPOINTS = ("e1", "e2", "e3")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a soak is to be.

    Attributes:
        seconds: Length, without start and end.
        rate: Requests per second of the open loop.
        slow_clients: Connections of the slow herd.
        seed: Of everything that is drawn by lot.
        out: Directory of the report.
        lameduck_s, grace_s: The gateway's settings.
    """

    seconds: float = 600.0
    rate: float = 300.0
    slow_clients: int = 10_000
    seed: int = 1
    out: Path = Path("build/soak")
    workers: int = 2
    lameduck_s: float = 3.0
    grace_s: float = 20.0


class Stage:
    """Everything that runs during a soak, and what it noted."""

    def __init__(self, options: Options, directory: Path) -> None:
        self.options = options
        self.ledger = Ledger()
        self.promises = config.Promises()
        self.windows: list[Window] = []
        self.checks: list[Check] = []
        self.killed: dict[Address, float] = {}
        self.samples: dict[str, list[ProcessSample]] = {}
        self.notes: list[str] = []
        self.backends = Backends(options.out / "backends.log")
        self.idle_backends = Backends(options.out / "backends.log")
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self.editor = config.Editor(self.manifests)
        self.main: dict[str, Address] = {}
        self.addresses: dict[str, Address] = {}
        self.gateway: Gateway
        self._began_at = trio.current_time()
        self.load: Load
        self.generation = 0

    def clock(self) -> float:
        """Return seconds since the soak began."""
        return trio.current_time() - self._began_at

    def note(self, text: str) -> None:
        """Say and keep what has happened."""
        line = f"{self.clock():7.1f} s  {text}"
        self.notes.append(line)
        print(line, file=sys.stderr, flush=True)

    def require(self, name: str, is_met: bool, found: object, required: object) -> None:
        """Enter a check."""
        self.checks.append(Check(name=name, is_met=is_met, found=str(found), required=str(required)))
        if not is_met:
            self.note(f"NOT MET: {name}: found {found}, required {required}")

    @contextlib.contextmanager
    def window(self, name: str, after_s: float = 0.0) -> Iterator[None]:
        """Note a fault's time; `after_s` longer if its effects outlast it."""
        start_s = self.clock()
        self.note(f"begin {name}")
        try:
            yield
        finally:
            self.windows.append(Window(name=name, start_s=start_s, end_s=self.clock() + after_s))
            self.note(f"end {name}")

    # --- start and end ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the backends, write the manifests, and wait for the gateway and its load generator's connections."""
        for index, name in enumerate(FIRST_ENDPOINTS, start=1):
            self.main[name] = await self.backends.open(name, f"127.0.1.{index}")
        for name, host in (
            ("flip-a", "127.0.2.1"),
            ("flip-b", "127.0.2.2"),
            ("cut", "127.0.3.1"),
            ("est", "127.0.4.1"),
        ):
            self.addresses[name] = await self.backends.open(name, host)
        self.addresses["ws"] = await self.backends.open("ws", "127.0.5.1")
        self.addresses["grpc"] = await self.backends.open("grpc", "127.0.6.1", is_h2=True)
        self.addresses["idle"] = await self.idle_backends.open("idle", "127.0.7.1")
        for name in ("cut", "est", "ws", "idle"):
            text = config.service(name, [self.addresses[name]]) + config.route(name, f"pathPrefix: /{name}", {name: 1})
            self.editor.write(name, text)
        grpc = config.service("grpc", [self.addresses["grpc"]], protocol="gRPC")
        self.editor.write("grpc", grpc + config.route("grpc", "grpcService: soak.Echo", {"grpc": 1}))
        for name in ("flip-a", "flip-b"):
            self.editor.write(name, config.service(name, [self.addresses[name]]))
        self.editor.write("flip", self.flip_manifest(50))
        self.editor.write("main", self.main_manifest())
        self.gateway = Gateway(
            self.manifests,
            self.options.out / "gateway.log",
            workers=self.options.workers,
            environment={
                "DATUM_ROUTER_LAMEDUCK_SECS": str(self.options.lameduck_s),
                "DATUM_ROUTER_GRACE_SECS": str(self.options.grace_s),
                # The whole load has one address: after a stall of a second it needs more than one client may have.
                "DATUM_ROUTER_DATA_PLANE_CONFIG": "max_connections_per_address=2000",
            },
        )
        await self.gateway.wait_ready()
        self._began_at = trio.current_time()
        self.load = Load(self.gateway.address, self.ledger, self.promises, seed=self.options.seed, clock=self.clock)

    def close(self) -> None:
        """End every process."""
        if hasattr(self, "gateway"):
            self.gateway.kill()
        self.backends.close_all()
        self.idle_backends.close_all()

    def main_manifest(self) -> str:
        """Return the churned service and its route."""
        return config.service("main", list(self.main.values())) + config.route("main", "pathPrefix: /main", {"main": 1})

    def flip_manifest(self, weight: int) -> str:
        """Return the edited route: another weight, and the edit's number in every answer."""
        headers = {"x-edit": str(self.generation), "x-weight": str(weight)}
        return config.route("flip", "pathPrefix: /flip", {"flip-a": weight, "flip-b": 100 - weight}, headers=headers)

    # --- samples ---------------------------------------------------------------------------------------------------

    async def sample_forever(self) -> None:
        """Sample memory and descriptors of supervisor and workers each second, the workers by process id."""
        while True:
            await self.sample()
            await trio.sleep(SAMPLE_EVERY_S)

    async def sample(self) -> None:
        """Take one sample of each process."""
        pids = {"supervisor": self.gateway.process.pid}
        with contextlib.suppress(OSError, ValueError):
            pids |= {f"worker {index} ({pid})": pid for index, pid in (await self.gateway.workers()).items()}
        for name, pid in pids.items():
            if (sample := sample_process(pid, self.clock())) is not None:
                self.samples.setdefault(name, []).append(sample)
