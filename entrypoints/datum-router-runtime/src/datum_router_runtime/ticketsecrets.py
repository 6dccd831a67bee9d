"""The secrets of TLS session tickets: made here, the same for all workers, replaced in time, never written anywhere.

Two are in force: tickets are made by the newest, and those made by the one before are still taken, so that nobody who
comes back within a lifetime has to shake hands in full. With `lifetime_s` a secret is in memory for twice as long,
which bounds what whoever steals it can read of recorded TLS 1.2 sessions (RFC 5077 section 5.5, RFC 9325 section 3.4).
"""

from __future__ import annotations

import os

SECRET_BYTES = 32
KEPT = 2
"""Secrets that tickets are taken of."""


class TicketSecretBook:
    """The secrets in force."""

    __slots__ = ("_secrets",)

    def __init__(self) -> None:
        self._secrets: tuple[bytes, ...] = (os.urandom(SECRET_BYTES),)

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Return them, the newest first."""
        return self._secrets

    def rotate(self) -> None:
        """Make tickets by a new one from now on."""
        self._secrets = (os.urandom(SECRET_BYTES), *self._secrets)[:KEPT]

    def __repr__(self) -> str:
        return f"<TicketSecretBook of {len(self._secrets)}>"
