"""Each proxy must give the right answer before it is measured: a fast wrong answer is no result."""

from __future__ import annotations

import hashlib
import http.client
import subprocess

from gatebench.measures import GRPC_HEADERS, Stage
from gatebench.processes import BenchError, find_program
from gatebench.proxies import GRPC_PATH, HOST, Proxy
from gatebench.tools import header_arguments

KIB = b"x" * 1024


def check_proxy(measure: str, proxy: Proxy, stage: Stage) -> None:
    """Send one request of the measure's kind and compare the answer.

    Raises:
        BenchError: The answer is wrong.
    """
    if measure.startswith("h2"):
        expect(KIB in _nghttp(f"http://127.0.0.1:{proxy.ports['http2']}/users/42"), proxy, "h2c answer")
    elif measure == "grpc":
        text = _nghttp(
            "-v",
            "-d",
            str(stage.message),
            *header_arguments(GRPC_HEADERS),
            f"http://127.0.0.1:{proxy.ports['http2']}{GRPC_PATH}",
        )
        expect(b"grpc-status: 0" in text, proxy, "trailer grpc-status: 0")
    elif measure.startswith("body-"):
        path = f"/bodies/{measure.removeprefix('body-')}"
        wanted = hashlib.sha256((stage.site.bodies / path.lstrip("/")).read_bytes()).digest()
        expect(hashlib.sha256(_get(proxy, path)).digest() == wanted, proxy, "body")
    elif measure == "tls":
        command = [
            find_program("openssl"),
            "s_client",
            "-connect",
            f"127.0.0.1:{proxy.ports['tls']}",
            "-tls1_3",
            "-brief",
        ]
        command += ["-alpn", "http/1.1"]
        done = subprocess.run(command, check=False, capture_output=True, input=b"", timeout=20)
        expect(b"Protocol version: TLSv1.3" in done.stderr + done.stdout, proxy, "TLS 1.3 handshake")
    else:
        expect(_get(proxy, "/users/42") == KIB, proxy, "answer")


def expect(is_good: bool, proxy: Proxy, what: str) -> None:
    if not is_good:
        raise BenchError(f"{proxy.name}: wrong {what}; {proxy.child.log_tail(600)}")


def _get(proxy: Proxy, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.ports["http1"], timeout=20)
    try:
        connection.request("GET", path, headers={"Host": HOST})
        answer = connection.getresponse()
        body = answer.read()
        expect(answer.status == 200, proxy, f"status {answer.status}")
        return body
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"{proxy.name}: no answer: {error!r}; {proxy.child.log_tail(600)}") from error
    finally:
        connection.close()


def _nghttp(*arguments: str) -> bytes:
    done = subprocess.run(
        [find_program("nghttp"), "--no-dep", "-H", f":authority: {HOST}", *arguments],
        check=False,
        capture_output=True,
        timeout=20,
    )
    return done.stdout
