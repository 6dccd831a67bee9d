"""The gateway's own certificates out of files (`ROUTER_TLS_CERT` and the others), read again when they change.

They are emitted as Secrets, so that a pair that does not fit is told as ever and the one before stays in force. A file
that cannot be read takes nothing away: whoever replaces it may be half-way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import trio

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.compiler.environment import AUTHORITIES, CLIENT, NAMESPACE, SERVER, OwnCredentials
from datum_router.plugins.protocols import Emit, Problems, SourceEvent, Synced, Upsert
from datum_router.reasons import Reason
from datum_router_runtime.settings import OWN_FILES, GatewaySettings

log = logging.getLogger(__name__)

NAME: Final = "environment"
"""Name of the source."""
POLL_S: Final = 10.0
"""How often the files are looked at (seconds); that of controller-runtime's certwatcher."""
MAX_FILE_BYTES: Final = 1 << 20
"""A larger file is passed over."""

_VARIABLES: Final = {field: variable for variable, field in OWN_FILES.items()}


class OwnSecret(msgspec.Struct, frozen=True, kw_only=True):
    """Files that make one Secret: entry -> (environment variable, path)."""

    name: str
    files: Mapping[str, tuple[str, str]]


def own_secrets(settings: GatewaySettings) -> tuple[OwnSecret, ...]:
    """Return what is to be read."""
    wanted = (
        (SERVER, {"tls.crt": "tls_cert", "tls.key": "tls_key"}),
        (CLIENT, {"tls.crt": "client_cert", "tls.key": "client_key"}),
        (AUTHORITIES, {"ca.crt": "client_ca"}),
    )
    return tuple(
        OwnSecret(
            name=name,
            files={entry: (_VARIABLES[field], getattr(settings, field)) for entry, field in fields.items()},
        )
        for name, fields in wanted
        if all(getattr(settings, field) for field in fields.values())
    )


def own_credentials(settings: GatewaySettings) -> OwnCredentials:
    """Return what the compiler must know of it."""
    return OwnCredentials(
        has_server=bool(settings.tls_cert),
        has_client=bool(settings.client_cert),
        has_authorities=bool(settings.client_ca),
        is_verifying=settings.client_verify_server,
    )


def own_sources(settings: GatewaySettings) -> dict[str, OwnFiles]:
    """Return the source by its name; nothing if nothing is to be read."""
    secrets = own_secrets(settings)
    return {NAME: OwnFiles(secrets)} if secrets else {}


class OwnFiles:
    """A source of the gateway's own Secrets.

    Args:
        read: Returns the text of a file.
    """

    __slots__ = ("_last", "_problems", "_read", "_secrets")

    def __init__(self, secrets: Sequence[OwnSecret], read: Callable[[str], str] | None = None) -> None:
        self._secrets = tuple(secrets)
        self._read = read or read_text
        self._last: dict[str, dict[str, str]] = {}
        self._problems: dict[str, str] = {}

    async def run(self, emit: Emit) -> None:
        """Emit what the files hold, then changes, until cancelled."""
        while True:
            is_first = not (self._last or self._problems)
            events = await trio.to_thread.run_sync(self._look)
            if is_first:
                events.append(Synced(source=NAME))
            if events:
                emit(events)
            await trio.sleep(POLL_S)

    def _look(self) -> list[SourceEvent]:
        """Read all files once; return what has changed."""
        events: list[SourceEvent] = []
        for secret in self._secrets:
            texts: dict[str, str] = {}
            found: list[Diagnostic] = []
            for entry, (variable, path) in secret.files.items():
                try:
                    texts[entry] = self._read(path)
                except (OSError, ValueError) as error:
                    said = (error.strerror or "").lower() if isinstance(error, OSError) else str(error)
                    found.append(_problem(variable, path, said or type(error).__name__))
            told = "".join(one.message for one in found)
            if told != self._problems.get(secret.name, ""):
                events.append(Problems(source=NAME, scope=secret.name, diagnostics=tuple(found)))
            self._problems[secret.name] = told
            if not found and texts != self._last.get(secret.name):
                self._last[secret.name] = texts
                events.append(_upsert(secret, texts))
        return events


def _problem(variable: str, path: str, said: str) -> Diagnostic:
    return Diagnostic(
        severity=Severity.ERROR,
        object=f"environment {variable}",
        reason=Reason.INVALID_CERTIFICATE_REF,
        message=f"{path} cannot be read: {said}; what was read before stays in force",
        hint="name a file of PEM text",
    )


def _upsert(secret: OwnSecret, texts: Mapping[str, str]) -> Upsert:
    _, path = next(iter(secret.files.values()))
    raw = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret.name, "namespace": NAMESPACE},
        "type": "kubernetes.io/tls" if "tls.key" in texts else "Opaque",
        "stringData": dict(texts),
    }
    return Upsert(source=NAME, raw=raw, origin=Origin(source=NAME, file=path, line=1))


def read_text(path: str) -> str:
    """Return the text of a file.

    Raises:
        OSError, ValueError: It cannot be read, is too long, or no text.
    """
    # Opening a pipe would wait for whoever writes to it.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is no text") from None  # the error would quote what it found
