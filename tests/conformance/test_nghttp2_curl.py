"""nghttp2's and curl's programs as clients, nghttpd as upstream: every version of HTTP that each of them speaks."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datum_router.model.service import UpstreamProtocol
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.external]
BODY = bytes(range(256)) * 1_024


async def app(exchange: Any) -> None:
    """Echo a body, or send a page of 256 KiB with a field of its own and a trailer if asked for."""
    body = await exchange.body()
    if exchange.method == "POST":
        await exchange.reply(200, body)
    elif exchange.path == "/large":
        await exchange.reply(200, BODY)
    elif exchange.method == "HEAD":
        await exchange.reply(200, b"", [(b"x-from", b"upstream")])
    else:
        await exchange.reply(200, b"small", [(b"x-from", b"upstream")])


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@contextlib.contextmanager
def nghttpd(path: str, root: Path, kit: Any) -> Iterator[int]:
    """Serve a directory by nghttpd, HTTP/2 in clear with prior knowledge; POST bodies are echoed."""
    port = free_port()
    command = [path, "--no-tls", "--echo-upload", "--address", "127.0.0.1", "--htdocs", str(root), str(port)]
    with (root.parent / "nghttpd.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        kit.eventually(lambda: accepts(port) or process.poll() is not None, "nghttpd listens")
        assert process.poll() is None
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module", params=["h11", "h2", "nghttpd"])
def origin(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, program: Any, kit: Any, peers: Any
) -> Iterator[tuple[str, Any]]:
    """A gateway before an upstream: (the upstream's name, the gateway)."""
    directory = tmp_path_factory.mktemp("origin") / "manifests"
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        if request.param == "nghttpd":
            root = directory.parent / "htdocs"
            root.mkdir()
            (root / "large").write_bytes(BODY)
            (root / "index.html").write_bytes(b"small")
            peers.write_service(directory, "H2C", stack.enter_context(nghttpd(program("nghttpd"), root, kit)))
        else:
            protocol = UpstreamProtocol.H2C if request.param == "h2" else UpstreamProtocol.HTTP
            peers.write_service(directory, protocol.name, stack.enter_context(peers.serve(app, protocol)).port)
        gateway = kit.Gateway(directory, "--listen", "127.0.0.1:0")
        stack.callback(gateway.stop)
        yield request.param, gateway
        kit.eventually(lambda: gateway.stats()["gauges"].get("requests_in_flight", 0) == 0, "no request is held")
        assert "Traceback" not in gateway.log.read_text()


# `--http2` asks for an upgrade to h2c, which RFC 9113 section 3.1 has withdrawn: the answer stays HTTP/1.1.
CURL = {"--http1.0": "1.1", "--http1.1": "1.1", "--http2": "1.1", "--http2-prior-knowledge": "2"}


@pytest.mark.parametrize("option", CURL)
def test_curl(option: str, origin: Any, program: Callable[[str], str], tmp_path: Path, record_property: Any) -> None:
    upstream, gateway = origin
    url = f"http://127.0.0.1:{gateway.port}"
    told = "%{http_code} %{http_version} %{num_connects}\n"
    sent, got = tmp_path / "sent", tmp_path / "got"
    sent.write_bytes(BODY)
    curl = [program("curl"), "--silent", "--show-error", "--noproxy", "*", "--max-time", "30", option, "-w", told]

    def run(*arguments: str) -> list[str]:
        done = subprocess.run([*curl, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert run("-o", str(got), f"{url}/large") == [f"200 {CURL[option]} 1"]
    assert got.read_bytes() == BODY
    assert run("-o", str(got), "--data-binary", f"@{sent}", f"{url}/echo") == [f"200 {CURL[option]} 1"]
    assert got.read_bytes() == BODY
    assert run("--head", "-o", str(got), f"{url}/") == [f"200 {CURL[option]} 1"]
    chunked = ["-H", "Transfer-Encoding: chunked"] if option in ("--http1.1", "--http2") else []
    again = run("-o", str(got), "-H", "Expect: 100-continue", *chunked, "--data-binary", f"@{sent}", f"{url}/echo")
    assert again[-1] == f"200 {CURL[option]} 1"
    assert got.read_bytes() == BODY
    if option != "--http2-prior-knowledge":  # curl 7.88 fails to reuse such a connection, with nghttpd as well
        again = run("-o", str(got), f"{url}/", "-o", str(tmp_path / "second"), f"{url}/large")
        assert [line.split()[2] for line in again] == ["1", "1" if option == "--http1.0" else "0"]
        assert (tmp_path / "second").read_bytes() == BODY
    record_property(f"curl, upstream {upstream}", option)


def test_nghttp(origin: Any, program: Callable[[str], str], tmp_path: Path, record_property: Any) -> None:
    upstream, gateway = origin
    url = f"http://127.0.0.1:{gateway.port}"
    (tmp_path / "sent").write_bytes(BODY)
    cases = {
        "one": ["/"],
        "several on one connection": ["/", "/large", "/?again"],
        "padding": ["--padding=64", "/large"],
        "small window": ["--window-bits=12", "--connection-window-bits=13", "/large"],
        "continuation": ["--continuation", "/"],
        "no table": ["--header-table-size=0", "/", "/?again"],
        "upload": ["--data", str(tmp_path / "sent"), "/echo"],
        "upload without length": ["--no-content-length", "--data", str(tmp_path / "sent"), "/echo"],
    }
    for name, arguments in cases.items():
        options = [item for item in arguments if not re.fullmatch(r"/(large|echo)?(\?again)?", item)]
        urls = [url + item for item in arguments if re.fullmatch(r"/(large|echo)?(\?again)?", item)]
        done = subprocess.run(
            [program("nghttp"), "--verbose", "--null-out", "--timeout=20", *options, *urls],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        statuses = re.findall(r":status: (\d+)", done.stdout)
        assert (done.returncode, set(statuses)) == (0, {"200"}), (name, done.stdout[-3000:], done.stderr)
        assert len(statuses) == len(urls), (name, statuses)
        record_property(f"nghttp, upstream {upstream}", name)


@pytest.mark.parametrize("options", [("--h1",), ()], ids=["h1", "h2"])
def test_h2load(options: tuple[str, ...], origin: Any, program: Callable[[str], str], record_property: Any) -> None:
    upstream, gateway = origin
    count = 400
    done = subprocess.run(
        [program("h2load"), "-n", str(count), "-c", "4", "-m", "1" if options else "10", *options,
         f"http://127.0.0.1:{gateway.port}/"],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{count} succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout, done.stdout
    assert f"status codes: {count} 2xx, 0 3xx, 0 4xx, 0 5xx" in done.stdout, done.stdout
    record_property(f"h2load {'over HTTP/1.1' if options else 'over HTTP/2'}, upstream {upstream}", f"{count} requests")
