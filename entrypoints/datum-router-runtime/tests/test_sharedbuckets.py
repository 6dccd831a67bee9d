"""Buckets that several processes share."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from datum_router_runtime.sharedbuckets import FileLock, map_buckets, open_buckets_file

KEY = bytes(range(16))
OTHER = """
import sys
from datum_router_runtime.sharedbuckets import map_buckets
buckets = map_buckets(int(sys.argv[1]))
key = bytes(range(16))
print(sum(buckets.draw(key, burst=1000, period_s=1e6, now=1.0).wait_s == 0 for _ in range(2000)), buckets.unlocked)
"""


def test_what_one_process_takes_another_does_not_get() -> None:
    with open_buckets_file() as file:
        buckets = map_buckets(file.fileno())
        assert all(buckets.draw(KEY, burst=1000, period_s=1e6, now=1.0).wait_s == 0 for _ in range(400))
        command = [sys.executable, "-c", OTHER, str(file.fileno())]
        run = subprocess.run(command, pass_fds=[file.fileno()], capture_output=True, text=True, check=True, timeout=60)
        assert run.stdout.split() == ["600", "0"]
        assert buckets.draw(KEY, burst=1000, period_s=1e6, now=1.0).wait_s > 0


def test_two_processes_at_once_let_hardly_more_through_than_there_is() -> None:
    with open_buckets_file() as file:
        command = [sys.executable, "-c", OTHER, str(file.fileno())]
        both = [
            subprocess.Popen(command, pass_fds=[file.fileno()], stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        results = [process.communicate(timeout=60)[0].split() for process in both]
        admitted = sum(int(result[0]) for result in results)
        unlocked = sum(int(result[1]) for result in results)
        assert 1000 <= admitted <= 1000 + unlocked, "only who got no lock may let one through too many"


def test_each_gateway_has_a_secret_of_its_own() -> None:
    with open_buckets_file() as one, open_buckets_file() as other:
        assert map_buckets(one.fileno()).secret != map_buckets(other.fileno()).secret


def test_a_lock_that_another_process_holds_is_not_waited_for() -> None:
    holder = """
import fcntl, sys
fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 7)
print("held", flush=True)
sys.stdin.read()
"""
    with open_buckets_file() as file:
        lock = FileLock(file.fileno())
        with subprocess.Popen(
            [sys.executable, "-c", holder, str(file.fileno())],
            pass_fds=[file.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            assert not lock.acquire(7)
            assert lock.acquire(8)
            process.kill()
        assert lock.acquire(7), "a process that dies lets go of its locks"


def test_without_locks_it_counts_all_the_same_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    lock = FileLock(reader)
    assert not lock.acquire(1)
    assert not lock.acquire(1)
    lock.release(1)
    assert caplog.text.count("rate limits are counted without locks") == 1
    os.close(reader)
