"""Being told by Linux that a directory may have changed (inotify), so that an edit need not wait for the next poll.

Theory of operation. A watch only says "look now", and where: what changed is found by scanning, as without it. So a
missed event (a network file system, the limit of watches, an overflow) costs the time until the next poll and nothing
else, and a system without inotify works as before. Directories are watched, not files: editors and ConfigMaps put new
files in place of old ones. Events about names that are no manifests, such as temporary files, are passed over.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Final

import trio

from datum_router_files.listing import is_manifest_name

MAX_WATCHES = 1000
"""Directories that are watched; changes in further ones are found by polling."""

_READ_BYTES = 64 * 1024
_EVENT = struct.Struct("iIII")  # inotify(7): wd, mask, cookie, len
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _OVERFLOW, _ONLYDIR, _ISDIR = 0x400, 0x800, 0x4000, 0x1000000, 0x40000000
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR


Changes = frozenset[str] | None
"""Paths of manifests that have changed; None: anything may have."""
NOTHING: Final[Changes] = frozenset()


class Watch:
    """An inotify instance on some directories. Not thread-safe, but `follow` may block: call it in a thread."""

    __slots__ = ("_add", "_fd", "_paths", "_watched")

    def __init__(self) -> None:
        """Begin with no directory.

        Raises:
            OSError: The system has no inotify, or no instance is left.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            init, self._add = libc.inotify_init1, libc.inotify_add_watch
        except AttributeError:
            raise OSError(0, "the system has no inotify") from None
        self._fd = init(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot be used")
        self._watched: set[str] = set()
        # By the kernel's number of a watch; "" is a directory that has two names.
        self._paths: dict[int, str] = {}

    def follow(self, directories: Iterable[str]) -> None:
        """Watch `directories`, too; ones that are watched already, or cannot be, are passed over."""
        wanted = set(directories)
        for path in sorted(wanted - self._watched)[: MAX_WATCHES - len(self._watched)]:
            # The kernel drops the watch of a directory that goes away; adding twice is harmless.
            number = self._add(self._fd, os.fsencode(path), _MASK)
            if number >= 0:
                self._watched.add(path)
                self._paths[number] = path if self._paths.get(number, path) == path else ""
        self._watched &= wanted

    async def changed(self) -> Changes:
        """Wait until manifests may have changed; return where. Cancelling loses no event."""
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            found = self.take()
            if found != NOTHING:
                return found

    def take(self) -> Changes:
        """Return where manifests may have changed since the last time, without waiting."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return NOTHING
        return self._told(data)

    def close(self) -> None:
        """Give the instance back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _told(self, data: bytes) -> Changes:
        """Return what some events say."""
        at = 0
        found: set[str] = set()
        is_anything = False
        while at < len(data):
            number, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = os.fsdecode(data[at : at + size].rstrip(b"\0"))
            at += size
            if mask & (_DELETE_SELF | _MOVE_SELF | _OVERFLOW):
                self._watched.clear()  # a directory that comes back under the same name is a new one
                self._paths.clear()
                is_anything = True
            elif mask & _CREATE and not mask & _ISDIR:
                continue  # an empty file: it is closed, or renamed, when there is something in it
            elif name == "..data" or (mask & _ISDIR and not name.startswith(".")):
                is_anything = True
            elif is_manifest_name(name):
                directory = self._paths.get(number, "")
                is_anything |= not directory
                found.add(os.path.join(directory, name))
        return None if is_anything else frozenset(found)
