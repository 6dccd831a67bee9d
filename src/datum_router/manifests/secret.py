"""The credential kinds that listeners and upstream TLS refer to: core/v1 Secret and ConfigMap, read only."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

import msgspec

from datum_router.manifests.meta import ObjectMeta


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
            return base64.b64decode(value, validate=False).decode()
        except (binascii.Error, ValueError):
            return None


class ConfigMap(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A core/v1 ConfigMap: CA bundles under `ca.crt`."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    data: Mapping[str, str] | None = None
