"""Being told by Linux that a directory may have changed (inotify), so that an edit need not wait for the next poll.

Theory of operation. A watch only says "look now": what changed is found by scanning, as without it. So a missed event
(a network file system, the limit of watches, an overflow) costs the time until the next poll and nothing else, and a
system without inotify works as before. Directories are watched, not files: editors and ConfigMaps put new files in
place of old ones. Events about names that are no manifests, such as temporary files, are passed over.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

import trio

from datum_router_files.listing import is_manifest_name

MAX_WATCHES = 1000
"""Directories that are watched; changes in further ones are found by polling."""

_READ_BYTES = 64 * 1024
_EVENT = struct.Struct("iIII")  # inotify(7): wd, mask, cookie, len
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _OVERFLOW, _ONLYDIR, _ISDIR = 0x400, 0x800, 0x4000, 0x1000000, 0x40000000
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR


class Watch:
    """An inotify instance on some directories. Not thread-safe, but `follow` may block: call it in a thread."""

    __slots__ = ("_add", "_fd", "_watched")

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

    def follow(self, directories: Iterable[str]) -> None:
        """Watch `directories`, too; ones that are watched already, or cannot be, are passed over."""
        wanted = set(directories)
        for path in sorted(wanted - self._watched)[: MAX_WATCHES - len(self._watched)]:
            # The kernel drops the watch of a directory that goes away; adding twice is harmless.
            if self._add(self._fd, os.fsencode(path), _MASK) >= 0:
                self._watched.add(path)
        self._watched &= wanted

    async def changed(self) -> None:
        """Wait until manifests may have changed. Cancelling loses no event."""
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                continue
            if self._tells(data):
                return

    def close(self) -> None:
        """Give the instance back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _tells(self, data: bytes) -> bool:
        """Tell whether any of some events is about manifests."""
        at = 0
        found = False
        while at < len(data):
            _, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = os.fsdecode(data[at : at + size].rstrip(b"\0"))
            at += size
            if mask & (_DELETE_SELF | _MOVE_SELF | _OVERFLOW):
                self._watched.clear()  # a directory that comes back under the same name is a new one
                found = True
            elif mask & _CREATE and not mask & _ISDIR:
                continue  # an empty file: it is closed, or renamed, when there is something in it
            elif name == "..data" or is_manifest_name(name) or (mask & _ISDIR and not name.startswith(".")):
                found = True
        return found
