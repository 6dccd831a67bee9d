"""Permits for trials that all workers share: locks on a file that only exists in memory.

Each permit is one byte of the file, `number * MAX_PERMITS + permit`, and is held as a POSIX record lock: claiming one
is a single call that never waits, works between any processes that have the file, and a worker that dies lets go of
all of its own. Nothing is ever written. Only requests that meet a half-open endpoint come here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import logging
import os

from datum_router.health.trial import MAX_KEPT_NUMBERS

log = logging.getLogger(__name__)

MAX_PERMITS = 1024
"""Permits that one number can have."""


def open_permits_file() -> io.FileIO:
    """Return a new file for `FilePermits`, whose descriptor is to be handed to every worker."""
    return io.FileIO(os.memfd_create("datum-router-trials"), "r+")


class FilePermits:
    """One process's side of the shared permits. Single-threaded.

    Closing any other descriptor of the same file in this process would let go of its locks (POSIX).
    """

    __slots__ = ("_fd", "_held")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held: dict[tuple[int, int], None] = {}  # an ordered set

    def claim(self, number: int, limit: int) -> int | None:
        """Take the first permit of a number that no process holds; never blocks."""
        for permit in range(min(limit, MAX_PERMITS)):
            if (number, permit) in self._held:
                continue  # locks of one process do not exclude each other
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number * MAX_PERMITS + permit)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    continue
                # Without locks each worker counts its own: better a few trials more than an endpoint out for good.
                log.warning("trials are not counted over all workers", extra={"error": str(error)})
            self._held[number, permit] = None
            if len(self._held) > MAX_KEPT_NUMBERS:
                self.give_back(*next(iter(self._held)))
            return permit
        return None

    def give_back(self, number: int, permit: int) -> None:
        """Unlock a permit."""
        if self._held.pop((number, permit), True) is None:
            with contextlib.suppress(OSError):  # as in `claim`: without locks there is nothing to unlock
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, number * MAX_PERMITS + permit)
