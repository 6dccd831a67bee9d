"""The key that seals sessions: from a file, or a new one."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from datum_router.errors import ConfigError
from datum_router.policy.affinity import KEY_BYTES
from datum_router.reasons import Reason

log = logging.getLogger(__name__)

LEAST_BYTES = 16
"""A key file holds this much at least, white space around it aside."""
MOST_BYTES = 65_536


def read_session_key(path: str) -> bytes:
    """Return `KEY_BYTES` bytes made of what a file holds; random ones if `path` is empty.

    Raises:
        ConfigError: The file cannot be read, or is too short or too long; says nothing of what it holds.
    """
    if not path:
        return os.urandom(KEY_BYTES)
    try:
        with Path(path).open("rb") as file:
            text = file.read(MOST_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(
            f"DATUM_ROUTER_SESSION_KEY_FILE: {path}: {error.strerror}, expected a file with a key",
            reason=Reason.INVALID_VALUE,
        ) from error
    if not LEAST_BYTES <= len(text) <= MOST_BYTES:
        raise ConfigError(
            f"DATUM_ROUTER_SESSION_KEY_FILE: {path}: found {'more than ' if len(text) > MOST_BYTES else ''}"
            f"{min(len(text), MOST_BYTES)} bytes, expected {LEAST_BYTES} to {MOST_BYTES}, for example of "
            "`openssl rand -base64 32`",
            reason=Reason.INVALID_VALUE,
        )
    return hashlib.blake2b(text, digest_size=KEY_BYTES, person=b"session key").digest()
