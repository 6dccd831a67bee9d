"""What the kernel knows of our processes: /proc, proc(5)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_NOFILE = re.compile(r"^Max open files\s+(\d+|unlimited)", re.MULTILINE)


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """One process; `max_fds` is infinite if there is no limit."""

    cpu_s: float
    rss_bytes: int
    open_fds: int
    max_fds: float


def read_process(pid: int) -> ProcessUse | None:
    """Return what a process uses now; None if it is gone or not ours to look at. O(open descriptors)."""
    base = Path("/proc") / str(pid)
    try:
        # The second field is the command in brackets, which may hold anything: count from behind it.
        fields = (base / "stat").read_text().rpartition(")")[2].split()
        limit = _NOFILE.search((base / "limits").read_text())
        return ProcessUse(
            cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
            rss_bytes=int(fields[21]) * _PAGE_BYTES,
            open_fds=len(os.listdir(base / "fd")),
            max_fds=float("inf") if limit is None or limit[1] == "unlimited" else int(limit[1]),
        )
    except (OSError, IndexError, ValueError):
        return None


class CpuClock:
    """CPU seconds by role, which do not go back when the process of a role is replaced.

    What a process used after it was last looked at, and before its end, is not counted.
    """

    __slots__ = ("_before", "_last")

    def __init__(self) -> None:
        self._before: dict[str, float] = {}
        self._last: dict[str, tuple[int, float]] = {}

    def total_s(self, role: str, pid: int, cpu_s: float) -> float:
        """Return all CPU seconds of a role, whose present process has used `cpu_s`."""
        known = self._last.get(role)
        if known is not None and known[0] != pid:
            self._before[role] = self._before.get(role, 0.0) + known[1]
        self._last[role] = (pid, cpu_s)
        return self._before.get(role, 0.0) + cpu_s
