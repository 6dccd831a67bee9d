"""Entry points that take everything from the environment, as real processes; ended by process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import PATIENCE_S, eventually

STOP_S = 20.0


class ServiceProcess:
    """A running `datum-router-gateway` or `datum-router-controller` with an admin listener on a free port."""

    def __init__(self, module: str, log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("DATUM_ROUTER_", "KUBE"))}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdout=file,
                stderr=file,
                env={
                    **keep,
                    "DATUM_ROUTER_LOG": "info",
                    "DATUM_ROUTER_LOG_FORMAT": "json",
                    "DATUM_ROUTER_ADMIN": "127.0.0.1:0",
                    "DATUM_ROUTER_LAMEDUCK_SECS": "0.3",
                    **env,
                },
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def lines(self, message: str = "") -> list[dict[str, object]]:
        """Return the log's lines with this message, or all."""
        found = []
        for text in self.log.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and (not message or line.get("message") == message):
                found.append(line)
        return found

    @property
    def admin(self) -> str:
        """Return the admin listener's base address, once it is there."""
        eventually(
            lambda: self.process.poll() is not None or bool(self.lines("admin listening")),
            "the admin listener",
        )
        said = self.lines("admin listening")
        assert said, f"ended with {self.process.poll()}: {self.tail()}"
        return f"http://{said[0]['address']}"

    def page(self, path: str) -> object:
        """Return an admin page's JSON, whatever its status."""
        try:
            with urllib.request.urlopen(self.admin + path, timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def text(self, path: str) -> str:
        """Return an admin page as text."""
        with urllib.request.urlopen(self.admin + path, timeout=5) as answer:
            body: bytes = answer.read()
            return body.decode()

    def wait_ready(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until /readyz says so."""

        def is_ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.poll()}: {self.tail()}")
            page = self.page("/readyz")
            return isinstance(page, dict) and page.get("ready") is True

        eventually(is_ready, f"ready: {self.tail()}", patience_s)

    def port(self) -> int:
        """Return the port of the first listener."""
        page = self.page("/stats")
        assert isinstance(page, dict)
        listeners = page["listeners"]
        assert isinstance(listeners, dict)
        return int(str(next(iter(listeners.values()))).rpartition(":")[2])

    def get(self, path: str, *, host: str = "localhost") -> tuple[int, str]:
        """Send one request to the first listener; return status and body."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port()}{path}", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_text(errors="replace")[-3000:]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it and return its status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not end within {STOP_S:g} s: {self.tail()}") from None
