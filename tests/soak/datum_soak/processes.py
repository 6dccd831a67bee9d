"""The processes under the soak: the gateway (supervisor and workers) and its backends, watched through /proc."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from datum_soak.outcomes import Address

START_TIMEOUT_S = 60.0
ADMIN_TIMEOUT_S = 30.0
"""Long, for ten thousand slow clients keep this process busy, too."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker on the admin page /stats."""

    index: int
    pid: int
    is_up: bool
    version: int
    gauges: dict[str, int]


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What the soak reads of /stats."""

    version: int
    lagging_workers: int
    workers: list[WorkerStatus]
    counters: dict[str, float]
    gauges: dict[str, int]


class ProcessSample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Resident memory and open descriptors of a process at one moment."""

    at_s: float
    rss_mib: float
    descriptors: int


def sample_process(pid: int, at_s: float) -> ProcessSample | None:
    """Return a sample, or None if the process is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return ProcessSample(at_s=at_s, rss_mib=pages * _PAGE_BYTES / 2**20, descriptors=descriptors)


def is_stopped(pid: int) -> bool:
    """Tell whether SIGSTOP has taken effect."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def peers_of(pid: int, port: int) -> set[Address]:
    """Return the client addresses of the TCP connections (IPv4) that a process holds on its local `port`."""
    inodes = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry.path))
            if found:
                inodes.add(found[1])
    peers = set()
    with open(f"/proc/{pid}/net/tcp") as table:
        next(table)
        for line in table:
            _, local, remote, _state, *rest = line.split()
            if rest[5] in inodes and int(local.rpartition(":")[2], 16) == port:
                host, _, remote_port = remote.partition(":")
                if int(remote_port, 16):
                    # The kernel prints the address as a number in host byte order.
                    raw = int(host, 16).to_bytes(4, sys.byteorder)
                    peers.add((".".join(str(byte) for byte in raw), int(remote_port, 16)))
    return peers


class Gateway:
    """A running `datum-router run`."""

    def __init__(self, directory: Path, log: Path, *, workers: int, environment: Mapping[str, str]) -> None:
        self.log = log
        self.address: Address = ("", 0)
        self.admin: Address = ("", 0)
        command = [sys.executable, "-m", "datum_router_cli", "run", str(directory)]
        command += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", str(workers)]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, "DATUM_ROUTER_LOG": "info,datum_router.access=warn", **environment},
            )

    async def wait_ready(self) -> None:
        """Read what it prints until it is ready.

        Raises:
            RuntimeError: It ended, or was not ready in time; with the end of its log.
        """
        assert self.process.stdout is not None
        stream = trio.lowlevel.FdStream(os.dup(self.process.stdout.fileno()))
        buffer = b""
        with trio.move_on_after(START_TIMEOUT_S):
            async with stream:
                while data := await stream.receive_some(4096):
                    buffer += data
                    if b"\nready" in buffer:
                        break
        text = buffer.decode()
        listening = re.search(r"^listening.*//([\d.]+):(\d+)", text, re.MULTILINE)
        admin = re.search(r"^admin.*//([\d.]+):(\d+)", text, re.MULTILINE)
        if listening is None or admin is None or "\nready" not in text:
            raise RuntimeError(f"gateway is not ready: {text}\n{self.log_tail()}")
        self.address = (listening[1], int(listening[2]))
        self.admin = (admin[1], int(admin[2]))

    def log_tail(self, size: int = 3000) -> str:
        """Return the end of the gateway's log."""
        return self.log.read_text(errors="replace")[-size:]

    async def page(self, path: str) -> tuple[int, bytes]:
        """Return status and body of an admin page.

        Raises:
            OSError: The admin listener is gone or silent.
        """
        with trio.move_on_after(ADMIN_TIMEOUT_S):
            stream = await trio.open_tcp_stream(*self.admin)
            async with stream:
                await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
                data = b""
                try:
                    while chunk := await stream.receive_some(1 << 16):
                        data += chunk
                except trio.BrokenResourceError as error:
                    raise ConnectionResetError(str(error)) from error
                head, _, body = data.partition(b"\r\n\r\n")
                return int(head.split()[1]), body
        raise TimeoutError(f"admin page {path} took longer than {ADMIN_TIMEOUT_S:g} s")

    async def stats(self) -> Stats:
        """Return /stats."""
        return msgspec.json.decode((await self.page("/stats"))[1], type=Stats)

    async def workers(self) -> dict[int, int]:
        """Return process id by index of the workers that are up."""
        return {worker.index: worker.pid for worker in (await self.stats()).workers if worker.is_up}

    async def wait_exit(self, timeout_s: float) -> int | None:
        """Return the exit code, or None if it has not ended in time."""
        with trio.move_on_after(timeout_s):
            while self.process.poll() is None:  # noqa: ASYNC110 - a child's end has no event here
                await trio.sleep(0.02)
            return self.process.returncode
        return None

    def kill(self) -> None:
        """End it now, if it still runs; its workers follow, for their supervisor is gone."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Backends:
    """The backend process; `open` and `close` its listeners."""

    def __init__(self, log: Path) -> None:
        self._lock = trio.Lock()
        self._log = log.open("a")
        self._process = self._start()
        self._buffer = b""

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "datum_soak.backend"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )

    async def open(self, name: str, host: str, *, port: int = 0, is_h2: bool = False) -> Address:
        """Listen on a loopback address; return address and port."""
        answer = await self._command({"do": "open", "name": name, "host": host, "port": port, "h2": is_h2})
        found = answer["port"]
        assert isinstance(found, int)
        return (host, found)

    async def close(self, name: str) -> None:
        """Close a listener gracefully."""
        await self._command({"do": "close", "name": name})

    async def _command(self, command: dict[str, object]) -> dict[str, object]:
        async with self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None
            assert stdout is not None
            stdin.write(json.dumps(command).encode() + b"\n")
            stdin.flush()
            line = await trio.to_thread.run_sync(stdout.readline)
            if not line:
                raise RuntimeError(f"the backend ended with {self._process.wait()}")
            return msgspec.json.decode(line, type=dict[str, object])

    def stop(self) -> None:
        """End the process at once: its connections are closed by the kernel."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def restart(self) -> None:
        """End the process and start an empty one."""
        self.stop()
        self._process = self._start()

    def close_all(self) -> None:
        """End for good."""
        self.stop()
        self._log.close()
