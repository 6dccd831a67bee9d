"""The admin listener: for people on this host, not for what a gateway passes on."""

from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair

from datum_router_runtime.admin import Admin


def ask(*headers: str, is_local: bool = True) -> bytes:
    """Return the answer to a request for a page."""

    async def exchange() -> bytes:
        admin = Admin({"/stats": lambda: (200, {"secret": "x"})}, is_local=is_local)
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(admin._connection, theirs)  # type: ignore[arg-type]  # any stream does
            await ours.send_all("\r\n".join(("GET /stats HTTP/1.1", *headers, "", "")).encode())
            return b"".join([part async for part in ours])

    return trio.run(exchange)


@pytest.mark.parametrize("host", ["localhost", "localhost:9901", "127.0.0.1:9901", "127.8.8.8", "[::1]:9901"])
def test_a_request_from_this_host_is_answered(host: str) -> None:
    assert ask(f"Host: {host}").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "header", ["Via: 1.1 datum-router", "X-Forwarded-For: 10.0.0.1", "x-forwarded-proto: http", "Forwarded: for=a"]
)
def test_what_came_through_a_proxy_is_refused(header: str) -> None:
    answer = ask("Host: localhost", header)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"secret" not in answer


@pytest.mark.parametrize(
    "host", ["shop.example.com", "10.0.0.1:9901", "[::2]", "localhost.example.com", "", "[", "[::"]
)
def test_what_names_another_host_is_refused(host: str) -> None:
    answer = ask(f"Host: {host}")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"secret" not in answer


def test_pages_that_may_be_seen_from_outside_are_shown_to_proxies() -> None:
    assert ask("Host: shop.example.com", "Via: 1.1 proxy", is_local=False).startswith(b"HTTP/1.1 200 ")
