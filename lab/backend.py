"""A backend of the lab: says its cloud, its tenant and who asked. `python -m lab.backend CLOUD TENANT ADDRESS...`."""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lab.plan import BACKEND_PORT


class Answer(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer any path alike."""
        cloud, tenant = sys.argv[1:3]
        said = {"cloud": cloud, "tenant": tenant, "path": self.path, "from": self.client_address[0]}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Threads are of no interest to who ends the process."""

    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        """Bind without looking the address up in the DNS, which takes long where there is none."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "backend", BACKEND_PORT


class Server6(Server):
    """The same for IPv6."""

    address_family = socket.AF_INET6


def main() -> None:
    """Serve on every address until killed."""
    servers = [(Server6 if ":" in one else Server)((one, BACKEND_PORT), Answer) for one in sys.argv[3:]]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
