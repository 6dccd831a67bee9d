"""Fetch one URL over and over on several connections and throw the bodies away in the kernel.

wrk copies each body through a buffer of 8 KiB and would be the bottleneck at gigabytes a second. MSG_TRUNC on a TCP
socket discards what it reads without copying it (tcp(7)), so the core of the load is left to the upstream.

Usage: sink.py PORT HOST PATH CONNECTIONS SECONDS; prints one JSON object. Bytes of bodies under way at the end count.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time

HEAD_BYTES = 16384
TAKE_BYTES = 1 << 20
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Fetcher:
    """One keep-alive connection: sends a request, reads the head, discards the body, begins anew."""

    def __init__(self, port: int, request: bytes) -> None:
        self.request = request
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.head = b""
        self.left = -1
        self.taken = 0
        self.requests = 0
        self.spare = bytearray(TAKE_BYTES)

    def begin(self) -> None:
        self.head = b""
        self.left = -1
        self.sock.sendall(self.request)

    def step(self) -> None:
        """Take what is there.

        Raises:
            OSError, ValueError: The connection broke, or the answer is none that we asked for.
        """
        if self.left < 0:
            data = self.sock.recv(HEAD_BYTES)
            if not data:
                raise ConnectionResetError("closed before the head's end")
            self.head += data
            head, end, rest = self.head.partition(b"\r\n\r\n")
            if not end:
                return
            found = LENGTH.search(head + b"\r\n")
            if not head.startswith(b"HTTP/1.1 200") or found is None:
                raise ValueError(head[:60])
            self.left = int(found[1]) - len(rest)
            self.taken += len(rest)
        else:
            count = self.sock.recv_into(self.spare, min(self.left, TAKE_BYTES), socket.MSG_TRUNC)
            if not count:
                raise ConnectionResetError("closed before the body's end")
            self.left -= count
            self.taken += count
        if not self.left:
            self.requests += 1
            self.begin()


def main() -> None:
    """Run as the module's text says."""
    host, path = sys.argv[2:4]
    port, connections, seconds = int(sys.argv[1]), int(sys.argv[4]), float(sys.argv[5])
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    poll = select.epoll()
    fetchers = {}
    for _ in range(connections):
        fetcher = Fetcher(port, request)
        fetchers[fetcher.sock.fileno()] = fetcher
        poll.register(fetcher.sock, select.EPOLLIN)
        fetcher.begin()
    errors = 0
    began = time.monotonic()
    until = began + seconds
    while fetchers and time.monotonic() < until:
        for fd, _ in poll.poll(0.1):
            try:
                fetchers[fd].step()
            except (OSError, ValueError) as error:
                print(f"{path}: {error!r}", file=sys.stderr)
                errors += 1
                poll.unregister(fd)
                fetchers.pop(fd).sock.close()
    took = time.monotonic() - began
    report = {
        "requests": sum(item.requests for item in fetchers.values()),
        "errors": errors,
        "duration_s": took,
        "body_bytes": sum(item.taken for item in fetchers.values()),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
