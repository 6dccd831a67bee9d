"""For tests: a source that runs in a thread of its own, and an API server that says what it is told to say."""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec
import trio

from datum_router.compiler.diagnostics import Diagnostic
from datum_router.manifests.table import KindTable
from datum_router.plugins.protocols import Delete, Mark, Source, SourceEvent, Synced, Upsert
from datum_router.registry.store import Store, StoreView

PATIENCE_S = 20.0
TOKEN = "token-of-the-test"


def eventually(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition in small steps; fail with a sentence."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError(f"not within {patience_s:g} s: {what}")


class RunningSource:
    """A source that runs until the end of a `with` block, and a store that takes what it emits.

    Attributes:
        events: All that was emitted, in order.
        gate: Cleared by a test, it holds up whoever emits.
    """

    def __init__(self, source: Source, kinds: KindTable) -> None:
        self.events: list[SourceEvent] = []
        self.gate = threading.Event()
        self.gate.set()
        self._source = source
        self._store = Store(kinds)
        self._lock = threading.Lock()
        self._scope: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="running-source", daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> RunningSource:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        if self._token is not None and self._scope is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the source does not end"
        if self._error is not None and error is None:
            raise self._error

    def _main(self) -> None:
        async def run() -> None:
            with trio.CancelScope() as self._scope:
                self._token = trio.lowlevel.current_trio_token()
                self._ready.set()
                await self._source.run(self._emit)

        try:
            trio.run(run)
        except BaseException as error:  # noqa: BLE001 - told to the test
            self._error = error
            self._ready.set()

    def _emit(self, events: Sequence[SourceEvent]) -> None:
        assert self.gate.wait(PATIENCE_S)
        with self._lock:
            for event in events:
                self._store.apply(event)
            self.events += events

    @property
    def view(self) -> StoreView:
        """Return what is in force now."""
        with self._lock:
            return self._store.view()

    @property
    def is_synced(self) -> bool:
        """Tell whether the source has said all it knew."""
        return any(isinstance(event, Synced) for event in self.events)

    def names(self, kind: str) -> list[str]:
        """Return the names of the objects of a kind in force."""
        return [item.metadata.name for item in self.view.list(kind)]  # type: ignore[attr-defined]

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Return what is wrong now."""
        return self.view.diagnostics()

    def told(self) -> list[str]:
        """Return what was emitted, one word or two each: `+a`, `-a`, `VPCRoute@7`, `synced`."""
        found = []
        for event in list(self.events):
            if isinstance(event, Upsert):
                assert isinstance(event.raw, msgspec.Raw)
                found.append("+" + str(msgspec.json.decode(event.raw)["metadata"]["name"]))
            elif isinstance(event, Delete):
                found.append("-" + event.key.name)
            elif isinstance(event, Mark):
                found.append(f"{event.kind}{'/' * bool(event.namespace)}{event.namespace}@{event.version}")
            elif isinstance(event, Synced):
                found.append("synced")
        return found

    def wait(self, condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
        """Wait for a condition; fail at once if the source broke."""

        def is_met() -> object:
            if self._error is not None:
                raise AssertionError(f"the source broke while waiting for: {what}") from self._error
            return condition()

        eventually(is_met, what, patience_s)

    def wait_synced(self) -> None:
        """Wait until the source has said all it knew."""
        self.wait(lambda: self.is_synced, "synced")


def write_kubeconfig(
    directory: Path, server: str, *, namespace: str = "here", user: Mapping[str, object] | None = None
) -> Path:
    """Write a kubeconfig of one context and return its path."""
    path = directory / "kubeconfig"
    config = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user or {"token": TOKEN}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(config))
    return path


# --- a scripted API ------------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    Attributes:
        chunks: Sent one by one, as chunks of HTTP/1.1, if given; else `body` is sent with its length.
        then: After the chunks: `end` in order, `cut` the connection, or `hang` until the server stops.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    chunks: Iterable[bytes] | None = None
    then: str = "end"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request that came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    at: float

    @property
    def is_watch(self) -> bool:
        """Tell whether it asks for a watch."""
        return "watch" in self.query


class ScriptedApi:
    """An HTTP server on loopback whose answers are scripted, by path, for lists and watches apart.

    Without a script, a list is empty and a watch hangs. The last reply of a script is given again and again.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._scripts: dict[tuple[str, bool], list[Reply | Callable[[Asked], Reply]]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                api._handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - the names that the base class calls

            def log_message(self, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that leave are what is tested

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> ScriptedApi:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE_S)

    def lists(self, path: str, *replies: Reply | Callable[[Asked], Reply]) -> None:
        """Script everything at a path but watches."""
        with self._lock:
            self._scripts[path, False] = list(replies)

    def watches(self, path: str, *replies: Reply | Callable[[Asked], Reply]) -> None:
        """Script the watches of a path."""
        with self._lock:
            self._scripts[path, True] = list(replies)

    def asked_for(self, path: str, *, is_watch: bool) -> list[Asked]:
        """Return the requests for a path."""
        return [one for one in list(self.asked) if one.path == path and one.is_watch == is_watch]

    def kubeconfig(self, directory: Path, *, user: Mapping[str, object] | None = None) -> Path:
        """Write a kubeconfig for it and return its path."""
        return write_kubeconfig(directory, self.url, user=user)

    def _handle(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        split = urllib.parse.urlsplit(handler.path)
        length = int(handler.headers.get("content-length", "0"))
        handler.rfile.read(length)
        asked = Asked(
            method=handler.command,
            path=urllib.parse.unquote(split.path),
            query=dict(urllib.parse.parse_qsl(split.query)),
            headers={name.lower(): value for name, value in handler.headers.items()},
            at=time.monotonic(),
        )
        with self._lock:
            self.asked.append(asked)
            script = self._scripts.get((asked.path, asked.is_watch))
            found = None if not script else script.pop(0) if len(script) > 1 else script[0]
        if found is None:
            found = Reply(chunks=(), then="hang") if asked.is_watch else page([])
        self._send(handler, found if isinstance(found, Reply) else found(asked))

    def _send(self, handler: http.server.BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.then == "cut" and reply.chunks is None:
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.chunks is None:
            handler.send_header("content-length", str(len(reply.body)))
            handler.end_headers()
            handler.wfile.write(reply.body)
            return
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        for chunk in reply.chunks:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            handler.wfile.flush()
        if reply.then == "hang":
            self._over.wait()
        if reply.then == "end":
            handler.wfile.write(b"0\r\n\r\n")
        else:
            handler.close_connection = True


def item(name: str, version: str = "1", *, namespace: str = "default", **fields: object) -> dict[str, object]:
    """Return an object as lists hold it."""
    return {"metadata": {"name": name, "namespace": namespace, "resourceVersion": version}, **fields}


def page(items: Sequence[Mapping[str, object]], version: str = "10", *, token: str = "") -> Reply:
    """Return a page of a list."""
    metadata = {"resourceVersion": version, **({"continue": token} if token else {})}
    return Reply(body=json.dumps({"kind": "List", "metadata": metadata, "items": list(items)}).encode())


def refusal(status: int, reason: str = "", *, message: str = "", headers: Mapping[str, str] = {}) -> Reply:
    """Return an answer that says no."""
    body = {"kind": "Status", "code": status, "reason": reason, "message": message}
    return Reply(status=status, body=json.dumps(body).encode(), headers=headers)


def event(kind: str, thing: Mapping[str, object]) -> bytes:
    """Return a line of a watch."""
    return json.dumps({"type": kind, "object": thing}).encode() + b"\n"


def bookmark(version: str) -> bytes:
    """Return a line of a watch that tells how far it has come."""
    return event("BOOKMARK", {"metadata": {"resourceVersion": version}})


def failure(status: int, reason: str = "") -> bytes:
    """Return a line of a watch that tells of an error."""
    return event("ERROR", {"kind": "Status", "code": status, "reason": reason, "message": "so it is"})


def watch(*lines: bytes, then: str = "hang") -> Reply:
    """Return a watch with these lines."""
    return Reply(chunks=lines, then=then)


class Lines:
    """The lines of a watch, given as the test goes on; ends with None."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue()

    def put(self, line: bytes | None) -> None:
        """Send a line."""
        self._queue.put(line)

    def __iter__(self) -> Iterator[bytes]:
        while (line := self._queue.get()) is not None:
            yield line
