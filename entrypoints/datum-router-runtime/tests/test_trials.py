"""Permits that several processes share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from datum_router.health.trial import MAX_KEPT_NUMBERS
from datum_router_runtime.trials import FilePermits, open_permits_file

OTHER = """
import sys
from datum_router_runtime.trials import FilePermits
permits = FilePermits(int(sys.argv[1]))
for line in sys.stdin:
    number, limit = map(int, line.split())
    print(permits.claim(number, limit), flush=True)
"""


class Other:
    """Another process with the same file."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def claim(self, number: int, limit: int) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number} {limit}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def other_process(fd: int) -> Iterator[Other]:
    command = [sys.executable, "-c", OTHER, str(fd)]
    with subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Other(process)
        finally:
            process.kill()


def test_permits_of_a_number_are_shared_with_other_processes() -> None:
    with open_permits_file() as file, other_process(file.fileno()) as other:
        permits = FilePermits(file.fileno())
        assert permits.claim(1, 1) == 0
        assert other.claim(1, 1) == "None"
        assert permits.claim(1, 1) is None
        assert other.claim(2, 2) == "0"
        assert permits.claim(2, 2) == 1
        assert other.claim(2, 2) == "None"
        permits.give_back(1, 0)
        assert other.claim(1, 1) == "0"
        assert permits.claim(1, 1) is None


def test_a_process_that_dies_lets_go_of_its_permits() -> None:
    with open_permits_file() as file, other_process(file.fileno()) as other:
        permits = FilePermits(file.fileno())
        assert other.claim(1, 1) == "0"
        assert permits.claim(1, 1) is None
        other.process.kill()
        other.process.wait()
        assert permits.claim(1, 1) == 0


def test_old_permits_are_let_go_of() -> None:
    with open_permits_file() as file, other_process(file.fileno()) as other:
        permits = FilePermits(file.fileno())
        for number in range(1, MAX_KEPT_NUMBERS + 2):
            assert permits.claim(number, 1) == 0
        assert other.claim(2, 1) == "None"
        assert other.claim(1, 1) == "0"
        permits.give_back(1, 0)  # no longer ours: nothing happens
        assert permits.claim(1, 1) is None


def test_without_locks_each_process_counts_its_own(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    permits = FilePermits(reader)
    assert permits.claim(1, 1) == 0
    assert permits.claim(1, 1) is None
    assert "trials are not counted over all workers" in caplog.text
    permits.give_back(1, 0)
    assert permits.claim(1, 1) == 0
    os.close(reader)
