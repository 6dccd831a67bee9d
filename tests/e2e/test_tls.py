"""TLS at the gateway's edge and towards upstreams: ALPN, SNI, certificates changed while serving (F1 to F4, F7)."""

from __future__ import annotations

import base64
import contextlib
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.ports import free_port

pytestmark = pytest.mark.e2e
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecure"


def secret(name: str, cert: trustme.LeafCert, key: trustme.LeafCert | None = None) -> str:
    """Return a Secret with the certificate, and with the key of another one if asked."""
    chain = base64.b64encode(b"".join(item.bytes() for item in cert.cert_chain_pems)).decode()
    private = base64.b64encode((key or cert).private_key_pem.bytes()).decode()
    return f"""
apiVersion: v1
kind: Secret
metadata: {{name: {name}}}
type: kubernetes.io/tls
data: {{tls.crt: {chain}, tls.key: {private}}}
"""


def ingress(name: str, host: str, port: int, *, plain_port: int | None = None, extra: str = "") -> str:
    plain = f"- {{name: http, port: {plain_port}, protocol: HTTP}}" if plain_port else ""
    return f"""
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {{name: {name}}}
spec:
  host: "{host}"
  tls: {{secretName: {name}{extra}}}
  listeners:
  - {{name: https, port: {port}, protocol: HTTPS}}
  {plain}
  rules: [{{path: /, service: {{name: a}}}}]
"""


class Edge:
    """A directory with two hosts on one HTTPS port, and a gateway that serves it."""

    def __init__(self, directory: Path, start_gateway: Any, backend: Any, kit: Any) -> None:
        self.ca = trustme.CA()
        self.directory = directory
        self.port = free_port()
        service = kit.manifest("a", backend).split("---")[0]
        (directory / "service.yaml").write_text(service)
        self.put("one", "one.test")
        self.put("two", "*.two.test")
        self.gateway = start_gateway("--workers", "1")

    def put(self, name: str, host: str, extra: str = "") -> None:
        manifest = secret(name, self.ca.issue_cert(host)) + "---" + ingress(name, host, self.port, extra=extra)
        (self.directory / f"{name}.yaml").write_text(manifest)

    def connect(self, name: str | None, *alpn: str, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        if context is None:
            context = ssl.create_default_context()
            self.ca.configure_trust(context)
            context.check_hostname = name is not None
        if alpn:
            context.set_alpn_protocols(list(alpn))
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return context.wrap_socket(sock, server_hostname=name)

    def serial(self, name: str) -> object:
        with self.connect(name) as sock:
            certificate = sock.getpeercert()
            assert certificate is not None
            return certificate["serialNumber"]

    def ask(self, name: str, host: str) -> int:
        with self.connect(name, "http/1.1") as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return int(sock.recv(65536).split()[1])


@pytest.fixture
def edge(directory: Path, start_gateway: Any, start_backend: Any, kit: Any) -> Iterator[Edge]:
    built = Edge(directory, start_gateway, start_backend(kit.answer(b"ok")), kit)
    yield built
    assert "Traceback" not in built.gateway.log.read_text()


def test_f1_f2_f3_alpn_sni_versions_and_misdirected_hosts(edge: Edge) -> None:
    for offered, chosen in ((("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), ((), None)):
        with edge.connect("one.test", *offered) as sock:
            assert sock.selected_alpn_protocol() == chosen
    assert edge.ask("one.test", "one.test") == 200
    assert edge.ask("x.two.test", "x.two.test") == 200
    assert edge.ask("one.test", "elsewhere.test") == 421
    # No name at all: the listener's default certificate, and nothing broken.
    with edge.connect(None, "http/1.1") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    edge.ca.configure_trust(old)
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        edge.connect("one.test", context=old)


def test_d18_e9_what_is_no_handshake_is_closed_and_others_are_served(edge: Edge) -> None:
    with socket.create_connection(("127.0.0.1", edge.port), timeout=10) as stalled:
        stalled.sendall(b"\x16\x03\x01")
        for junk in (
            b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\xff\xff" + b"x" * 99,
        ):
            with socket.create_connection(("127.0.0.1", edge.port), timeout=10) as sock:
                sock.sendall(junk)
                data = b""
                with contextlib.suppress(ConnectionError):
                    while chunk := sock.recv(4096):
                        data += chunk
                assert b"HTTP/" not in data
            assert edge.ask("one.test", "one.test") == 200
        # E9: the silent one is closed at the handshake's limit, without an answer.
        with contextlib.suppress(ConnectionError):
            assert stalled.recv(4096) == b""


def test_f4_a_changed_certificate_is_used_and_a_bad_one_never_takes_the_good_one_away(edge: Edge, kit: Any) -> None:
    path = edge.directory / "one.yaml"
    first = edge.serial("one.test")
    with edge.connect("one.test", "http/1.1") as kept:
        edge.put("one", "one.test")
        kit.eventually(lambda: edge.serial("one.test") != first, "the new certificate", 10.0)
        second = edge.serial("one.test")
        # A connection keeps what it was made with.
        kept.sendall(b"GET / HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n")
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
    rest = ingress("one", "one.test", edge.port)
    cert, other = edge.ca.issue_cert("one.test"), edge.ca.issue_cert("one.test")
    # A pair that does not fit is told like any other bad manifest, and the old one serves on, in new workers, too.
    path.write_text(secret("one", cert, other) + "---" + rest)
    kit.eventually(
        lambda: any("do not belong together" in item["message"] for item in edge.gateway.page("/diagnostics")),
        "a diagnostic",
    )
    assert edge.serial("one.test") == second
    edge.gateway.process.send_signal(signal.SIGHUP)
    counter = "datum_router_worker_replacements_total"
    kit.eventually(lambda: edge.gateway.stats()["counters"].get(counter) == 1, "the worker is replaced")
    assert edge.serial("one.test") == second
    assert edge.ask("x.two.test", "x.two.test") == 200
    broken = "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: one}\ndata: "
    for data in ("{tls.crt: '!!!', tls.key: '###'}", "{tls.crt: aGVsbG8=}", "{tls.crt: aGVsbG8=, tls.key: aGVsbG8=}"):
        path.write_text(f"{broken}{data}\n---{rest}")
        kit.eventually(lambda: bool(edge.gateway.page("/diagnostics")), "a diagnostic", 10.0)
        assert edge.serial("one.test") == second
        edge.put("two", "*.two.test")  # any change: the host is served on, with the certificate it had
        assert edge.serial("one.test") == second
    edge.put("one", "one.test")
    kit.eventually(lambda: edge.serial("one.test") != second, "a good one again", 10.0)
    # Of the key itself nothing is told; the hint of a diagnostic may say what one looks like.
    key = other.private_key_pem.bytes()
    log = edge.gateway.log.read_text()
    assert key.decode().splitlines()[1] not in log
    assert base64.b64encode(key).decode()[64:128] not in log


class TlsBackend:
    """An HTTPS backend that answers each request with `secure`."""

    def __init__(self, cert: trustme.LeafCert) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert.configure_cert(self._context)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.requests = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, self._context.wrap_socket(sock, server_side=True) as secured:
            while secured.recv(65536):
                self.requests += 1
                secured.sendall(OK)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def upstream(name: str, port: int, tls: str) -> str:
    return f"""---
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {{name: {name}}}
spec: {{protocol: HTTPS, port: {port}, endpoints: [{{address: 127.0.0.1}}], tls: {tls}}}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {{name: {name}}}
spec: {{match: {{pathPrefix: /{name}}}, destinations: [{{vpcServiceRef: {{name: {name}}}}}]}}
"""


# `ssl` leaves a socket to the garbage collector when the peer goes away before the handshake, as refusing does.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_f7_an_upstream_is_verified_and_never_spoken_to_otherwise(directory: Path, start_gateway: Any) -> None:
    ca = trustme.CA()
    right = TlsBackend(ca.issue_cert("up.test"))
    stranger = TlsBackend(trustme.CA().issue_cert("up.test"))
    pem = "".join(f"    {line}\n" for line in ca.cert_pem.bytes().decode().splitlines())
    bundle = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: bundle}}\ndata:\n  ca.crt: |\n{pem}"
    trust = "caCertificateRefs: [{name: bundle}]"
    (directory / "a.yaml").write_text(
        bundle
        + upstream("verified", right.port, f"{{sni: up.test, {trust}}}")
        + upstream("other-name", right.port, f"{{sni: other.test, {trust}}}")
        + upstream("other-ca", stranger.port, f"{{sni: up.test, {trust}}}")
        + upstream("no-bundle", right.port, "{sni: up.test, caCertificateRefs: [{name: none}]}")
        + upstream("unverified", stranger.port, "{insecureSkipVerify: true}")
    )
    try:
        gateway = start_gateway()
        assert gateway.get("/verified") == (200, b"secure")
        assert right.requests == 1
        for name in ("other-name", "other-ca", "no-bundle"):
            status, _ = gateway.get(f"/{name}")
            assert status in (502, 503), name
        assert (right.requests, stranger.requests) == (1, 0)
        assert gateway.get("/unverified") == (200, b"secure")
        assert any("not verified" in item["message"] for item in gateway.page("/diagnostics"))
    finally:
        right.close()
        stranger.close()


def test_listeners_that_come_while_the_gateway_runs_serve_on_every_worker(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    """Their sockets reach the workers before the snapshot that names them."""
    ca, first, second = trustme.CA(), free_port(), free_port()
    pair = secret("one", ca.issue_cert("one.test"))
    (directory / "a.yaml").write_text(kit.manifest("a", start_backend(kit.answer(b"ok"))).split("---")[0])

    def put(plain_port: int | None) -> None:
        (directory / "one.yaml").write_text(pair + "---" + ingress("one", "one.test", first, plain_port=plain_port))

    def served(port: int) -> bool:
        """Ask often enough to reach both workers."""
        try:
            for _ in range(8):
                with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n")
                    if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
                        return False
        except OSError:
            return False
        return True

    put(None)
    gateway = start_gateway("--workers", "2")
    for port in (second, None, second, free_port()):
        put(port)
        if port is None:
            kit.eventually(lambda: not served(second), "the listener goes", 5.0)
        else:
            kit.eventually(lambda port=port: served(port), f"a listener on port {port}", 10.0)
    log = gateway.log.read_text()
    assert "Traceback" not in log
