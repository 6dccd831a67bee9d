"""Mutual TLS towards upstreams: our own identity, pinned names, and what becomes of both when they change (F6, F7)."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

pytestmark = [
    pytest.mark.e2e,
    # `ssl` leaves a socket to the garbage collector when a handshake is refused.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]
WEB = "spiffe://example.org/ns/shop/sa/web"
US = "spiffe://example.org/ns/default/sa/router"


class Ca:
    """A CA that writes any names into certificates."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ca {id(self)}")])
        self.cert = self._sign(self.name, self.key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
        self.pem = self.cert.public_bytes(serialization.Encoding.PEM).decode()

    def _sign(self, name: x509.Name, public: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    def pair(self, *names: str, common_name: str = "") -> tuple[str, str]:
        """Return certificate and key with these names, URIs and DNS names."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [x509.UniformResourceIdentifier(one) if "://" in one else x509.DNSName(one) for one in names]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
        extensions = [x509.SubjectAlternativeName(alternatives)] if alternatives else []
        cert = self._sign(subject, key.public_key(), *extensions)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cert.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


class Upstream:
    """An HTTPS server that says who has called; `client_ca` makes it ask for a certificate."""

    def __init__(self, folder: Path, pair: tuple[str, str], client_ca: str = "") -> None:
        file = folder / f"{id(self)}.pem"
        file.write_text("".join(pair))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(file)
        if client_ca:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(cadata=client_ca)
        self.requests = 0
        self.connections = 0
        self.open: set[socket.socket] = set()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, self._context.wrap_socket(sock, server_side=True) as secured:
            self.connections += 1
            self.open.add(secured)
            names = (secured.getpeercert() or {}).get("subjectAltName", ())
            body = ",".join(str(value) for _, value in names).encode() or b"nobody"  # type: ignore[misc]
            try:
                while secured.recv(65536):
                    self.requests += 1
                    secured.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            finally:
                self.open.discard(secured)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class World:
    """A directory of manifests, and what is in it."""

    def __init__(self, directory: Path, folder: Path) -> None:
        self.directory = directory
        self.folder = folder
        self.upstreams: list[Upstream] = []

    def upstream(self, pair: tuple[str, str], client_ca: str = "") -> Upstream:
        made = Upstream(self.folder, pair, client_ca)
        self.upstreams.append(made)
        return made

    def put(self, name: str, kind: str, **parts: object) -> None:
        group = "v1" if kind in ("Secret", "ConfigMap") else "router.datum.net/v1alpha1"
        document = {"apiVersion": group, "kind": kind, "metadata": {"name": name}, **parts}
        beside = self.folder / "new"
        beside.write_text(yaml.safe_dump(document))
        beside.replace(self.directory / f"{kind}-{name}.yaml")  # whole or not at all, as a ConfigMap's volume does it

    def secret(self, name: str, pair: tuple[str, str] | None = None, ca: str = "") -> None:
        data = {"tls.crt": pair[0], "tls.key": pair[1]} if pair else {}
        kind = "kubernetes.io/tls" if pair else "Opaque"
        self.put(name, "Secret", type=kind, stringData={**data, **({"ca.crt": ca} if ca else {})})

    def service(self, name: str, upstream: Upstream, **tls: object) -> None:
        spec = {"protocol": "HTTPS", "port": upstream.port, "endpoints": [{"address": "127.0.0.1"}], "tls": tls}
        self.put(name, "VPCService", spec=spec)
        match = {"pathPrefix": f"/{name}"}
        self.put(name, "VPCRoute", spec={"match": match, "destinations": [{"vpcServiceRef": {"name": name}}]})


@pytest.fixture
def world(directory: Path, tmp_path: Path) -> Iterator[World]:
    made = World(directory, tmp_path)
    yield made
    for upstream in made.upstreams:
        upstream.close()


CA = Ca()
OTHER = Ca()


def test_our_identity_is_shown_and_rotates_without_a_failed_request(world: World, start_gateway: Any, kit: Any) -> None:
    """F4, the other way round: the Secret is replaced as a whole, as cert-manager does it."""
    upstream = world.upstream(CA.pair("up.test"), client_ca=CA.pem)
    world.secret("me", CA.pair(US), ca=CA.pem)
    trust = {"sni": "up.test", "caCertificateRefs": [{"name": "me", "kind": "Secret"}]}
    world.service("mutual", upstream, mode="Mutual", clientCertificateRef={"name": "me"}, **trust)
    world.service("simple", upstream, mode="Simple", **trust)
    gateway = start_gateway()
    assert gateway.get("/mutual") == (200, US.encode())
    # No identity, no answer: and the reason is told.
    status, body = gateway.get("/simple")
    assert status == 502
    assert b"upstream" in body
    assert upstream.requests == 1
    before = upstream.connections
    world.secret("me", CA.pair(US + "-new"), ca=CA.pem)
    answers = []
    kit.eventually(lambda: answers.append(gateway.get("/mutual")) or answers[-1][1].endswith(b"-new"), "the new one")
    assert {status for status, _ in answers} == {200}
    assert upstream.connections == before + 1  # the old one was kept until then, and is used no more
    kit.eventually(lambda: len(upstream.open) == 1, "the old connection is closed")
    # A pair that does not fit together is refused as a whole: what was shown is shown on.
    bad = (CA.pair(US + "-bad")[0], CA.pair(US)[1])
    world.secret("me", bad, ca=CA.pem)
    kit.eventually(
        lambda: any("do not belong together" in item["message"] for item in gateway.page("/diagnostics")), "diagnostic"
    )
    assert gateway.get("/mutual") == (200, f"{US}-new".encode())


def test_a_service_without_its_identity_is_not_spoken_to(world: World, start_gateway: Any, kit: Any) -> None:
    upstream = world.upstream(CA.pair("up.test"))
    world.secret("ca", ca=CA.pem)
    trust = {"mode": "Mutual", "sni": "up.test", "caCertificateRefs": [{"name": "ca", "kind": "Secret"}]}
    world.service("none", upstream, **trust)
    world.service("missing", upstream, clientCertificateRef={"name": "nobody"}, **trust)
    world.service("half", upstream, clientCertificateRef={"name": "ca"}, **trust)
    gateway = start_gateway()
    for name in ("none", "missing", "half"):
        assert gateway.get(f"/{name}")[0] == 502, name
    assert upstream.connections == 0
    said = {item["object"]: (item["path"], item["message"]) for item in gateway.page("/diagnostics")}
    for name, message in (("none", "needs a certificate"), ("missing", "no usable secret"), ("half", "lacks tls.crt")):
        path, text = said[f"vpcservice default/{name}"]
        assert path == "spec.tls.clientCertificateRef"
        assert message in text


PINNED: tuple[tuple[tuple[str, ...], list[str], bool], ...] = (
    ((WEB,), [WEB], True),
    (("up.test",), ["up.test"], True),
    (("other.test", "up.test"), [WEB, "up.test"], True),
    ((WEB, "up.test"), [WEB], True),
    (("spiffe://example.org/ns/shop/sa/db",), [WEB], False),
    ((WEB, "spiffe://example.org/ns/shop/sa/db"), [WEB], False),
    ((WEB + "/",), [WEB], False),
    (("spiffe://EXAMPLE.org/ns/shop/sa/web",), [WEB], False),
    (("up.test.",), ["up.test"], False),
    (("*.up.test",), ["a.up.test"], False),
    ((), ["up.test"], False),
)


def test_f6_only_a_pinned_name_is_spoken_to(world: World, start_gateway: Any) -> None:
    """The server name would fit nowhere here: pins take its place. A common name never counts."""
    world.secret("ca", ca=CA.pem)
    trust = {"sni": "sni.test", "caCertificateRefs": [{"name": "ca", "kind": "Secret"}]}
    upstreams = []
    for number, (names, pins, _) in enumerate(PINNED):
        upstreams.append(world.upstream(CA.pair(*names, common_name="up.test")))
        world.service(f"pinned-{number}", upstreams[-1], subjectAltNames=pins, **trust)
    gateway = start_gateway()
    for number, (names, _, is_taken) in enumerate(PINNED):
        status, body = gateway.get(f"/pinned-{number}")
        assert upstreams[number].requests == (1 if is_taken else 0), names
        assert status == (200 if is_taken else 502), names
        assert is_taken or body.startswith(b"upstream_tls"), names


def test_what_was_verified_by_a_ca_or_a_pin_that_is_gone_is_closed(world: World, start_gateway: Any, kit: Any) -> None:
    upstream = world.upstream(CA.pair(WEB, "up.test"))
    world.secret("ca", ca=CA.pem)
    trust = {"sni": "up.test", "caCertificateRefs": [{"name": "ca", "kind": "Secret"}]}
    world.service("up", upstream, subjectAltNames=[WEB], **trust)
    gateway = start_gateway()
    assert gateway.get("/up")[0] == 200
    assert len(upstream.open) == 1
    # Nobody asks meanwhile: the idle connection goes by itself.
    world.service("up", upstream, subjectAltNames=[WEB + "-other"], **trust)
    kit.eventually(lambda: not upstream.open, "the pooled connection is closed")
    assert gateway.get("/up")[0] == 502
    world.service("up", upstream, **trust)
    kit.eventually(lambda: gateway.get("/up")[0] == 200, "it is trusted by name", 10.0)
    world.secret("ca", ca=OTHER.pem)
    kit.eventually(lambda: not upstream.open, "the pooled connection is closed")
    assert gateway.get("/up")[0] == 502
    world.secret("ca", ca=OTHER.pem + CA.pem)
    kit.eventually(lambda: gateway.get("/up")[0] == 200, "one of two CAs is enough", 10.0)


def test_f7_an_empty_bundle_does_not_mean_the_systems_cas(world: World, start_gateway: Any, kit: Any) -> None:
    upstream = world.upstream(CA.pair("up.test"))
    world.put("bundle", "ConfigMap", data={"ca.crt": "\n"})
    world.service("up", upstream, sni="up.test", caCertificateRefs=[{"name": "bundle"}])
    gateway = start_gateway("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    assert gateway.get("/up")[0] == 502
    assert any(item["path"] == "spec.tls.caCertificateRefs[0]" for item in gateway.page("/diagnostics"))


def test_f8_keys_are_in_no_dump_and_no_log(world: World, start_gateway: Any) -> None:
    upstream = world.upstream(CA.pair("up.test"), client_ca=OTHER.pem)
    pair = CA.pair(US)
    world.secret("me", pair, ca=CA.pem)
    world.service(
        "up",
        upstream,
        mode="Mutual",
        sni="up.test",
        clientCertificateRef={"name": "me"},
        caCertificateRefs=[{"name": "me", "kind": "Secret"}],
    )
    gateway = start_gateway(env={"DATUM_ROUTER_LOG": "trace"})
    status, body = gateway.get("/up")
    assert status == 502
    canary = pair[1].splitlines()[1]
    for page in ("/snapshot", "/diagnostics", "/stats", "/health", "/plugins"):
        assert canary not in str(gateway.page(page)), page
    gateway.stop()
    assert canary not in gateway.log.read_text()
    assert canary.encode() not in body
