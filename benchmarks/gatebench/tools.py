"""Load generators, and readers of what they print. Each runs pinned to the core that the upstream also has.

- wrk: HTTP/1.1, closed loop. Percentiles come from its histogram through `peers/report.lua`.
- h2load: HTTP/2, closed loop. Exact percentiles from its log of every request.
- vegeta: HTTP/1.1, open loop: requests leave at a constant rate whether or not answers have come, each on a worker of
  its own, so that a stall of the proxy counts for every request that it delays (no coordinated omission).
- `handshakes.py`: TLS connections one after another, whose cost to the proxy counts, not their rate.
- `sink.py`: long bodies, which it throws away in the kernel, so that the reader is never what limits.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gatebench.processes import LOAD_CORE, BenchError, find_program, pinned
from gatebench.samples import percentile

THREADS = 1
GRACE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a load generator saw. `errors` counts requests that got no 2xx answer.

    `figure` is the measured value where it is none of the others: bytes of memory, seconds of compiling.
    """

    requests: int
    errors: int
    duration_s: float
    body_bytes: int = 0
    p50_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    figure: float | None = None

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.duration_s

    @property
    def bytes_per_s(self) -> float:
        return self.body_bytes / self.duration_s


def run_tool(command: Sequence[str], *, seconds: float, given: str | None = None) -> str:
    """Run a load generator on its core and return what it printed.

    Raises:
        BenchError: It failed, or did not end within `seconds` and some grace.
    """
    try:
        done = subprocess.run(
            pinned(LOAD_CORE, command),
            check=False,
            capture_output=True,
            text=True,
            input=given,
            timeout=seconds + GRACE_S,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{Path(command[0]).name} did not end within {seconds + GRACE_S:g} s") from error
    if done.returncode:
        raise BenchError(f"{Path(command[0]).name} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


def header_arguments(headers: Sequence[str]) -> list[str]:
    return [part for header in headers for part in ("-H", header)]


def parse_wrk(text: str) -> Load:
    """Read the line that `peers/report.lua` adds.

    Raises:
        BenchError: There is none.
    """
    found = re.search(r"^GATEBENCH (\{.*\})$", text, re.MULTILINE)
    if not found:
        raise BenchError(f"wrk printed no report: {text[-300:]}")
    report = json.loads(found[1])
    return Load(
        requests=report["requests"] - report["status"],
        errors=sum(report[kind] for kind in ("connect", "read", "write", "timeout", "status")),
        duration_s=report["duration_us"] / 1e6,
        body_bytes=report["bytes"],
        p50_us=report["p50_us"],
        p99_us=report["p99_us"],
        p999_us=report["p999_us"],
    )


def wrk(url: str, *, connections: int, seconds: float, headers: Sequence[str], script: Path) -> Load:
    """Load `url` with wrk for `seconds`."""
    command = [find_program("wrk"), f"-t{THREADS}", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    return parse_wrk(
        run_tool([*command, "-s", str(script), *header_arguments(headers), url], seconds=max(1, round(seconds)))
    )


_H2LOAD_LINES = {
    "finished": re.compile(r"^finished in ([\d.]+)(us|ms|s|m)\b", re.MULTILINE),
    "requests": re.compile(
        r"^requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout",
        re.MULTILINE,
    ),
    "status": re.compile(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", re.MULTILINE),
    "data": re.compile(r"^traffic: .*\((\d+)\) data", re.MULTILINE),
}
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def parse_h2load(text: str, log: Iterable[str] = ()) -> Load:
    """Read h2load's last lines, and the percentiles from the lines of its `--log-file`.

    Raises:
        BenchError: A line is missing, as it is when no connection came about.
    """
    found = {name: pattern.search(text) for name, pattern in _H2LOAD_LINES.items()}
    finished, requests, status, data = (found[name] for name in ("finished", "requests", "status", "data"))
    if finished is None or requests is None or status is None or data is None:
        raise BenchError(f"h2load printed no result: {text[-300:]}")
    done, _succeeded, failed, errored, timeout = (int(number) for number in requests.groups())
    good = int(status[1])
    if not done:
        raise BenchError("h2load got no answer at all")
    times = sorted(float(line.split("\t")[2]) for line in log)
    return Load(
        requests=good,
        # A request that failed has no status; an answer that is no 2xx has one and did not "fail" for h2load.
        errors=max(failed, errored, timeout, done - good),
        duration_s=float(finished[1]) * _UNITS[finished[2]],
        body_bytes=int(data[1]),
        p50_us=percentile(times, 50) if times else None,
        p99_us=percentile(times, 99) if times else None,
        p999_us=percentile(times, 99.9) if times else None,
    )


def h2load(
    url: str,
    *,
    connections: int,
    streams: int,
    seconds: float,
    headers: Sequence[str],
    scratch: Path,
    uris: Path | None = None,
    body: Path | None = None,
) -> Load:
    """Load `url` by HTTP/2 with prior knowledge for `seconds`; `uris` is a file of URIs taken in turn."""
    log = scratch / "h2load.log"
    log.unlink(missing_ok=True)
    # Windows as the proxies have them: 2^16-1 for a stream, 2^20-1 for a connection.
    command = [find_program("h2load"), f"-t{THREADS}", f"-c{connections}", f"-m{streams}", f"-D{seconds:g}s"]
    command += ["-w16", "-W20", f"--log-file={log}", *header_arguments(headers)]
    if body is not None:
        command += ["-d", str(body)]
    command += ["-B", url, "-i", str(uris)] if uris is not None else [url]
    text = run_tool(command, seconds=seconds)
    with log.open() as lines:
        return parse_h2load(text, lines)


def vegeta_limits(connections: int) -> list[str]:
    """Return the options for at most `connections`, which all stay open; ours takes 200 from one address.

    Workers are not bounded: a request that finds no free connection waits for one, and that is part of its time.
    """
    return [
        f"-connections={connections}",
        f"-max-connections={connections}",
        f"-workers={connections}",
        "-timeout=10s",
        "-max-body=0",
    ]


def parse_vegeta(lines: Iterable[str], *, rate: int, seconds: float) -> Load:
    """Read the CSV of `vegeta encode`: when, status, latency in ns, ...

    Raises:
        BenchError: It sent less than 97 % of what the rate asks for: the load was not the one that was named.
    """
    times = []
    errors = body = 0
    for row in csv.reader(lines):
        times.append(int(row[2]) / 1e3)
        body += int(row[4])
        errors += not row[1].startswith("2")
    if len(times) < 0.97 * rate * seconds:
        raise BenchError(
            f"vegeta sent {len(times)} requests, not {rate * seconds:g}: it cannot keep up on this machine"
        )
    times.sort()
    return Load(
        requests=len(times) - errors,
        errors=errors,
        duration_s=seconds,
        body_bytes=body,
        p50_us=percentile(times, 50),
        p99_us=percentile(times, 99),
        p999_us=percentile(times, 99.9),
    )


def vegeta(
    program: str, url: str, *, rate: int, seconds: float, headers: Sequence[str], connections: int, scratch: Path
) -> Load:
    """Send `rate` requests a second to `url` for `seconds`, open loop."""
    results = scratch / "vegeta.bin"
    attack = [program, "attack", f"-rate={rate}/s", f"-duration={seconds:g}s", f"-output={results}"]
    attack += vegeta_limits(connections)
    attack += [f"-header={header}" for header in headers]
    run_tool(attack, seconds=seconds + 10, given=f"GET {url}\n")
    text = run_tool([program, "encode", "--to=csv", str(results)], seconds=60)
    return parse_vegeta(text.splitlines(), rate=rate, seconds=seconds)


def parse_sink(text: str) -> Load:
    """Read the JSON line of `sink.py`."""
    report = json.loads(text.strip().splitlines()[-1])
    return Load(
        requests=report["requests"],
        errors=report["errors"],
        duration_s=report["duration_s"],
        body_bytes=report["body_bytes"],
    )


def handshakes(python: str, *, port: int, host: str, is_resuming: bool, seconds: float) -> Load:
    """Make TLS connections one after another for `seconds`, each with one request."""
    script = Path(__file__).with_name("handshakes.py")
    command = [python, str(script), str(port), host, "resumed" if is_resuming else "full", f"{seconds:g}"]
    return parse_sink(run_tool(command, seconds=seconds))


def sink(python: str, *, port: int, host: str, path: str, connections: int, seconds: float) -> Load:
    """Fetch bodies for `seconds` and throw them away."""
    script = Path(__file__).with_name("sink.py")
    command = [python, str(script), str(port), host, path, str(connections), f"{seconds:g}"]
    return parse_sink(run_tool(command, seconds=seconds))
