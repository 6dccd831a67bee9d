"""Each proxy must give the right answer before it is measured: a fast wrong answer is no result."""

from __future__ import annotations

import http.client
import subprocess

from gatebench.measures import GRPC_HEADERS, Stage
from gatebench.processes import BenchError, find_program
from gatebench.proxies import GRPC_PATH, HOST, Proxy
from gatebench.tools import header_arguments

KIB = b"x" * 1024
PATIENCE_S = 20.0


def check_proxy(measure: str, proxy: Proxy, stage: Stage) -> None:
    """Send one request of the measure's kind and compare the answer.

    Raises:
        BenchError: The answer is wrong.
    """
    if measure.startswith("h2"):
        expect(_nghttp(f"http://127.0.0.1:{proxy.ports['http2']}/users/42"), KIB, proxy)
    elif measure == "grpc":
        url = f"http://127.0.0.1:{proxy.ports['http2']}{GRPC_PATH}"
        text = _nghttp("-v", "-d", str(stage.message), *header_arguments(GRPC_HEADERS), url)
        expect(text, KIB, proxy)
        expect(text, b"grpc-status: 0", proxy)
    elif measure.startswith("body-"):
        path = f"/bodies/{measure.removeprefix('body-')}"
        wanted = (stage.site.bodies / path.lstrip("/")).read_bytes()
        if _get(proxy, path) != wanted:
            raise BenchError(f"{proxy.name}: wrong body of {path}")
    elif measure == "tls" or measure.startswith("handshake"):
        address = f"127.0.0.1:{proxy.ports['tls']}"
        text = _output("openssl", "s_client", "-connect", address, "-tls1_3", "-brief", "-alpn", "http/1.1")
        expect(text, b"Protocol version: TLSv1.3", proxy)
    else:
        expect(_get(proxy, "/users/42"), KIB, proxy)


def expect(found: bytes, wanted: bytes, proxy: Proxy) -> None:
    """Raise unless the wanted bytes are there."""
    if wanted not in found:
        raise BenchError(
            f"{proxy.name}: no {wanted[:40]!r} in the answer {found[-400:]!r}; its log: {proxy.child.log_tail(400)}"
        )


def _get(proxy: Proxy, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.ports["http1"], timeout=20)
    try:
        connection.request("GET", path, headers={"Host": HOST})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise BenchError(f"{proxy.name}: status {answer.status}; {proxy.child.log_tail(600)}")
        return body
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"{proxy.name}: no answer: {error!r}; {proxy.child.log_tail(600)}") from error
    finally:
        connection.close()


def _nghttp(*arguments: str) -> bytes:
    return _output("nghttp", "--no-dep", "-H", f":authority: {HOST}", *arguments)


def _output(program: str, *arguments: str) -> bytes:
    command = [find_program(program), *arguments]
    try:
        done = subprocess.run(command, check=False, capture_output=True, input=b"", timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{program} did not end within {PATIENCE_S:g} s") from error
    return done.stdout + done.stderr
