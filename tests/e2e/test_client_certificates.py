"""Client certificates at the gateway's edge: who is let in, what the service is told, and what changes do (F5, F6)."""

from __future__ import annotations

import datetime
import hashlib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import pytest
import yaml

from datum_router_cli.authority import Authority, Pair, Period, make_authority, period
from tests.ports import free_port

pytestmark = [
    pytest.mark.e2e,
    # `ssl` leaves a socket to the garbage collector when a handshake is refused.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]
NOW = datetime.datetime.now(datetime.UTC)
VALID = period(NOW, 1)
PAST = Period(begins_at=NOW - datetime.timedelta(days=2), ends_at=NOW - datetime.timedelta(minutes=1))
CA = Authority(make_authority("clients", valid=VALID, path_length=1))
OTHER = Authority(make_authority("strangers", valid=VALID))
EDGE = Authority(make_authority("edge", valid=VALID))
WEB = "spiffe://example.org/ns/shop/sa/web"
DB = "spiffe://example.org/ns/shop/sa/db"
ROUTER = "spiffe://example.org/ns/edge/sa/router"
Answer = tuple[int, dict[str, str], bytes]


class Edge:
    """A directory with HTTPS hosts on one port, and a gateway that serves it."""

    def __init__(self, directory: Path, folder: Path, kit: Any, backend: Any) -> None:
        self.directory = directory
        self.folder = folder
        self.port = free_port()
        self.backend = backend
        self.gateway: Any = None
        self.names: dict[str, list[str]] = {}
        (directory / "service.yaml").write_text(kit.manifest("a", backend).split("---")[0])

    def put(self, name: str, kind: str, **parts: object) -> None:
        group = "v1" if kind == "Secret" else "router.datum.net/v1alpha1"
        document = {"apiVersion": group, "kind": kind, "metadata": {"name": name}, **parts}
        beside = self.folder / "new"
        beside.write_text(yaml.safe_dump(document))
        beside.replace(self.directory / f"{kind}-{name}.yaml")

    def secret(self, name: str, **data: str) -> None:
        self.put(name, "Secret", type="Opaque", stringData={key.replace("_", "."): text for key, text in data.items()})

    def host(
        self, name: str, host: str, auth: dict[str, object] | None = None, *, secret: str = "", **spec: object
    ) -> None:
        """Serve a host; those with the same Secret may share connections, if they ask the same of clients."""
        secret = secret or f"{name}-tls"
        dns = self.names.setdefault(secret, [])
        dns += [host] * (host not in dns)
        pair = EDGE.issue(host, valid=VALID, dns=tuple(dns), uris=(ROUTER,))
        self.secret(secret, tls_crt=pair.cert_pem, tls_key=pair.key_pem)
        tls = {"secretName": secret, **({"clientAuth": auth} if auth else {})}
        listeners = [{"name": "https", "port": self.port, "protocol": "HTTPS"}]
        rules = [{"path": "/", "service": {"name": "a"}}]
        self.put(name, "VPCIngress", spec={"host": host, "tls": tls, "listeners": listeners, "rules": rules, **spec})

    def context(self, pair: Pair | None = None, *, most: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=EDGE.cert_pem)
        if most is not None:
            context.maximum_version = most
        if pair is not None:
            file = self.folder / "client.pem"
            file.write_text(pair.cert_pem + pair.key_pem)
            context.load_cert_chain(file)
        return context

    def connect(
        self, sni: str | None, pair: Pair | None = None, context: ssl.SSLContext | None = None, **more: Any
    ) -> Any:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return (context or self.context(pair)).wrap_socket(sock, server_hostname=sni, **more)

    def ask(self, sni: str, pair: Pair | None = None, *, host: str = "", fields: str = "", **more: Any) -> int:
        """Return the status; 0 if the connection was refused."""
        try:
            with self.connect(sni, pair, **more) as sock:
                return ask_on(sock, host or sni, fields)
        except (ssl.SSLError, ConnectionError):
            return 0

    def told(self) -> str:
        """Return what the service was told last, all values of the field together."""
        lines = self.backend.heads[-1].decode("latin-1").split("\r\n")
        return "|".join(
            line.partition(":")[2].strip() for line in lines if line.lower().startswith("x-forwarded-client")
        )

    def counted(self, metric: str, **labels: str) -> float:
        import urllib.request

        with urllib.request.urlopen(f"{self.gateway.admin}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(metric + "{") and all(f'{name}="{value}"' in line for name, value in labels.items())
        )


def ask_on(sock: Any, host: str, fields: str = "", *, is_last: bool = True) -> int:
    close = "Connection: close\r\n" if is_last else ""
    sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n{close}{fields}\r\n".encode())
    data = sock.recv(65536)
    return int(data.split()[1]) if data else 0


def is_ended(sock: Any) -> bool:
    """Tell whether the gateway has closed a connection."""
    try:
        return not sock.recv(1)
    except (ssl.SSLError, ConnectionError):
        return True


@pytest.fixture
def edge(directory: Path, tmp_path: Path, start_gateway: Any, start_backend: Any, kit: Any) -> Iterator[Edge]:
    built = Edge(directory, tmp_path, kit, start_backend(kit.answer(b"ok")))
    built.secret("clients", ca_crt=CA.cert_pem)
    yield built
    assert "Traceback" not in built.gateway.log.read_text()


def client(*uris: str, dns: tuple[str, ...] = (), valid: Period = VALID, ca: Authority = CA) -> Pair:
    return ca.issue("a client", valid=valid, uris=uris, dns=dns)


def require(**more: object) -> dict[str, object]:
    return {"mode": "Require", "caSecretName": "clients", **more}


def test_f5_f6_only_clients_of_the_ca_that_are_on_the_list_are_let_in(edge: Edge, start_gateway: Any, kit: Any) -> None:
    below = Authority(CA.intermediate("below", valid=VALID))
    edge.host("list", "list.test", require(subjectAltNames=["spiffe://example.org/ns/shop/*", "friend.test"]))
    edge.host("any", "any.test", require())
    edge.gateway = start_gateway("--workers", "1")
    chained = below.issue("chained", valid=VALID, uris=(WEB,))
    chained = Pair(cert_pem=chained.cert_pem + below.cert_pem, key_pem=chained.key_pem)
    cases: tuple[tuple[Pair | None, int, int], ...] = (
        (client(WEB), 200, 200),
        (chained, 200, 200),
        (client(dns=("friend.test",)), 200, 200),
        (client(DB, dns=("friend.test",)), 200, 200),
        (client("spiffe://example.org/ns/bank/sa/web"), 0, 200),
        (client("spiffe://example.org.evil.test/ns/shop/sa/web"), 0, 200),
        (client(WEB, DB), 0, 200),
        (client(WEB + "/"), 0, 200),
        (client("spiffe://EXAMPLE.org/ns/shop/sa/web"), 0, 200),
        (client(dns=("friend.test.",)), 0, 200),
        (client(), 0, 200),
        (CA.issue("friend.test", valid=VALID), 0, 200),
        (client(WEB, valid=PAST), 0, 0),
        (client(WEB, ca=OTHER), 0, 0),
        (None, 0, 0),
    )
    for pair, on_list, on_any in cases:
        said = "nobody" if pair is None else pair.cert_pem
        assert edge.ask("list.test", pair) == on_list, said
        assert edge.ask("any.test", pair) == on_any, said
        assert edge.ask("list.test", context=edge.context(pair, most=ssl.TLSVersion.TLSv1_2)) == on_list, said
    assert edge.told() == ""
    verdicts = [verdict for _, on_list, on_any in cases for verdict in (on_list, on_list, on_any)]
    refused, accepted = verdicts.count(0), verdicts.count(200)
    metric = "datum_router_client_certificates_total"
    kit.eventually(lambda: edge.counted(metric, verdict="refused") == refused, "they are counted")
    assert edge.counted(metric, verdict="accepted") == accepted
    assert edge.counted("datum_gateway_rejected_total", reason="client_certificate") == refused


def test_the_service_is_told_who_calls_and_nobody_else_can_say_so(edge: Edge, start_gateway: Any) -> None:
    edge.host("told", "told.test", {**require(forwardClientCert=True), "mode": "Request"})
    edge.host("quiet", "quiet.test", {**require(), "mode": "Request"})
    edge.host("open", "open.test")
    edge.gateway = start_gateway("--workers", "1")
    pair = client(WEB, dns=("web.shop.svc",))
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pair.cert_pem)).hexdigest()
    forged = "X-Forwarded-Client-Cert: Hash=0;URI=spiffe://example.org/admin\r\nX_Forwarded_Client_Cert: Hash=0\r\n"
    expected = f'By={ROUTER};Hash={digest};Subject="CN=a client";URI={WEB};DNS=web.shop.svc'
    for fields in ("", forged, forged + "Connection: close, x-forwarded-client-cert\r\n"):
        assert edge.ask("told.test", pair, fields=fields) == 200
        assert edge.told() == expected
        for sni, shown in (("told.test", None), ("quiet.test", pair), ("quiet.test", None), ("open.test", None)):
            assert edge.ask(sni, shown, fields=fields) == 200, sni
            assert edge.told() == ""
    # On one connection, over and over, whichever lane it takes.
    with edge.connect("told.test", pair) as sock:
        for number in range(4):
            fields = "" if number % 2 else forged
            assert ask_on(sock, "told.test", fields, is_last=False) == 200
            assert edge.told() == expected
    # In the clear nobody can be told from anybody.
    edge.host("plain", "plain.test", listeners=[{"name": "http", "port": free_port(), "protocol": "HTTP"}])


def test_http2_tells_the_same_as_curl_sees_it(edge: Edge, start_gateway: Any) -> None:
    if "HTTP2" not in subprocess.run(["curl", "--version"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("this curl speaks no HTTP/2")
    edge.host("told", "told.test", require(forwardClientCert=True, forwardDetails=["URI", "Cert", "Chain"]))
    edge.gateway = start_gateway("--workers", "1")
    pair = client(WEB)
    (edge.folder / "c.pem").write_text(pair.cert_pem)
    (edge.folder / "c.key").write_text(pair.key_pem)
    (edge.folder / "ca.pem").write_text(EDGE.cert_pem)
    url = f"https://told.test:{edge.port}/"
    command = [
        "curl", "-sS", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code} ",
        "--resolve", f"told.test:{edge.port}:127.0.0.1", "--cacert", edge.folder / "ca.pem",
        "-H", "X-Forwarded-Client-Cert: Hash=0",
    ]  # fmt: skip
    with_cert = [*command, "--cert", edge.folder / "c.pem", "--key", edge.folder / "c.key", url, "-o", "/dev/null", url]
    done = subprocess.run(with_cert, capture_output=True, text=True, check=False)
    assert done.stdout == "2 200 2 200 ", done.stderr
    told = edge.told()
    assert told.startswith(f"By={ROUTER};Hash=")
    assert told.count("Hash=") == 1
    assert told.count("BEGIN%20CERTIFICATE") == 2
    assert told.endswith(f"URI={WEB}")
    done = subprocess.run([*command, url], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert " 200 " not in done.stdout


def test_a_connection_is_good_for_hosts_that_ask_the_same_and_no_others(edge: Edge, start_gateway: Any) -> None:
    edge.secret("others", ca_crt=OTHER.cert_pem)
    edge.host("open", "open.test", secret="shared")
    edge.host("one", "one.test", require(), secret="shared")
    edge.host("same", "same.test", require(), secret="shared")
    edge.host("two", "two.test", {**require(), "caSecretName": "others"}, secret="shared")
    edge.host("wild", "*.wild.test", require(), secret="shared")
    edge.host("hole", "hole.wild.test", secret="shared", rules=[{"path": "/public", "service": {"name": "a"}}])
    edge.host("zone", "zone.test", require())
    edge.gateway = start_gateway("--workers", "1")
    pair, other = client(WEB), client(WEB, ca=OTHER)
    for sni, shown, host, expected in (
        ("open.test", None, "open.test", 200),
        ("open.test", pair, "one.test", 421),
        ("open.test", None, "one.test", 421),
        ("one.test", pair, "one.test", 200),
        ("one.test", pair, "same.test", 200),
        ("one.test", pair, "zone.test", 421),  # it asks the same, and shows another certificate
        ("one.test", pair, "two.test", 421),
        ("one.test", pair, "open.test", 421),
        ("two.test", other, "two.test", 200),
        ("two.test", pair, "two.test", 0),
        ("two.test", other, "one.test", 421),
        ("a.wild.test", pair, "a.wild.test", 200),
        ("a.wild.test", None, "a.wild.test", 0),
        ("open.test", None, "a.wild.test", 421),
        ("open.test", None, "a.b.wild.test", 421),
        # Its own rule takes /public only: what is left would fall to the rule of *.wild.test, which asks.
        ("hole.wild.test", None, "hole.wild.test", 421),
    ):
        assert edge.ask(sni, shown, host=host) == expected, (sni, host)
    # A wildcard is for names of any depth, for who is asked as for who is served.
    deep = edge.context(pair)
    deep.check_hostname = False
    assert edge.ask("a.b.wild.test", context=deep) == 200
    assert edge.ask("a.b.wild.test", context=deep, host="open.test") == 421
    nobody = edge.context()
    nobody.check_hostname = False
    assert edge.ask("a.b.wild.test", context=nobody) == 0
    # Without a name the first one's certificate is shown, and what that asks for is asked for.
    context = edge.context()
    context.check_hostname = False
    for host, expected in (("one.test", 421), ("open.test", 200)):
        with edge.connect(None, context=context) as sock:
            assert ask_on(sock, host) == expected
    # A request that was good once is no way in for the next one on the same connection.
    with edge.connect("open.test") as sock:
        for host, expected in (("open.test", 200), ("open.test", 200), ("one.test", 421)):
            assert ask_on(sock, host, is_last=False) == expected
        assert is_ended(sock)  # a client that makes nothing of 421 is not to go on with it
    messages = [item["message"] for item in edge.gateway.page("/diagnostics")]
    assert any(message.startswith("hole.wild.test on port") for message in messages), messages


def test_http2_admits_each_request_by_its_own_host(edge: Edge, start_gateway: Any) -> None:
    """Connections are shared between hosts (RFC 9113 section 9.1.1), and every request takes a lane of its own."""
    edge.host("open", "open.test", secret="shared")
    edge.host("one", "one.test", require(forwardClientCert=True), secret="shared")
    edge.host("same", "same.test", require(forwardClientCert=True), secret="shared")
    edge.gateway = start_gateway("--workers", "1")
    for sni, pair, hosts in (
        ("open.test", None, {"open.test": "200", "one.test": "421"}),
        ("one.test", client(WEB), {"one.test": "200", "same.test": "200", "open.test": "421"}),
    ):
        context = edge.context(pair)
        context.set_alpn_protocols(["h2"])
        with edge.connect(sni, context=context) as sock:
            connection = h2.connection.H2Connection()
            connection.initiate_connection()
            for host, expected in [*hosts.items(), *hosts.items(), *hosts.items()]:
                assert h2_status(connection, sock, host) == expected, (sni, host)
        assert edge.told().count(WEB) == (1 if pair else 0)


def h2_status(connection: h2.connection.H2Connection, sock: Any, host: str) -> str:
    stream = connection.get_next_available_stream_id()
    head = [(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", "/")]
    connection.send_headers(stream, [*head, ("x-forwarded-client-cert", "Hash=0")], end_stream=True)
    status = ""
    while True:
        sock.sendall(connection.data_to_send())
        for event in connection.receive_data(sock.recv(65536)):
            if isinstance(event, h2.events.ResponseReceived):
                status = dict(event.headers)[b":status"].decode()
            if isinstance(event, h2.events.StreamEnded):
                return status


def test_a_certificate_of_which_too_much_would_have_to_be_told_is_refused(edge: Edge, start_gateway: Any) -> None:
    edge.host("told", "told.test", require(forwardClientCert=True))
    edge.host("quiet", "quiet.test", require())
    edge.gateway = start_gateway("--workers", "1")
    many = client(dns=tuple(f"name-{number}.of-many.test" for number in range(700)))
    assert edge.ask("quiet.test", many) == 200
    assert edge.ask("told.test", many) == 0
    assert edge.ask("told.test", client(WEB)) == 200


def test_f6_names_that_a_ca_may_not_give_are_refused(edge: Edge, start_gateway: Any) -> None:
    """Name constraints (RFC 5280 section 4.2.1.10): the CA of one team cannot issue for another one."""
    team = Authority(CA.intermediate("team", valid=VALID, permitted_dns=("team.test",)))
    edge.host("one", "one.test", require())
    edge.gateway = start_gateway("--workers", "1")
    for name, expected in (("web.team.test", 200), ("web.other.test", 0)):
        pair = team.issue("", valid=VALID, dns=(name,))
        chained = Pair(cert_pem=pair.cert_pem + team.cert_pem, key_pem=pair.key_pem)
        assert edge.ask("one.test", chained) == expected, name


def test_a_hello_that_comes_byte_by_byte_is_asked_all_the_same(edge: Edge, start_gateway: Any) -> None:
    """The name stands somewhere in it: until then nobody knows whose handshake it is."""
    edge.host("open", "open.test")
    edge.host("one", "one.test", require())
    edge.gateway = start_gateway("--workers", "1")
    for pair, expected in ((client(WEB), b"HTTP/1.1 200"), (None, b"")):
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        connection = edge.context(pair).wrap_bio(received, sent, server_hostname="one.test")
        with socket.create_connection(("127.0.0.1", edge.port), timeout=10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer = drive(connection, received, sent, sock)
        assert answer.startswith(expected)
        assert bool(answer) is bool(expected)


def drive(connection: ssl.SSLObject, received: ssl.MemoryBIO, sent: ssl.MemoryBIO, sock: socket.socket) -> bytes:
    """Do a handshake and a request, sending single bytes; return the answer, empty if the connection was refused."""
    request = b"GET / HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n"
    is_ready = False
    while True:
        try:
            if not is_ready:
                connection.do_handshake()
                connection.write(request)
                is_ready = True
            answer = connection.read(65536)
        except ssl.SSLWantReadError:
            try:
                for byte in sent.read():
                    sock.sendall(bytes([byte]))
                data = sock.recv(65536)
            except ConnectionError:
                return b""
            if not data:
                return b""
            received.write(data)
        except ssl.SSLError:
            return b""
        else:
            return answer


def test_resumed_sessions_are_held_to_what_is_in_force(edge: Edge, start_gateway: Any, kit: Any) -> None:
    edge.host("one", "one.test", require(subjectAltNames=[WEB]))
    edge.host("open", "open.test")
    edge.gateway = start_gateway("--workers", "1")
    for most in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        edge.host("one", "one.test", require(subjectAltNames=[WEB]))
        kit.eventually(lambda: edge.ask("one.test", client(WEB)) == 200, "it is let in", 10.0)
        context = edge.context(client(WEB), most=most)
        with edge.connect("one.test", context=context) as sock:
            assert ask_on(sock, "one.test") == 200
            session = sock.session
        with edge.connect("one.test", context=context, session=session) as sock:
            assert sock.session_reused
            assert ask_on(sock, "one.test") == 200
        # A session of a host that asks nothing is none of one that does; TLS 1.2 resumes it for the name it had.
        nobody = edge.context(most=most)
        with edge.connect("open.test", context=nobody) as sock:
            assert ask_on(sock, "open.test") == 200
            stranger = sock.session
        assert edge.ask("one.test", context=nobody, session=stranger) in (0, 421)
        edge.host("one", "one.test", require(subjectAltNames=[DB]))
        kit.eventually(lambda: edge.ask("one.test", client(DB)) == 200, "another is let in", 10.0)
        assert edge.ask("one.test", context=context, session=session) == 0


def test_a_changed_ca_is_in_force_at_once_for_connections_that_are_there(
    edge: Edge, start_gateway: Any, kit: Any
) -> None:
    edge.host("one", "one.test", require())
    edge.host("open", "open.test")
    edge.gateway = start_gateway("--workers", "1")
    with edge.connect("one.test", client(WEB)) as kept, edge.connect("open.test") as bystander:
        assert ask_on(kept, "one.test", is_last=False) == 200
        assert ask_on(bystander, "open.test", is_last=False) == 200
        edge.secret("clients", ca_crt=OTHER.cert_pem)
        kit.eventually(lambda: edge.ask("one.test", client(WEB, ca=OTHER)) == 200, "the other CA", 10.0)
        assert edge.ask("one.test", client(WEB)) == 0
        assert is_ended(kept)
        assert ask_on(bystander, "open.test", is_last=False) == 200
    # A bundle that cannot be read leaves the one before in force.
    edge.secret("clients", ca_crt="-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n")
    kit.eventually(lambda: bool(edge.gateway.page("/diagnostics")), "a diagnostic", 10.0)
    assert edge.ask("one.test", client(WEB, ca=OTHER)) == 200
    assert edge.ask("one.test", client(WEB)) == 0


@pytest.mark.parametrize("mode", ["Require", "Request"])
def test_a_certificate_that_ends_ends_its_connections_and_no_session_revives_it(
    edge: Edge, start_gateway: Any, kit: Any, mode: str
) -> None:
    edge.host("one", "one.test", {**require(), "mode": mode})
    edge.gateway = start_gateway("--workers", "1")
    for lifetime_s in (3, 10, 40):  # long enough for a handshake and a request, on whatever machine
        now = datetime.datetime.now(datetime.UTC)
        valid = Period(begins_at=now - datetime.timedelta(days=1), ends_at=now + datetime.timedelta(seconds=lifetime_s))
        context = edge.context(client(WEB, valid=valid))
        try:
            kept = edge.connect("one.test", context=context)
            break
        except (ssl.SSLError, ConnectionError):
            continue
    with kept, edge.connect("one.test", client(WEB)) as bystander:
        assert ask_on(kept, "one.test", is_last=False) == 200
        assert ask_on(bystander, "one.test", is_last=False) == 200
        session = kept.session
        kept.settimeout(lifetime_s + 20)
        assert is_ended(kept)
        assert datetime.datetime.now(datetime.UTC) > valid.ends_at.replace(microsecond=0)
        assert ask_on(bystander, "one.test", is_last=False) == 200
        assert edge.ask("one.test", context=context, session=session) == 0
    metric = "datum_router_client_certificates_total"
    kit.eventually(lambda: edge.counted(metric, verdict="expired") == 1, "it is counted")
    assert edge.gateway.log.read_text().count("client certificate expired on an open connection") == 1


def test_a_missing_ca_closes_the_host_and_never_opens_it(edge: Edge, start_gateway: Any, kit: Any) -> None:
    """Not even if it was open before: whoever asks for certificates is not served without."""
    edge.host("one", "one.test")
    edge.host("open", "open.test")
    edge.gateway = start_gateway("--workers", "1")
    assert edge.ask("one.test") == 200
    edge.host("one", "one.test", {**require(), "caSecretName": "nowhere"})
    kit.eventually(lambda: edge.ask("one.test") != 200, "it is closed", 10.0)
    context = edge.context()
    context.check_hostname = False
    for sni in ("one.test", "open.test"):
        assert edge.ask(sni, context=context, host="one.test") in (0, 421), sni
    assert edge.ask("open.test") == 200
    found = [item for item in edge.gateway.page("/diagnostics") if item["path"] == "spec.tls.clientAuth.caSecretName"]
    assert "nobody's certificate could be verified" in found[0]["message"]


def test_revoked_clients_are_refused_and_so_is_everybody_when_the_list_has_ended(
    edge: Edge, start_gateway: Any, kit: Any
) -> None:
    good, bad = client(WEB), client(DB)
    edge.secret("crl", ca_crl=CA.revocations([bad.cert_pem], valid=VALID))
    edge.host("one", "one.test", require(crlSecretName="crl"))
    edge.gateway = start_gateway("--workers", "1")
    assert edge.ask("one.test", good) == 200
    assert edge.ask("one.test", bad) == 0
    edge.secret("crl", ca_crl=CA.revocations([good.cert_pem], valid=VALID))
    kit.eventually(lambda: edge.ask("one.test", bad) == 200, "the new list", 10.0)
    assert edge.ask("one.test", good) == 0
    edge.secret("crl", ca_crl=CA.revocations([], valid=PAST))
    kit.eventually(lambda: edge.ask("one.test", bad) == 0, "the list has ended", 10.0)
    assert edge.ask("one.test", good) == 0


def test_openssl_sees_whose_certificates_are_asked_for(edge: Edge, start_gateway: Any) -> None:
    edge.host("one", "one.test", require())
    edge.host("open", "open.test")
    edge.gateway = start_gateway("--workers", "1")

    def handshake(name: str) -> str:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{edge.port}", "-servername", name]
        return subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=20).stdout

    # What only a CertificateRequest tells.
    assert "Requested Signature Algorithms" in handshake("one.test")
    assert "Requested Signature Algorithms" not in handshake("open.test")
