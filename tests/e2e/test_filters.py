"""Filters in a real gateway: manifests to workers and back to `/metrics`, and edits while it serves."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.e2e

CANARY = "canary-9c41e7"
ROUTE = """
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: filtered}
spec:
  hostnames: [filtered.test]
  match: {methods: [GET, PUT]}
  cors: {allowedOrigins: ["https://a.test"], allowedMethods: [PUT]}
  localReplies: [{contentType: application/json, body: '{"status": %STATUS%}'}]
  filters:
    - type: Plugin
      plugin:
        name: ext-authz
        vpcServiceRef: {name: authz}
        config: {path: /verify, upstreamHeaders: [x-user]}
    - {type: RequestMirror, requestMirror: {vpcServiceRef: {name: copy}}}
  destinations:
    - vpcServiceRef: {name: api}
      filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /rewritten}}}]
"""


def ask(gateway: Any, method: str, path: str, *fields: str) -> tuple[int, bytes, bytes]:
    """Return status, head and body of the answer to a request of its own connection."""
    secret = f"Authorization: Bearer {CANARY}"
    lines = [f"{method} {path} HTTP/1.1", "Host: filtered.test", "Connection: close", secret, *fields, "", ""]
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
        sock.sendall("\r\n".join(lines).encode())
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.lower(), body


def outcomes(gateway: Any) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"{gateway.admin}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.labels["filter"], sample.labels["outcome"]): sample.value
            for family in families
            for sample in family.samples
            if sample.name == "datum_router_filter_outcomes_total"
        }


def test_every_filter_at_once_over_all_workers(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    api, copy = start_backend(kit.answer(b"api")), start_backend(kit.answer(b"copy"))

    def decide(sock: socket.socket, _rest: bytes) -> None:
        verdict = b"200 OK\r\nx-user: ann" if b"x-forwarded-uri: /ok" in authz.heads[-1].lower() else b"403 No"
        sock.sendall(b"HTTP/1.1 " + verdict + b"\r\ncontent-length: 0\r\n\r\n")

    authz = start_backend(decide)
    for name, backend in (("api", api), ("copy", copy), ("authz", authz)):
        text = kit.manifest(name, backend, path=f"/unused-{name}")
        (directory / f"{name}.yaml").write_text(text)
    (directory / "route.yaml").write_text(ROUTE)
    gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "2", env={"DATUM_ROUTER_LOG": "debug"})

    status, head, body = ask(gateway, "GET", "/ok", "Origin: https://a.test")
    assert (status, body) == (200, b"api")
    assert b"access-control-allow-origin: https://a.test" in head
    assert api.heads[-1].startswith(b"GET /rewritten ")
    assert b"x-user: ann" in api.heads[-1].lower()
    status, _, body = ask(gateway, "GET", "/no")
    assert (status, body) == (403, b'{"status": 403}')
    status, _, _ = ask(gateway, "OPTIONS", "/no", "Origin: https://a.test", "Access-Control-Request-Method: PUT")
    assert status == 204
    kit.eventually(lambda: len(copy.heads) == 1, "the copy")
    assert b"host: filtered.test-shadow" in copy.heads[0].lower()
    expected = {
        ("cors", "allowed"): 1.0,
        ("cors", "preflight"): 1.0,
        ("ext-authz", "allowed"): 1.0,
        ("ext-authz", "refused"): 1.0,
        ("mirror", "answered"): 1.0,
    }
    kit.eventually(lambda: outcomes(gateway) == expected, f"metrics such as {expected}")

    assert CANARY.encode() in authz.heads[0], "whoever decides sees the credentials"
    for page in ("/metrics", "/stats", "/snapshot", "/diagnostics", "/plugins"):
        with urllib.request.urlopen(f"{gateway.admin}{page}", timeout=10) as answer:
            assert CANARY not in answer.read().decode(), page
    authz.close()
    (directory / "authz.yaml").unlink()
    kit.eventually(lambda: ask(gateway, "GET", "/ok")[0] == 503, "nobody passes once the service is gone")
    (directory / "route.yaml").write_text(ROUTE.replace("name: ext-authz", "name: not-there"))
    kit.eventually(lambda: ask(gateway, "GET", "/ok")[0] in (404, 503), "and none without the filter")
    assert len(api.heads) == 1
    assert CANARY not in gateway.log.read_text(), "threat F8"


TOKENS = """
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: tokens}
spec:
  hostnames: [filtered.test]
  filters: [{type: Plugin, plugin: {name: jwt, config: CONFIG}}]
  destinations: [{vpcServiceRef: {name: api}}]
"""


def test_tokens_are_verified_by_the_keys_of_the_manifest_and_by_new_ones_from_then_on(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    api = start_backend(kit.answer(b"api"))
    (directory / "api.yaml").write_text(kit.manifest("api", api, path="/unused"))
    old, new = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def put(key: ec.EllipticCurvePrivateKey) -> None:
        public = jwt.get_algorithm_by_name("ES256").to_jwk(key.public_key(), as_dict=True)
        config = {
            "issuer": "https://issuer.test",
            "audiences": ["shop"],
            "algorithms": ["ES256"],
            "requiredClaims": {"scope": "buy"},
            "header": "x-token",
            "forwardPayloadHeader": "x-claims",
            "keys": {"keys": [public]},
        }
        (directory / "tokens.yaml").write_text(TOKENS.replace("CONFIG", json.dumps(config)))

    def token(key: ec.EllipticCurvePrivateKey, **change: object) -> str:
        claims = {"iss": "https://issuer.test", "aud": "shop", "exp": time.time() + 600, "scope": "see buy", **change}
        return "X-Token: " + jwt.encode(claims, key, algorithm="ES256")

    put(old)
    gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "2", env={"DATUM_ROUTER_LOG": "debug"})
    good = token(old, note=CANARY)
    refused = (
        (),
        (token(new),),
        (token(old, exp=time.time() - 3600),),
        (token(old, iss="https://other.test"),),
        (token(old, aud="other"),),
        (token(old, scope="see"),),
        (good[:-4] + "AAAA",),
    )
    for fields in refused:
        assert ask(gateway, "GET", "/", *fields)[0] == 401, fields
    assert api.heads == []
    status, _, body = ask(gateway, "GET", "/", good, "X-Claims: forged")
    assert (status, body) == (200, b"api")
    (head,) = api.heads
    assert good.encode() not in head, "the token is the gateway's"
    (claims,) = [line for line in head.split(b"\r\n") if line.lower().startswith(b"x-claims: ")]
    assert json.loads(jwt.utils.base64url_decode(claims[10:]))["note"] == CANARY
    expected = {("jwt", "allowed"): 1.0, ("jwt", "refused"): float(len(refused))}
    kit.eventually(lambda: outcomes(gateway) == expected, f"metrics such as {expected}")

    put(new)
    kit.eventually(lambda: ask(gateway, "GET", "/", token(new))[0] == 200, "the new key")
    kit.eventually(lambda: {ask(gateway, "GET", "/", good)[0] for _ in range(8)} == {401}, "no longer the old one")
    log = gateway.log.read_text()
    for secret in (CANARY, *good.split(".")[1:]):
        assert secret not in log, "threat F8"
    assert "Traceback" not in log
