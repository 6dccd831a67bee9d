"""Every field that names a Secret or a ConfigMap is found, whichever kind it is of."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from datum_router.manifests.credentials import REFERRING_KINDS, references
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import API_VERSION, ObjectKey
from datum_router.manifests.schema import field_rows
from datum_router.manifests.table import KindTable

TABLE = KindTable(OWN_KINDS)

# Paths of all such fields, with what a manifest looks like that has them.
INGRESS = {
    "host": "a.example",
    "tls": {"secretName": "cert", "clientAuth": {"caSecretName": "clients", "crlSecretName": "revoked"}},
}
SERVICE = {
    "port": 443,
    "tls": {
        "caCertificateRefs": [{"name": "bundle"}, {"name": "private-ca", "kind": "Secret"}],
        "clientCertificateRef": {"name": "own"},
    },
}
EGRESS = {
    "destinations": [
        {"endpoint": "a.example", "port": 443, "tls": {"caSecretName": "ca-a", "clientCertificateSecretName": "own-a"}},
        {"endpoint": "b.example", "port": 80},
        {"endpoint": "c.example", "port": 443, "tls": {"caSecretName": "ca-c"}},
    ]
}
KNOWN = {
    "VPCIngress": {"spec.tls.secretName", "spec.tls.clientAuth.caSecretName", "spec.tls.clientAuth.crlSecretName"},
    "VPCService": {
        "spec.tls.caCertificateRefs", "spec.tls.caCertificateRefs[].name", "spec.tls.caCertificateRefs[].kind",
        "spec.tls.clientCertificateRef", "spec.tls.clientCertificateRef.name",
    },
    "VPCEgress": {"spec.destinations[].tls.caSecretName", "spec.destinations[].tls.clientCertificateSecretName"},
}  # fmt: skip


def manifest(kind: str, spec: Mapping[str, object]) -> msgspec.Struct:
    raw = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "x", "namespace": "shop"}, "spec": spec}
    row = TABLE.named(kind)
    assert row is not None
    return msgspec.convert(raw, row.struct)


@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        ("VPCIngress", INGRESS, ["Secret cert", "Secret clients", "Secret revoked"]),
        ("VPCIngress", {"host": "a.example"}, []),
        ("VPCIngress", {"host": "a.example", "tls": {"secretName": "cert"}}, ["Secret cert"]),
        ("VPCService", SERVICE, ["ConfigMap bundle", "Secret private-ca", "Secret own"]),
        ("VPCService", {"port": 80}, []),
        ("VPCService", {"port": 80, "tls": {}}, []),
        ("VPCEgress", EGRESS, ["Secret ca-a", "Secret own-a", "Secret ca-c"]),
        ("VPCEgress", {}, []),
        ("VPCRoute", {"destinations": [{"vpcServiceRef": {"name": "s"}}]}, []),
        ("ServiceBinding", {"serviceRef": {"name": "s"}, "vpcServiceRef": {"name": "v"}}, []),
    ],
)
def test_what_a_manifest_names_is_found_in_its_namespace(
    kind: str, spec: Mapping[str, object], expected: list[str]
) -> None:
    found = list(references(manifest(kind, spec)))
    assert found == [
        ObjectKey(kind=what, namespace="shop", name=name) for what, name in (text.split() for text in expected)
    ]
    assert not found or kind in REFERRING_KINDS


def test_no_field_of_our_kinds_that_names_credentials_is_left_out() -> None:
    for kind in OWN_KINDS:
        suspects = {
            row.path
            for row in field_rows(kind)
            if any(word in row.path.lower() for word in ("secret", "certificateref", "configmap"))
        }
        assert suspects - {"spec.tls.secretVersion"} == KNOWN.get(kind.kind, set())
