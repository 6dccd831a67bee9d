"""TLS at the edge, as openssl's and curl's programs and Python's `ssl` see it: a table of offers and verdicts.

In the manner of testssl.sh: one row a probe. The programs are independent of the gateway's process, their library is
the same OpenSSL; what the rows show is what the gateway makes of its settings.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from tests.ports import free_ports

pytestmark = pytest.mark.e2e
API = "apiVersion: router.datum.net/v1alpha1"
NOW = datetime.datetime.now(datetime.UTC)


class Site(NamedTuple):
    """A gateway with hosts of many kinds on one port, and the CA that clients trust."""

    port: int
    plain: int
    ca: Path
    context: Callable[[], ssl.SSLContext]


def secret(name: str, cert: trustme.LeafCert) -> str:
    chain = base64.b64encode(b"".join(item.bytes() for item in cert.cert_chain_pems)).decode()
    private = base64.b64encode(cert.private_key_pem.bytes()).decode()
    data = f"data: {{tls.crt: {chain}, tls.key: {private}}}"
    return f"---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/tls\n{data}\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, kit: Any) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("tls") / "manifests"
    directory.mkdir()
    backend = kit.Backend(kit.answer(b"ok"))
    plain, port = free_ports(2)
    ca, stranger = trustme.CA(), trustme.CA()
    rsa = trustme.KeyType.RSA
    certs = {
        "a": ("a.test", ca.issue_cert("a.test"), {}),
        "rsa": ("rsa.test", ca.issue_cert("rsa.test", key_type=rsa), {}),
        "wild": ("*.wild.test", ca.issue_cert("*.wild.test"), {}),
        "strict": ("strict.test", ca.issue_cert("strict.test"), {"minVersion": "1.3"}),
        "h1": ("h1.test", ca.issue_cert("h1.test"), {"alpn": ["http/1.1"]}),
        "stranger": ("stranger.test", stranger.issue_cert("stranger.test"), {}),
        "other": ("other.test", ca.issue_cert("not-other.test"), {}),
        "old": (
            "old.test",
            ca.issue_cert(
                "old.test", not_before=NOW - datetime.timedelta(days=9), not_after=NOW - datetime.timedelta(days=1)
            ),
            {},
        ),
    }
    listeners = [
        {"name": "http", "port": plain, "protocol": "HTTP", "address": "127.0.0.1"},
        {"name": "https", "port": port, "protocol": "HTTPS", "address": "127.0.0.1"},
    ]
    text = kit.manifest("svc", backend).split("---")[0]
    for number, (name, (host, cert, tls)) in enumerate(certs.items()):
        spec = {
            "host": host,
            "rules": [{"service": {"name": "svc"}}],
            "tls": {"secretName": name, **tls},
            "listeners": listeners,
            "httpsRedirect": True,
            "hsts": {"maxAgeSeconds": 600},
        }
        metadata = f"metadata: {{name: {name}, creationTimestamp: '2026-01-{number + 1:02}T00:00:00Z'}}"
        text += secret(name, cert) + f"---\n{API}\nkind: VPCIngress\n{metadata}\nspec: {json.dumps(spec)}\n"
    (directory / "all.yaml").write_text(text)
    bundle = directory.parent / "ca.pem"
    ca.cert_pem.write_to_path(str(bundle))

    def context() -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca.configure_trust(made)
        return made

    gateway = kit.Gateway(directory, "--workers", "1")
    try:
        yield Site(port, plain, bundle, context)
    finally:
        gateway.stop()
        backend.close()


# --- openssl s_client ---------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One probe: options of s_client, and what its output must show; `refused` is part of its complaint."""

    name: str
    host: str | None
    options: tuple[str, ...]
    shown: tuple[str, ...] = ()
    refused: str = ""


LOWEST = ("-cipher", "ALL:@SECLEVEL=0")
ROWS = (
    Row("TLS 1.3", "a.test", ("-tls1_3",), ("TLSv1.3", "Verify return code: 0")),
    Row("TLS 1.2", "a.test", ("-tls1_2",), ("TLSv1.2", "ECDHE-ECDSA-", "Verify return code: 0")),
    Row("TLS 1.1", "a.test", ("-tls1_1", *LOWEST), refused="alert protocol version|no protocols available|unsupported"),
    Row("TLS 1.0", "a.test", ("-tls1", *LOWEST), refused="alert protocol version|no protocols available|unsupported"),
    Row("lowest 1.3, asked by 1.2", "strict.test", ("-tls1_2",), refused="alert protocol version"),
    Row("lowest 1.3", "strict.test", (), ("TLSv1.3",)),
    Row("forward secrecy with RSA", "rsa.test", ("-tls1_2",), ("ECDHE-RSA-",)),
    Row("no key exchange by RSA", "rsa.test", ("-tls1_2", "-cipher", "kRSA"), refused="alert handshake failure"),
    Row("no finite-field DHE", "rsa.test", ("-tls1_2", "-cipher", "kDHE"), refused="alert handshake failure"),
    Row("no CBC", "a.test", ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"), refused="alert handshake failure"),
    Row("no anonymous", "a.test", ("-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"), refused="alert handshake failure"),
    Row("no NULL", "a.test", ("-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"), refused="alert handshake failure"),
    Row("AES-256", "a.test", ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"), ("AES256-GCM-SHA384",)),
    Row("ChaCha20", "a.test", ("-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"), ("CHACHA20-POLY1305",)),
    Row("no compression", "a.test", ("-tls1_2", "-comp"), ("Compression: NONE",)),
    Row("secure renegotiation", "a.test", ("-tls1_2",), ("Secure Renegotiation IS supported",)),
    Row("ALPN h2", "a.test", ("-alpn", "h2,http/1.1"), ("ALPN protocol: h2",)),
    Row("ALPN http/1.1", "a.test", ("-alpn", "http/1.1"), ("ALPN protocol: http/1.1",)),
    Row("ALPN of a host without h2", "h1.test", ("-alpn", "h2,http/1.1"), ("ALPN protocol: http/1.1",)),
    Row("ALPN unknown", "a.test", ("-alpn", "spdy/3"), ("No ALPN negotiated",)),
    Row("no ALPN", "a.test", (), ("No ALPN negotiated",)),
    Row("SNI exact", "a.test", ("-verify_hostname", "a.test"), ("Verify return code: 0",)),
    Row("SNI in capitals", "A.TEST", ("-verify_hostname", "a.test"), ("Verify return code: 0",)),
    Row("SNI of a wildcard", "x.wild.test", ("-verify_hostname", "x.wild.test"), ("Verify return code: 0",)),
    Row("SNI two labels below", "x.y.wild.test", ("-verify_hostname", "x.y.wild.test"), ("hostname mismatch",)),
    Row("SNI unknown", "none.test", ("-verify_hostname", "none.test"), ("hostname mismatch",)),
    Row("no SNI: the oldest", None, ("-verify_hostname", "a.test"), ("Verify return code: 0",)),
    Row("wrong CA", "stranger.test", (), ("unable to get local issuer certificate",)),
    Row("expired", "old.test", (), ("certificate has expired",)),
    Row("wrong SAN", "other.test", ("-verify_hostname", "other.test"), ("hostname mismatch",)),
    Row("no early data", "a.test", ("-tls1_3",), ("Early data was not sent",)),
)


@pytest.mark.external
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_s_client_gets_what_the_table_says(row: Row, site: Site, program: Callable[[str], str]) -> None:
    name = ("-noservername",) if row.host is None else ("-servername", row.host)
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{site.port}", "-CAfile", str(site.ca), *name]
    ran = subprocess.run([*command, *row.options], input=b"Q\n", capture_output=True, timeout=30, check=False)
    output = (ran.stdout + ran.stderr).decode("utf-8", "replace")
    if row.refused:
        assert re.search(row.refused, output), output[-1500:]
        assert "Verify return code: 0" not in output or "Cipher is (NONE)" in output
    else:
        for text in row.shown:
            assert text in output, f"{text} is not in {output[-2500:]}"


@pytest.mark.external
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_resumes_a_session(version: str, site: Site, program: Callable[[str], str], tmp_path: Path) -> None:
    kept = str(tmp_path / "session.pem")
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{site.port}", "-servername", "a.test", version]
    ask = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"

    def said(*options: str) -> str:
        ran = subprocess.run([*command, "-ign_eof", *options], input=ask, capture_output=True, timeout=30, check=False)
        return ran.stdout.decode("utf-8", "replace")

    first = said("-sess_out", kept)
    assert "New, TLSv1." in first
    assert version == "-tls1_2" or "Max Early Data: 0" in first, "F9: no 0-RTT"
    assert "Reused, TLSv1." in said("-sess_in", kept)


# --- curl ---------------------------------------------------------------------------------------------------------

CURL_OK, CURL_NOT_VERIFIED, CURL_SSL_CONNECT = 0, 60, 35


@pytest.mark.external
@pytest.mark.parametrize(
    ("host", "options", "code", "shown"),
    [
        ("a.test", ("--http2",), CURL_OK, "HTTP/2 200"),
        ("a.test", ("--http1.1",), CURL_OK, "HTTP/1.1 200"),
        ("h1.test", ("--http2",), CURL_OK, "HTTP/1.1 200"),
        ("x.wild.test", ("--http2",), CURL_OK, "strict-transport-security: max-age=600"),
        ("a.test", ("-H", "Host: strict.test"), CURL_OK, " 421"),
        ("strict.test", ("--tls-max", "1.2"), CURL_SSL_CONNECT, ""),
        ("stranger.test", (), CURL_NOT_VERIFIED, ""),
        ("old.test", (), CURL_NOT_VERIFIED, ""),
        ("other.test", (), CURL_NOT_VERIFIED, ""),
        ("none.test", (), CURL_NOT_VERIFIED, ""),
    ],
)
def test_curl_gets_what_the_table_says(
    host: str, options: tuple[str, ...], code: int, shown: str, site: Site, program: Callable[[str], str]
) -> None:
    where = ("--resolve", f"{host}:{site.port}:127.0.0.1", "--cacert", str(site.ca), "--noproxy", "*")
    url = f"https://{host}:{site.port}/"
    ran = subprocess.run([program("curl"), "-sSi", *where, *options, url], capture_output=True, timeout=30, check=False)
    assert ran.returncode == code, ran.stderr
    assert shown.encode() in ran.stdout


@pytest.mark.external
def test_curl_follows_the_redirect_to_https(site: Site, program: Callable[[str], str]) -> None:
    resolve = [f"--resolve=a.test:{port}:127.0.0.1" for port in (site.plain, site.port)]
    url = f"http://a.test:{site.plain}/path?query"
    command = [program("curl"), "-sSL", "--noproxy", "*", "--cacert", str(site.ca), "-o", "/dev/null"]
    command += [part for one in resolve for part in one.split("=", 1)]
    ran = subprocess.run(
        [*command, "-w", "%{http_code} %{url_effective}", url], capture_output=True, timeout=30, check=False
    )
    assert ran.stdout.decode() == f"200 https://a.test:{site.port}/path?query"


# --- Python's ssl -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a.test", ""),
        ("rsa.test", ""),
        ("x.wild.test", ""),
        ("wild.test", "not valid for 'wild.test'"),
        ("x.y.wild.test", "not valid for 'x.y.wild.test'"),
        ("stranger.test", "unable to get local issuer certificate"),
        ("old.test", "certificate has expired"),
        ("other.test", "not valid for 'other.test'"),
        ("none.test", "not valid for 'none.test'"),
    ],
)
def test_python_verifies_what_is_right_and_refuses_what_is_wrong(name: str, why: str, site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as sock:
        if not why:
            with site.context().wrap_socket(sock, server_hostname=name) as secured:
                assert secured.version() == "TLSv1.3"
                assert secured.compression() is None
            return
        with pytest.raises(ssl.SSLCertVerificationError, match=re.escape(why)):
            site.context().wrap_socket(sock, server_hostname=name)
