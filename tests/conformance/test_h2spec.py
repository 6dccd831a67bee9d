"""h2spec, whole and strict, against the running gateway: in clear and over TLS, upstreams of HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import base64
import re
import socket
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from datum_router.model.service import UpstreamProtocol
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.external]
CASES = 146
BAD_PREFACE = ("http2/3.5", "Sends invalid connection preface")
# A listener in clear speaks HTTP/1.1 as well, so what is no preface is a request line. RFC 9112 section 3: "Recipients
# of an invalid request-line SHOULD respond with either a 400 (Bad Request) error or a 301". The connection is closed as
# h2spec wants, but it reads the 400 that goes before as a cut frame. Over TLS, where ALPN chose h2, none is excepted.
EXCEPTED = {"clear": {BAD_PREFACE}, "tls": set[tuple[str, str]]()}


async def app(exchange: Any) -> None:
    await exchange.body()
    await exchange.reply(200, b"" if exchange.method == "HEAD" else b"conformant")


def write_tls(directory: Path, port: int) -> None:
    """Replace the route by an HTTPS listener for every host."""
    certificate = trustme.CA().issue_cert("localhost")
    chain = base64.b64encode(b"".join(item.bytes() for item in certificate.cert_chain_pems)).decode()
    key = base64.b64encode(certificate.private_key_pem.bytes()).decode()
    (directory / "tls.yaml").write_text(f"""
apiVersion: v1
kind: Secret
metadata: {{name: localhost}}
type: kubernetes.io/tls
data: {{tls.crt: {chain}, tls.key: {key}}}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {{name: localhost}}
spec:
  host: localhost
  tls: {{secretName: localhost}}
  listeners: [{{name: https, port: {port}, protocol: HTTPS}}]
  rules: [{{path: /, service: {{name: peer}}}}]
""")


def read_report(path: Path) -> dict[str, set[tuple[str, str]]]:
    """Return the cases of a JUnit report by outcome; h2spec writes the bytes of frames into it as they are."""
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "?", path.read_text(errors="replace"))
    found: dict[str, set[tuple[str, str]]] = {"passed": set(), "failed": set(), "skipped": set()}
    for case in ET.fromstring(text).iter("testcase"):
        name = (case.attrib["package"], case.attrib["classname"])
        outcome = "passed" if not len(case) else "skipped" if case.find("skipped") is not None else "failed"
        assert not any(name in names for names in found.values())
        found[outcome].add(name)
    return found


@pytest.mark.parametrize("upstream", [UpstreamProtocol.HTTP, UpstreamProtocol.H2C], ids=["h1", "h2"])
@pytest.mark.parametrize("edge", ["clear", "tls"])
def test_h2spec_passes_whole(
    edge: str,
    upstream: UpstreamProtocol,
    program: Callable[[str], str],
    serve_upstream: Callable[..., Any],
    start_gateway: Callable[..., Any],
    directory: Path,
    peers: Any,
    record_property: Callable[[str, object], None],
) -> None:
    h2spec = program("h2spec")
    peer = serve_upstream(app, upstream)
    peers.write_service(directory, upstream.name, peer.port)
    options = ["--strict"]
    if edge == "tls":
        port = free_port()
        write_tls(directory, port)
        gateway = start_gateway("--workers", "1")
        options += ["--tls", "--insecure"]
    else:
        gateway = start_gateway()
    report = directory.parent / "report.xml"
    done = peers.run(
        h2spec, "--host", "localhost", "--port", str(gateway.port), "--junit-report", str(report), *options, timeout=110
    )
    found = read_report(report)
    assert found["failed"] == EXCEPTED[edge], done.stdout
    assert found["skipped"] == set()
    assert len(found["passed"]) == CASES - len(EXCEPTED[edge])
    assert len(peer.requests) > 10  # the cases that send good requests were answered from behind, not by the gateway
    if edge == "clear":
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
            sock.sendall(b"INVALID CONNECTION PREFACE\r\n\r\n")
            answer = b""
            while chunk := sock.recv(65536):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 400 ")
    log = gateway.log.read_text()
    assert "Traceback" not in log
    record_property(
        f"h2spec in {edge}, upstream {upstream.name}",
        f"{len(found['passed'])} passed, {len(found['failed'])} excepted, {len(found['skipped'])} skipped",
    )
