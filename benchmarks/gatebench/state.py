"""Measures of what a proxy holds and how fast it takes a change, rather than of requests a second."""

from __future__ import annotations

import contextlib
import socket
import time

from gatebench import manifests
from gatebench.processes import LOAD_CORE, BenchError, Child, memory_bytes
from gatebench.proxies import HOST, Proxy, Site, start_proxy
from gatebench.samples import median, percentile
from gatebench.tools import Load, parse_vegeta, run_tool, vegeta_limits

FEW_CONNECTIONS = 500
MANY_CONNECTIONS = 2500
PER_SOURCE = 100
SETTLE_S = 1.0
EDITS = 10
EDITED = 5021  # a route without methods and headers
EDIT_PATIENCE_S = 15.0
EDITS_TOGETHER_S = 8.0


def figure(value: float, *, requests: int = 0) -> Load:
    """Return a load that is nothing but a figure."""
    return Load(requests=requests, errors=0, duration_s=1.0, figure=value)


class Client:
    """One keep-alive connection that is read as little as a benchmark can: length-delimited answers only."""

    def __init__(self, port: int, *, source: str = "127.0.0.1") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))

    def get(self, path: str, host: str) -> bytes:
        """Send a request; return the head of its answer.

        Raises:
            BenchError: The status is not 200.
            OSError, ValueError: The connection broke, or the answer has no length.
        """
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._take()
        head, _, body = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"{host}{path}: {head[:40]!r}")
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        left = int(lines[b"content-length"]) - len(body)
        while left > 0:
            left -= len(self._take())
        return head

    def _take(self) -> bytes:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("closed by the proxy")
        return data


def idle_connections(proxy: Proxy) -> Load:
    """Return the growth of memory by each of 2,000 connections that made one request each and then stay silent.

    The slope between 500 and 2,500 leaves out what a process grows by at its first requests. Clients come from many
    addresses, 100 connections from each, so that limits by address may stay on.
    """
    clients: list[Client] = []
    sizes = []
    try:
        for target in (FEW_CONNECTIONS, MANY_CONNECTIONS):
            while len(clients) < target:
                client = Client(proxy.ports["http1"], source=f"127.0.1.{len(clients) // PER_SOURCE + 1}")
                clients.append(client)
                client.get("/users/42", HOST)
            time.sleep(SETTLE_S)
            sizes.append(memory_bytes(proxy.serving())[1])
        clients[0].get("/users/42", HOST)  # they are still open
    except (OSError, KeyError, ValueError) as error:
        raise BenchError(f"after {len(clients)} connections: {error!r}") from error
    finally:
        for client in clients:
            client.sock.close()
    return figure((sizes[1] - sizes[0]) / (MANY_CONNECTIONS - FEW_CONNECTIONS), requests=MANY_CONNECTIONS)


def route_memory(site: Site, proxy: Proxy) -> Load:
    """Return what the worker of `proxy`, which has many routes, holds above one that has none."""
    empty = start_proxy("datum", site, routes=0)
    try:
        return figure(memory_bytes(proxy.serving())[1] - memory_bytes(empty.serving())[1])
    finally:
        empty.stop()


def edits(proxy: Proxy, *, count: int = EDITS, route: int = EDITED) -> Load:
    """Return the median time, in us, from before a file is written until an answer shows the edited route.

    One client asks on one connection, one request after another; so a request that is under way when the edit comes
    into force is part of the time. The file holds 20 routes, one of which gets another response header.
    """
    if proxy.source is None:
        raise BenchError(f"{proxy.name} has no manifests")
    number = route // manifests.PER_FILE
    path = proxy.source / f"routes-{number}.yaml"
    first = number * manifests.PER_FILE
    client = Client(proxy.ports["http1"])
    host, item = divmod(route, 20)
    times = []
    try:
        for _ in range(count):
            version = str(time.monotonic_ns())
            text = "---\n".join(
                manifests.other_route(n, version=version if n == route else "")
                for n in range(first, first + manifests.PER_FILE)
            )
            shown = f"x-version: {version}".encode()
            began = time.perf_counter()
            manifests.write_atomically(path, text)
            while shown not in client.get(f"/api/v{item % 3}/service-{item}/x", f"h{host}.example").lower():
                if time.perf_counter() - began > EDIT_PATIENCE_S:
                    raise BenchError(f"edit not in force after {EDIT_PATIENCE_S:g} s")
            times.append((time.perf_counter() - began) * 1e6)
            if sum(times) > EDITS_TOGETHER_S * 1e6:
                break  # slow ones need no ten to be told
            time.sleep(0.2)  # edits that follow one another at once are gathered: that would be another measure
    except (OSError, KeyError, ValueError) as error:
        raise BenchError(f"no answer while editing: {error!r}") from error
    finally:
        client.sock.close()
    times.sort()
    return Load(
        requests=len(times),
        errors=0,
        duration_s=sum(times) / 1e6,
        p50_us=median(times),
        p99_us=percentile(times, 99),
        figure=median(times),
    )


def edits_under_load(site: Site, proxy: Proxy, vegeta: str, rate: int) -> Load:
    """Return the same while `rate` requests a second come; each of those that fails counts as an error."""
    results = site.scratch / "edits.bin"
    targets = site.scratch / "edits.targets"
    targets.write_text(f"GET http://127.0.0.1:{proxy.ports['http1']}/users/42\nHost: {HOST}\n")
    command = [vegeta, "attack", f"-rate={rate}/s", f"-targets={targets}", f"-output={results}"]
    command += vegeta_limits(64)
    child = Child("vegeta", command, core=LOAD_CORE, log=site.scratch / "vegeta.log")
    try:
        time.sleep(SETTLE_S)
        began = time.monotonic()
        load = edits(proxy)
        took = time.monotonic() - began
    finally:
        # SIGINT is how vegeta is told to end and write what it has.
        child.interrupt()
        child.stop()
    text = run_tool([vegeta, "encode", "--to=csv", str(results)], seconds=60)
    with contextlib.suppress(OSError):
        results.unlink()
    seen = parse_vegeta(text.splitlines(), rate=rate, seconds=took + SETTLE_S)
    return Load(
        requests=load.requests + seen.requests,
        errors=seen.errors,
        duration_s=load.duration_s,
        p50_us=load.p50_us,
        p99_us=load.p99_us,
        figure=load.figure,
    )
