"""Which pairs of certificate and key can be served, as it is told at the Secret that holds them."""

from __future__ import annotations

import ssl

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from datum_router.compiler.compiler import Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.secret import ConfigMap, Secret
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import Upsert
from datum_router.registry.store import Store
from datum_router_proxy import certificate, plugin
from datum_router_proxy.certificate import validate_config_map, validate_secret

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


CA_PEM = CA.cert_pem.bytes().decode()


def credentials(**data: str) -> Secret:
    named = {name.replace("_", "."): text for name, text in data.items()}
    return Secret(api_version="v1", kind="Secret", metadata=ObjectMeta(name="s"), string_data=named)


@pytest.mark.parametrize("text", [CA_PEM, CA_PEM + CERT, COMMENT + CA_PEM, "", "\n"])
def test_ca_bundles_as_cert_manager_writes_them_are_good(text: str) -> None:
    assert not list(validate_secret(credentials(tls_crt=CERT, tls_key=KEY, ca_crt=text)))
    assert not list(validate_config_map(bundle(text)))


def bundle(text: str) -> ConfigMap:
    return ConfigMap(api_version="v1", kind="ConfigMap", metadata=ObjectMeta(name="c"), data={"ca.crt": text})


@pytest.mark.parametrize("text", [JUNK_CERT, "nothing", CA_PEM + JUNK_CERT, KEY])
def test_a_ca_bundle_that_cannot_be_read_is_told(text: str) -> None:
    (problem,) = validate_secret(credentials(ca_crt=text))
    assert (problem.path, problem.message) == (
        "stringData['ca.crt']",
        "a certificate of the CA bundle cannot be read",
    )
    (problem,) = validate_config_map(bundle(text))
    assert problem.path == "data['ca.crt']"
    assert KEY.splitlines()[1] not in str(problem)


@pytest.mark.parametrize("text", [CA_PEM, "nothing", "-----BEGIN X509 CRL-----\nQ0VSVA==\n-----END X509 CRL-----\n"])
def test_a_revocation_list_that_cannot_be_read_is_told(text: str) -> None:
    (problem,) = validate_secret(credentials(ca_crl=text))
    assert (problem.path, problem.message) == ("stringData['ca.crl']", "a revocation list cannot be read")


def test_keys_of_every_form_are_read() -> None:
    """PKCS#1, SEC 1 (EC) and PKCS#8: cert-manager writes the first two by default, the third if asked."""
    for kind in (trustme.KeyType.RSA, trustme.KeyType.ECDSA):
        leaf = CA.issue_cert("one.test", key_type=kind)
        private = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
        for form in (serialization.PrivateFormat.TraditionalOpenSSL, serialization.PrivateFormat.PKCS8):
            key = private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
            assert not list(validate_secret(secret(leaf.cert_chain_pems[0].bytes().decode(), key)))
