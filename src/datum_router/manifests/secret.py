"""The credential kinds that listeners and upstream TLS refer to: core/v1 Secret and ConfigMap, read only."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.problem import Problem
from datum_router.reasons import Reason

_TLS_TYPE: Final = "kubernetes.io/tls"
_TLS_KEYS: Final = ("tls.crt", "tls.key")
_PEM_LABELS: Final = {"tls.crt": "CERTIFICATE", "tls.key": "PRIVATE KEY"}
_PEM_BLOCK: Final = re.compile(r"-----BEGIN (?P<label>[A-Z0-9 ]{1,64})-----(?P<body>[^-]*)-----END (?P=label)-----")


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

    def pair(self) -> tuple[str, str] | None:
        """Return certificate and key (`tls.crt` and `tls.key`) as PEM text; None if either is absent or empty."""
        cert, key = self.text("tls.crt"), self.text("tls.key")
        return (cert, key) if cert and key else None


class ConfigMap(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A core/v1 ConfigMap: CA bundles under `ca.crt`."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    data: Mapping[str, str] | None = None


def has_pem_block(text: str, label: str) -> bool:
    """Tell whether `text` holds a PEM block (RFC 7468) whose label ends with `label` and whose body is base64.

    Whether certificate and key fit together only a TLS library can tell, where they are used.
    """
    for found in _PEM_BLOCK.finditer(text):
        if found["label"].endswith(label):
            try:
                return bool(base64.b64decode("".join(found["body"].split()), validate=True))
            except binascii.Error:
                return False
    return False


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
    for name, label in _PEM_LABELS.items():
        text = secret.text(name)
        if text is not None and not has_pem_block(text, label):
            yield Problem(
                path=f"data[{name!r}]" if name in (secret.data or {}) else f"stringData[{name!r}]",
                reason=Reason.INVALID_VALUE,
                message=f"found no whole PEM block of a {label.lower()}",
                hint=f"it begins with -----BEGIN {label}-----",
            )
    if secret.type == _TLS_TYPE:
        for name in _TLS_KEYS:
            if not (name in (secret.data or {}) or name in (secret.string_data or {})):
                yield Problem(
                    path=f"data[{name!r}]",
                    reason=Reason.MISSING_FIELD,
                    message=f"a secret of type {_TLS_TYPE} needs it",
                )
