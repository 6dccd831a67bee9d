"""Which pairs of certificate and key can be served, as it is told at the Secret that holds them."""

from __future__ import annotations

import ssl

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from datum_router.compiler.compiler import Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.secret import Secret
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import Upsert
from datum_router.registry.store import Store
from datum_router_proxy import certificate, plugin
from datum_router_proxy.certificate import validate_secret

CA = trustme.CA()
ONE, TWO = CA.issue_cert("one.test"), CA.issue_cert("two.test")
CERT = ONE.cert_chain_pems[0].bytes().decode()
KEY = ONE.private_key_pem.bytes().decode()
RSA_KEY = CA.issue_cert("one.test", key_type=trustme.KeyType.RSA).private_key_pem.bytes().decode()
OTHER_KEY = TWO.private_key_pem.bytes().decode()
LOCKED_KEY = (
    serialization.load_pem_private_key(KEY.encode(), None)
    .private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    .decode()
)
CUT_KEY = "".join(line for index, line in enumerate(KEY.splitlines(keepends=True)) if index != 1)
JUNK_CERT = "-----BEGIN CERTIFICATE-----\nQ0VSVA==\n-----END CERTIFICATE-----\n"
COMMENT = "subject=CN = M\u00fcller\n"  # as `openssl pkcs12` writes it above a block


def secret(cert: str, key: str) -> Secret:
    data = {"tls.crt": cert, "tls.key": key}
    return Secret(api_version="v1", kind="Secret", metadata=ObjectMeta(name="s"), string_data=data)


def test_a_pair_that_fits_and_a_secret_without_one_are_good() -> None:
    assert not list(validate_secret(secret(CERT, KEY)))
    assert not list(validate_secret(secret(CERT + CA.cert_pem.bytes().decode(), KEY)))
    assert not list(
        validate_secret(Secret(api_version="v1", kind="Secret", metadata=ObjectMeta(name="s"), string_data={"a": "b"}))
    )


@pytest.mark.parametrize(
    ("cert", "key", "path", "message"),
    [
        (CERT, OTHER_KEY, "stringData['tls.key']", "certificate and private key do not belong together"),
        (CERT, RSA_KEY, "stringData['tls.key']", "certificate and private key do not belong together"),
        (CA.cert_pem.bytes().decode() + CERT, KEY, "stringData['tls.key']", "certificate and private key do not"),
        (CERT, LOCKED_KEY, "stringData['tls.key']", "private key is encrypted, expected one without a passphrase"),
        (CERT, CUT_KEY, "stringData['tls.key']", "the private key cannot be read"),
        (JUNK_CERT, KEY, "stringData['tls.crt']", "a certificate cannot be read"),
        (CERT + JUNK_CERT, KEY, "stringData['tls.crt']", "a certificate cannot be read"),
        (COMMENT + CERT, CUT_KEY, "stringData['tls.key']", "the private key cannot be read"),
        (COMMENT + JUNK_CERT, KEY, "stringData['tls.crt']", "a certificate cannot be read"),
    ],
    ids=[
        "other-key",
        "other-type",
        "wrong-order",
        "encrypted",
        "cut-key",
        "no-certificate",
        "bad-intermediate",
        "cut-key-comment",
        "comment",
    ],
)
def test_a_pair_that_cannot_be_served_is_told_with_its_place_and_without_its_text(
    cert: str, key: str, path: str, message: str
) -> None:
    (found,) = validate_secret(secret(cert, key))
    assert found.path == path
    assert found.message.startswith(message)
    assert found.hint
    assert key.splitlines()[1] not in repr(found)


@pytest.mark.parametrize("reason", ["EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"])
def test_a_pair_that_is_too_weak_is_not_said_to_be_unreadable(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    def fail(*_: object) -> None:
        error = ssl.SSLError(1, "refused by the security level of the system")
        error.reason = reason
        raise error

    monkeypatch.setattr(certificate, "load_pair", fail)
    (found,) = validate_secret(secret(CERT, KEY))
    assert found.path == "stringData['tls.crt']"
    assert "too " in found.message
    assert "issue a new one" in found.hint


def test_a_shortage_of_the_process_is_no_fault_of_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(certificate, "load_pair", fail)
    assert not list(validate_secret(secret(CERT, KEY)))


def test_the_last_good_pair_stays_in_force_and_the_bad_one_has_a_diagnostic() -> None:
    plugins = load_plugins(
        [
            Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin),
            Candidate(entry_point="proxy", distribution="datum-router-proxy", load=lambda: plugin),
        ]
    )
    store, compiler = Store(plugins.kinds), Compiler(plugins)
    edge = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCIngress",
        "metadata": {"name": "edge"},
        "spec": {"host": "one.test", "tls": {"secretName": "s"}},
    }

    def put(key: str) -> None:
        pair = {"tls.crt": CERT, "tls.key": key}
        raw = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": pair}
        store.apply(Upsert(source="test", raw=raw, origin=Origin(source="test", file="s.yaml", line=1)))

    store.apply(Upsert(source="test", raw=edge, origin=Origin(source="test", file="edge.yaml", line=1)))
    put(KEY)
    good = compiler.compile(store.view())
    assert not good.diagnostics
    put(OTHER_KEY)
    bad = compiler.compile(store.view())
    assert bad.data is good.data
    first = min(bad.diagnostics, key=lambda item: item.severity)
    assert (first.object, first.path, first.file) == ("secret default/s", "stringData['tls.key']", "s.yaml")
