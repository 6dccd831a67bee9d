"""VPCIngress through real gateways: hosts of one port, redirects, HSTS, PROXY protocol, passthrough, TCP, tickets."""

from __future__ import annotations

import base64
import contextlib
import datetime
import itertools
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trustme

from tests.ports import free_ports

pytestmark = pytest.mark.e2e
API = "apiVersion: router.datum.net/v1alpha1"


def secret(name: str, cert: trustme.LeafCert) -> str:
    chain = base64.b64encode(b"".join(item.bytes() for item in cert.cert_chain_pems)).decode()
    private = base64.b64encode(cert.private_key_pem.bytes()).decode()
    data = f"data: {{tls.crt: {chain}, tls.key: {private}}}"
    return f"---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/tls\n{data}\n"


def ingress(name: str, spec: dict[str, Any], namespace: str = "default") -> str:
    metadata = {"name": name, "namespace": namespace}
    return (
        f"---\n{API}\nkind: VPCIngress\n"
        + json.dumps({"metadata": metadata, "spec": spec})[1:-1]
        .replace('"metadata": ', "metadata: ", 1)
        .replace(', "spec": ', "\nspec: ", 1)
        + "\n"
    )


def service(name: str, port: int, protocol: str = "HTTP") -> str:
    endpoints = f"[{{address: 127.0.0.1, port: {port}}}]"
    spec = f"spec: {{protocol: {protocol}, port: 80, endpoints: {endpoints}}}"
    return f"---\n{API}\nkind: VPCService\nmetadata: {{name: {name}}}\n{spec}\n"


RULES = [{"path": "/", "service": {"name": "a"}}]


class Edge:
    """A directory of manifests and the gateway over it."""

    def __init__(self, directory: Path, start_gateway: Any, kit: Any, backend: Any) -> None:
        self.ca = trustme.CA()
        self.directory = directory
        self.kit = kit
        self.plain, self.secure = free_ports(2)
        self._start = start_gateway
        self.put("service", service("a", backend.port))

    def put(self, name: str, text: str) -> None:
        (self.directory / f"{name}.yaml").write_text(text)

    def listeners(self) -> list[dict[str, Any]]:
        return [
            {"name": "http", "port": self.plain, "protocol": "HTTP", "address": "127.0.0.1"},
            {"name": "https", "port": self.secure, "protocol": "HTTPS", "address": "127.0.0.1"},
        ]

    def https(self, name: str, host: str, tls: dict[str, Any] | None = None, **spec: Any) -> str:
        wanted = {
            "host": host,
            "rules": RULES,
            "tls": {"secretName": name, **(tls or {})},
            "listeners": self.listeners(),
            **spec,
        }
        return secret(name, self.ca.issue_cert(host)) + ingress(name, wanted)

    def start(self, *arguments: str, **env: str) -> Any:
        self.gateway = self._start("--workers", "1", *arguments, env=env)
        return self.gateway

    def context(self, **settings: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        for name, value in settings.items():
            setattr(context, name, value)
        return context

    def connect(
        self, name: str | None, *, context: ssl.SSLContext | None = None, before: bytes = b"", **more: Any
    ) -> ssl.SSLSocket:
        context = context or self.context()
        if name is None:
            context.check_hostname = False
        sock = socket.create_connection(("127.0.0.1", self.secure), timeout=10)
        sock.sendall(before)
        return context.wrap_socket(sock, server_hostname=name, **more)

    def ask(self, sock: socket.socket, host: str, path: str = "/") -> tuple[int, str]:
        """Send a request that ends the connection; return status and the lower-case head."""
        with sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
        head = data.partition(b"\r\n\r\n")[0].decode()
        return int(head.split()[1]), head.lower()

    def over_h2(self, name: str, hosts: Sequence[str]) -> list[list[tuple[str, str]]]:
        """Ask for `/` of each host, one after another on one HTTP/2 connection; return the fields of the answers."""
        context = self.context()
        context.set_alpn_protocols(["h2"])
        answers: list[list[tuple[str, str]]] = []
        with self.connect(name, context=context) as sock:
            assert sock.selected_alpn_protocol() == "h2"
            client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
            client.initiate_connection()
            for host in hosts:
                stream = client.get_next_available_stream_id()
                head = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", host)]
                client.send_headers(stream, head, end_stream=True)
                is_over = False
                while not is_over:
                    sock.sendall(client.data_to_send())
                    for event in client.receive_data(sock.recv(65536)):
                        if isinstance(event, h2.events.ResponseReceived):
                            answers.append([(str(key), str(value)) for key, value in event.headers or ()])
                        is_over |= isinstance(event, h2.events.StreamEnded)
        return answers

    def plainly(self, host: str, path: str = "/") -> tuple[int, str]:
        return self.ask(socket.create_connection(("127.0.0.1", self.plain), timeout=10), host, path)

    def counted(self, metric: str, *labels: str, least: int = 1) -> None:
        """Wait until workers have reported so many of something."""
        key = "|".join((metric, *labels))
        self.kit.eventually(lambda: self.gateway.stats()["counters"].get(key, 0) >= least, f"{least} of {key}")

    def reasons(self) -> list[tuple[str, str]]:
        return [(item["object"], item["reason"]) for item in self.gateway.page("/diagnostics")]


@pytest.fixture
def edge(directory: Path, start_gateway: Any, start_backend: Any, kit: Any) -> Iterator[Edge]:
    built = Edge(directory, start_gateway, kit, start_backend(kit.answer(b"ok")))
    yield built
    assert "Traceback" not in built.gateway.log.read_text()


HSTS = {"maxAgeSeconds": 600, "includeSubdomains": True}


def test_plain_requests_are_redirected_and_answers_over_tls_say_hsts_for_the_hosts_that_want_it(edge: Edge) -> None:
    edge.put("one", edge.https("one", "one.test", httpsRedirect=True, hsts=HSTS))
    edge.put("two", edge.https("two", "two.test"))
    edge.start()
    # Named without a port it came by port 80, whatever is in front; with one it has reached the listener itself.
    status, head = edge.plainly("one.test", "/a?b=c")
    assert (status, "location: https://one.test/a?b=c\r\n" in head) == (308, True)
    status, head = edge.plainly(f"one.test:{edge.plain}", "/a")
    assert (status, f"location: https://one.test:{edge.secure}/a\r\n" in head) == (308, True)
    assert "strict-transport" not in head, "RFC 6797 section 7.2: not over plain HTTP"
    for _ in range(3):  # the first by the pipeline, the others by the express lane
        status, head = edge.plainly("two.test")
        assert (status, "strict-transport" in head) == (200, False)
        status, head = edge.ask(edge.connect("one.test"), "one.test")
        assert (status, head.count("strict-transport-security: max-age=600; includesubdomains")) == (200, 1)
        status, head = edge.ask(edge.connect("two.test"), "two.test")
        assert (status, "strict-transport" in head) == (200, False)
    with edge.connect("one.test") as kept:  # of one connection, the later ones without a task of their own
        for _ in range(5):
            kept.sendall(b"GET /kept HTTP/1.1\r\nHost: one.test\r\n\r\n")
            answer = b""
            while not answer.endswith(b"\r\n\r\nok"):
                answer += kept.recv(65536)
            assert answer.lower().count(b"strict-transport-security: max-age=600; includesubdomains\r\n") == 1


def test_a_request_that_is_coming_in_when_its_listener_goes_is_served_by_the_routes_it_had(edge: Edge) -> None:
    (other,) = free_ports(1)
    edge.put("one", edge.https("one", "one.test"))
    edge.start(DATUM_ROUTER_DATA_PLANE_CONFIG="head_timeout_s=60")

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return edge.ask(socket.create_connection(("127.0.0.1", other), timeout=10), "two.test")[0] == 200
        return False

    with socket.create_connection(("127.0.0.1", edge.plain), timeout=10) as plain, edge.connect("one.test") as secure:
        for sock in (plain, secure):
            sock.sendall(b"GET / HTTP/1.1\r\n")
        listener = {"name": "http", "port": other, "protocol": "HTTP", "address": "127.0.0.1"}
        edge.put("one", ingress("two", {"host": "two.test", "rules": RULES, "listeners": [listener]}))
        edge.kit.eventually(answers, "the other listener")
        for sock in (plain, secure):
            sock.sendall(b"Host: one.test\r\n\r\n")
            answer = b""
            while chunk := sock.recv(65536):
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert b"\r\nconnection: close\r\n" in answer.lower()
            assert answer.endswith(b"ok")


def test_the_field_of_a_service_gives_way_and_local_replies_have_ours(edge: Edge, start_backend: Any) -> None:
    own = b"HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=1\r\ncontent-length: 0\r\n\r\n"
    backend = start_backend(lambda sock, _rest: sock.sendall(own))
    edge.put("service", service("a", backend.port))
    edge.put("gone", service("gone", free_ports(1)[0]))
    rules = [*RULES, {"path": "/gone", "service": {"name": "gone"}}]
    edge.put("one", edge.https("one", "one.test", hsts=HSTS, rules=rules))
    edge.start()
    for fields in edge.over_h2("one.test", ["one.test"] * 3):
        assert [value for name, value in fields if name == "strict-transport-security"] == [
            "max-age=600; includeSubDomains"
        ]
    status, head = edge.ask(edge.connect("one.test"), "one.test", "/gone")
    assert status == 503
    assert "strict-transport-security: max-age=600" in head


def test_an_ingress_keeps_its_requests_out_of_the_access_log(edge: Edge) -> None:
    edge.put("one", edge.https("one", "one.test", accessLog={"enabled": False}))
    edge.put("two", edge.https("two", "two.test"))
    edge.start(DATUM_ROUTER_LOG="info", DATUM_ROUTER_LOG_FORMAT="json")
    for _ in range(3):
        for name in ("one.test", "two.test"):
            assert edge.ask(edge.connect(name), name, f"/from-{name}")[0] == 200
    edge.kit.eventually(lambda: edge.gateway.log.read_text().count("/from-two.test") == 3, "three lines")
    assert "/from-one.test" not in edge.gateway.log.read_text()


def test_time_limits_of_an_ingress_hold_for_its_rules_and_for_routes_without_their_own(
    edge: Edge, start_backend: Any
) -> None:
    gate = threading.Event()
    silent = start_backend(lambda _sock, _rest: gate.wait(20))
    edge.put("silent", service("silent", silent.port))
    rules = [{"path": "/rule", "service": {"name": "silent"}}]
    edge.put("one", edge.https("one", "one.test", rules=rules, defaultTimeouts={"request": "300ms"}))
    route = {"match": {"pathPrefix": "/route"}, "parentRefs": [{"name": "one"}]}
    route["destinations"] = [{"vpcServiceRef": {"name": "silent"}}]
    edge.put("route", ingress("r", route).replace("VPCIngress", "VPCRoute"))
    edge.start()
    try:
        assert [edge.plainly("one.test", path)[0] for path in ("/rule", "/route")] == [504, 504]
    finally:
        gate.set()


# --- hosts that share a port --------------------------------------------------------------------------------------


def test_each_host_of_a_port_has_its_own_version_suites_and_protocols(edge: Edge) -> None:
    suite = "ECDHE-ECDSA-AES256-GCM-SHA384"
    edge.put("new", edge.https("new", "new.test", {"minVersion": "1.3"}))
    edge.put("old", edge.https("old", "*.old.test", {"cipherSuites": [suite], "alpn": ["http/1.1"]}))
    edge.start()

    def spoken(name: str, **settings: Any) -> tuple[str | None, str, str | None]:
        context = edge.context(**settings)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with edge.connect(name, context=context) as sock:
            cipher = sock.cipher()
            assert cipher is not None
            return sock.version(), cipher[0], sock.selected_alpn_protocol()

    only_12 = {"maximum_version": ssl.TLSVersion.TLSv1_2}
    assert spoken("new.test")[::2] == ("TLSv1.3", "h2")
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        spoken("new.test", **only_12)
    assert spoken("a.old.test", **only_12) == ("TLSv1.2", suite, "http/1.1")
    context = edge.context(**only_12)
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        edge.connect("a.old.test", context=context)
    # No name, and a name that nobody has: the oldest certificate of the port, which the client does not take.
    with edge.connect(None) as sock:
        assert sock.getpeercert()["subjectAltName"] == (("DNS", "new.test"),)  # type: ignore[index]
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        edge.connect("unknown.test")


def test_f2_a_port_may_refuse_handshakes_without_a_known_name(edge: Edge) -> None:
    edge.put("one", edge.https("one", "one.test", {"requireSni": True}))
    edge.start()
    assert edge.ask(edge.connect("one.test"), "one.test")[0] == 200
    for name in (None, "unknown.test"):
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            edge.connect(name)
    edge.counted("datum_gateway_rejected_total", "tls", "unknown_server_name", least=2)


def test_f3_a_host_that_is_served_by_another_certificate_is_misdirected_also_when_a_connection_is_reused(
    edge: Edge,
) -> None:
    shared = edge.ca.issue_cert("one.test", "two.test", "three.test")
    edge.put("shared", secret("shared", shared) + secret("other", shared))
    for name, tls in (("one", "shared"), ("two", "shared"), ("three", "other")):
        spec = {"host": f"{name}.test", "rules": RULES, "tls": {"secretName": tls}, "listeners": edge.listeners()}
        edge.put(name, ingress(name, spec))
    edge.start()
    expected = {"one.test": 200, "two.test": 200, "three.test": 421, "none.test": 421}
    for host, status in expected.items():
        assert edge.ask(edge.connect("one.test"), host)[0] == status, host
    assert edge.ask(edge.connect("three.test"), "three.test")[0] == 200
    assert edge.ask(edge.connect("three.test"), "one.test")[0] == 421
    found = {}
    hosts = [*expected, *expected]
    for host, fields in zip(hosts, edge.over_h2("one.test", hosts), strict=True):
        found[host] = int(dict(fields)[":status"])
    assert found == expected
    assert edge.plainly("three.test")[0] == 200, "plain HTTP has no certificate to be wrong"


# --- PROXY protocol -----------------------------------------------------------------------------------------------

V2 = b"\r\n\r\n\x00\r\nQUIT\n"
V1_HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 50000 443\r\n"
V2_HEADER = V2 + struct.pack(">BBH4s4sHH", 0x21, 0x11, 12, bytes((192, 0, 2, 7)), bytes((127, 0, 0, 1)), 50_000, 443)
V2_IPV6 = (
    V2
    + b"\x21\x21\x00\x27"
    + socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + bytes(16)
    + b"\x01\x02\x03\x04\x04\x00\x00"
)
V2_LOCAL = V2 + b"\x20\x00\x00\x00"


def test_the_address_of_a_proxy_header_is_the_clients_before_tls_and_before_http(edge: Edge) -> None:
    client = {"proxyProtocol": True, "trustedProxies": ["127.0.0.0/8", "::1"]}
    edge.put("one", edge.https("one", "one.test", clientIP=client))
    route = {"match": {"sourceCIDRs": ["2001:db8::/32"], "pathPrefix": "/six"}, "parentRefs": [{"name": "one"}]}
    route["destinations"] = [{"vpcServiceRef": {"name": "a"}}]
    edge.put("route", ingress("six", route).replace("VPCIngress", "VPCRoute"))
    edge.start(DATUM_ROUTER_LOG="info", DATUM_ROUTER_LOG_FORMAT="json")
    for header in (V1_HEADER, V2_HEADER):
        assert edge.ask(edge.connect("one.test", before=header), "one.test", "/told")[0] == 200
        sock = socket.create_connection(("127.0.0.1", edge.plain), timeout=10)
        sock.sendall(header)
        assert edge.ask(sock, "one.test", "/told")[0] == 200
    assert edge.ask(edge.connect("one.test", before=V2_IPV6), "one.test", "/six")[0] == 200
    assert edge.ask(edge.connect("one.test", before=V2_LOCAL), "one.test", "/local")[0] == 200

    def logged(path: str) -> list[str]:
        lines = [json.loads(line) for line in edge.gateway.log.read_text().splitlines() if path in line]
        return [line["client_ip"] for line in lines]

    edge.kit.eventually(lambda: len(logged("/local")) == 1, "the log")
    assert logged("/told") == ["192.0.2.7"] * 4
    assert logged("/six") == ["2001:db8::7"]
    assert logged("/local") == ["127.0.0.1"]


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n", V2[:-1] + b"X" + bytes(60), b"PROXY TCP4 x\r\n"]
)
def test_b6_without_a_proxy_header_nobody_is_let_in_and_strangers_are_not_with_one(edge: Edge, first: bytes) -> None:
    edge.put("one", edge.https("one", "one.test", clientIP={"proxyProtocol": True, "trustedProxies": ["127.0.0.0/8"]}))
    edge.start()

    def answer(data: bytes) -> bytes:
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", edge.plain), timeout=10) as sock,
        ):
            sock.sendall(data)
            return sock.recv(100)
        return b""

    assert answer(first) == b""
    assert answer(V1_HEADER + b"GET / HTTP/1.0\r\nHost: one.test\r\n\r\n").startswith(b"HTTP/1.")
    edge.put("one", edge.https("one", "one.test", clientIP={"proxyProtocol": True, "trustedProxies": ["192.0.2.1"]}))
    edge.kit.eventually(lambda: answer(V1_HEADER + b"GET / HTTP/1.0\r\nHost: one.test\r\n\r\n") == b"", "refused")
    edge.counted("datum_gateway_rejected_total", "tcp", "bad_proxy_header")
    edge.counted("datum_gateway_rejected_total", "tcp", "untrusted_proxy")


def test_x_forwarded_for_is_believed_of_trusted_proxies_alone(edge: Edge) -> None:
    edge.put("one", edge.https("one", "one.test", clientIP={"trustedProxies": ["127.0.0.1"]}))
    edge.put("two", edge.https("two", "two.test"))
    edge.start(DATUM_ROUTER_LOG="info", DATUM_ROUTER_LOG_FORMAT="json")

    def told(path: str) -> str:
        request = f"GET {path} HTTP/1.1\r\nHost: one.test\r\nX-Forwarded-For: 192.0.2.9\r\nConnection: close\r\n\r\n"
        with socket.create_connection(("127.0.0.1", edge.plain), timeout=10) as sock:
            sock.sendall(request.encode())
            while sock.recv(65536):
                pass
        edge.kit.eventually(lambda: path in edge.gateway.log.read_text(), "the log")
        (line,) = [json.loads(one) for one in edge.gateway.log.read_text().splitlines() if path in one]
        return str(line["client_ip"])

    assert told("/trusted") == "192.0.2.9"
    edge.put("one", edge.https("one", "one.test", clientIP={"trustedProxies": ["192.0.2.0/24"]}))
    asked = itertools.count()
    edge.kit.eventually(lambda: told(f"/stranger-{next(asked)}.") == "127.0.0.1", "the new list")


# --- bytes that are carried on ------------------------------------------------------------------------------------


class Echo:
    """A server, with TLS or without, that says its name and then sends back what comes, until the client's end."""

    def __init__(self, name: bytes, cert: trustme.LeafCert | None = None) -> None:
        self._context: ssl.SSLContext | None = None
        if cert is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            cert.configure_cert(self._context)
        self._name = name
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            talk = sock
            if self._context is not None:
                talk = stack.enter_context(self._context.wrap_socket(sock, server_side=True))
            talk.sendall(self._name)
            while data := talk.recv(65536):
                talk.sendall(data)
            talk.sendall(b" bye")
            if isinstance(talk, ssl.SSLSocket):
                talk.unwrap()
            else:
                talk.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def test_tls_is_passed_through_by_server_name_and_ends_at_the_service(edge: Edge) -> None:
    one, two = Echo(b"one:", edge.ca.issue_cert("one.test")), Echo(b"two:", edge.ca.issue_cert("x.two.test"))
    listeners = [{"name": "tls", "port": edge.secure, "protocol": "TLS", "address": "127.0.0.1"}]
    for name, host, echo in (("one", "one.test", one), ("two", "*.two.test", two)):
        rules = [{"path": "/", "service": {"name": name}}]
        spec = {"host": host, "tls": {"mode": "passthrough"}, "listeners": listeners, "rules": rules}
        edge.put(name, service(name, echo.port, "TCP") + ingress(name, spec))
    edge.start()
    try:
        payload = bytes(range(256)) * 4096  # 1 MiB both ways: more than any buffer holds
        for host, greeting in (("one.test", b"one:"), ("x.two.test", b"two:")):
            with edge.connect(host) as sock:
                assert sock.getpeercert()["subjectAltName"] == (("DNS", host),)  # type: ignore[index]
                sender = threading.Thread(target=sock.sendall, args=(payload,))
                sender.start()
                got = b""
                while len(got) < len(payload) + 4:
                    got += sock.recv(65536)
                sender.join(10)
                assert got == greeting + payload
        # Nobody of that name, no name, and no TLS at all: reset or closed without a byte.
        for name in ("unknown.test", None):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                edge.connect(name)
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", edge.secure), timeout=10) as sock,
        ):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n")
            assert sock.recv(1) == b""
        # A hello in pieces of a few bytes is read all the same.
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = edge.context().wrap_bio(received, sent, server_hostname="one.test")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        hello = sent.read()
        with socket.create_connection(("127.0.0.1", edge.secure), timeout=10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(hello), 40):
                sock.sendall(hello[at : at + 40])
            received.write(sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            assert client.version() == "TLSv1.3"
        edge.counted("datum_router_streams_total", "default/two", "routed")
        edge.counted("datum_gateway_rejected_total", "tls", "unknown_server_name", least=2)
        edge.counted("datum_gateway_rejected_total", "tls", "bad_client_hello")
        edge.counted("datum_router_stream_bytes_total", "default/two", "in", least=len(payload))
    finally:
        one.close()
        two.close()


def test_tcp_is_carried_on_with_half_closes_and_the_next_endpoint_if_one_is_down(edge: Edge) -> None:
    echo = Echo(b"tcp:")
    down = free_ports(1)[0]
    endpoints = [{"address": "127.0.0.1", "port": port} for port in (down, echo.port)]
    spec = {"protocol": "TCP", "port": 80, "endpoints": endpoints}
    edge.put("tcp", ingress("tcp", spec).replace("VPCIngress", "VPCService"))
    listeners = [{"name": "tcp", "port": edge.plain, "protocol": "TCP", "address": "127.0.0.1"}]
    rules = [{"path": "/", "service": {"name": "tcp"}}]
    edge.put("one", ingress("one", {"host": "one.test", "listeners": listeners, "rules": rules}))
    edge.put("all", "---\n" + edge.kit.manifest("everything", type("B", (), {"host": "127.0.0.1", "port": down})))
    edge.start()
    try:
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", edge.plain), timeout=10) as sock:
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock) == b"tcp:hello bye"
    finally:
        echo.close()


# --- sessions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def test_a_session_that_one_worker_began_is_resumed_by_the_other(edge: Edge, version: ssl.TLSVersion) -> None:
    edge.put("one", edge.https("one", "one.test"))
    edge.put("two", edge.https("two", "two.test"))
    edge.gateway = edge._start("--workers", "2")
    context = edge.context(minimum_version=version, maximum_version=version)

    def talk(name: str, session: ssl.SSLSession | None, host: str | None = None) -> tuple[bool, ssl.SSLSession | None]:
        with edge.connect(name, context=context, session=session) as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {host or name}\r\nConnection: close\r\n\r\n".encode())
            assert b"200" in read_all(sock)[:15]
            return bool(sock.session_reused), sock.session

    _, session = talk("one.test", None)
    reused = []
    for _ in range(24):  # the kernel hands out connections to both workers by a hash of the client's port
        again, session = talk("one.test", session)
        reused.append(again)
    assert reused == [True] * 24
    # A session of one certificate opens no other host.
    assert talk("two.test", session)[0] is False


def test_f5_a_certificate_that_runs_out_is_told_on_pages_by_a_metric_and_by_check(edge: Edge) -> None:
    now = datetime.datetime.now(datetime.UTC)
    soon = edge.ca.issue_cert("soon.test", not_after=now + datetime.timedelta(days=3))
    gone = edge.ca.issue_cert(
        "gone.test", not_before=now - datetime.timedelta(days=9), not_after=now - datetime.timedelta(days=1)
    )
    for name, cert in (("soon", soon), ("gone", gone)):
        spec = {"host": f"{name}.test", "rules": RULES, "tls": {"secretName": name}, "listeners": edge.listeners()}
        edge.put(name, secret(name, cert) + ingress(name, spec))
    edge.put("good", edge.https("good", "good.test"))
    edge.start()
    assert edge.reasons() == [
        ("vpcingress default/gone", "CertificateExpired"),
        ("vpcingress default/soon", "CertificateExpiresSoon"),
    ]
    with urllib.request.urlopen(f"{edge.gateway.admin}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("datum_router_certificate")]
    left = {line.split('"')[1]: float(line.split()[-1]) - now.timestamp() for line in lines}
    assert left["default/gone"] < 0 < left["default/soon"] < 3 * 86_400 < left["default/good"]
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        edge.connect("gone.test")
    checked = subprocess.run(
        [sys.executable, "-m", "datum_router_cli", "check", str(edge.directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, "it is a warning"
    assert "the certificate has expired at" in checked.stdout + checked.stderr


def test_twenty_rotations_under_handshakes_and_requests_fail_nobody(edge: Edge) -> None:
    edge.put("one", edge.https("one", "one.test"))
    edge.start()
    context = edge.context()
    stop = threading.Event()
    failures: list[str] = []
    done = {"handshakes": 0, "requests": 0}

    def shake() -> None:
        while not stop.is_set():
            try:
                assert edge.ask(edge.connect("one.test", context=context), "one.test")[0] == 200
                done["handshakes"] += 1
            except Exception as error:
                failures.append(repr(error))

    def keep() -> None:
        request = b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n"
        try:
            with edge.connect("one.test", context=context) as sock:
                while not stop.is_set():
                    sock.sendall(request)
                    data = b""
                    while not data.endswith(b"\r\n\r\nok"):
                        chunk = sock.recv(65536)
                        assert chunk, "the connection was dropped"
                        data += chunk
                    assert data.startswith(b"HTTP/1.1 200")
                    done["requests"] += 1
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=work) for work in (shake, shake, keep)]
    for thread in threads:
        thread.start()
    seen: set[object] = set()

    def serial() -> object:
        with edge.connect("one.test", context=context) as sock:
            return sock.getpeercert()["serialNumber"]  # type: ignore[index]

    try:
        for _ in range(20):
            seen.add(serial())
            edge.put("one", edge.https("one", "one.test"))
            edge.kit.eventually(lambda: serial() not in seen, "the new certificate")
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert failures == []
    assert len(seen) == 20
    assert done["handshakes"] > 20
    assert done["requests"] > 20
