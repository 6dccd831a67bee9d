"""Child processes: started pinned to one core, watched through /proc, ended by their id whatever happens.

Every child dies with the harness (`setpriv --pdeathsig`), even if that is killed, and leads a session of its own, so
that Ctrl-C reaches the harness alone, which then ends its children in order.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PROXY_CORE = 0
LOAD_CORE = 1
START_PATIENCE_S = 30.0
STOP_PATIENCE_S = 8.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The machine, a tool or a proxy is not what a fair measurement needs; the message says what to do."""


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports that nobody holds now, on whatever address.

    Some proxies listen on all addresses, and then a connection that one of the many clients has closed is in the way.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [int(sock.getsockname()[1]) for sock in sockets]


def find_program(name: str) -> str:
    """Return the path of a program; system programs of Debian lie in /usr/sbin too.

    Raises:
        BenchError: There is none.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        raise BenchError(f"{name}: not found; see benchmarks/README.md for what to install")
    return found


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """Return `command` as one that runs on `core` and gets SIGTERM when the harness, the process that starts it, dies.

    The kernel tells of a death that comes after `setpriv` asked; the shell looks whether it came before.
    """
    alive = f'[ "$PPID" = {os.getpid()} ] && exec "$@"'
    return ["setpriv", "--pdeathsig", "TERM", "sh", "-c", alive, "sh", "taskset", "-c", str(core), *command]


class Child:
    """A pinned process whose output goes to a log file."""

    def __init__(
        self, name: str, command: Sequence[str], *, core: int, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                pinned(core, command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for_port(self, port: int) -> None:
        """Return when something accepts on `port`.

        Raises:
            BenchError: The process ended first, or nothing accepts in time; with the end of its log.
        """
        deadline = time.monotonic() + START_PATIENCE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise BenchError(f"{self.name} ended with status {self.process.returncode}: {self.log_tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.02)
        raise BenchError(f"{self.name} does not listen on port {port}: {self.log_tail()}")

    def log_tail(self, length: int = 1500) -> str:
        return self.log.read_text(errors="replace")[-length:].strip()

    def interrupt(self) -> None:
        """Ask it to end by SIGINT and wait; `stop` is for what does not listen."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_PATIENCE_S)

    def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL to it and whatever it left behind in its session."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_PATIENCE_S)
        for pid in sorted(session_of(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_PATIENCE_S)


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the command's name, from `state` (field 3) on; see proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def session_of(leader: int) -> set[int]:
    """Return the ids of all processes in the session that `leader` began."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if int(_stat_fields(int(entry.name))[3]) == leader:
                    found.add(int(entry.name))
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used, user and system, in steps of 10 ms."""
    ticks = 0
    for pid in pids:
        fields = _stat_fields(pid)
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def memory_bytes(pids: Iterable[int]) -> tuple[int, int]:
    """Return resident and proportional set size: RSS counts shared pages in each process, PSS divides them."""
    rss = pss = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == "Rss":
                rss += int(value.split()[0]) * 1024
            elif key == "Pss":
                pss += int(value.split()[0]) * 1024
    return rss, pss


def pin_threads(pid: int, core: int) -> None:
    """Pin every thread of a running process to `core`; later ones inherit it."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})
