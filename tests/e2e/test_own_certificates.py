"""The gateway's own certificates: ROUTER_TLS_* towards clients, ROUTER_CLIENT_* towards upstreams."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from datum_router_cli.authority import Authority, Pair, make_authority, period

pytestmark = [
    pytest.mark.e2e,
    # `ssl` leaves a socket to the garbage collector when a handshake is refused.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]
VALID = period(datetime.datetime.now(datetime.UTC), 1)
CA = Authority(make_authority("ca", valid=VALID))
US = "spiffe://example.org/ns/edge/sa/router"


def write(folder: Path, name: str, pair: Pair) -> dict[str, str]:
    (folder / f"{name}.crt").write_text(pair.cert_pem)
    (folder / f"{name}.key").write_text(pair.key_pem)
    return {"cert": str(folder / f"{name}.crt"), "key": str(folder / f"{name}.key")}


def upstream(folder: Path) -> tuple[socket.socket, list[str]]:
    """Start an HTTPS server that asks for certificates, and notes whom they are of."""
    files = write(folder, "up", CA.issue("up", valid=VALID, dns=("up.test",)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["cert"], files["key"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=CA.cert_pem)
    server = socket.create_server(("127.0.0.1", 0))
    seen: list[str] = []

    def serve() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), sock, context.wrap_socket(sock, server_side=True) as secured:
                seen.append(str((secured.getpeercert() or {})["subjectAltName"]))
                secured.recv(65536)
                secured.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")

    threading.Thread(target=serve, daemon=True).start()
    return server, seen


def test_clients_and_upstreams_see_what_the_files_hold(
    directory: Path, tmp_path: Path, start_gateway: Any, kit: Any
) -> None:
    server, seen = upstream(tmp_path)
    edge = write(tmp_path, "edge", CA.issue("edge", valid=VALID, dns=("edge.test",)))
    me = write(tmp_path, "me", CA.issue("me", valid=VALID, uris=(US,)))
    (tmp_path / "ca.pem").write_text(CA.cert_pem)
    tls = {"mode": "Mutual", "sni": "up.test"}
    service = {
        "protocol": "HTTPS",
        "port": server.getsockname()[1],
        "endpoints": [{"address": "127.0.0.1"}],
        "tls": tls,
    }
    route = {"match": {"pathPrefix": "/"}, "destinations": [{"vpcServiceRef": {"name": "up"}}]}
    head = {"apiVersion": "router.datum.net/v1alpha1", "metadata": {"name": "up"}}
    documents = [{**head, "kind": "VPCService", "spec": service}, {**head, "kind": "VPCRoute", "spec": route}]
    (directory / "up.yaml").write_text(yaml.safe_dump_all(documents))
    environment = {
        "ROUTER_TLS_CERT": edge["cert"],
        "ROUTER_TLS_KEY": edge["key"],
        "ROUTER_CLIENT_CERT": me["cert"],
        "ROUTER_CLIENT_KEY": me["key"],
        "ROUTER_CLIENT_CA": str(tmp_path / "ca.pem"),
        "ROUTER_CLIENT_VERIFY_SERVER": "true",
    }
    context = ssl.create_default_context(cadata=CA.cert_pem)

    def serial() -> str:
        sock = socket.create_connection(gateway.addresses[1], timeout=10)
        with context.wrap_socket(sock, server_hostname="edge.test") as secured:
            secured.sendall(b"GET / HTTP/1.1\r\nHost: any.test\r\nConnection: close\r\n\r\n")
            assert secured.recv(65536).startswith(b"HTTP/1.1 200")
            return str((secured.getpeercert() or {})["serialNumber"])

    try:
        gateway = start_gateway("--listen", "127.0.0.1:0", env=environment)
        assert gateway.get("/")[0] == 200
        first = serial()
        assert set(seen) == {f"(('URI', '{US}'),)"}
        # Half of a new pair is no pair; both halves are, within a poll of 10 s.
        new = CA.issue("edge", valid=VALID, dns=("edge.test",))
        Path(edge["cert"]).write_text(new.cert_pem)
        kit.eventually(
            lambda: any("do not belong together" in item["message"] for item in gateway.page("/diagnostics")), "told"
        )
        assert serial() == first
        Path(edge["key"]).write_text(new.key_pem)
        kit.eventually(lambda: serial() != first, "the new pair")
        assert gateway.page("/diagnostics") == []
        keys = [Path(pair["key"]).read_text().splitlines()[1] for pair in (edge, me)]
        shown = str(gateway.page("/snapshot")) + gateway.log.read_text()
        assert not any(key in shown for key in keys)
    finally:
        server.close()
