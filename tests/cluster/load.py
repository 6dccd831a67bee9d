"""A steady load of requests from threads, and what became of each."""

from __future__ import annotations

import collections
import contextlib
import http.client
import threading
import time
from collections.abc import Iterator, Sequence


class Load:
    """Requests on kept connections at a steady rate; every answer that is not 2xx and every broken exchange counts.

    Attributes:
        statuses: How often each status was answered.
        errors: What went wrong otherwise, in words.
        waits: Seconds of each answer.
    """

    def __init__(
        self, port: int, paths: Sequence[str], *, rate: float, threads: int = 4, host: str = "localhost"
    ) -> None:
        """Prepare a load.

        Args:
            paths: Asked for in turn.
            rate: Requests a second, of all threads together.
        """
        self.statuses: collections.Counter[int] = collections.Counter()
        self.errors: list[str] = []
        self.waits: list[float] = []
        self.failed: list[tuple[float, str, int]] = []
        self._port = port
        self._paths = list(paths)
        self._host = host
        self._interval_s = threads / rate
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,), daemon=True) for index in range(threads)]

    @property
    def total(self) -> int:
        """Return how many requests there were."""
        return sum(self.statuses.values()) + len(self.errors)

    @property
    def bad(self) -> int:
        """Return how many had another end than a 2xx answer."""
        return sum(count for status, count in self.statuses.items() if not 200 <= status < 300) + len(self.errors)

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, when each thread has its last answer."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=15)
        index = number
        due = time.monotonic()
        while not self._over.is_set():
            path = self._paths[index % len(self._paths)]
            index += len(self._threads)
            started = time.monotonic()
            try:
                connection.request("GET", path, headers={"Host": self._host})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                connection.close()
            else:
                self.statuses[answer.status] += 1
                if not 200 <= answer.status < 300:
                    self.failed.append((time.time(), path, answer.status))
                self.waits.append(time.monotonic() - started)
            due = max(due + self._interval_s, time.monotonic() - 1.0)
            self._over.wait(max(due - time.monotonic(), 0.0))
        connection.close()


@contextlib.contextmanager
def running_load(
    port: int, paths: Sequence[str], *, rate: float, threads: int = 4, host: str = "localhost"
) -> Iterator[Load]:
    """Run a load for the length of a block."""
    load = Load(port, paths, rate=rate, threads=threads, host=host)
    load.start()
    try:
        yield load
    finally:
        load.stop()
