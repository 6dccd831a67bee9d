"""The measures under load: what each sends to whom, and which figure of it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gatebench import state, tools
from gatebench.manifests import ROUTES
from gatebench.processes import BenchError, memory_bytes
from gatebench.proxies import GRPC_PATH, HOST, PEERS, Proxy, Site
from gatebench.tools import Load

CONNECTIONS = 32
H2_CONNECTIONS = 8
H2_STREAMS = 32
OPEN_LOOP_CONNECTIONS = 128
URIS = 20_000
TWO_WORKERS = "datum-2w"
DEFAULT_RATE = 2000

# What a browser sends with an XMLHttpRequest; 12 fields with Host, which the load generators add.
BROWSER_HEADERS = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept: application/json, text/plain, */*",
    "Accept-Language: en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Referer: https://shop.example.com/catalogue/shoes?page=3",
    "Origin: https://shop.example.com",
    "Cookie: session=6f1d9b3c0f4a4be2a8a1c1d5e7f90312; theme=dark; consent=2026-01-15",
    "Authorization: Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ1c2VyLTQyIn0.c2lnbmF0dXJl",
    "X-Request-Id: 4f0c1f2e-7b1e-4c59-9a55-0d8f6f3b2a10",
    "Sec-Fetch-Mode: cors",
    "Sec-Fetch-Site: same-origin",
)
GRPC_HEADERS = ("content-type: application/grpc", "te: trailers", "user-agent: grpc-python/1.60")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the load needs besides a proxy: files made once, the rate of the open loop, and how long to load.

    `rate` is half of what Envoy answers at saturation in this run, requests/s; 0 before that is known.
    """

    site: Site
    vegeta: str
    uris: Path
    message: Path
    seconds: float
    rate: int = 0


Drive = Callable[[Stage, Proxy, float], Load]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One row of the tables.

    Attributes:
        key: Its name on the command line and in results.json.
        unit: Of the figure that counts: requests/s, bytes/s, us, bytes or s.
        is_higher_better: Whether a larger figure is the better one.
        proxies: Who takes part, in the order of each round.
        is_load: Whether it is a load to warm up for, whose CPU time counts for each request.
        is_per_cpu: Whether requests for each CPU second of the serving processes count, not those of each second.
        is_once: Whether one round says it all: neither fresh memory nor a thousand signatures drift.
        repeats: How often it is measured in each round asked for: a tail needs more of them than a median.
        routes: Routes that ours has besides the loaded one.
    """

    key: str
    title: str
    unit: str
    proxies: tuple[str, ...]
    drive: Drive
    is_higher_better: bool = True
    is_load: bool = True
    is_per_cpu: bool = False
    is_once: bool = False
    repeats: int = 1
    routes: int = ROUTES

    def value(self, load: Load) -> float | None:
        if load.figure is not None:
            return load.figure
        if self.unit == "us":
            return load.p99_us
        return load.bytes_per_s if self.unit == "bytes/s" else load.requests_per_s


def prepare(scratch: Path) -> tuple[Path, Path]:
    """Write the files that loads read: 20,000 URIs, and one gRPC message of 5 bytes with its prefix of 5."""
    uris, message = scratch / "uris", scratch / "message"
    uris.write_text(
        "".join(f"http://{HOST}/users/{n * 7919 % 1_000_003}/orders/{n}?page={n % 9}\n" for n in range(URIS))
    )
    message.write_bytes(b"\0\0\0\0\x05hello")
    return uris, message


def _h1(*headers: str, port: str = "http1", scheme: str = "http") -> Drive:
    def drive(_stage: Stage, proxy: Proxy, seconds: float) -> Load:
        url = f"{scheme}://127.0.0.1:{proxy.ports[port]}/users/42"
        return tools.wrk(
            url,
            connections=CONNECTIONS,
            seconds=seconds,
            headers=(f"Host: {HOST}", *headers),
            script=PEERS / "report.lua",
        )

    return drive


def _h2(*headers: str, has_many_uris: bool = False) -> Drive:
    def drive(stage: Stage, proxy: Proxy, seconds: float) -> Load:
        return tools.h2load(
            f"http://127.0.0.1:{proxy.ports['http2']}/users/42",
            connections=H2_CONNECTIONS,
            streams=H2_STREAMS,
            seconds=seconds,
            headers=(f":authority: {HOST}", *headers),
            scratch=stage.site.scratch,
            uris=stage.uris if has_many_uris else None,
        )

    return drive


def _grpc(stage: Stage, proxy: Proxy, seconds: float) -> Load:
    return tools.h2load(
        f"http://127.0.0.1:{proxy.ports['http2']}{GRPC_PATH}",
        connections=H2_CONNECTIONS,
        streams=H2_STREAMS,
        seconds=seconds,
        headers=(f":authority: {HOST}", *GRPC_HEADERS),
        scratch=stage.site.scratch,
        body=stage.message,
    )


def _open_loop(stage: Stage, proxy: Proxy, seconds: float) -> Load:
    if not stage.rate:
        raise BenchError("the rate is half of Envoy's saturated one, which could not be measured")
    return tools.vegeta(
        stage.vegeta,
        f"http://127.0.0.1:{proxy.ports['http1']}/users/42",
        headers=(f"Host: {HOST}",),
        rate=stage.rate,
        seconds=seconds,
        connections=OPEN_LOOP_CONNECTIONS,
        scratch=stage.site.scratch,
    )


def _bodies(size: str, connections: int) -> Drive:
    def drive(stage: Stage, proxy: Proxy, seconds: float) -> Load:
        return tools.sink(
            str(stage.site.bench_bin / "python"),
            port=proxy.ports["http1"],
            host=HOST,
            path=f"/bodies/{size}",
            connections=connections,
            seconds=seconds,
        )

    return drive


def _handshakes(*, is_resuming: bool) -> Drive:
    def drive(stage: Stage, proxy: Proxy, seconds: float) -> Load:
        return tools.handshakes(
            str(stage.site.bench_bin / "python"),
            port=proxy.ports["tls"],
            host=HOST,
            is_resuming=is_resuming,
            seconds=seconds,
        )

    return drive


def _idle(_stage: Stage, proxy: Proxy, _seconds: float) -> Load:
    return state.figure(memory_bytes(proxy.serving())[0])


def _idle_all(_stage: Stage, proxy: Proxy, _seconds: float) -> Load:
    return state.figure(memory_bytes(proxy.everything())[1])


def _idle_connections(_stage: Stage, proxy: Proxy, _seconds: float) -> Load:
    return state.idle_connections(proxy)


def _routes(stage: Stage, proxy: Proxy, _seconds: float) -> Load:
    return state.route_memory(stage.site, proxy)


def _edit(_stage: Stage, proxy: Proxy, _seconds: float) -> Load:
    return state.edits(proxy)


def _edit_loaded(stage: Stage, proxy: Proxy, _seconds: float) -> Load:
    return state.edits_under_load(stage.site, proxy, stage.vegeta, stage.rate or DEFAULT_RATE)


FULL = ("datum", "envoy", "nginx", "haproxy")
PYTHON_PEERS = ("aiohttp", "mitmproxy")
ALL = (*FULL, *PYTHON_PEERS)
MANY_ROUTES = 5000
MEASURES = (
    Measure(
        key="h1",
        title="HTTP/1.1 keep-alive, 32 connections",
        unit="requests/s",
        proxies=ALL,
        drive=_h1(),
    ),
    Measure(
        key="h1-headers",
        title="the same with 12 request headers",
        unit="requests/s",
        proxies=(*FULL, "aiohttp"),
        drive=_h1(*BROWSER_HEADERS),
    ),
    Measure(
        key="h2",
        title="HTTP/2, 8 connections x 32 streams, to HTTP/1.1",
        unit="requests/s",
        proxies=FULL,
        drive=_h2(),
    ),
    Measure(
        key="h2-headers",
        title="the same with 12 headers and 20,000 URIs",
        unit="requests/s",
        proxies=FULL,
        drive=_h2(*BROWSER_HEADERS, has_many_uris=True),
    ),
    Measure(key="grpc", title="gRPC unary over HTTP/2 end to end", unit="requests/s", proxies=FULL, drive=_grpc),
    Measure(
        key="latency",
        title="p99 at half of Envoy's saturated rate, open loop",
        unit="us",
        proxies=FULL,
        drive=_open_loop,
        is_higher_better=False,
        repeats=3,
    ),
    Measure(
        key="body-256k",
        title="256 KiB bodies, 32 connections",
        unit="bytes/s",
        proxies=FULL,
        drive=_bodies("256k", 32),
    ),
    Measure(
        key="body-64m", title="64 MiB bodies, 4 connections", unit="bytes/s", proxies=FULL, drive=_bodies("64m", 4)
    ),
    Measure(
        key="tls",
        title="TLS 1.3 keep-alive, 32 connections",
        unit="requests/s",
        proxies=FULL,
        drive=_h1(port="tls", scheme="https"),
    ),
    *(
        Measure(
            key=f"handshake-{kind}",
            title=f"TLS 1.3 connections by {kind} handshakes, one request each, per CPU second",
            unit="requests/s",
            proxies=FULL,
            drive=_handshakes(is_resuming=kind == "resumed"),
            is_per_cpu=True,
            is_once=True,
        )
        for kind in ("full", "resumed")
    ),
    Measure(
        key="workers",
        title="two workers and one, requests per CPU second",
        unit="requests/s",
        proxies=("datum", TWO_WORKERS),
        drive=_h1(),
        is_per_cpu=True,
    ),
    *(
        Measure(
            key=key,
            title=title,
            unit=unit,
            proxies=proxies,
            drive=drive,
            is_higher_better=False,
            is_load=False,
            is_once=is_once,
            routes=routes,
        )
        for key, title, unit, proxies, drive, is_once, routes in (
            ("memory-idle", "idle worker, resident", "bytes", ALL, _idle, True, ROUTES),
            ("memory-all", "all idle processes, proportional", "bytes", ALL, _idle_all, True, ROUTES),
            (
                "memory-connection",
                "each idle keep-alive connection",
                "bytes",
                (*FULL, "aiohttp"),
                _idle_connections,
                True,
                ROUTES,
            ),
            ("memory-routes", "5,000 routes in a worker", "bytes", ("datum",), _routes, True, MANY_ROUTES),
            ("edit", "one edit among 10,000 routes until in force, quiet", "us", ("datum",), _edit, False, 10_000),
            ("edit-loaded", "the same while loaded", "us", ("datum",), _edit_loaded, False, 10_000),
        )
    ),
)
