"""The credential kinds that listeners and upstream TLS refer to: core/v1 Secret and ConfigMap, read only."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.problem import Problem
from datum_router.reasons import Reason

_TLS_TYPE: Final = "kubernetes.io/tls"
_TLS_KEYS: Final = ("tls.crt", "tls.key")


class Secret(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A core/v1 Secret; `data` is base64, `stringData` plain text. Values never appear in a representation."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    type: str = ""
    data: Mapping[str, str] | None = None
    string_data: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        return f"Secret({self.metadata.namespace}/{self.metadata.name}, type={self.type!r}, data=<redacted>)"

    def text(self, name: str) -> str | None:
        """Return the value of `name` as text; None if it is absent, no base64 or no UTF-8."""
        if self.string_data and name in self.string_data:
            return self.string_data[name]
        value = (self.data or {}).get(name)
        if value is None:
            return None
        try:
            return base64.b64decode("".join(value.split()), validate=True).decode()
        except (binascii.Error, ValueError):
            return None


class ConfigMap(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A core/v1 ConfigMap: CA bundles under `ca.crt`."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    data: Mapping[str, str] | None = None


def validate_secret(secret: Secret) -> Iterator[Problem]:
    """Yield what is wrong with a Secret; a broken one is refused as a whole, so that its last good version stays.

    Messages name keys, never values.
    """
    for name in secret.data or {}:
        if name not in (secret.string_data or {}) and secret.text(name) is None and name in _TLS_KEYS:
            yield Problem(
                path=f"data[{name!r}]",
                reason=Reason.INVALID_VALUE,
                message="found something else than PEM text in base64",
                hint="encode it with base64, or write it as it is under stringData",
            )
    if secret.type == _TLS_TYPE:
        for name in _TLS_KEYS:
            if not (name in (secret.data or {}) or name in (secret.string_data or {})):
                yield Problem(
                    path=f"data[{name!r}]",
                    reason=Reason.MISSING_FIELD,
                    message=f"a secret of type {_TLS_TYPE} needs it",
                )
