"""The last good snapshot on disk: what a gateway serves after a restart while its sources cannot be reached.

The file is replaced as a whole (written beside it, flushed, renamed), so it is always one snapshot or the other. It may
hold private keys: it is readable by its owner alone, and belongs on a file system in memory. A file that cannot be read
or written costs a log line and a count, never traffic.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from datum_router.model.snapshot import SnapshotData

log = logging.getLogger(__name__)

FORMAT = 1
"""Number of the file's form; another one's file is passed over."""
WRITE_INTERVAL_S = 5.0
"""The file is written at most so often (seconds): once a change is in force, and once after more that follow it."""
MAX_BYTES = 1 << 30
"""A larger file is passed over."""

_MAGIC = b"datum-router snapshot\n"


class _Saved(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    format: int
    saved_at: float
    scope: str
    data: SnapshotData


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Saved)


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that was read, and the Unix seconds at which it was written."""

    data: SnapshotData
    saved_at: float


def encode_snapshot(data: SnapshotData, *, saved_at: float, scope: str) -> bytes:
    """Return the file's content.

    Args:
        scope: Where the configuration came from and what it is for; a gateway of another scope passes the file over.
    """
    body = _ENCODER.encode(_Saved(format=FORMAT, saved_at=saved_at, scope=scope, data=data))
    return b"".join((_MAGIC, hashlib.blake2b(body, digest_size=16).digest(), body))


def decode_snapshot(content: bytes, *, scope: str) -> Restored:
    """Return what was written.

    Raises:
        ValueError: It is no such file, damaged, or of another version; says which.
    """
    if not content.startswith(_MAGIC):
        raise ValueError("it is no snapshot of a gateway")
    digest, body = content[len(_MAGIC) : len(_MAGIC) + 16], content[len(_MAGIC) + 16 :]
    if hashlib.blake2b(body, digest_size=16).digest() != digest:
        raise ValueError("it is damaged: its content does not have the digest that it names")
    try:
        saved = _DECODER.decode(body)
    except msgspec.MsgspecError as error:
        raise ValueError(f"it was written by another version: {error}") from error
    if saved.format != FORMAT:
        raise ValueError(f"found format {saved.format}, expected {FORMAT}: it was written by another version")
    if saved.scope != scope:
        raise ValueError(f"it is the snapshot of a gateway with other settings: found {saved.scope}, expected {scope}")
    return Restored(data=saved.data, saved_at=saved.saved_at)


class SnapshotFile:
    """Keep one file in step with what is in force.

    Args:
        scope: As `encode_snapshot` takes it.
        clock: Unix seconds.

    Attributes:
        failures: Writes that failed.
    """

    def __init__(self, path: str, *, scope: str, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._scope = scope
        self.failures = 0
        self._clock = clock
        self._written = ""

    def read(self) -> Restored | None:
        """Return what the file holds; None, with a log line, if nothing usable."""
        try:
            return decode_snapshot(self._content(), scope=self._scope)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("last snapshot cannot be used", extra={"file": str(self.path), "error": str(error)})
            return None

    def _content(self) -> bytes:
        """Return what the file holds.

        Raises:
            OSError, ValueError: It cannot be read, or others may have written it: whoever can put a file there would
                say where requests go.
        """
        # Opening a pipe would wait for whoever writes to it.
        handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("it is no regular file")
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                mode = stat.S_IMODE(found.st_mode)
                raise ValueError(
                    f"others may have written it: found owner {found.st_uid} and mode {mode:o}, expected owner "
                    f"{os.geteuid()} and a file that nobody else may write"
                )
            if found.st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            return file.read(MAX_BYTES + 1)

    async def save(self, data: SnapshotData) -> None:
        """Write a snapshot unless it is the one that was written last; never raises on what the disk does."""
        if data.digest == self._written:
            return
        content = encode_snapshot(data, saved_at=self._clock(), scope=self._scope)
        try:
            await trio.to_thread.run_sync(self._replace, content)
        except OSError as error:
            self.failures += 1
            log.warning("snapshot cannot be saved", extra={"file": str(self.path), "error": str(error)})
            return
        self._written = data.digest

    def _replace(self, content: bytes) -> None:
        beside = self.path.with_name(self.path.name + ".new")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), 0o600)  # it may have been there with other rights
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
