"""Make one TLS connection after another, each with one request, by full handshakes or by resuming the session before.

The client is Python's `ssl`, which spends more on a handshake than any proxy does: so what counts is not how many there
are but what each costs the proxy, handshakes for each CPU second of its processes. Certificates are not verified.

Usage: handshakes.py PORT HOST full|resumed SECONDS; prints one JSON object. A connection that was to be resumed and was
not is an error, and so is one that got no 200.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time

RECV_BYTES = 65_536


def connect(
    context: ssl.SSLContext, port: int, host: str, session: ssl.SSLSession | None
) -> tuple[bool, bool, ssl.SSLSession | None]:
    """Return whether the answer was right, whether the session was resumed, and the session to resume next."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname=host, session=session) as secured,
    ):
        secured.sendall(f"GET /users/42 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := secured.recv(RECV_BYTES):
            answer += chunk
        return answer.startswith(b"HTTP/1.1 200"), bool(secured.session_reused), secured.session


def main() -> None:
    """Run as the module's text says."""
    port, host, is_resuming, seconds = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "resumed", float(sys.argv[4])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    session: ssl.SSLSession | None = None
    if is_resuming:
        _, _, session = connect(context, port, host, None)
    handshakes = errors = 0
    began = time.monotonic()
    until = began + seconds
    while time.monotonic() < until:
        try:
            is_right, was_resumed, new = connect(context, port, host, session)
        except OSError as error:
            print(repr(error), file=sys.stderr)
            errors += 1
            continue
        handshakes += 1
        errors += not (is_right and was_resumed is is_resuming)
        session = new if is_resuming else None
    report = {"requests": handshakes, "errors": errors, "duration_s": time.monotonic() - began, "body_bytes": 0}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
