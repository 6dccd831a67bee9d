"""What the operating system says about memory and descriptors: the edge of `overload` (threats E7, E8)."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

log = logging.getLogger(__name__)

CONTAINER_LIMIT = -1
"""Value of `memory_limit_bytes`: whatever the container allows."""
OTHER_DESCRIPTORS = 64
"""Descriptors besides connections: listeners, epoll, logs, the control channel, libraries."""
_CGROUPS = Path("/sys/fs/cgroup")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MemoryGauge:
    """Measure use against one limit.

    A limit that is stated is one of this process, compared with its resident memory. The container's limit is one of
    all processes in it together: compared with what the kernel charges to the container, without the file pages that
    it can drop at once (as the kubelet's working set).

    Attributes:
        limit: Bytes; 0 = none.
    """

    __slots__ = ("_cgroup", "limit")

    def __init__(self, limit: int, *, root: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> None:
        self.limit = limit
        self._cgroup: Path | None = None
        if limit == CONTAINER_LIMIT:
            self.limit, self._cgroup = _tightest(root, membership)

    def used(self) -> int:
        """Return the bytes in use; 0 if that cannot be told, which refuses nobody."""
        try:
            if self._cgroup is None:
                return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
            charged = int((self._cgroup / "memory.current").read_bytes())
            return charged - _droppable(self._cgroup)
        except (OSError, ValueError, IndexError):
            return 0


def _tightest(root: Path, membership: Path) -> tuple[int, Path | None]:
    """Return the lowest `memory.max` of the process's cgroup (version 2) and those above it, and whose it is."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return 0, None
    own = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if own is None:
        return 0, None
    found: list[tuple[int, Path]] = []
    group = root / own.lstrip("/")
    for one in (group, *group.parents):
        try:
            text = (one / "memory.max").read_text().strip()
        except OSError:
            text = ""
        if text.isascii() and text.isdigit():
            found.append((int(text), one))
        if one == root:
            break
    return min(found) if found else (0, None)


def _droppable(cgroup: Path) -> int:
    for line in (cgroup / "memory.stat").read_bytes().splitlines():
        name, _, value = line.partition(b" ")
        if name == b"inactive_file":
            return int(value)
    return 0


def needed_descriptors(max_connections: int) -> int:
    """Return how many descriptors a worker needs: each client's connection may need one to an upstream."""
    return 2 * max_connections + OTHER_DESCRIPTORS


def raise_descriptor_limit(needed: int) -> int:
    """Raise the soft limit towards `needed` as far as the hard one allows; return what is in force then.

    Falling short is no error: connections beyond it are turned away one by one (threat E7).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _reachable(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return soft


def warn_of_descriptor_limit(needed: int) -> None:
    """Log a warning if no worker, which inherits the limits of this process, will have `needed` descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = _reachable(needed, hard)
    if soft != resource.RLIM_INFINITY and max(soft, reachable) < needed:
        log.warning(
            "descriptor limit is below what the connection limits may need; raise it (ulimit -n), or lower the setting",
            extra={"limit": reachable, "needed": needed, "setting": "max_connections"},
        )


def _reachable(needed: int, hard: int) -> int:
    return needed if hard == resource.RLIM_INFINITY else min(needed, hard)
