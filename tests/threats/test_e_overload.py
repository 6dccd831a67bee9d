"""Load shedding in a real gateway: what clients are told while it cannot keep up, and that it ends as that does."""

from __future__ import annotations

import http.client
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.threats import faultkit as kit

pytestmark = pytest.mark.e2e

CLIENTS = 16
SLOW = "time.sleep(0.02)\nreturn endpoints[0]"
"""Fifty requests a second keep a worker busy: any machine can send more."""


class Crowd:
    """Clients that ask again as soon as they are answered, each over one connection.

    Attributes:
        answers: How often each (status, Retry-After, first line) came.
    """

    def __init__(self, port: int) -> None:
        self.answers: Counter[tuple[int, str | None, bytes]] = Counter()
        self._port = port
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._is_over.is_set():
            connection.request("GET", "/")
            answer = connection.getresponse()
            found = (answer.status, answer.headers["retry-after"], answer.read().partition(b"\n")[0])
            with self._lock:
                self.answers[found] += 1
        connection.close()

    @property
    def statuses(self) -> Counter[int]:
        """How often each status came."""
        with self._lock:
            found: Counter[int] = Counter()
            for (status, _, _), count in self.answers.items():
                found[status] += count
            return found

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask for as long as the block runs."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in self._threads:
                thread.join()


@pytest.fixture
def start(
    directory: Path, tmp_path: Path, start_gateway: Any, start_backend: Any
) -> Callable[[str], tuple[Any, Callable[[str], float]]]:
    """Return what starts a gateway with settings, and reads its metrics."""

    def start(settings: str) -> tuple[Any, Callable[[str], float]]:
        backend = start_backend(kit.answer(b"ok"))
        (directory / "a.yaml").write_text(kit.manifest("a", backend, extra="  loadBalancing: faulty"))
        env = kit.install_plugin(tmp_path, kit.balancer_plugin(SLOW))
        gateway = start_gateway(env={**env, "DATUM_ROUTER_DATA_PLANE_CONFIG": settings})

        def metric(name: str) -> float:
            with urllib.request.urlopen(f"{gateway.admin}/metrics", timeout=30) as answer:
                lines = answer.read().decode().splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

        return gateway, metric

    return start


def test_what_there_is_no_time_for_is_refused_and_the_rest_is_served(
    start: Callable[[str], tuple[Any, Callable[[str], float]]],
) -> None:
    gateway, metric = start("shed_queue_age_s=0.05")
    crowd = Crowd(gateway.port)
    with crowd.asking():
        kit.eventually(lambda: crowd.statuses[503] >= 5, "requests to be refused")
        # A worker this busy may be too late for one page with what it has counted.
        kit.eventually(lambda: metric("datum_router_requests_shed_total") >= 5, "the refused to be counted")
        served = crowd.statuses[200]
        kit.eventually(lambda: crowd.statuses[200] >= served + 20, "others to be served meanwhile")
    assert set(crowd.answers) == {
        (200, None, b"ok"),
        (503, "2", b"overloaded: the router has more to do than it can"),
    }
    kit.eventually(lambda: metric("datum_router_shedding") == 0, "everything to be let in again")
    assert gateway.get("/") == (200, b"ok")


def test_with_an_age_of_0_everything_is_let_in(
    start: Callable[[str], tuple[Any, Callable[[str], float]]],
) -> None:
    gateway, metric = start("shed_queue_age_s=0")
    crowd = Crowd(gateway.port)
    with crowd.asking():
        kit.eventually(lambda: crowd.statuses[200] >= 60, "a second of work to be done")
    assert set(crowd.answers) == {(200, None, b"ok")}
    kit.eventually(lambda: metric("datum_router_requests_total") >= 60, "all of them to be counted")
    assert metric("datum_router_requests_shed_total") == 0
