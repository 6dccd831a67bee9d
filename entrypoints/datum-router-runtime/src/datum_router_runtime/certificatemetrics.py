"""When the certificates that a gateway shows end, as metrics: nobody renews what nobody sees ending (threat F5)."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final

from datum_router.model.snapshot import SnapshotData
from datum_router.observe import names
from datum_router.observe.cells import CellKey
from datum_router.observe.ledger import MAX_OWN
from datum_router.policy.der import ends_at

_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"


GATEWAY: Final = "gateway"
"""In place of a VPCIngress, for the gateway's own certificate."""


class CertificateEnds:
    """Read when certificates end, each once as long as it is in force."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, float | None] = {}

    def values(self, data: SnapshotData | None) -> Iterator[tuple[CellKey, float]]:
        """Yield when the certificate of each VPCIngress ends, and by kind the first of those for upstreams."""
        seen: dict[str, float | None] = {}
        shown: dict[str, float] = {}
        for listener in () if data is None else data.listeners:
            for binding in listener.tls:
                end = self._end(binding.cert_pem, seen)
                if end is not None:
                    owner = binding.owner or GATEWAY
                    shown[owner] = min(end, shown.get(owner, end))
        for owner, end in sorted(shown.items(), key=lambda one: (one[1], one[0]))[:MAX_OWN]:
            yield (names.CERTIFICATE_END.name, (owner,)), end
        for kind, identities in _identities(data).items():
            found = [end for pem in identities if pem and (end := self._end(pem, seen)) is not None]
            yield (names.IDENTITY_END.name, (kind,)), min(found, default=0)
        self._known = seen

    def _end(self, pem: str, seen: dict[str, float | None]) -> float | None:
        if pem not in seen:
            seen[pem] = self._known[pem] if pem in self._known else read_end(pem)
        return seen[pem]


def _identities(data: SnapshotData | None) -> dict[str, list[str]]:
    """Return what upstreams are shown, as PEM text, by the kind of object that says so."""
    services = () if data is None else data.services.values()
    rules = () if data is None or data.egress is None else data.egress.rules
    return {
        "VPCService": [one.tls.cert_pem for one in services if one.tls is not None],
        "VPCEgress": [
            one.tls.cert_pem for rule in rules if rule.is_allow for one in rule.targets if one.tls is not None
        ],
    }


def read_end(pem: str) -> float | None:
    """Return when the first certificate of a PEM text ends, in Unix seconds; None if that cannot be read."""
    begin = pem.find(_BEGIN)
    end = pem.find(_END, begin)
    if begin < 0 or end < 0:
        return None
    try:
        return ends_at(ssl.PEM_cert_to_DER_cert(pem[begin : end + len(_END)]))
    except ValueError:
        return None
