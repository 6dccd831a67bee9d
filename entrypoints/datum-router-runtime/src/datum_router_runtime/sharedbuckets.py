"""Buckets of rate limits that all workers of a gateway share: a file that only exists in memory, mapped by each.

Workers accept from one address (SO_REUSEPORT), and a client whose connections land at one worker would get a share of
its limit only if each worker counted for itself. See `datum_router.policy.buckets` for what is in the file; what stands
there outlives workers, and ends with the supervisor. A worker that dies lets go of its locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import mmap
import os

from datum_router.policy.buckets import SECRET_BYTES, BucketTable, table_bytes

log = logging.getLogger(__name__)


def open_buckets_file() -> io.FileIO:
    """Return a new file of 1.5 MiB for `map_buckets`, whose descriptor is to be handed to every worker.

    Its pages are made when they are first used: without rate limits it costs one.
    """
    file = io.FileIO(os.memfd_create("datum-router-buckets"), "r+")
    os.ftruncate(file.fileno(), table_bytes())
    os.pwrite(file.fileno(), os.urandom(SECRET_BYTES), 0)
    return file


class FileLock:
    """POSIX record locks, one byte for each set. Never waits.

    The map of the file must not be closed while this is used: closing any descriptor of a file lets go of its locks.
    """

    __slots__ = ("_fd", "_is_broken")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_broken = False

    def acquire(self, index: int) -> bool:
        """Lock a set if no other process has it."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if not self._is_broken:
                log.warning("rate limits are counted without locks", extra={"error": str(error)})
            self._is_broken = True
            return False
        return True

    def release(self, index: int) -> None:
        """Unlock a set."""
        with contextlib.suppress(OSError):
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, index)


def map_buckets(fd: int) -> BucketTable:
    """Return the table in a file of `open_buckets_file`; its memory stays mapped until the process ends."""
    return BucketTable(mmap.mmap(fd, table_bytes()), lock=FileLock(fd))
